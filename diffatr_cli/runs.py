"""Run folders: where the runs of a recipe live, what each holds, and how a job finds the one it needs.

    runs/<recipe>/seed-<n>/pretrain/     phase one
    runs/<recipe>/seed-<n>/diffusion/    phase two
    runs/<recipe>/seed-<n>/folds/        with `diffusion.folds`: phase one without a fold, 0-of-2/pretrain/ and so on

A run may stand on the phase one of another (`train-diffusion --encoders`). It has no `pretrain/` then: the record of its phase
two says where the encoders are, and the hash of their checkpoint.

Each phase's folder holds `recipe.yaml` (resolved), `run.json` (versions, git revision, seed, data, how to resume),
`metrics.jsonl` and `metrics.csv`, `best.safetensors` and `last.safetensors` (everything that resuming needs). They are written by
`training.phase_folder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .errors import DiffATRError, UsageError
from .files import file_hash
from .recipe import load_recipe
from .recipe_schema import Recipe

Phase = Literal["pretrain", "diffusion"]
BEST = "best.safetensors"
LAST = "last.safetensors"
RECIPE = "recipe.yaml"
RECORD = "run.json"
FIRST_PHASE = ("data", "audio", "text", "model", "pretrain")
"""The sections that phase one is trained by,"""
SECOND_PHASE = ("diffusion", "evaluation")
"""and those of phase two, whose encoders bring the others with them."""


def run_folder(runs: Path, recipe_name: str, seed: int) -> Path:
    """Where the phases of one recipe and seed live."""
    return runs / recipe_name / f"seed-{seed}"


def fold_folder(run: Path, number: int, folds: int) -> Path:
    """The seed folder of the encoders that were trained without a fold, in that of the run whose encoders they stand for."""
    return run / "folds" / f"{number}-of-{folds}"


def read_record(path: Path) -> dict[str, Any]:
    """A `run.json`. Raises DiffATRError if it cannot be read as one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiffATRError(f"{path}: not a readable record of a run ({error}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("recipe"), dict):
        raise DiffATRError(f"{path}: not a record of a run (no recipe in it).")
    return record


def recipe_of_record(path: Path) -> Recipe:
    """The recipe in a `run.json`. Raises DiffATRError where this version cannot read it."""
    try:
        # Fields that the schema has gained since take their defaults, which is how that run was trained.
        return Recipe.model_validate_json(json.dumps(read_record(path)["recipe"]))
    except ValidationError as error:
        fields = ", ".join(dict.fromkeys(".".join(map(str, each["loc"][:2])) for each in error.errors(include_url=False)))
        raise DiffATRError(
            f"{path}: trained by another version of diffatr, with fields that this one reads otherwise: {fields}."
        ) from None


@dataclass(frozen=True)
class Encoders:
    """The phase one that a model stands on.

    Attributes:
        run: the seed folder that holds it.
        checkpoint: the hash (`weights_hash`) that its checkpoint must have; None where it is the run's own.
    """

    run: Path
    checkpoint: str | None = None

    @property
    def folder(self) -> Path:
        """Of phase one: its recipe, its checkpoint, and caches of what its encoders make of data."""
        return self.run / "pretrain"

    def check(self) -> str:
        """The hash of the checkpoint.

        Raises:
            DiffATRError: it is missing, or another one than the run was trained on.
        """
        path = self.folder / BEST
        if not path.is_file():
            raise DiffATRError(f"{path}: there is no such checkpoint. Train one, or name another run.")
        found = weights_hash(path)
        if self.checkpoint not in (None, found):
            raise DiffATRError(
                f"{self.folder}: holds other encoders now than phase two was trained on. Restore them, or run train-diffusion "
                "under another --name."
            )
        return found

    def record(self, run: Path) -> dict[str, str]:
        """What the record of a run that stands on these says of them: their folder, relative to the run's where it can be."""
        return place_and_hash(run, self.run, self.check())


def place_and_hash(run: Path, other: Path, checkpoint: str) -> dict[str, str]:
    """What a run's record says of another that it stands on: its folder, relative to the run's where it can be, and a hash."""
    to, start = other.resolve(), run.resolve()
    try:
        place = os.path.relpath(to, start)
    except ValueError:  # on another drive
        place = str(to)
    return {"run": place, "checkpoint": checkpoint}


def stands_on(run: Path, what: str) -> tuple[Path, str] | None:
    """The other run whose `what` (encoders, denoisers) a run's phase two was begun on: its folder and the hash of its checkpoint.

    None where the record names none. Raises DiffATRError where it cannot be read.
    """
    path = run / "diffusion" / RECORD
    if not path.is_file():
        return None
    match read_record(path).get(what):
        case None:
            return None
        case {"run": str(place), "checkpoint": str(checkpoint)}:
            # Without the dots: a folder that is missing is then named as a person would.
            return Path(os.path.normpath(run.resolve() / place)), checkpoint
    raise DiffATRError(f"{path}: does not say which {what} it stands on. Train again, or restore the file.")


def weights_hash(path: Path) -> str:
    """A short hash of a checkpoint file's content."""
    return file_hash(path)[:16]


def borrowed_encoders(run: Path) -> Encoders | None:
    """The encoders of another run that a run's phase two was begun on; None where its record names none."""
    recorded = stands_on(run, "encoders")
    return None if recorded is None else Encoders(*recorded)


def encoders_of(run: Path) -> Encoders:
    """The phase one of a seed folder: its own, or another run's.

    Raises:
        DiffATRError: it is not a run folder, or those encoders are not where they were.
    """
    if (run / "pretrain" / RECIPE).is_file():
        return Encoders(run)
    encoders = borrowed_encoders(run)
    if encoders is None:
        raise DiffATRError(f"{run}: not a run folder (no pretrain/{RECIPE} in it).")
    if not (encoders.folder / RECIPE).is_file():
        raise DiffATRError(
            f"{run}: stands on the encoders of {encoders.run}, which are not there. Put them back, or say where they are: "
            "train-diffusion RECIPE --name NAME --encoders RUN."
        )
    return encoders


def model_of(run: Path) -> Path | None:
    """The checkpoint whose presence says that a seed folder holds a model; None where it holds none."""
    own, second = run / "pretrain" / BEST, run / "diffusion" / BEST
    if own.is_file():
        return own
    if second.is_file() and not (run / "pretrain" / RECIPE).is_file():
        try:
            return second if borrowed_encoders(run) else None
        except DiffATRError:
            return second  # whoever loads it is told what is wrong
    return None


def models_below(runs: Path) -> Iterator[Path]:
    """The seed folders that hold a model, in the order of their names."""
    return (run for run in sorted(runs.glob("*/seed-*")) if model_of(run))


def find_runs(
    runs: Path, source: str, model: str | None = None, recipe: str | None = None, notes: list[str] | None = None
) -> Path:
    """The folder of the recipe whose runs learnt from data set `source` with audio encoder `model`.

    Args:
        notes: records that cannot be read are named here, and passed over.

    Raises:
        UsageError: none does, or several do and neither `model` nor `recipe` tells them apart.
    """
    found: set[Path] = set()
    unread: list[str] = []
    for record in sorted([*runs.glob(f"*/seed-*/pretrain/{RECORD}"), *runs.glob(f"*/seed-*/diffusion/{RECORD}")]):
        second = record.parent.name == "diffusion"
        if second and (record.parents[1] / "pretrain" / RECORD).is_file():
            continue  # its phase one tells
        try:
            if second and read_record(record).get("encoders") is None:
                continue  # what is left of a run
            learnt = recipe_of_record(record)
        except DiffATRError as error:
            unread.append(f"passed over {error}")
            continue
        folder = record.parents[2]
        if learnt.data.name == source and model in (None, learnt.audio.encoder) and recipe in (None, folder.name):
            found.add(folder)
    if not found:
        wanted = " ".join(filter(None, [source, model and f"with {model}", recipe and f"by recipe {recipe}"]))
        raise UsageError(
            f"{runs}: no run was trained on {wanted}. Train one: diffatr pretrain RECIPE (its data.name must be {source})."
            + "".join(f" ({note})" for note in unread[:3])
        )
    if notes is not None:
        notes += unread
    if len(found) > 1:
        exact = [path for path in found if path.name in (source, f"{source}-{model}")]
        if len(exact) == 1:
            return exact[0]
        names = ", ".join(sorted(path.name for path in found))
        raise UsageError(f"{runs}: several recipes were trained on {source} ({names}). Say which: --recipe NAME.")
    return found.pop()


def seeds_of(recipe_folder: Path) -> list[int]:
    """The seeds that were trained under a recipe's folder, ascending."""
    return sorted(int(path.name.removeprefix("seed-")) for path in recipe_folder.glob("seed-*") if model_of(path))


def newest_run(runs: Path) -> Path:
    """The seed folder whose phase one, or phase two where it stands on others' encoders, finished an epoch most recently.

    Raises DiffATRError when there is none.
    """
    found = {run: path.stat().st_mtime for run in runs.glob("*/seed-*") if (path := model_of(run))}
    if not found:
        raise DiffATRError(f"{runs}: no trained model there. Train one (`diffatr demo` takes minutes), or name one with --run.")
    return max(found, key=found.__getitem__)


def recipe_of(run: Path) -> Recipe:
    """What the model of a seed folder was trained with: phase one's `data`, `audio`, `text`, `model` and `pretrain`, and, where
    phase two has finished an epoch, its `diffusion` and `evaluation`.

    Raises:
        DiffATRError: it is not a run folder, or the encoders that it stands on are not there.
    """
    recipe = load_recipe(encoders_of(run).folder / RECIPE)
    if recipe.model.strategy != "gen" and (run / "diffusion" / BEST).is_file():
        second = load_recipe(run / "diffusion" / RECIPE)
        recipe = recipe.model_copy(update={name: getattr(second, name) for name in SECOND_PHASE})
    return recipe
