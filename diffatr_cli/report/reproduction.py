"""The paper's tables beside ours, for a terminal, as Markdown, LaTeX and CSV: one grid of texts, written in four ways. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table as RichTable
from rich.text import Text

from ..evaluation.trajectory import TrajectoryResult
from ..progress import duration
from ..reproduce.plan import QUICK
from ..reproduce.reproduce import METRICS, FilledRow, FilledTable
from ..reproduce.state import Step
from ..types import DIRECTIONS
from .chain import LEVEL_COLUMNS, level_caption, level_rows
from .tables import DIRECTION_NAMES, METRIC_NAMES, bare_table, spread

Kind = Literal["ours", "difference", "paper"]
_COLUMNS = (
    *("table", "row", "system", "run", "direction", "metric", "mean", "std", "seeds"),
    *("difference", "low", "high", "paper", "paper_std", "departs"),
)
_MARK = "*"
"""Stands behind figures of the paper whose recipe ours departs from."""


@dataclass(frozen=True)
class Line:
    """One line of a grid: our figures, their difference to the baseline, or the paper's."""

    kind: Kind
    label: str
    cells: tuple[str, ...]


def lines_of(table: FilledTable) -> list[Line]:
    """A table as texts, a column for each direction and metric."""
    lines = []
    for row in table.rows:
        lines.append(Line("ours", row.row.label, tuple(_cells(row, "ours"))))
        if row.difference:
            lines.append(Line("difference", "  difference to the baseline", tuple(_cells(row, "difference"))))
        if row.paper:
            lines.append(Line("paper", f"  the paper{_MARK if row.row.departs else ''}", tuple(_cells(row, "paper"))))
    return lines


def notes_of(table: FilledTable, quick: bool) -> list[str]:
    """What has to be known beside the figures."""
    seeds = ", ".join(map(str, table.seeds))
    notes = [
        f"{table.table.source} to {table.table.target}: {table.clips:,} clips, {table.captions:,} captions; mean ± sample "
        f"deviation over training seeds {seeds}; differences with 95 % intervals (paired bootstrap over queries, clustered by "
        "clip, all seeds)"
    ]
    if quick:
        notes.append(f"quick: epochs divided by {QUICK}, so that no figure is what the recipe reaches")
    departs = dict.fromkeys(field for row in table.rows for field in row.row.departs)
    if departs:
        notes.append(f"{_MARK} ours departs from the recipe of the paper's row in {', '.join(departs)}")
    return notes


def heads() -> list[str]:
    """The columns behind the label."""
    return [f"{direction} {METRIC_NAMES[metric]}" for direction in DIRECTIONS for metric in METRICS]


def terminal_table(table: FilledTable, quick: bool) -> RichTable:
    """For a terminal."""
    shown = bare_table(f"Table {table.table.number}. {table.table.title}", ". ".join(notes_of(table, quick)) + ".")
    shown.add_column("")
    for head in heads():
        shown.add_column(Text(head), justify="right")
    for line in lines_of(table):
        shown.add_row(Text(line.label), *map(Text, line.cells), style=None if line.kind == "ours" else "dim")
    return shown


def markdown(
    tables: Sequence[FilledTable],
    quick: bool,
    made_by: str,
    facts: Mapping[str, str],
    figure: tuple[str, TrajectoryResult] | None = None,
) -> str:
    """A whole Markdown document.

    Args:
        made_by: the command that makes it.
        facts: what the numbers depend on beside the recipes: versions, revision, device.
        figure: the file of Figure 3, as the document names it, and what it shows.
    """
    sections = [
        "# The paper's tables, and ours\n",
        f"This document is made whole by\n\n```sh\n{made_by}\n```\n",
        f"Evaluated with {', '.join(f'{name} {value}' for name, value in facts.items())}. Each run's folder records what it was "
        "trained with.\n",
        *(_section(table, quick) for table in tables),
    ]
    if figure is not None:
        file, chain = figure
        sections.append(
            f"### Figure 3. From noise to the answer\n\n![One query's distribution over the candidates]({file})\n\n"
            f"{_grid(LEVEL_COLUMNS, level_rows(chain))}\n\n- {level_caption(chain)}\n" + ("- quick: as above\n" if quick else "")
        )
    return "\n".join(sections)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _section(table: FilledTable, quick: bool) -> str:
    body = _grid(["", *heads()], [[_indented(line.label, "&nbsp;&nbsp;"), *line.cells] for line in lines_of(table)])
    notes = "\n".join(
        f"- {note.replace(_MARK, chr(92) + _MARK, 1) if note.startswith(_MARK) else note}" for note in notes_of(table, quick)
    )
    return f"### Table {table.table.number}. {table.table.title}\n\n{body}\n\n{notes}\n"


def latex(table: FilledTable, quick: bool) -> str:
    """As a LaTeX table, for the package booktabs."""
    count = len(METRICS)
    spans = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{DIRECTION_NAMES[direction]}}}" for direction in DIRECTIONS)
    names = " & ".join(METRIC_NAMES[metric] for _ in DIRECTIONS for metric in METRICS)
    body = "\n".join(
        " & ".join([_escaped(_indented(line.label, "~~")), *map(_math, line.cells)]) + r" \\" for line in lines_of(table)
    )
    caption = _escaped(f"{table.table.title}. " + ". ".join(notes_of(table, quick)) + ".")
    return (
        rf"\begin{{table}}\centering\caption{{{caption}}}" + "\n"
        rf"\begin{{tabular}}{{l{'r' * count * len(DIRECTIONS)}}}" + "\n"
        rf"\toprule & {spans} \\" + "\n" + rf" & {names} \\ \midrule" + "\n" + body + "\n"
        r"\bottomrule\end{tabular}\end{table}" + "\n"
    )


def comma_separated(tables: Sequence[FilledTable]) -> str:
    """All figures of some tables, one a row: long, as programs like it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for table in tables:
        for row in table.rows:
            for direction, result in row.results.items():
                for metric in METRICS:
                    interval = row.difference.get(direction, {}).get(metric)
                    paper = row.paper.get(direction, {}).get(metric)
                    ours = [_number(result.mean(metric)), _number(result.std(metric)), len(table.seeds)]
                    of_difference = [interval.mean, interval.low, interval.high] if interval else [None] * 3
                    of_paper = list(paper) if paper else [None] * 2
                    where = [table.table.number, row.row.label, row.row.system, row.row.training.name, direction, metric]
                    others = [*map(_number, of_difference), *map(_number, of_paper), " ".join(row.row.departs)]
                    writer.writerow([*where, *ours, *others])
    return out.getvalue()


def plan_table(steps: Sequence[Step]) -> RichTable:
    """What is there, what will run, and what it takes, as far as it was measured."""
    known = [step.seconds for step in steps if step.seconds is not None]
    unknown = sum(step.seconds is None for step in steps)
    total = f"{duration(sum(known))} of what was measured" + (f"; {unknown} steps of a kind that never ran" if unknown else "")
    size = sum(step.size or 0 for step in steps)
    shown = bare_table("Plan", f"Left: {total}. On the disk: {size / 1e6:,.0f} MB.")
    for name in ("run", "seed", "phase", "epochs", "left", "MB"):
        shown.add_column(name, justify="left" if name in ("run", "phase") else "right")
    for step in steps:
        encoders = f" on {step.training.encoders}" if step.training.encoders else ""
        left = "done" if step.finished else "?" if step.seconds is None else duration(step.seconds)
        megabytes = "?" if step.size is None else f"{step.size / 1e6:,.0f}"
        cells = (step.training.name + encoders, str(step.seed), step.label, f"{step.done} of {step.epochs}", left, megabytes)
        shown.add_row(*map(Text, cells))
    return shown


def plan_json(steps: Sequence[Step]) -> list[dict[str, object]]:
    """The document of `reproduce --dry-run --json`."""
    return [
        {
            "run": step.training.name,
            "recipe": step.training.recipe,
            "overrides": list(step.training.overrides),
            "encoders": step.training.encoders,
            "seed": step.seed,
            "phase": step.phase,
            "fold": None if step.fold is None else {"number": step.fold[0], "of": step.fold[1]},
            "epochs": step.epochs,
            "done": step.done,
            "seconds_left": step.seconds,
            "bytes": step.size,
        }
        for step in steps
    ]


def _cells(row: FilledRow, kind: Kind) -> list[str]:
    cells = []
    for direction in DIRECTIONS:
        for metric in METRICS:
            result, paper = row.results.get(direction), row.paper.get(direction, {}).get(metric)
            interval = row.difference.get(direction, {}).get(metric)
            if kind == "ours":
                cells.append(spread(result.mean(metric), result.std(metric)) if result else "–")
            elif kind == "paper":
                cells.append(spread(paper.mean, paper.std) if paper else "")
            else:
                cells.append(f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]" if interval else "")
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _indented(label: str, by: str) -> str:
    return by + label.strip() if label.startswith(" ") else label


def _escaped(text: str) -> str:
    for character in "%&_#":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$")


def _math(cell: str) -> str:
    return cell.replace("±", r"$\pm$").replace("–", "--")
