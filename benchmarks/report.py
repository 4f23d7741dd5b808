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
KINDS = {"AVX2": "AVX2", "AVX512": "AVX-512"}
"""The widest vectors that torch says it uses on a processor, and their names here."""
HEADER = """# Performance

Made by `python -m benchmarks` (with the extra `bench`: `pip install 'diffatr[bench]'`); do not edit.
{machine}

Each benchmark ran in a process of its own. Figures are medians; "times" is how many times faster than the plain version.
Peak memory is the whole process's, of which Python and torch take about 0.3 GB, and includes the plain version's slice.
"""


EMULATED = """AVX2 is emulated, as its machine says, on a processor that has AVX-512: one without may be faster or slower.
The environment was `NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES=+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+popcnt,+lzcnt
ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2`.
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


def kind(outcome: Outcome) -> str:
    """What figures were measured on: "GPU", or the widest vectors of the processor; nothing for what was skipped."""
    if "machine" not in outcome:
        return ""
    if outcome["topic"] == "gpu":
        return "GPU"
    processor = str(outcome["machine"]["processor"])
    return next((name for said, name in KINDS.items() if f"({said}" in processor), processor)


def merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome of each benchmark and kind of machine, the last; what was skipped only where nothing was measured."""
    last = {(outcome["topic"], outcome["case"], kind(outcome)): outcome for outcome in outcomes}
    measured = {key[:2] for key in last if key[2]}
    return [outcome for key, outcome in last.items() if key[2] or key[:2] not in measured]


def cells(row: dict[str, Any], outcome: Outcome) -> tuple[str, ...]:
    """A row of results as the cells of a table, in the order of `COLUMNS`."""
    return row["what"], *timed(row), row["goal"], f"{outcome['peak_gb']:.1f} GB", row["remark"]


def timed(row: dict[str, Any]) -> tuple[str, str, str]:
    """The cells of a row that differ from machine to machine: plain, here, times."""
    plain, fast = (amount(row[name], row["unit"]) for name in ("plain", "fast"))
    return plain, fast, "" if row["ratio"] is None else digits(row["ratio"])


def other_work(outcomes: Iterable[Outcome]) -> list[str]:
    """A sentence for each kind of machine on which more than half of the cores had other work when a benchmark began."""
    busy: dict[str, tuple[float, int]] = {}
    for outcome in outcomes:
        cores = outcome.get("machine", {}).get("cores")
        if cores and outcome.get("load", 0) > cores / 2:
            busy[kind(outcome)] = max(busy.get(kind(outcome), (0.0, 0)), (outcome["load"], cores))
    return [
        f"Some figures of {name} were measured beside other work, a load of up to {load:.0f} on {cores} cores: they compare with "
        "one another alone."
        for name, (load, cores) in busy.items()
    ]


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


def table(rows: Iterable[tuple[str, ...]], columns: Sequence[str] = COLUMNS) -> str:
    """A Markdown table without the columns that are empty."""
    rows = list(rows)
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [columns, tuple("---" if name in ("", "goal") else "---:" for name in columns), *rows]
    return "\n".join("| " + " | ".join(line[i] for i in used) + " |" for line in lines)


def compared(measured: Iterable[tuple[dict[str, Any], Outcome]], kinds: Sequence[str]) -> str:
    """A table of rows that were measured on several kinds of machines, with columns of its own for each kind.

    Goals, peak memory and remarks are those of the first kind that has the row.
    """
    found: dict[tuple[str, str], dict[str, tuple[dict[str, Any], Outcome]]] = {}
    for row, outcome in measured:
        curve = row["curve"][0] if row["curve"] else ""  # several have a point in common
        found.setdefault((row["what"], curve), {})[kind(outcome)] = row, outcome
    columns = [f"{column}, {each}" for each in kinds for column in COLUMNS[1:4]]
    rows = []
    for of_kind in found.values():
        what, *_, goal, peak, remark = cells(*next(of_kind[each] for each in kinds if each in of_kind))
        figures = [cell for each in kinds for cell in (timed(of_kind[each][0]) if each in of_kind else ("", "", ""))]
        rows.append((what, *figures, goal, peak, remark))
    return table(rows, ("", *columns, *COLUMNS[4:]))


def write_document(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the document, and beside it the plot of how the sampler's cost grows, if that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = next(iter(machines(outcomes)), "")
    parts = [HEADER.format(machine=machine)]
    if any("emulated" in str(outcome.get("machine", {}).get("processor")) for outcome in outcomes):
        parts.append(EMULATED)
    if smaller := {outcome["size"] for outcome in outcomes} - {"full"}:
        parts.append(f"Measured at smaller sizes than the goals are for ({', '.join(sorted(smaller))}).\n")
    for topic, title in TITLES.items():
        mine = [outcome for outcome in outcomes if outcome["topic"] == topic]
        if not mine:
            continue
        parts.append(f"## {title}\n\n{mine[0]['about'].strip()}\n")
        parts += [f"{other}\n" for other in machines(mine) if other != machine]
        parts += [f"{sentence}\n" for sentence in other_work(mine)]
        measured = [(row, outcome) for outcome in mine for row in outcome.get("rows", ())]
        kinds = list(dict.fromkeys(kind(outcome) for _, outcome in measured))
        for grows, heading in ((False, None), (True, "### How cost grows")):
            rows = [(row, outcome) for row, outcome in measured if bool(row["curve"]) == grows]
            if rows:
                several = len({kind(outcome) for _, outcome in rows}) > 1
                shown = compared(rows, kinds) if several else table(cells(*each) for each in rows)
                parts.append((f"{heading}\n\n" if heading else "") + shown + "\n")
        curves = [
            (*row["curve"], row, outcome["peak_gb"]) for row, outcome in measured if row["curve"] and kind(outcome) == kinds[0]
        ]
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
