"""Training what a plan lacks, and filling its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..data.manifest import load_dataset
from ..evaluation.evaluate import evaluate
from ..evaluation.paper import PaperValue, paper_values
from ..evaluation.results import EvaluationResult, SystemResult, paired_intervals
from ..processes import from_first
from ..progress import Progress, silent
from ..runs import run_folder
from ..training.pretrain import pretrain
from ..training.train_diffusion import train_diffusion
from ..types import DIRECTIONS, Direction
from .plan import Row, Table, Training, needed
from .state import Step, steps_of

METRICS = ("r1", "r5", "r10", "map10", "medr")


@dataclass(frozen=True)
class FilledRow:
    """A row with its figures.

    Attributes:
        results: by direction.
        difference: to the baseline of the same encoders, with its 95 % interval: by direction and metric.
        paper: the paper's figures, by direction and metric.
    """

    row: Row
    results: Mapping[Direction, SystemResult]
    difference: Mapping[Direction, Mapping[str, Any]]
    paper: Mapping[Direction, Mapping[str, PaperValue]]


@dataclass(frozen=True)
class FilledTable:
    """A table with its figures, and on how many clips and captions they were measured."""

    table: Table
    rows: tuple[FilledRow, ...]
    seeds: tuple[int, ...]
    clips: int
    captions: int

    def to_json(self) -> dict[str, Any]:
        """One table of `reproduce --json`."""
        return {
            "table": self.table.number,
            "title": self.table.title,
            "source": self.table.source,
            "target": self.table.target,
            "seeds": list(self.seeds),
            "clips": self.clips,
            "captions": self.captions,
            "rows": [_row_json(row) for row in self.rows],
        }


def _row_json(filled: FilledRow) -> dict[str, Any]:
    return {
        "label": filled.row.label,
        "run": filled.row.training.name,
        "system": filled.row.system,
        "departs": list(filled.row.departs),
        "ours": {direction: result.to_json() for direction, result in filled.results.items()},
        "difference": {
            direction: {metric: each.to_json() for metric, each in of.items()} for direction, of in filled.difference.items()
        },
        "paper": {direction: {metric: value._asdict() for metric, value in of.items()} for direction, of in filled.paper.items()},
    }


def reproduce(
    tables: Sequence[Table],
    seeds: Sequence[int],
    *,
    data: Path,
    runs: Path,
    device: str = "auto",
    progress: Progress = silent,
    told: Callable[[str], None] = lambda line: None,
) -> list[FilledTable]:
    """Train what is missing, or go on with it, and fill the tables.

    Args:
        told: gets a line for each training that begins.

    Raises:
        DiffATRError, UsageError: a data set is missing, or as the jobs.
    """
    for name in dict.fromkeys(name for table in tables for name in (table.source, table.target)):
        load_dataset(data, name)
    train_missing(
        needed(training for table in tables for training in table.trainings),
        seeds,
        data=data,
        runs=runs,
        device=device,
        progress=progress,
        told=told,
    )
    results: dict[tuple[str, str, str], EvaluationResult] = {}
    return [_filled(table, seeds, data, runs, device, progress, results) for table in tables]


def train_missing(
    trainings: Sequence[Training],
    seeds: Sequence[int],
    *,
    data: Path,
    runs: Path,
    device: str = "auto",
    progress: Progress = silent,
    told: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what is not there of some trainings, or go on with it. Arguments and errors as `reproduce`."""
    for step in from_first(steps_of(product(trainings, seeds), runs)):
        if not step.finished and step.fold is None:  # what folds take is a part of phase two
            told(f"{step.training.name}, seed {step.seed}: {step.phase}, {step.done} of {step.epochs} epochs are there")
            _train(step, data, runs, device, progress)


def _train(step: Step, data: Path, runs: Path, device: str, progress: Progress) -> None:
    training = step.training
    options: dict[str, Any] = {
        "data": data,
        "runs": runs,
        "seed": step.seed,
        "device": device,
        "resume": (training.recipe, *training.overrides, "--name", training.name),
        "progress": progress,
    }
    if step.phase == "pretrain":
        pretrain(training.name, training.resolved(), **options)
        return

    def folder_of(name: str | None) -> Path | None:
        return None if name is None else run_folder(runs, name, step.seed)

    stands_on = {"encoders": folder_of(training.encoders), "denoisers": folder_of(training.denoisers)}
    train_diffusion(training.name, training.resolved(), **(options | stands_on))


def _filled(
    table: Table,
    seeds: Sequence[int],
    data: Path,
    runs: Path,
    device: str,
    progress: Progress,
    results: dict[tuple[str, str, str], EvaluationResult],
) -> FilledTable:
    def result_of(training: Training) -> EvaluationResult:
        key = (training.name, table.source, table.target)
        if key not in results:
            asked = {row.system for row in table.rows if row.training == training}
            results[key] = evaluate(
                table.source,
                table.target,
                data=data,
                runs=runs,
                recipe=training.name,
                seeds=seeds,
                rivals=bool(asked & {"qbnorm", "one-step"}),
                walk="walk" in asked or None,
                device=device,
                progress=progress,
                reuse=True,
            )
        return results[key]

    rows = []
    for row in table.rows:
        result = result_of(row.training)
        found = {direction: each for direction in DIRECTIONS if (each := result.get(row.system, direction))}
        base = _baseline_of(row, table)
        difference: dict[Direction, Mapping[str, Any]] = {}
        if base != row:
            of_base = result_of(base.training)
            for direction, each in found.items():
                minus = of_base.get(base.system, direction)
                if minus is not None:
                    intervals = paired_intervals(result.query_clips, [each], {(row.system, direction): minus})
                    difference |= intervals.get(row.system, {})
        papers = {direction: paper_values(*row.paper, direction) or {} for direction in DIRECTIONS} if row.paper else {}
        rows.append(FilledRow(row, found, difference, papers))
    first = result_of(table.rows[0].training)
    return FilledTable(table, tuple(rows), tuple(seeds), first.clips, first.captions)


def _baseline_of(row: Row, table: Table) -> Row:
    """The row whose cosine a row is compared with: that of the same encoders; where the table has none, the first row."""
    encoders = row.training.encoders or row.training.name
    for other in table.rows:
        if other.system == "baseline" and (other.training.encoders or other.training.name) == encoders:
            return other
    return next((other for other in table.rows if other.system == "baseline"), table.rows[0])
