"""Run folders: where the runs of a recipe live, what each holds, and how a job finds the one it needs.

    runs/<recipe>/seed-<n>/pretrain/     phase one
    runs/<recipe>/seed-<n>/diffusion/    phase two

Each phase's folder holds `recipe.yaml` (resolved), `run.json` (versions, git revision, seed, data, how to resume),
`metrics.jsonl` and `metrics.csv`, `best.safetensors` and `last.pt` (everything that resuming needs). They are written by
`training.phase_folder`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .errors import DiffATRError, UsageError
from .recipe import load_recipe
from .recipe_schema import Recipe

Phase = Literal["pretrain", "diffusion"]
BEST = "best.safetensors"
LAST = "last.pt"


def run_folder(runs: Path, recipe_name: str, seed: int) -> Path:
    """Where the phases of one recipe and seed live."""
    return runs / recipe_name / f"seed-{seed}"


def recipe_of_record(record: Mapping[str, Any]) -> Recipe:
    """The recipe in a `run.json`."""
    # Fields that the schema has gained since take their defaults, which is how that run was trained.
    return Recipe.model_validate_json(json.dumps(record["recipe"]))


def find_runs(runs: Path, source: str, model: str | None = None, recipe: str | None = None) -> Path:
    """The folder of the recipe whose runs learnt from data set `source` with audio encoder `model`.

    Raises:
        UsageError: none does, or several do and neither `model` nor `recipe` tells them apart.
    """
    found: dict[Path, tuple[str, float]] = {}
    for record in runs.glob("*/seed-*/pretrain/run.json"):
        learnt = recipe_of_record(json.loads(record.read_text(encoding="utf-8")))
        name = record.parents[2].name
        if learnt.data.name == source and model in (None, learnt.audio.encoder) and recipe in (None, name):
            found[record.parents[2]] = (name, record.stat().st_mtime)
    if not found:
        wanted = " ".join(filter(None, [source, model and f"with {model}", recipe and f"by recipe {recipe}"]))
        raise UsageError(
            f"{runs}: no run was trained on {wanted}. Train one: diffatr pretrain RECIPE (its data.name must be {source})."
        )
    if len(found) > 1:
        exact = [path for path in found if path.name in (source, f"{source}-{model}")]
        if len(exact) == 1:
            return exact[0]
        names = ", ".join(sorted(name for name, _ in found.values()))
        raise UsageError(f"{runs}: several recipes were trained on {source} ({names}). Say which: --recipe NAME.")
    return next(iter(found))


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
    """The resolved recipe of a seed folder. Raises DiffATRError if it is not one."""
    path = run / "pretrain" / "recipe.yaml"
    if not path.is_file():
        raise DiffATRError(f"{run}: not a run folder (no pretrain/recipe.yaml in it).")
    return load_recipe(str(path))
