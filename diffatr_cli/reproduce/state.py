"""How far the runs of a plan are, and what is left by the clock and on the disk, by what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from ..errors import DiffATRError
from ..runs import LAST, RECORD, Phase, read_record, run_folder
from .plan import Training


@dataclass(frozen=True)
class Step:
    """One phase of one training for one seed.

    Attributes:
        epochs, done: of them.
        seconds: that the rest takes, by epochs that were measured; None where none was.
        size: bytes of its folder, or those of a like one where it is not there; None where none is.
    """

    training: Training
    phase: Phase
    seed: int
    epochs: int
    done: int
    seconds: float | None = None
    size: int | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left of it."""
        return self.done >= self.epochs


def steps_of(wanted: Iterable[tuple[Training, int]], runs: Path) -> list[Step]:
    """All that some trainings, each with a seed, train, in their order, with what was measured of it.

    An epoch takes what one of the same training took for any seed; where none has, what one of the same phase of another
    training of this plan took.
    """
    steps: list[Step] = []
    for training, seed in wanted:
        recipe = training.resolved()
        if training.encoders is None:
            steps.append(_step(training, "pretrain", seed, recipe.pretrain.epochs, runs))
        if training.diffusion:
            steps.append(_step(training, "diffusion", seed, recipe.diffusion.epochs, runs))
    measured: dict[tuple[Training | None, Phase], list[float]] = {}
    sizes: dict[tuple[Training | None, Phase], list[int]] = {}
    for step in steps:
        folder = run_folder(runs, step.training.name, step.seed) / step.phase
        for key in ((step.training, step.phase), (None, step.phase)):
            if (took := seconds_an_epoch(folder)) is not None:
                measured.setdefault(key, []).append(took)
            if step.size is not None:
                sizes.setdefault(key, []).append(step.size)
    return [_estimated(step, measured, sizes) for step in steps]


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


def _step(training: Training, phase: Phase, seed: int, epochs: int, runs: Path) -> Step:
    folder = run_folder(runs, training.name, seed) / phase
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file()) if (folder / LAST).is_file() else None
    return Step(training, phase, seed, epochs, _epochs_done(folder), size=size)


def _epochs_done(folder: Path) -> int:
    """Of a phase, by its log."""
    try:
        rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(rows[-1])["epoch"]) if rows else 0
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _estimated(
    step: Step,
    measured: dict[tuple[Training | None, Phase], list[float]],
    sizes: dict[tuple[Training | None, Phase], list[int]],
) -> Step:
    keys = ((step.training, step.phase), (None, step.phase))
    took = next((median(measured[key]) for key in keys if key in measured), None)
    size = step.size if step.size is not None else next((int(median(sizes[key])) for key in keys if key in sizes), None)
    left = 0.0 if step.finished else None if took is None else took * (step.epochs - step.done)
    return Step(step.training, step.phase, step.seed, step.epochs, step.done, left, size)
