"""`diffatr index` as a process: how fast it indexes on all cores, what an unchanged folder costs, what it costs to check an
index for damage, and what kills can break.

The model is the one that ships with the package; without it, the demo recipe's after one epoch. Recordings are 44.1 kHz stereo
files of procedural sounds, equally many WAV, FLAC, OGG and MP3. Each kill -9 meets a new index at a random moment between the
process's start and a little after its usual end; the same command then runs again, and what it leaves is compared with an
index that nothing disturbed: files, windows, their places and vectors. A difference fails the benchmark.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from diffatr_cli.core.windows import OURS
from diffatr_cli.corpus import checksums, update
from diffatr_cli.corpus.index import FolderIndex, IndexReport, Recordings
from diffatr_cli.corpus.place import Folder
from diffatr_cli.corpus.snapshot import read_snapshot, write_snapshot
from diffatr_cli.corpus.store import ContentWindows, WindowTable, row_checksum
from diffatr_cli.data.sounds import KINDS, render
from diffatr_cli.errors import DiffATRError
from diffatr_cli.model import load_retriever, shipped_model

from . import startup
from .common import Case, Row, Size, medians, pick, seconds

RATE = 44_100
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
BLOCK = 10_000  # samples; libsndfile crashes on long OGG files written at once
TOLERANCE = 1e-3  # of the values of unit vectors, which are kept in float16; batches after a kill are other batches
MOMENTS = ("before it began to index", "before the first commit", "after a commit", "after the end")


def a_run(folder: Path) -> Path:
    """The run folder of the model that ships with the package, or else one that is trained below `folder`."""
    try:
        return shipped_model()
    except DiffATRError:
        return startup.make_run(folder)


def make_recordings(folder: Path, count: int, length: float) -> Path:
    """Stereo recordings of `length` seconds, no two alike, in the four formats by turns."""
    rng = np.random.default_rng(0)
    piece = max(1.0, min(6.0, length))
    tape = np.concatenate([render(kind, rng, piece) for kind in KINDS] * int(1 + length / piece / len(KINDS)))
    folder.mkdir(parents=True)
    for i in range(count):
        suffix, subtype = list(FORMATS.items())[i % len(FORMATS)]
        mono = np.roll(tape, -int(rng.integers(len(tape))))[: int(length * RATE)] * np.float32(rng.uniform(0.3, 1))
        stereo = np.stack([mono, np.roll(mono, 20)], 1)
        with soundfile.SoundFile(folder / f"{i:05d}.{suffix}", "w", RATE, 2, subtype, format=suffix.upper()) as file:
            for start in range(0, len(stereo), BLOCK):
                file.write(stereo[start : start + BLOCK])
    return folder


def command(corpus: Path, index: Path, run: Path) -> list[str]:
    """The arguments, after the interpreter's, of the process under test."""
    arguments = ("-m", "diffatr_cli", "index", corpus, "--index", index, "--run", run, "--device", "cpu", "--json")
    return [str(argument) for argument in arguments]


def indexed(corpus: Path, index: Path, run: Path) -> tuple[dict[str, Any], float]:
    """Run the command to its end; its document, and the seconds it took."""
    started = time.perf_counter()
    printed = startup.python(*command(corpus, index, run))
    return json.loads(printed), time.perf_counter() - started


def speed(size: Size, run: Path | None = None, files: Path | None = None) -> list[Row]:
    """Hours of recordings a minute; `run` and `files` are folders to use instead of the shipped model and of new files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = run or a_run(folder)
        count, length = pick(size, (4, 1.0), (40, 30.0), (120, 60.0))
        files = files or make_recordings(folder / "recordings", count, length)
        document, took = indexed(files, folder / "index", run)
        recordings = FolderIndex(files, folder / "index").read(load_retriever(run, "cpu").model_id)
    hours = sum(float(recordings.spans[recordings.rows_of(file).stop - 1, 1]) for file in range(len(recordings))) / 3600
    remark = f"{document['files']:,} files, {document['windows']:,} windows, {took:.0f} s with the start of the process"
    return [Row(f"index {hours:.3g} h of recordings", hours / (took / 60), unit="h/min", remark=remark)]


def unchanged(size: Size, run: Path | None = None) -> list[Row]:
    """The first and the second index of very many short files."""
    count = pick(size, 20, 1_000, 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = run or a_run(folder)
        clips = startup.make_clips(folder / "clips", count)
        _, first = indexed(clips, folder / "index", run)
        again = [indexed(clips, folder / "index", run) for _ in range(pick(size, 1, 3, 5))]
        paths = sorted(clips.rglob("*.wav"), key=lambda path: path.name)
        for path, following in reversed([*zip(paths, [*paths[1:], clips / "last.wav"], strict=True)]):
            path.rename(following)
        moved, renamed = indexed(clips, folder / "index", run)
    if any(document["unchanged"] != count for document, _ in again):
        raise RuntimeError(f"{again[0][0]['unchanged']} of {count} files were found unchanged")
    if (moved["reused"], moved["embedded"]) != (count, 0):
        raise RuntimeError(f"of {count} renamed files {moved['embedded']} were embedded again")
    return [
        Row(f"index {count:,} clips of 0.1 s", first),
        Row(f"index them again, unchanged, {count:,}", statistics.median(took for _, took in again), goal="goal: at most 5 s"),
        Row("index them after each has taken the name of the next", renamed, remark="hashed again, none embedded"),
    ]


class Elsewhere:
    """Stands in for a model on a GPU: its encoder takes its time, and none of the processor's."""

    name = model_id = "elsewhere"
    windowing, dim, sees_frames = OURS, 512, False

    def __init__(self, device: str, rate: float) -> None:
        self.device, self.rate, self.at_work = device, rate, 0.0
        self.first, self.last, self.windows = math.inf, 0.0, 0
        self.one = threading.Lock()  # it does one thing at a time

    def embed_audio(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors of windows, after as long as an encoder of this rate needs."""
        with self.one:
            began = time.perf_counter()
            time.sleep(len(waveforms) / self.rate)
            self.windows += len(waveforms)
            self.first, self.last = min(self.first, began), time.perf_counter()
            self.at_work += self.last - began
        return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(waveforms), 1))


def elsewhere(size: Size) -> list[Row]:
    """How busy an encoder is kept that works beside the processor, as a GPU does; plain: treated as one that works on it.

    And how many windows a second come to an encoder that takes no time, read by processes and by threads, and what of it is this
    process's own work: Python's lock lets one thread of it go on at a time.
    """
    count, rate = pick(size, 4, 1_000, 4_000), pick(size, 1e5, 1_000.0, 1_000.0)
    few, minute = max(1, count // 20), pick(size, 2.0, 60.0, 60.0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for what, files, length in (("clips", count, pick(size, 1.0, 10.0, 10.0)), ("recordings", few, minute)):
            folder = _noise(Path(name) / what, files, length, "wav")
            shares = []
            for device in ("cuda", "cpu"):
                model: Any = Elsewhere(device, rate)
                FolderIndex(folder, Path(name) / f"{what} {device}").update(model)
                shares.append(100 * model.at_work / (model.last - model.first))
            remark = "from its first window to its last; plain: windows are gathered when it is done with those before"
            told = f"an encoder of {rate:,.0f} windows/s is at work: index {files:,} {what} of {length:.0f} s"
            rows.append(Row(told, *shares, unit="%", goal="goal: above 80 %", remark=remark))
        for what, files, length, form in (
            ("clips", count, pick(size, 1.0, 10.0, 10.0), "wav"),
            *(("recordings", few, minute, form) for form in ("wav", "flac", "ogg")),
            ("long recordings", max(2, few // 20), 20 * minute, "flac"),
        ):
            folder = _noise(Path(name) / f"{what} in {form}", files, length, form)
            rates, own = [], []
            for by_processes in (True, False):
                model = Elsewhere("cuda", math.inf)
                with mock.patch.object(update, "pay", lambda *_, answer=by_processes: answer):
                    before = time.process_time()
                    took = seconds(partial(FolderIndex(folder, Path(name) / f"{what} {form} {by_processes}").update, model))
                rates.append(model.windows / took)
                own.append(1e3 * (time.process_time() - before) / model.windows)
            told, remark = f"{files:,} mono {what} of {length:.0f} s in {form.upper()}, no encoder", "plain: read by threads"
            rows += [
                Row(told, *rates, unit="windows/s", remark=remark),
                Row(f"{told}: of which this process itself", *own, unit="ms/window", remark=remark),
            ]
    return rows


def _noise(folder: Path, count: int, length: float, form: str) -> Path:
    """Mono recordings of noise at the windows' rate."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        samples = 0.1 * rng.standard_normal(int(length * OURS.rate), dtype=np.float32)
        with soundfile.SoundFile(folder / f"{i:04d}.{form}", "w", OURS.rate, 1, FORMATS[form]) as file:
            for first in range(0, len(samples), BLOCK):
                file.write(samples[first : first + BLOCK])
    return folder


def checks(size: Size) -> list[Row]:
    """What it costs to check an index for damage, when it is read from its snapshot and when it is read from its tables."""
    count, dim, rounds = pick(size, 50, 10_000, 10_000), 512, pick(size, 1, 5, 15)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spans = np.tile([[0.0, 10.0]], (count, 1))
    hashes = [rng.bytes(16).hex() for _ in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, table = folder / "snapshot.npz", WindowTable(Folder(folder), "windows", dim)
        recordings = Recordings([f"{i:05d}.wav" for i in range(count)], np.arange(count), np.arange(count + 1), spans, vectors)
        write_snapshot(path, "tables", "folder", IndexReport(count, count), recordings)
        table.mend()
        half = vectors.astype(np.float16)
        table.add({each: ContentWindows(spans[i : i + 1], half[i : i + 1]) for i, each in enumerate(hashes)})
        table.seal()
        took = medians(
            {
                "snapshot": lambda: read_snapshot(path, "tables"),
                "its checksums": lambda: _check_zip(path),
                "table": table.read,
                "its checksums of files": lambda: list(checksums.misfits(folder / "windows.lance")),
                "its checksums of rows": lambda: [
                    row_checksum(each, spans[i : i + 1], half[i : i + 1]) for i, each in enumerate(hashes)
                ],
            },
            rounds,
        )
    what = f"{count:,} windows of {dim}"
    return [
        Row(
            f"read a snapshot of {what}", took["snapshot"], remark=f"of which {1e3 * took['its checksums']:.1f} ms are checksums"
        ),
        Row(
            f"read a table of {what}, without the time to load LanceDB",
            took["table"],
            remark=f"of which {1e3 * took['its checksums of files']:.1f} ms are checksums of its files, "
            f"{1e3 * took['its checksums of rows']:.1f} ms of its rows",
        ),
    ]


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        file.testzip()


def kills(size: Size, run: Path | None = None) -> list[Row]:
    """Kill the command at random moments, run it again, and compare."""
    moments = pick(size, 1, 6, 20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = run or a_run(folder)
        model_id = load_retriever(run, "cpu").model_id
        count, length = pick(size, (4, 1.0), (40, 10.0), (120, 10.0))
        files = make_recordings(folder / "recordings", count, length)
        indexed(files, folder / "first", run)  # so that what the disk must read once is read
        calm, usual = indexed(files, folder / "calm", run)
        want = FolderIndex(files, folder / "calm").read(model_id)
        hits: Counter[str] = Counter()
        restarts, difference = [], 0.0
        for number, moment in enumerate(np.random.default_rng(0).uniform(0, 1.05 * usual, moments)):
            index = folder / f"killed {number}"
            hits[_kill(command(files, index, run), float(moment), FolderIndex(files, index), model_id)] += 1
            again, took = indexed(files, index, run)
            restarts.append(took)
            for what in ("files", "windows", "skipped"):
                if again[what] != calm[what]:
                    raise RuntimeError(f"killed after {moment:.2f} s, the index has other {what}: {again[what]}, {calm[what]}")
            for left in index.glob("snapshot-*"):  # read once what the snapshot says, and once what the tables say
                difference = max(difference, _difference(FolderIndex(files, index).read(model_id), want))
                left.unlink()
            difference = max(difference, _difference(FolderIndex(files, index).read(model_id), want))
    told = ", ".join(f"{hits[what]} {what}" for what in MOMENTS)
    return [
        Row(f"index of {count} recordings, undisturbed", usual),
        Row(
            f"the same after a kill -9, {moments} times",
            statistics.median(restarts),
            goal="goal: the same content",
            remark=f"kills: {told}; same content, vectors within {difference:.1g}",
        ),
    ]


def _kill(arguments: list[str], moment: float, index: FolderIndex, model_id: str) -> str:
    """Start a process, kill it after `moment` seconds, and say which of `MOMENTS` that was."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=startup.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    process.kill()
    ended = process.wait() == 0
    committed = len(index.read(model_id)) > 0
    return MOMENTS[3 if ended else 2 if committed else 1 if (index.folder / "lock").exists() else 0]


def _difference(got: Recordings, want: Recordings) -> float:
    """The largest difference between two indexes' vectors; raises RuntimeError where anything else differs, or they do much."""
    if (
        got.paths != want.paths
        or not np.array_equal(got.content, want.content)
        or not np.array_equal(got.offsets, want.offsets)
        or not np.array_equal(got.spans, want.spans)
    ):
        raise RuntimeError("an index that was killed and run again holds other files or windows")
    difference = float(np.abs(got.vectors - want.vectors).max())
    if difference > TOLERANCE:
        raise RuntimeError(f"an index that was killed and run again holds other vectors, by {difference}")
    return difference


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"speed": speed, "unchanged": unchanged, "elsewhere": elsewhere, "checks": checks, "kills": kills}
