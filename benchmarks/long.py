"""`diffatr index` as a process, on one recording of eight hours in each format: memory does not grow with the length.

The model is the one that ships with the package. A recording is procedural sounds, stereo at 44.1 or 48 kHz; compressed ones
repeat the packets of one minute, since encoding eight hours would take longer than all the rest. More than 1.5 GB fails it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from diffatr_cli.data.sounds import KINDS, render

from . import index, startup
from .common import Case, Row, Size, Skip, pick

HOURS = 8.0
MOST = 1.5  # GB
PLAIN = {"wav": "PCM_16", "flac": "PCM_16"}
COMPRESSED = {"mp3": ("mp3", 44_100), "m4a": ("aac", 44_100), "opus": ("libopus", 48_000)}
"""FFmpeg's encoder and the rate, by suffix."""
MEASURED = """
import atexit, pathlib, re, resource, runpy, sys

def note(path=pathlib.Path(sys.argv.pop(1)), status=pathlib.Path("/proc/self/status")):
    if status.exists():
        kilobytes = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    path.write_text(str(kilobytes))

atexit.register(note)
runpy.run_module("diffatr_cli", run_name="__main__")
"""
"""The command, which at its end writes down its own peak in KiB. Where there is /proc, it is told from what a process has of its
parent: on Linux getrusage begins at that."""


def tape(seconds: float, rate: int) -> NDArray[np.float32]:
    """(2, samples) of procedural sounds, one after the other."""
    rng, piece = np.random.default_rng(0), int(6 * rate)
    mono = np.concatenate([np.resize(render(kind, rng, 6.0), piece) for kind in list(KINDS)[: int(seconds / 6) + 1]])
    return np.stack([mono, np.roll(mono, 20)])[:, : int(seconds * rate)].astype(np.float32)


def write_plain(path: Path, seconds: float) -> None:
    """One minute over and over, with soundfile."""
    minute = tape(min(seconds, 60.0), 44_100).T
    # RF64, since eight hours are more than a WAV file's size can say.
    form = "RF64" if path.suffix == ".wav" else path.suffix[1:].upper()
    with soundfile.SoundFile(path, "w", 44_100, 2, PLAIN[path.suffix[1:]], format=form) as file:
        for _ in range(round(seconds / (len(minute) / 44_100))):
            file.write(minute)


def write_compressed(path: Path, seconds: float) -> None:
    """The packets of one minute over and over, with PyAV."""
    import av

    codec, rate = COMPRESSED[path.suffix[1:]]
    minute = tape(min(seconds, 60.0), rate)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, layout="stereo")
        packets = list(_encoded(stream, minute, rate))
        duration = packets[2].pts - packets[1].pts  # of each; the last one's own says how much of it is filling
        contents, time_base, at = [bytes(packet) for packet in packets], packets[0].time_base, packets[0].pts
        for _ in range(round(seconds / (minute.shape[1] / rate))):
            for content in contents:
                packet: Any = av.Packet(content)
                packet.stream, packet.time_base, packet.duration = stream, time_base, duration
                packet.pts = packet.dts = at
                out.mux(packet)
                at += duration


def _encoded(stream: Any, samples: NDArray[np.float32], rate: int) -> Iterator[Any]:
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    cut = av.AudioResampler(format=stream.format.name, layout="stereo", rate=rate, frame_size=stream.frame_size or 1024)
    for piece in (*cut.resample(frame), *cut.resample(None), None):
        yield from stream.encode(piece)


def long_recording(size: Size, suffix: str = "flac") -> list[Row]:
    """One recording of a format, indexed by a fresh process."""
    if suffix in COMPRESSED and not find_spec("av"):
        raise Skip("no PyAV")
    seconds = pick(size, 20.0, 1800.0, 3600 * HOURS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = index.a_run(folder)
        (folder / "recordings").mkdir()
        path = folder / "recordings" / f"long.{suffix}"
        (write_compressed if suffix in COMPRESSED else write_plain)(path, seconds)
        gigabytes = path.stat().st_size / 1e9
        arguments = index.command(path.parent, folder / "index", run)[2:]  # behind `-m diffatr_cli`
        started = time.perf_counter()
        document = json.loads(startup.python("-c", MEASURED, folder / "peak", *arguments))
        took = time.perf_counter() - started
        peak = int((folder / "peak").read_text()) * 1024 / 1e9
    if document["skipped"] or document["partial"]:
        raise RuntimeError(f"{path.name}: {document['skipped'] or document['partial']}")
    if abs(5 * (document["windows"] + 1) - seconds) > 10 + seconds / 1000:  # encoders fill the last packet of the minute
        raise RuntimeError(f"{path.name}: {document['windows']} windows of {seconds:.0f} s")
    if peak > MOST:
        raise RuntimeError(f"{path.name}: indexing took {peak:.2f} GB of memory")
    remark = f"a file of {gigabytes:.2f} GB, {document['windows']:,} windows; {peak:.2f} GB of memory at most"
    what = f"index {seconds / 3600:.2g} h of {suffix}"
    return [Row(what, seconds / 60 / took, unit="h/min", goal=f"goal: at most {MOST} GB", remark=remark)]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic, one a format."""
    return {suffix: partial(long_recording, suffix=suffix) for suffix in (*PLAIN, *COMPRESSED)}
