"""Run folders: where the runs of a recipe live, what each holds, and how a job finds the one it needs.

    runs/<recipe>/seed-<n>/pretrain/     phase one
    runs/<recipe>/seed-<n>/diffusion/    phase two

Each phase's folder holds `recipe.yaml` (resolved), `run.json` (versions, git revision, seed, data, how to resume),
`metrics.jsonl` and `metrics.csv`, `best.safetensors` and `last.safetensors` (everything that resuming needs). They are written by
`training.phase_folder`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from .errors import DiffATRError, UsageError
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
    for record in sorted(runs.glob(f"*/seed-*/pretrain/{RECORD}")):
        try:
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
    return sorted(
        int(path.name.removeprefix("seed-")) for path in recipe_folder.glob("seed-*") if (path / "pretrain" / BEST).is_file()
    )


def newest_run(runs: Path) -> Path:
    """The seed folder whose phase one finished an epoch most recently. Raises DiffATRError when there is none."""
    found = list(runs.glob(f"*/seed-*/pretrain/{BEST}"))
    if not found:
        raise DiffATRError(f"{runs}: no trained model there. Train one (`diffatr demo` takes minutes), or name one with --run.")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def recipe_of(run: Path) -> Recipe:
    """What the model of a seed folder was trained with: phase one's `data`, `audio`, `text`, `model` and `pretrain`, and, where
    phase two has finished an epoch, its `diffusion` and `evaluation`.

    Raises:
        DiffATRError: it is not a run folder.
    """
    if not (run / "pretrain" / RECIPE).is_file():
        raise DiffATRError(f"{run}: not a run folder (no pretrain/{RECIPE} in it).")
    recipe = load_recipe(run / "pretrain" / RECIPE)
    if recipe.model.strategy != "gen" and (run / "diffusion" / BEST).is_file():
        second = load_recipe(run / "diffusion" / RECIPE)
        recipe = recipe.model_copy(update={name: getattr(second, name) for name in SECOND_PHASE})
    return recipe
