"""`diffatr trajectory`: parse, follow the chain, draw Figure 3, show what every level is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .console import Data, Device, Json, Runs, progress_bar, say, show
from .targets import check_file


def trajectory(
    source: Annotated[str, typer.Option("--source", help="Data set that the model learnt from.", metavar="NAME")],
    target: Annotated[str, typer.Option("--target", help="Data set to test on.", metavar="NAME")],
    out: Annotated[Path, typer.Option("--out", help="The figure: .png, .svg, or .gif, a film of all levels.", dir_okay=False)],
    query: Annotated[str | None, typer.Option("--query", help="A text to follow; the first clip's caption if left out.")] = None,
    item: Annotated[str | None, typer.Option("--item", metavar="ID", help="A clip to follow, by its id in the manifest.")] = None,
    direction: Annotated[str, typer.Option("--direction", help="t2a, or a2t: a clip asks for its captions.")] = "t2a",
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe of the run, where several learnt from it.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Training seed; the lowest if left out.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    noise_seed: Annotated[int, typer.Option("--noise-seed", min=0, max=2**31 - 1, help="Seed of the diffusion noise.")] = 0,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw the paper's Figure 3: the distribution over the candidates of one query, from noise to the answer.

    Below it, for the whole split at every level: the true candidates' probability, the entropy, and R@1, so that one sees what
    the chain contributes. Needs the extra `plot`.

    Example: diffatr trajectory --source clotho --target clotho --query "a dog barks" --out figure3.png
    """
    from ..types import DIRECTIONS

    known = next((each for each in DIRECTIONS if each == direction), None)
    if known is None:
        raise UsageError(f"--direction: {direction} is none of {', '.join(DIRECTIONS)}.")
    from ..report.trajectory_figure import check_out, draw, is_figure

    check_out(out)
    check_file("--out", out, ours=is_figure)
    from ..evaluation.trajectory import trajectory as job
    from ..report.chain import LEVEL_COLUMNS, level_caption, level_rows
    from ..report.tables import rows_table

    with progress_bar() as progress:
        result = job(
            source,
            target,
            data=data,
            runs=runs,
            direction=known,
            query=query,
            item=item,
            recipe=recipe,
            seed=seed,
            split=split,
            noise_seed=noise_seed,
            device=device,
            progress=progress,
        )
        draw(result, out)
    say(f"drawn in {out}")
    if not any(each.true for each in result.candidates):
        say(f"note: no clip of {target} {split} has this caption, so none is marked as true")
    title = f"{source} → {target}, {direction}: from noise to the answer"
    show(
        result.to_json() | {"figure": str(out)},
        rows_table(title, LEVEL_COLUMNS, level_rows(result), caption=level_caption(result)),
        as_json=as_json,
    )


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("trajectory")(trajectory)
