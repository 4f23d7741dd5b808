"""What all data sets have in common: converting listed clips in parallel, restartable, into WAV files and a manifest.

Every finished clip goes into a journal at once; a run that was killed takes up there. The manifest replaces the journal at
the end, and holds the same whether the run was disturbed or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ..errors import DiffATRError, UsageError
from ..progress import Progress, silent
from ..types import SAMPLE_RATE
from . import audio
from .convert import Converter, Produce, convert_all
from .manifest import MANIFEST, SPLITS, Record, read_manifest, write_manifest
from .plan import Item, Plan, Skip

_JOURNAL = "prepare.journal"
_LOCK = ".prepare.lock"


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
    with (root / _JOURNAL).open("a", encoding="utf-8") as journal:
        progress(0, len(todo), note)
        work = [(records[index].source or "", root / records[index].path) for index in todo]
        for done, (number, outcome) in enumerate(convert_all(Converter(produce, chosen), work, workers), 1):
            index = todo[number]
            records[index] = replace(records[index], **asdict(outcome))
            if outcome.skipped is None:
                _append(journal, records[index])
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
    seconds = sum(record.frames for record in ready) / SAMPLE_RATE
    return SplitCounts(len(ready), sum(len(record.captions) for record in ready), seconds / 3600, len(mine), official)


def _leaks(ready: list[Record]) -> list[str]:
    """A note when the same audio is in more than one split."""
    first: dict[str | None, Record] = {}
    pairs = [(first[record.md5], record) for record in ready if first.setdefault(record.md5, record).split != record.split]
    if not pairs:
        return []
    one, other = pairs[0]
    return [f"{len(pairs)} clips sound exactly like one of another split, such as {one.path} and {other.path}"]
