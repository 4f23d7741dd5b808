"""What all data sets have in common: converting listed clips in parallel, restartable, into WAV files and a manifest.

Every finished clip goes into a journal at once; a run that was killed takes up there. The manifest replaces the journal at
the end, and holds the same whether the run was disturbed or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import DiffATRError, UsageError
from ..progress import Progress, silent
from . import audio
from .manifest import MANIFEST, SPLITS, Record, read_manifest, write_manifest

SHORTEST = 0.1
"""Seconds; anything shorter is no sound to describe."""

_JOURNAL = "prepare.journal"
_LOCK = ".prepare.lock"
_FEW = 8  # clips a process; fewer are done sooner than it starts

Produce = Callable[[str], audio.Samples]
"""Makes the samples of a source: decodes a file, or generates. Runs in worker processes."""


@dataclass(frozen=True)
class Item:
    """A clip to prepare."""

    clip_id: str
    split: str
    captions: tuple[str, ...]
    name: str
    """The prepared file's name under its split; made safe and unique here."""
    source: str | None
    """A file, a description of what to generate, or None when the recording is missing."""
    license: str | None = None


@dataclass(frozen=True)
class Skip:
    """Something listed that did not become a clip or a caption."""

    split: str
    what: str
    """A file, a clip, or FILE:LINE of a caption file."""
    reason: str


@dataclass(frozen=True)
class SplitCounts:
    """What one split came to."""

    clips: int
    captions: int
    hours: float
    listed: int
    """Clips that the caption file names."""
    official: tuple[int, int] | None
    """Clips and captions of the published data set."""


@dataclass(frozen=True)
class Report:
    """The outcome of `prepare`."""

    name: str
    root: Path
    resampler: str
    converted: int
    """Clips made in this run."""
    kept: int
    """Clips that an earlier run had finished."""
    splits: dict[str, SplitCounts]
    skipped: list[Skip]
    notes: list[str]
    """What is worth knowing and cost nothing."""

    @property
    def clips(self) -> int:
        return sum(split.clips for split in self.splits.values())

    @property
    def listed(self) -> int:
        return sum(split.listed for split in self.splits.values())

    def reasons(self) -> dict[str, dict[str, int]]:
        """Skips counted: split -> reason -> number, most frequent first."""
        return {
            split: dict(Counter(skip.reason for skip in self.skipped if skip.split == split).most_common())
            for split in dict.fromkeys(skip.split for skip in self.skipped)
        }

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "root": str(self.root), "reasons": self.reasons()}


@dataclass
class Plan:
    """What a caption file asks for: filled in by the readers of the data sets."""

    items: list[Item] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def claim(root: Path, kind: str) -> Iterator[None]:
    """Hold `root` for one `prepare` at a time, and only for the kind of data set that is there already.

    Raises:
        UsageError: another kind of data set is there.
        DiffATRError: another process is preparing it, or the folder cannot be written.
    """
    if (root / MANIFEST).exists() and (there := read_manifest(root)[1].get("kind")) != kind:
        raise UsageError(f"{root}: holds a data set of `prepare {there}`; choose another --name.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / _LOCK, blocking=False):
            try:
                yield
            finally:
                if os.listdir(root) == [_LOCK]:  # nothing came of it
                    os.unlink(root / _LOCK)
                    root.rmdir()
    except Timeout:
        raise DiffATRError(f"{root}: another `diffatr prepare` is at work here; wait for it to end.") from None
    except FileExistsError:
        raise DiffATRError(f"{root}: is a file, not a folder.") from None
    except PermissionError as error:
        raise DiffATRError(f"{error.filename}: no permission to write there.") from None


def prepare(
    root: Path,
    kind: str,
    plan: Plan,
    produce: Produce | None = None,
    official: Mapping[str, tuple[int, int]] | None = None,
    resampler: audio.Resampler = "auto",
    workers: int | None = None,
    progress: Progress = silent,
    info: Mapping[str, Any] | None = None,
) -> Report:
    """Convert every item of a plan that is not finished, write the manifest, and report. `root` must be claimed.

    `produce` defaults to decoding and resampling the item's source file; `workers` to the number of cores. When not a single
    clip comes out, a manifest that is there is left alone.

    Raises:
        DiffATRError: the disk is full, or a worker process died; finished clips stay and are not converted again.
    """
    chosen = audio.choose_resampler(resampler)
    _remove_leftovers(root)
    pending = [_record(item, path) for item, path in zip(plan.items, _paths(plan.items), strict=True)]
    finished = _finished(root)
    records = [_take_over(record, finished.get(record.clip_id), root) for record in pending]
    todo = [index for index, record in enumerate(records) if record.md5 is None and record.skipped is None]
    kept = sum(record.md5 is not None for record in records)

    note = "converting" if produce is None else "generating"
    work = _Work(root, produce, chosen)
    with (root / _JOURNAL).open("a", encoding="utf-8") as journal:
        progress(0, len(todo), note)
        results = _run(work, [(index, records[index]) for index in todo], workers)
        for done, (index, record) in enumerate(results, 1):
            records[index] = record
            if record.skipped is None:
                _append(journal, record)
            progress(done, len(todo), note)

    ready = [record for record in records if record.skipped is None]
    if ready:
        write_manifest(root, records, {"kind": kind, **(info or {})})
    if ready or (root / _JOURNAL).stat().st_size == 0:
        (root / _JOURNAL).unlink()
    skips = [Skip(record.split, record.source or record.clip_id, record.skipped) for record in records if record.skipped]
    return Report(
        name=root.name,
        root=root,
        resampler=chosen,
        converted=len(ready) - kept,
        kept=kept,
        splits={split: _count(split, records, (official or {}).get(split)) for split in SPLITS},
        skipped=[*plan.skipped, *skips],
        notes=[*plan.notes, *_leaks(ready)],
    )


def index_files(folders: Iterable[Path], leave_out: Path) -> list[Path]:
    """All files below the folders, sorted, except those in `leave_out` (what is being prepared) and in hidden folders."""
    found: dict[Path, None] = {}
    for folder in folders:
        for parent, children, names in os.walk(folder):
            children[:] = sorted(child for child in children if not child.startswith(".") and Path(parent, child) != leave_out)
            found.update((Path(parent, name), None) for name in sorted(names))
    return list(found)


def _record(item: Item, path: str) -> Record:
    record = Record(item.clip_id, item.split, item.captions, path, item.source, license=item.license)
    if item.source is None:
        return replace(record, skipped="missing")
    try:
        stat = os.stat(item.source)
    except (OSError, ValueError):  # what is generated has no file; a file that went missing is reported when it is read
        return record
    return replace(record, source_size=stat.st_size, source_mtime_ns=stat.st_mtime_ns)


def _paths(items: list[Item]) -> list[str]:
    """Where each item is written, relative to the root: its name, kept inside its split, unique even where case is ignored."""
    taken: set[str] = set()
    paths: list[str] = []
    for item in items:
        parts = [part for part in PurePosixPath(item.name).parts if part not in ("/", "..")]
        stem = "/".join(parts).removesuffix(".wav")
        if max(len(part.encode()) for part in parts) > 200:  # file systems end names at 255 bytes, temporary ones included
            stem = hashlib.sha256(item.name.encode()).hexdigest()
        path, number = f"{item.split}/{stem}.wav", 1
        while path.casefold() in taken:
            number += 1
            path = f"{item.split}/{stem}~{number}.wav"
        taken.add(path.casefold())
        paths.append(path)
    return paths


def _finished(root: Path) -> dict[str, Record]:
    """What earlier runs finished, by clip id: the manifest, and on top of it the journal of a run that did not end."""
    records: list[Record] = []
    with contextlib.suppress(FileNotFoundError):
        records = [record for record in read_manifest(root)[0] if record.md5 is not None]
    with contextlib.suppress(FileNotFoundError):
        for line in (root / _JOURNAL).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line that a kill cut short
                records.append(Record(**json.loads(line)))
    return {record.clip_id: record for record in records}


def _append(journal: Any, record: Record) -> None:
    try:
        # The newline comes first: the line before may have been cut short.
        journal.write("\n" + json.dumps(asdict(replace(record, captions=()))))
        journal.flush()
    except OSError as error:
        raise DiffATRError(f"{journal.name}: {error.strerror}. Free some space and run the command again.") from error


def finished_sources(root: Path) -> dict[str, str | None]:
    """Clip id -> source of the clips whose source was a copy of our own below `root`/raw, now finished."""
    own = (record for record in _finished(root).values() if _is_own(record.source, root))
    return {record.clip_id: record.source for record in own if _is_whole(record, root)}


def _take_over(record: Record, before: Record | None, root: Path) -> Record:
    """The record as finished before, if it is of the same source and its file is whole; else the record as it is."""
    if before is None or record.skipped or not _is_whole(before, root):
        return record
    if _is_own(record.source, root) and record.source_mtime_ns == 0:  # unpacked by us, used, and deleted since to save space
        record = replace(record, source_size=before.source_size, source_mtime_ns=before.source_mtime_ns)
    done = replace(record, frames=before.frames, md5=before.md5)
    return done if done == replace(before, captions=record.captions, license=record.license) else record


def _is_own(source: str | None, root: Path) -> bool:
    return source is not None and Path(source).is_relative_to((root / "raw").absolute())


def _is_whole(record: Record, root: Path) -> bool:
    try:
        return os.path.getsize(root / record.path) == audio.wav_size(record.frames)
    except OSError:
        return False


def _remove_leftovers(root: Path) -> None:
    for split in SPLITS:
        for parent, _, names in os.walk(root / split):
            for name in names:
                if re.fullmatch(r"\..*\.\d+\.tmp", name):
                    Path(parent, name).unlink(missing_ok=True)


def _count(split: str, records: list[Record], official: tuple[int, int] | None) -> SplitCounts:
    mine = [record for record in records if record.split == split]
    ready = [record for record in mine if record.skipped is None]
    seconds = sum(record.frames for record in ready) / audio.SAMPLE_RATE
    return SplitCounts(len(ready), sum(len(record.captions) for record in ready), seconds / 3600, len(mine), official)


def _leaks(ready: list[Record]) -> list[str]:
    """A note when the same audio is in more than one split."""
    first: dict[str | None, Record] = {}
    pairs = [(first[record.md5], record) for record in ready if first.setdefault(record.md5, record).split != record.split]
    if not pairs:
        return []
    one, other = pairs[0]
    return [f"{len(pairs)} clips sound exactly like one of another split, such as {one.path} and {other.path}"]


# --- worker processes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    root: Path
    produce: Produce | None
    resampler: audio.Resampler

    def __call__(self, record: Record) -> Record:
        assert record.source is not None  # items without one never get here
        try:
            if self.produce is None:
                samples = audio.load_audio(record.source, self.resampler)
            else:
                samples = self.produce(record.source)
        except audio.AudioError as error:
            return replace(record, skipped=error.reason)
        if len(samples) < SHORTEST * audio.SAMPLE_RATE:
            return replace(record, skipped=f"shorter than {SHORTEST} s")
        pcm = audio.to_pcm16(samples)
        if np.ptp(pcm) == 0:
            return replace(record, skipped="silent")
        audio.write_wav(self.root / record.path, pcm)
        return replace(record, frames=len(pcm), md5=hashlib.md5(pcm.tobytes()).hexdigest())


def _run(work: _Work, todo: list[tuple[int, Record]], workers: int | None) -> Iterator[tuple[int, Record]]:
    """Do the work, in this process when it is little, else in a pool; results come as they are ready."""
    workers = min(workers or os.cpu_count() or 1, len(todo) // _FEW)
    if workers <= 1:
        for index, record in todo:
            yield index, work(record)
        return
    rest = iter(todo)
    # Spawned, because forking a process that has threads (Parquet's, numba's) can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (work.resampler, work.produce is None)) as pool:
        running: dict[Future[Record], tuple[int, Record]] = {}
        try:
            while True:
                while len(running) < 4 * workers and (entry := next(rest, None)):
                    running[pool.submit(work, entry[1])] = entry
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running[future][0], future.result()
                    del running[future]
        except BrokenProcessPool:
            suspects = ", ".join(str(record.source) for _, record in running.values())
            raise DiffATRError(
                f"A worker process died, out of memory or on a damaged file, near: {suspects}. Finished clips are kept; "
                "run the command again, with --workers 1 to see which file it is."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(resampler: audio.Resampler, decodes: bool) -> None:
    # The parent tells what is wrong with a file; the MP3 decoder's own remarks would only garble the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if decodes:
        audio.warm_up(resampler)


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
