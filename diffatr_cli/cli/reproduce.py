"""`diffatr reproduce`: the paper's tables, beside what the same commands reach here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import launched
from ..errors import DiffATRError, UsageError
from .console import Device, Json, Runs, joined, progress_bar, say, show, show_text
from .evaluate import parse_seeds
from .targets import check_file

if TYPE_CHECKING:
    from ..reproduce.plan import Table


def reproduce(
    what: Annotated[
        list[str],
        typer.Argument(metavar="TABLE... [KEY=VALUE]...", help="1 to 7, figure3, all, levers or frames; and fields to change."),
    ],
    world: Annotated[
        str, typer.Option("--data", metavar="KIND", help="paper: AudioCaps and Clotho; scenes: composed stand-ins for both.")
    ] = "paper",
    seeds: Annotated[str | None, typer.Option("--seeds", help="Training seeds; 0,1,2 if left out, with --quick 0.")] = None,
    ablation_seeds: Annotated[
        str | None, typer.Option("--ablation-seeds", help="Training seeds of Tables 5 to 7, where they are other than --seeds.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of the epochs and one seed: a look, not the recipe's figures.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="audiocaps or clotho: only the tables that are learnt from it.")
    ] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="Train nothing: the rows whose runs are there for all seeds.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is there and what would be trained, and stop.")] = False,
    figure_file: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            help="Where figure3 is drawn: .png, .svg or .gif; figure3.png if not given.",
            dir_okay=False,
        ),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a document in Markdown, which the figure lies beside.")
    ] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX (booktabs) on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all figures as CSV on stdout.")] = False,
    folder: Annotated[
        Path, typer.Option("--data-folder", metavar="DIR", help="Folder of prepared data sets.", file_okay=False)
    ] = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Reproduce the paper's tables: train what is missing, share what can be shared, and print ours beside the paper's.

    Interrupt it whenever you like: the same command goes on. Runs of pretrain and train-diffusion are found by their names.

    Example: diffatr reproduce 1 5 --dry-run

    Example: diffatr reproduce all --data scenes --seeds 0,1 --markdown
    """
    from ..reproduce.plan import ABLATIONS, SOURCES, STUDIES, TABLES, figure, needed, plan
    from ..reproduce.reproduce import reproduce as job
    from ..reproduce.reproduce import train_missing
    from ..reproduce.state import steps_of

    if sum((as_json, as_markdown, as_latex, as_csv)) > 1:
        raise UsageError("--json, --markdown, --latex and --csv exclude each other: stdout carries one of them.")
    if world not in ("paper", "scenes"):
        raise UsageError(f"--data: {world} is neither paper nor scenes.")
    if source is not None and source not in SOURCES:
        raise UsageError(f"--source: {source} is neither {' nor '.join(SOURCES)}.")
    overrides = [each for each in what if "=" in each]
    asked = [each for each in what if "=" not in each]
    drawn = "figure3" in asked or "all" in asked
    if figure_file is not None and not drawn:
        raise UsageError("--figure: nothing is drawn. Name figure3 beside the tables, or leave it out.")
    figure_out = figure_file or Path("figure3.png")
    named = [each for each in asked if each not in ("figure3", "all")]
    numbers = [*dict.fromkeys((*(TABLES if "all" in asked else ()), *named))]
    there = f"Name some of {', '.join((*TABLES, 'figure3', 'all', *STUDIES))}."
    if unknown := [number for number in numbers if number not in (*TABLES, *STUDIES)]:
        raise UsageError(f"reproduce: there is no table {', '.join(unknown)}. {there}")
    if not numbers and not drawn:
        raise UsageError(f"reproduce: no table is named. {there}")
    chosen = parse_seeds(seeds) or ((0,) if quick else (0, 1, 2))
    of_ablations = parse_seeds(ablation_seeds) or chosen
    tables = plan(numbers, world, quick=quick, overrides=overrides, source=source)  # type: ignore[arg-type]
    shown = figure(world, quick=quick, overrides=overrides)  # type: ignore[arg-type]
    from ..report import reproduction as report

    def seeds_for(table: Table) -> tuple[int, ...]:
        return of_ablations if table.number in ABLATIONS else chosen

    if trained:
        tables = tuple(_there(table, seeds_for(table), runs) for table in tables)
    if dry_run:
        pairs = [(training, seed) for table in tables for training in table.trainings for seed in seeds_for(table)]
        pairs += [(shown, chosen[0])] if drawn else []
        order = needed(training for training, _ in pairs)
        steps = steps_of(sorted(set(pairs), key=lambda pair: (order.index(pair[0]), pair[1])), runs)
        show(report.plan_json(steps), report.plan_table(steps), as_json=as_json)
        return
    if drawn:
        from ..evaluation.trajectory import trajectory
        from ..report.trajectory_figure import check_out, draw, is_figure

        check_out(figure_out, "--figure")
        check_file("--figure", figure_out, ours=is_figure)
    chain = None
    with joined(device), progress_bar() as progress:
        filled = []
        for own_seeds, some in groupby(tables, key=seeds_for):
            filled += job([*some], own_seeds, data=folder, runs=runs, device=device, progress=progress, told=say)
        if drawn:
            train_missing([shown], chosen[:1], data=folder, runs=runs, device=device, progress=progress, told=say)
            name = shown.resolved().data.name
            chain = trajectory(
                name, name, data=folder, runs=runs, recipe=shown.name, seed=chosen[0], device=device, progress=progress
            )
            if launched.rank() == 0:
                draw(chain, figure_out)
            say(f"Figure 3 is drawn in {figure_out}")
    if as_markdown:
        from ..device import resolve_device
        from ..training.phase_folder import git_revision, versions

        facts = {name: version for name, version in versions().items() if name != "platform"}
        facts |= {"revision": git_revision() or "unknown", "device": str(resolve_device(device))}
        command = shlex.join(["diffatr", *sys.argv[1:]])
        show_text(report.markdown(filled, quick, command, facts, (figure_out.name, chain) if chain else None))
    elif as_latex:
        show_text("\n".join(report.latex(table, quick) for table in filled))
    elif as_csv:
        show_text(report.comma_separated(filled))
    else:
        document: list[object] = [table.to_json() | {"quick": quick} for table in filled]
        document += [chain.to_json() | {"figure": str(figure_out), "quick": quick}] if chain else []
        show(document, *(report.terminal_table(table, quick) for table in filled), as_json=as_json)


def _there(table: Table, seeds: Sequence[int], runs: Path) -> Table:
    """The rows of a table that are trained, with a line that tells how many are not."""
    from ..reproduce.state import trained_rows

    found = trained_rows(table, seeds, runs)
    if not found.rows:
        raise DiffATRError(f"{table.title}: no row is trained for all of the seeds. Leave out --trained.")
    if left := len(table.rows) - len(found.rows):
        say(f"{table.title}: {left} of {len(table.rows)} rows are not trained yet")
    return found


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("reproduce")(reproduce)
