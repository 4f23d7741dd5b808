"""Sound files for the tests: good ones in any format, and one of every way in which a file can be bad."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray


def sine(seconds: float, rate: int, hz: float = 1000.0, amplitude: float = 0.5) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: NDArray[np.float64], rate: int, **options: str) -> Path:
    """In blocks, because libsndfile crashes on long OGG files written at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
        for start in range(0, len(samples), 10_000):
            file.write(samples[start : start + 10_000])
    return path


def tone(path: Path, hz: float = 1000.0, seconds: float = 0.5, rate: int = 32_000) -> Path:
    return write(path, sine(seconds, rate, hz), rate)


def shorten(path: Path, share: float = 0.6) -> Path:
    """Cut the file's last bytes off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def bad_files(folder: Path) -> dict[str, str]:
    """One file of every bad kind: name -> how the reason begins with which it is refused or skipped."""
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
    (folder / "empty.wav").parent.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").write_bytes(b"")
    shorten(write(folder / "truncated.wav", noise, 32_000))
    (folder / "mislabelled.wav").write_text("this is no sound\n" * 100)
    write(folder / "header only.wav", noise[:0], 32_000)
    broken = noise.copy()
    broken[100:200] = np.nan
    write(folder / "nan.wav", broken, 32_000, subtype="FLOAT")
    write(folder / "silent.wav", 0 * noise, 32_000)
    write(folder / "one sample.wav", noise[:1], 32_000)
    return {
        "not there.wav": "missing",
        "empty.wav": "empty file",
        "truncated.wav": "truncated",
        "mislabelled.wav": "not audio",
        "header only.wav": "no samples",
        "nan.wav": "NaN",
        "silent.wav": "silent",
        "one sample.wav": "shorter than 0.1 s",
    }


def table(path: Path, heading: str, rows: Sequence[Sequence[str]], ending: str = "\n", encoding: str = "utf-8") -> Path:
    """A CSV file with quoting where it is needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream, lineterminator=ending)
        writer.writerow(heading.split(","))
        writer.writerows(rows)
    return path
