"""A small captioned data set of procedural sounds, so that everything runs offline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..progress import Progress, silent
from .manifest import SPLITS
from .plan import Item, Plan
from .prepare import Report, claim, prepare
from .sounds import KINDS, render_scene

SECONDS = 5.0
_VERSION = 1  # raised when the same seed gives other sounds; clips of an earlier version are made again

_CAPTIONS = {"train": 3, "val": 5, "test": 5}
_JOINS = {
    "alone": ("{0}", "{0} and nothing else", "only {0}"),
    "then": ("{0} and then {1}", "{0} followed by {1}", "first {0}, later {1}", "{1} after {0}"),
    "with": ("{0} while {1}", "{0} with {1} in the background", "{0} as {1}", "{0} over {1}"),
}
_ALONE = 0.3
"""Share of clips with a single sound."""


def prepare_synthetic(
    out: Path,
    train: int = 400,
    val: int = 60,
    test: int = 80,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Generate 5-second clips of one or two kinds of sound, one after the other or together, with captions from templates.

    The same seed gives the same clips, whatever the numbers: a larger set begins with a smaller one's.

    Raises:
        DiffATRError: a full disk.
    """
    with claim(out, "synthetic") as earlier:
        plan = Plan()
        for split, count in zip(SPLITS, (train, val, test), strict=True):
            plan.items.extend(_items(split, count, seed))
        return prepare(out, "synthetic", plan, earlier, render_scene, workers=workers, progress=progress, info={"seed": seed})


def _items(split: str, count: int, seed: int) -> list[Item]:
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    items: list[Item] = []
    seen: set[str] = set()
    while len(items) < count:
        join = "alone" if rng.uniform() < _ALONE else str(rng.choice(["then", "with"]))
        kinds = [str(kind) for kind in rng.choice(list(KINDS), size=1 if join == "alone" else 2, replace=False)]
        name = f"{' '.join([kinds[0], *([join, kinds[1]] if len(kinds) == 2 else [])])}"
        number = len(items)
        # Two clips of the same scene would share their captions. Only a set larger than the number of scenes repeats some.
        if name in seen and number < 1000:
            continue
        seen.add(name)
        clauses = [rng.permutation(KINDS[kind].captions) for kind in kinds]
        joins = rng.permutation(_JOINS[join])
        captions = tuple(
            str(joins[index % len(joins)]).format(*(some[index % len(some)] for some in clauses)).capitalize()
            for index in range(_CAPTIONS[split])
        )
        recipe = {
            "version": _VERSION,
            "seed": [seed, SPLITS.index(split), number],
            "seconds": SECONDS,
            "join": join,
            "kinds": kinds,
        }
        items.append(Item(f"{split}/{number:05d}", split, captions, f"{number:05d} {name}", json.dumps(recipe)))
    return items
