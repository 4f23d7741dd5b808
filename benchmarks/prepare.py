"""Preparing recordings: 44.1 kHz stereo files of ten seconds to 32 kHz mono WAV files, on all cores.

The plain version is a loop over `librosa.load(file, sr=32000, mono=True)` and `soundfile.write`, timed on a slice and
extrapolated. Starting the worker processes, checksums and the manifest count.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile

from diffatr_cli.data.audio import Resampler
from diffatr_cli.data.plan import Item, Plan
from diffatr_cli.data.prepare import claim, prepare
from diffatr_cli.types import SAMPLE_RATE

from .common import Case, Row, Size, Skip, pick, seconds

RATE = 44_100


def make_files(folder: Path, count: int, length: float) -> list[Path]:
    """Stereo 16-bit WAV files of noise."""
    rng, paths = np.random.default_rng(0), [folder / f"{i:04d}.wav" for i in range(count)]
    noise = rng.integers(-8000, 8000, (int(RATE * (length + 1)), 2), np.int16)
    for path in paths:
        start = int(rng.integers(0, RATE))
        soundfile.write(path, noise[start : start + int(RATE * length)], RATE)
    return paths


def against_librosa(resampler: Resampler, size: Size) -> list[Row]:
    """`prepare` with a resampler beside librosa's loop with the same one."""
    if find_spec("librosa") is None:
        raise Skip("librosa is not installed")
    import librosa

    slow = resampler == "resampy"
    count, few = pick(size, 2, 40, 100 if slow else 400), pick(size, 1, 4 if slow else 20, 20 if slow else 100)
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name), Path(name) / "target"
        paths = make_files(folder, count, pick(size, 1.0, 10.0, 10.0))

        def plain(files: list[Path]) -> None:
            for path in files:
                samples, _ = librosa.load(path, sr=SAMPLE_RATE, mono=True, res_type="kaiser_best" if slow else "soxr_hq")
                soundfile.write(folder / "plain.wav", samples, SAMPLE_RATE)

        def fast() -> float:
            plan = Plan([Item(path.stem, "train", ("noise",), path.stem, str(path)) for path in paths])
            with claim(target, "folder") as earlier:
                took = seconds(lambda: prepare(target, "folder", plan, earlier, resampler=resampler))
            shutil.rmtree(target)
            return took

        plain(paths[:1])  # imports and compiles
        looped = statistics.median(seconds(lambda: plain(paths[:few])) for _ in range(pick(size, 1, 1, 3))) * count / few
        took = statistics.median(fast() for _ in range(pick(size, 1, 2, 3)))
    return [
        Row(
            f"{count} files, {resampler}",
            took,
            looped,
            goal="" if slow else "goal: at least 3 times",
            remark=f"plain: librosa with {'resampy kaiser_best' if slow else 'soxr'}, {few} files, extrapolated",
        )
    ]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    resamplers: tuple[Resampler, ...] = ("soxr", "resampy")
    return {resampler: partial(against_librosa, resampler) for resampler in resamplers}
