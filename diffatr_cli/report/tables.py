"""Results as tables for a terminal. Pure: each function takes a result and returns a rich Table; the commands print it.

Whatever comes from outside (paths, queries, names) goes in as Text, so that brackets in it are not read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..evaluation.paper import TEST_SETS, PaperValue
from ..evaluation.protocol import PROTOCOLS
from ..evaluation.results import METRICS, ComparisonResult, EvaluationResult, MetricIntervals, ScoresResult, SystemResult
from ..printable import counted
from ..types import Direction, System

METRIC_NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map10": "mAP@10", "map16": "mAP@16", "map": "mAP"} | {
    "medr": "MedR",
    "meanr": "MeanR",
}
DIRECTION_NAMES: dict[Direction, str] = {"t2a": "Text-to-Audio", "a2t": "Audio-to-Text"}
SYSTEM_NAMES: dict[System, str] = {
    "baseline": "baseline",
    "qbnorm": "baseline, QB-Norm",
    "walk": "baseline, random walk",
    "diff": "Diff",
    "one-step": "Diff, one step",
}
MODEL_NAMES = {"resnet38": "ResNet38", "cnn14": "CNN14"}
_RECALLS = METRICS[:3]
_INTERVAL = "95 % intervals: bootstrap over queries, those of a clip together"


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None) -> Table:
    """Any rows under any heads; columns whose cells are all numbers are set to the right, with thousands apart."""
    body = [list(row) for row in rows]
    table = bare_table(title, caption)
    for i, name in enumerate(columns):
        numeric = bool(body) and all(isinstance(row[i], (int, float)) for row in body)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, (int, float)) else str(cell)) for cell in row))
    return table


def evaluation_table(result: EvaluationResult) -> Table:
    """Systems by directions with every metric, mean ± std over seeds; below each the paper's number where it has one, and what
    it gains over the baseline, with a 95 % interval."""
    metrics, caption = result.metrics, evaluation_caption(result)
    if result.differences:
        caption += f" {_INTERVAL}, all seeds."
    table = _metric_table(f"{result.source} → {result.target}, {_model(result)}", caption, metrics)
    for direction, name in DIRECTION_NAMES.items():
        of_direction = [system for system in result.systems if system.direction == direction]
        if not of_direction:
            continue
        _add_direction(table, name)
        for system in of_direction:
            table.add_row(SYSTEM_NAMES[system.system], *(_own(system, metric) for metric in metrics))
            if paper := result.paper(system.system, direction):
                table.add_row("  the paper", *(_papers(paper, metric) for metric in metrics), style="dim")
        for name, of in result.differences.items():
            if direction in of:
                _add_interval(table, f"{SYSTEM_NAMES[name]} - {SYSTEM_NAMES['baseline']}", of[direction], signed=True)
    return table


def comparison_table(result: ComparisonResult) -> Table:
    """What the second run gains over the first in each system, direction and metric, with 95 % intervals."""
    first, second = result.names
    runs = f"first {first} (seeds {_listed(result.first.seeds)}), second {second} (seeds {_listed(result.second.seeds)})"
    caption = f"{runs}: {_counts(result.second)}; {PROTOCOLS[result.second.protocol].summary}. {_INTERVAL}, all seeds."
    table = _metric_table(f"second - first on {result.second.target}", caption, result.second.metrics)
    for direction, name in DIRECTION_NAMES.items():
        rows = {system: of[direction] for system, of in result.differences.items() if direction in of}
        if rows:
            _add_direction(table, name)
        for system, intervals in rows.items():
            for label, run in (("first", result.first), ("second", result.second)):
                own = run.get(system, direction)
                table.add_row(f"{SYSTEM_NAMES[system]}, {label}", *(_own(own, metric) for metric in run.metrics))
            _add_interval(table, "  second - first", intervals, signed=True)
    return table


def scores_table(result: ScoresResult) -> Table:
    """Somebody's scores, measured, with 95 % intervals."""
    caption = f"{_counts(result)}; {PROTOCOLS[result.protocol].summary}. {_INTERVAL}."
    metrics = tuple(next(iter(result.directions.values())))
    table = _metric_table(f"{result.scores} → {result.target}", caption, metrics)
    for direction, intervals in result.directions.items():
        _add_direction(table, DIRECTION_NAMES[direction])
        _add_interval(table, "scores", intervals)
    return table


def evaluation_caption(result: EvaluationResult) -> str:
    """What the figures were computed on and how, in plain words."""
    counts = _counts(result)
    if result.split == "test" and (paper := TEST_SETS.get(result.target)):
        counts += f" (the paper: {paper.clips:,} and {paper.captions:,})"
    seeds = _listed(result.seeds)
    spread = "mean ± sample standard deviation over seeds" if len(result.seeds) > 1 else "seed"
    parts = [f"{result.recipe}: {counts}; {spread} {seeds}; {PROTOCOLS[result.protocol].summary}"]
    if any(system.system == "diff" for system in result.systems):
        among = "all candidates" if result.shortlist is None else f"the {result.shortlist:,} best by cosine"
        if result.objective == "diffusion":
            parts.append(f"Diff takes {result.steps} steps in a chain of {result.chain} over {among}")
        else:
            parts.append(f"Diff is the denoiser without diffusion (x_k = 0, one pass) over {among}")
    if result.fusion_weights:
        told = _of_logarithms(result.fusion_shapes)
        parts.append(f"Weight of x0_hat beside the cosine{told}: {_by_direction(result.fusion_weights)}")
    if result.bank_weights:
        parts.append(f"Diff's prior, a bank of training queries, has the weight {_by_direction(result.bank_weights)}")
    if result.walk_weights:
        told = _of_logarithms(result.walk_shapes)
        parts.append(f"Weight of the random walk beside the cosine{told}: {_by_direction(result.walk_weights)}")
    if result.querybank_betas:
        parts.append(f"QB-Norm's beta: {_by_direction(result.querybank_betas)}")
    return ". ".join(parts) + "."


def _of_logarithms(shapes: Mapping[Direction, Sequence[str]] | None) -> str:
    """In which directions a logarithm is weighed."""
    logs = [direction for direction, each in (shapes or {}).items() if "log" in each]
    return f" (of its logarithm: {', '.join(logs)})" if logs else ""


def _by_direction(values: Mapping[Direction, Sequence[float]]) -> str:
    return "; ".join(f"{direction} {', '.join(f'{value:g}' for value in each)}" for direction, each in values.items())


def cross_domain_tables(results: Sequence[EvaluationResult]) -> list[Table]:
    """One table for each source and target, in the layout of the paper's Tables 3 and 4: models by recalls, both directions."""
    tables = []
    for source, target in dict.fromkeys((result.source, result.target) for result in results):
        group = [result for result in results if (result.source, result.target) == (source, target)]
        table = bare_table(f"{source} → {target}", "\n".join(map(evaluation_caption, group)))
        table.add_column("")
        for direction in DIRECTION_NAMES:
            for metric in _RECALLS:
                table.add_column(f"{direction} {METRIC_NAMES[metric]}", justify="right")
        for system, name in SYSTEM_NAMES.items():
            for result in group:
                row = [(d, result.get(system, d), result.paper(system, d)) for d in DIRECTION_NAMES]
                if not any(own for _, own, _ in row):
                    continue
                table.add_row(Text(f"{_model(result)} ({name})"), *(_own(own, m) for _, own, _ in row for m in _RECALLS))
                if any(paper for _, _, paper in row):
                    table.add_row("  the paper", *(_papers(paper, m) for _, _, paper in row for m in _RECALLS), style="dim")
        tables.append(table)
    return tables


def _counts(result: EvaluationResult | ScoresResult) -> str:
    return f"{result.split} split, {counted(result.clips, 'clip')} and {counted(result.captions, 'caption')}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _metric_table(title: str, caption: str, metrics: Sequence[str]) -> Table:
    """A table of metrics, without rows yet."""
    table = bare_table(title, caption)
    table.add_column("")
    for metric in metrics:
        table.add_column(METRIC_NAMES[metric], justify="right", no_wrap=True)
    return table


def _add_direction(table: Table, name: str) -> None:
    table.add_section()
    table.add_row(Text(name, style="bold"))


def _add_interval(table: Table, name: str, intervals: MetricIntervals, signed: bool = False) -> None:
    """Three rows: the values, and where their 95 % intervals begin and end."""
    sign = "+" if signed else ""
    each = intervals.values()
    table.add_row(Text(name), *(f"{interval.mean:{sign}.1f}" for interval in each))
    table.add_row("  95 % from", *(f"{interval.low:{sign}.1f}" for interval in each), style="dim")
    table.add_row("  95 % to", *(f"{interval.high:{sign}.1f}" for interval in each), style="dim")


def bare_table(title: str, caption: str | None) -> Table:
    """A table without columns, as all of ours look."""
    return Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim") if caption else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _model(result: EvaluationResult) -> str:
    return MODEL_NAMES.get(result.model, result.model)


def _own(result: SystemResult | None, metric: str) -> str:
    return spread(result.mean(metric), result.std(metric)) if result else "–"


def _papers(values: dict[str, PaperValue] | None, metric: str) -> str:
    return spread(*values[metric]) if values and metric in values else "–"


def spread(mean: float, std: float | None) -> str:
    """A mean with its deviation, where it has one."""
    return f"{mean:.1f}" if std is None else f"{mean:.1f}±{std:.1f}"
