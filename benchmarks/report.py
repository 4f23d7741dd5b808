"""Results of benchmarks as text: lines for the console, and a document of tables with a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Outcome = dict[str, Any]  # what `__main__.run_case` returns
TITLES = {
    "sampler": "Sampling",
    "metrics": "Metrics",
    "encoders": "Audio encoders",
    "training": "Training",
    "prepare": "Preparing recordings",
    "startup": "Start-up",
    "index": "Indexing",
    "clap": "A CLAP as it is",
    "long": "Long recordings",
    "approximate": "A large corpus",
    "filters": "Filters",
    "gpu": "On a GPU",
}
UNITS = ((1e-3, 1e-6, "us"), (1, 1e-3, "ms"), (300, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h"))
"""Seconds below which a unit is used, its seconds, its name."""
HEADER = """# Performance

Made by `python -m benchmarks` (with the extra `bench`: `pip install 'diffatr[bench]'`); do not edit.
{machine}

Each benchmark ran in a process of its own. Figures are medians; "times" is how many times faster than the plain version.
Peak memory is the whole process's, of which Python and torch take about 0.3 GB, and includes the plain version's slice.
"""


def amount(value: float | None, unit: str) -> str:
    """A figure with its unit, in three digits."""
    if value is None:
        return ""
    if unit == "s":
        factor, unit = next((factor, name) for limit, factor, name in UNITS if value < limit)
        value /= factor
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """A number in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cells(row: dict[str, Any], outcome: Outcome) -> tuple[str, ...]:
    """A row of results as the cells of a table, in the order of `COLUMNS`."""
    plain, fast = (amount(row[name], row["unit"]) for name in ("plain", "fast"))
    return (
        row["what"],
        plain,
        fast,
        "" if row["ratio"] is None else digits(row["ratio"]),
        row["goal"],
        f"{outcome['peak_gb']:.1f} GB",
        row["remark"],
    )


COLUMNS = ("", "plain", "here", "times", "goal", "peak memory", "")


def printed(outcome: Outcome) -> str:
    """A benchmark's outcome as lines for the console."""
    if "skipped" in outcome:
        return f"{outcome['topic']}, {outcome['case']}: skipped, {outcome['skipped']}"
    lines = []
    for row in outcome["rows"]:
        what, plain, here, times, goal, peak, remark = cells(row, outcome)
        told = "; ".join(filter(None, (goal, remark)))
        lines.append(f"{what:<44} {plain:>14} {here:>14} {times and 'x ' + times:>8} {peak:>8}  {told}")
    return "\n".join(lines)


def machines(outcomes: Iterable[Outcome]) -> list[str]:
    """The machines that outcomes come from, a sentence each."""
    lines = []
    for machine in (outcome["machine"] for outcome in outcomes if "machine" in outcome):
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        lines.append(
            f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads{gpu}; "
            f"torch {machine['torch']}, Python {machine['python']}; revision {machine['revision']}."
        )
    return list(dict.fromkeys(lines))


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table without the columns that are empty."""
    rows = list(rows)
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    lines = [COLUMNS, tuple("---" if name in ("", "goal") else "---:" for name in COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line[i] for i in used) + " |" for line in lines)


def write_document(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the document, and beside it the plot of how the sampler's cost grows, if that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = next(iter(machines(outcomes)), "")
    parts = [HEADER.format(machine=machine)]
    if smaller := {outcome["size"] for outcome in outcomes} - {"full"}:
        parts.append(f"Measured at smaller sizes than the goals are for ({', '.join(sorted(smaller))}).\n")
    for topic, title in TITLES.items():
        mine = [outcome for outcome in outcomes if outcome["topic"] == topic]
        if not mine:
            continue
        parts.append(f"## {title}\n\n{mine[0]['about'].strip()}\n")
        parts += [f"{other}\n" for other in machines(mine) if other != machine]
        measured = [(row, outcome) for outcome in mine for row in outcome.get("rows", ())]
        for grows, heading in ((False, None), (True, "### How cost grows")):
            rows = [cells(row, outcome) for row, outcome in measured if bool(row["curve"]) == grows]
            if rows:
                parts.append((f"{heading}\n\n" if heading else "") + table(rows) + "\n")
        curves = [(*row["curve"], row, outcome["peak_gb"]) for row, outcome in measured if row["curve"]]
        if curves:
            plot = path.with_suffix(".svg")
            draw(curves, plot)
            parts.append(f"![Time and memory over candidates, queries and steps]({plot.name})\n")
        skipped = {outcome["skipped"]: None for outcome in mine if "skipped" in outcome}
        parts += [f"Skipped: {reason}.\n" for reason in skipped]
    path.write_text("\n".join(parts), encoding="utf-8")


def draw(curves: list[tuple[str, int, dict[str, Any], float]], path: Path) -> None:
    """Seconds, plain and factored, and peak memory over what grows: (what, value, row, GB) each."""
    import matplotlib
    from matplotlib.figure import Figure

    groups = [(what, sorted(group, key=lambda point: point[1])) for what, group in groupby(curves, key=lambda point: point[0])]
    with matplotlib.rc_context({"svg.hashsalt": "diffatr", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(3.2 * len(groups), 5), layout="constrained")
        for (what, points), (above, below) in zip(groups, figure.subplots(2, len(groups), squeeze=False).T, strict=True):
            values = [value for _, value, _, _ in points]
            above.loglog(values, [row["plain"] for _, _, row, _ in points], "o--", color="0.6", label="plain loop, extrapolated")
            above.loglog(values, [row["fast"] for _, _, row, _ in points], "o-", color="C0", label="factored")
            below.semilogx(values, [peak for _, _, _, peak in points], "o-", color="C0")
            below.set(xlabel=what, ylim=(0, 1.1 * max(peak for *_, peak in points)))
        first = figure.axes[0], figure.axes[len(groups)]
        first[0].set_ylabel("seconds")
        first[0].legend(frameon=False)
        first[1].set_ylabel("peak memory, GB")
        figure.savefig(path, metadata={"Date": None})
