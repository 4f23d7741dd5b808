"""How far the runs of a plan are, and what is left by the clock and on the disk, by what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median

from ..errors import DiffATRError
from ..runs import LAST, RECORD, Phase, fold_folder, read_record, run_folder
from .plan import Table, Training

_Kind = tuple[str | None, Phase, bool]
"""What epochs are measured of: a run's (None: any run's) phase, whole or without a fold."""


@dataclass(frozen=True)
class Step:
    """One phase of one training for one seed.

    Attributes:
        epochs, done: of them.
        seconds: that the rest takes, by epochs that were measured; None where none was.
        size: bytes of its folder, or those of a like one where it is not there; None where none is.
        fold: which one, from 0, of how many: phase one again without a fold (`diffusion.folds`), a part of the training's phase
            two, and shared with others on the same encoders. None: the phase itself.
    """

    training: Training
    phase: Phase
    seed: int
    epochs: int
    done: int
    seconds: float | None = None
    size: int | None = None
    fold: tuple[int, int] | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left of it."""
        return self.done >= self.epochs

    @property
    def run(self) -> str:
        """The name of the run whose folder it is in."""
        return self.training.name if self.fold is None else self.training.encoders or self.training.name

    @property
    def label(self) -> str:
        """The phase, and the fold if it is one."""
        return self.phase if self.fold is None else f"{self.phase}, fold {self.fold[0] + 1} of {self.fold[1]}"

    def folder(self, runs: Path) -> Path:
        """The phase's."""
        run = run_folder(runs, self.run, self.seed)
        return (run if self.fold is None else fold_folder(run, *self.fold)) / self.phase


def steps_of(wanted: Iterable[tuple[Training, int]], runs: Path) -> list[Step]:
    """All that some trainings, each with a seed, train, in their order, with what was measured of it.

    An epoch takes what one of the same training took for any seed; where none has, what one of the same phase of another
    training of this plan took. One without a fold takes its share of one with all clips, where none without a fold was measured.
    """
    steps: list[Step] = []
    for training, seed in wanted:
        recipe = training.resolved()
        if training.encoders is None:
            steps.append(_step(training, "pretrain", seed, recipe.pretrain.epochs, runs))
        if training.diffusion:
            epochs = 1 if training.denoisers else recipe.diffusion.epochs  # weights chosen anew are one row of the log
            second = _step(training, "diffusion", seed, epochs, runs)
            known = {(step.run, step.seed, step.fold) for step in steps}
            needs_folds = not second.finished and not training.denoisers
            folds = [(number, recipe.diffusion.folds) for number in range(recipe.diffusion.folds if needs_folds else 0)]
            of_folds = [_step(training, "pretrain", seed, recipe.pretrain.epochs, runs, fold) for fold in folds]
            steps += [step for step in of_folds if (step.run, step.seed, step.fold) not in known]
            steps.append(second)
    measured: dict[_Kind, list[float]] = {}
    sizes: dict[_Kind, list[int]] = {}
    for step in steps:
        for run in (step.run, None):
            kind = run, step.phase, step.fold is not None
            if not step.training.denoisers and (took := seconds_an_epoch(step.folder(runs))) is not None:
                measured.setdefault(kind, []).append(took)
            if step.size is not None:
                sizes.setdefault(kind, []).append(step.size)
    return [_estimated(step, measured, sizes) for step in steps]


def trained_rows(table: Table, seeds: Sequence[int], runs: Path) -> Table:
    """The table with the rows whose trainings are there for all seeds; there may be none."""

    def there(training: Training) -> bool:
        return all(step.finished for step in steps_of([(training, seed) for seed in seeds], runs))

    found = {training for training in table.trainings if there(training)}
    return replace(table, rows=tuple(row for row in table.rows if row.training in found))


def seconds_an_epoch(folder: Path) -> float | None:
    """How long an epoch took in a phase's folder since it was started last, with its validation; None where none ended."""
    try:
        start = read_record(folder / RECORD)["starts"][-1]
        rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        took = (folder / "metrics.jsonl").stat().st_mtime - datetime.fromisoformat(start["time"]).timestamp()
        epochs = len(rows) - int(start["epochs_done"])
    except (OSError, LookupError, TypeError, ValueError, DiffATRError):
        return None
    return took / epochs if epochs > 0 and took > 0 else None


def _step(training: Training, phase: Phase, seed: int, epochs: int, runs: Path, fold: tuple[int, int] | None = None) -> Step:
    step = Step(training, phase, seed, epochs, 0, fold=fold)
    folder = step.folder(runs)
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if (folder / LAST).is_file() else None
    return replace(step, done=_epochs_done(folder), size=size)


def _epochs_done(folder: Path) -> int:
    """Of a phase, by its log."""
    try:
        rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(rows[-1])["epoch"]) if rows else 0
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _estimated(step: Step, measured: dict[_Kind, list[float]], sizes: dict[_Kind, list[int]]) -> Step:
    kinds: list[tuple[_Kind, float]] = []
    for run in (step.run, None):
        if step.fold is not None:
            kinds.append(((run, step.phase, True), 1.0))
        kinds.append(((run, step.phase, False), 1.0 if step.fold is None else 1 - 1 / step.fold[1]))
    took = next((median(measured[kind]) * share for kind, share in kinds if kind in measured), None)
    size = step.size if step.size is not None else next((int(median(sizes[kind])) for kind, _ in kinds if kind in sizes), None)
    left = 0.0 if step.finished else None if took is None else took * (step.epochs - step.done)
    return replace(step, seconds=left, size=size)
