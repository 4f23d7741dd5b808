"""Compose what `diffatr-small` learns from, out of real recordings and procedural sounds, as a folder for `prepare folder`.

    python tools/compose_small.py --composer PATH/make_scenes.py --out SOUNDS
    diffatr prepare folder --from SOUNDS --name small
    diffatr pretrain small
    diffatr train-diffusion small

The composer is a Python file that knows the recordings: their kinds and clauses (`EVENTS`), which of them belong to a split
(`kinds`, `take`), and how scenes of several are put together (`render`). Its recordings are not part of this repository.

Five parts, all labelled by clauses: scenes in AudioCaps' layout (10 s, one to three sounds) and in Clotho's (15-20 s, sounds over
a background), of several seeds; single sounds, one clip each, of all kinds; blends, two long recordings of one kind at once; and
procedural sounds. Clips of one kind alone carry all clauses of that kind, so that clips which share a caption are known to be the
same sound (`data.same_captions`).
The test split is not written: it is kept for `tools/evaluate_small.py`, recording by recording.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile

from diffatr_cli.data.sounds import KINDS, render

RATE = 32000
HELD_OUT = ("puppy", "ambulance", "thunderstorm", "computer")
"""Words that no training caption has, so that searches for them show what the caption encoder brings along."""
SEEDS = (0, 1)
SCENES = {"train": {"audiocaps": 800, "clotho": 250}, "val": {"audiocaps": 60, "clotho": 0}}  # of each seed
SINGLES = {"train": 12, "val": 4}  # cut anew from the recordings of a kind, beside every short recording as it is
WHOLE = {"train": 10**6, "val": 16}  # of a kind's short recordings as they are
SHARE = {"train": (4, 10), "val": (1, 4)}  # fewest and most clips of one long recording
BLENDS = {"train": 120, "val": 0}  # of each kind of long recordings
BLEND_SECONDS = 4
BLEND_SPEED = (0.8, 1.25)  # of either recording
BLEND_LEVEL = (-9, 0)  # dB, of the second recording beside the first one
PROCEDURAL = {"train": 14, "val": 2}  # of each kind


@dataclass(frozen=True)
class Job:
    """One clip to write: `make` names the function, `arguments` what it takes."""

    split: str
    path: str
    make: str
    arguments: tuple[Any, ...]


def read_composer(path: Path) -> ModuleType:
    """The composer as a module, with the kinds of its standard scenes alone; each time another one."""
    spec = importlib.util.spec_from_file_location("composer", path)
    assert spec is not None
    assert spec.loader is not None
    composer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(composer)
    return composer


def load_composer(path: Path, music: bool = False) -> ModuleType:
    """The composer with its effects, and with `music` its instruments and speech; no clause has a held-out word."""
    composer = read_composer(path)
    composer.add_effects()
    if music:
        composer.add_music()
    for label, (files, terse, wordy) in composer.EVENTS.items():
        terse = list(without_held_out(terse))
        composer.EVENTS[label] = (files, terse, list(without_held_out(wordy)) or terse)
    return composer


def without_held_out(clauses: Iterable[str]) -> Iterator[str]:
    """The clauses that have none of the held-out words."""
    return (clause for clause in clauses if not any(word in clause.lower() for word in HELD_OUT))


def by_recording(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Clips by the recording they are cut from, whose name is what stands before the first dash of theirs."""
    recordings: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        recordings[file.stem.split("-")[0]].append(file)
    return recordings


def even(files: Iterable[Path], fewest: int, most: int) -> list[Path]:
    """Clips of long recordings such that none outweighs the others: between `fewest` and `most` of each, some repeated.

    Of two jackhammers come 150 of 240 clips: a model learns those two machines. The first clip of each recording comes first,
    then the second ones, so that any beginning is varied.
    """
    rounds: list[list[Path]] = [[] for _ in range(most)]
    for clips in by_recording(files).values():
        share = min(max(len(clips), fewest), most)
        for i in range(share):
            rounds[i].append(clips[i * len(clips) // share])
    return [file for files in rounds for file in files]


def blend(rng: random.Random, files: Iterable[Path]) -> np.ndarray:
    """Clips of two recordings at once, each at a speed and a place of its own: a source that no recording holds."""
    recordings = by_recording(files)
    samples = np.zeros(BLEND_SECONDS * RATE, np.float32)
    for recording, level in zip(rng.sample(sorted(recordings), 2), (0, rng.uniform(*BLEND_LEVEL)), strict=True):
        wave, speed = COMPOSER.load(str(rng.choice(recordings[recording]))), rng.uniform(*BLEND_SPEED)
        wave = np.interp(np.arange(int(len(wave) / speed)) * speed, np.arange(len(wave)), wave)
        start = rng.randrange(max(1, len(samples) - len(wave)))
        wave = wave[: len(samples) - start]
        samples[start : start + len(wave)] += 0.6 * 10 ** (level / 20) * wave / max(float(np.abs(wave).max()), 1e-4)
    return samples / max(1.0, float(np.abs(samples).max()) / 0.95)


def phrases(clauses: Iterable[str]) -> list[str]:
    """A kind's clauses and two more ways to say the first one."""
    clauses = list(dict.fromkeys(clauses))
    return [*clauses, f"the sound of {clauses[0]}", f"a recording of {clauses[-1]}"]


def phrases_of(composer: ModuleType, label: str) -> list[str]:
    """What is said of a kind of sound."""
    _, terse, wordy = composer.EVENTS[label]
    return phrases([*terse, *wordy])


def jobs(composer: ModuleType, split: str) -> Iterator[Job]:
    """All clips of a split; the same every time."""
    for seed in SEEDS:
        for layout, count in SCENES[split].items():
            for i in range(count):
                yield Job(split, f"scenes/{layout}-{seed}-{i:05d}.wav", "scene", (layout, i, seed))
    for label in composer.kinds(split):
        whole = [*composer.urban_files(split).get(label, []), *composer.effect_files(label, split)]
        for i, file in enumerate(whole[: WHOLE[split]]):
            yield Job(split, f"whole/{label}-{i:04d}.wav", "whole", (label, str(file)))
        for i in range(SINGLES[split]):
            yield Job(split, f"single/{label}-{i:04d}.wav", "single", (label, i))
    for label in composer.urban_files(split):
        for i in range(BLENDS[split]):
            yield Job(split, f"blend/{label}-{i:04d}.wav", "blend", (label,))
    for kind in KINDS:
        for i in range(PROCEDURAL[split]):
            yield Job(split, f"procedural/{kind}-{i:04d}.wav", "procedural", (kind, i))


def write(job: Job, out: Path) -> tuple[str, str, list[str]]:
    """Write a job's clip; its path below `out`, split and captions."""
    path = out / job.split / job.path
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{job.split}/{job.path}"
    rng = random.Random(name)
    if job.make == "scene":
        layout, i, seed = job.arguments
        captions, _ = COMPOSER.render((layout, job.split, i, seed, str(path), 5, True))
        return name, job.split, list(dict.fromkeys(captions))
    if job.make == "procedural":
        kind, i = job.arguments
        seed = [zlib.crc32(kind.encode()), i, ("train", "val").index(job.split)]
        generator = np.random.default_rng(seed)
        samples = render(kind, generator, float(generator.uniform(2, 6)))
        captions = phrases(without_held_out(KINDS[kind].captions))
    else:
        label = job.arguments[0]
        captions = phrases_of(COMPOSER, label)
        if job.make == "whole":
            samples = COMPOSER.load(job.arguments[1])
        elif job.make == "blend":
            samples = blend(rng, COMPOSER.urban_files(job.split)[label])
        else:
            samples = 0.9 * COMPOSER.take(rng, label, job.split, rng.uniform(1.5, 6))
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return name, job.split, captions


COMPOSER: ModuleType


def _start(composer: Path) -> None:
    global COMPOSER
    COMPOSER = load_composer(composer, music=True)
    urban_files = COMPOSER.urban_files
    # Every piece of every scene asks for them.
    COMPOSER.urban_files = cache(lambda split: {label: even(files, *SHARE[split]) for label, files in urban_files(split).items()})


def main() -> None:
    """Write the clips and `captions.csv` with the columns file, split, caption."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    _start(options.composer)
    todo = [job for split in ("train", "val") for job in jobs(COMPOSER, split)]
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(initializer=_start, initargs=(options.composer,)) as pool,
        (options.out / "captions.csv").open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["file", "split", "caption"])
        for name, split, captions in pool.map(write, todo, [options.out] * len(todo), chunksize=32):
            rows.writerows([name, split, caption] for caption in captions)
    print(f"{len(todo)} clips -> {options.out}")


if __name__ == "__main__":
    main()
