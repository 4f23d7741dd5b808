"""Scenes and long recordings out of a split's recordings, for `evaluate_small.py`: what is heard in them, and where.

Scenes are the composer's, with captions in three wordings: its terse clauses, its wordy ones, and clauses in words of which
no training caption is made. Long recordings are kinds of sound one after another, with quiet between them.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
from compose_small import RATE
from small_queries import REWORDED

SEED = 11  # of the composer's scenes; training and validation have others
SCENES = {"audiocaps": 120, "clotho": 80}
LONG = 16  # recordings
PLACES = 20  # sounds in each
SECONDS = (3, 8)  # of each sound
QUIET = (0.5, 3)  # seconds between them
HISS = 0.001  # of full scale, all along
LINKS = {
    "mix": ("; meanwhile ", "; at once with it "),
    "seq": ("; after that ", "; next "),
    "over": (", and close by ", "; over this "),
}


@dataclass(frozen=True)
class Place:
    """A sound of a kind in a long recording, in seconds."""

    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Scene:
    """The kinds of sound of a scene and its caption in each wording."""

    kinds: tuple[str, ...]
    captions: Mapping[str, str]


def write_scenes(composer: ModuleType, split: str, folder: Path) -> dict[str, Scene]:
    """Scenes by the name of their file below `folder`; written once."""
    table = folder / "scenes.json"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scenes = {}
        for layout, count in SCENES.items():
            for i in range(count):
                name = f"{layout}-{i:04d}.wav"
                _, key = composer.render((layout, split, i, SEED, str(folder / name), 1, True))
                kinds = [kind for kind in re.split(r"[|+]", key.split("/")[0]) if kind]
                scenes[name] = {"kinds": kinds, "captions": _captions(composer, kinds, key, random.Random(f"{split}/{name}"))}
        table.write_text(json.dumps(scenes))
    return {name: Scene(tuple(each["kinds"]), each["captions"]) for name, each in json.loads(table.read_text()).items()}


def _captions(composer: ModuleType, kinds: list[str], key: str, rng: random.Random) -> dict[str, str]:
    links = LINKS["over" if "|" in key else key.rsplit("/", 1)[1]]
    theirs = " followed by " if key.endswith("/seq") else " while "
    terse, wordy = (theirs.join(rng.choice(composer.EVENTS[kind][column]) for kind in kinds) for column in (1, 2))
    reworded = REWORDED[kinds[0]] + "".join(rng.choice(links) + REWORDED[kind] for kind in kinds[1:])
    return {"terse": terse, "wordy": wordy, "reworded": reworded}


def write_long(composer: ModuleType, split: str, folder: Path) -> dict[str, list[Place]]:
    """Long recordings by the name of their file below `folder`, with what is heard where; written once."""
    table = folder / "places.csv"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng, rows, kinds = random.Random(f"{split}/long"), [], composer.kinds(split)
        for number in range(LONG):
            name, at, pieces = f"long-{number:02d}.wav", 0.0, []
            for kind in rng.sample(kinds, PLACES):
                at += rng.uniform(*QUIET)
                wave = rng.uniform(0.3, 0.8) * composer.take(rng, kind, split, rng.uniform(*SECONDS))
                rows.append([name, kind, f"{at:.3f}", f"{at + len(wave) / RATE:.3f}"])
                pieces.append((int(at * RATE), wave))
                at += len(wave) / RATE
            samples = np.random.default_rng(number).normal(0, HISS, int((at + 1) * RATE))
            for start, wave in pieces:
                samples[start : start + len(wave)] += wave
            soundfile.write(folder / name, samples, RATE, subtype="PCM_16")
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    places: dict[str, list[Place]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for name, kind, start, end in csv.reader(file):
            places.setdefault(name, []).append(Place(kind, float(start), float(end)))
    return places
