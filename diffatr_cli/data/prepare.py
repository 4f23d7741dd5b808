"""What all data sets have in common: converting listed clips in parallel, restartable, into WAV files and a manifest.

Every finished clip goes into a journal at once; a run that was killed takes up there. The manifest replaces the journal at
the end, and holds the same whether the run was disturbed or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..collection import no_collection
from ..engines import Engine
from ..errors import DiffATRError, UsageError
from ..files import reason
from ..printable import are, counted
from ..progress import Progress, silent
from ..types import SAMPLE_RATE
from . import audio
from .convert import Converter, Outcome, Produce, convert_all, convert_elsewhere
from .earlier import JOURNAL, Earlier, append
from .listing import as_text, folded
from .manifest import SPLITS, Record, write_manifest
from .plan import Item, Plan, Skip

_LOCK = ".prepare.lock"
_MISSING = "missing"


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
    resampler: str | None
    """None where there is no audio."""
    converted: int
    """Clips made in this run."""
    kept: int
    """Clips that an earlier run had finished."""
    clipped: int
    """Of those made in this run, clips with samples louder than 16 bits hold, which were clipped."""
    partial: int
    """Of those made in this run, clips of recordings of which a part was missing."""
    splits: dict[str, SplitCounts]
    skipped: list[Skip]
    notes: list[str]
    """What is worth knowing and cost nothing."""
    sizes: tuple[int, int] | None = None
    """Of the vectors, of clips and of captions, that a set without audio holds; None where there is audio."""

    @property
    def clips(self) -> int:
        return sum(split.clips for split in self.splits.values())

    @property
    def listed(self) -> int:
        return sum(split.listed for split in self.splits.values())

    def reasons(self) -> dict[str, dict[str, int]]:
        """Skips counted: split -> reason -> number, most frequent first."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for skip in self.skipped:
            counts[skip.split][skip.reason] += 1
        return {split: dict(count.most_common()) for split, count in counts.items()}

    def examples(self, number: int) -> dict[tuple[str, str], list[str]]:
        """The first `number` skips of each split and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for skip in self.skipped:
            some = found.setdefault((skip.split, skip.reason), [])
            if len(some) < number:
                some.append(skip.what)
        return found

    def to_json(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        splits = {name: asdict(counts) for name, counts in self.splits.items()}
        skipped = [{"split": skip.split, "what": skip.what, "reason": skip.reason} for skip in self.skipped]
        return {**plain, "root": str(self.root), "splits": splits, "skipped": skipped, "reasons": self.reasons()}


@contextlib.contextmanager
def claim(root: Path, kind: str) -> Iterator[Earlier]:
    """Hold `root` for one `prepare` at a time, and only for the kind of data set that is there already; gives what is there.

    Raises:
        UsageError: another kind of data set is there.
        DiffATRError: another process is preparing it, or the system refuses to read or write something.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / _LOCK, blocking=False):
            earlier = Earlier(root)
            if earlier.kind not in (None, kind):
                raise UsageError(f"{root}: holds a data set of `prepare {earlier.kind}`; choose another --name.")
            try:
                yield earlier
            finally:
                if os.listdir(root) == [_LOCK]:  # nothing came of it
                    os.unlink(root / _LOCK)
                    root.rmdir()
    except Timeout:
        raise DiffATRError(f"{root}: another `diffatr prepare` is at work here; wait for it to end.") from None
    except NotImplementedError:
        raise DiffATRError(f"{root}: that disk has no locks for files. Name another place with --data.") from None
    except OSError as error:
        raise DiffATRError(f"{error.filename or root}: {reason(error)}") from error


def prepare(
    root: Path,
    kind: str,
    plan: Plan,
    earlier: Earlier,
    produce: Produce | None = None,
    official: Mapping[str, tuple[int, int]] | None = None,
    resampler: audio.Resampler = "soxr",
    workers: int | None = None,
    progress: Progress = silent,
    info: Mapping[str, Any] | None = None,
    partial: audio.Partial = "skip",
    engine: Engine | None = None,
) -> Report:
    """Convert every item of a plan that is not finished, write the manifest, and report. `earlier` comes with the claim.

    `produce` defaults to decoding and resampling the item's source file; `workers` to the number of cores; `partial` says what
    becomes of recordings of which a part is missing; with an `engine` its workers convert. When not a single clip comes out, a
    manifest that is there is left alone.

    Raises:
        DiffATRError: the disk is full, or a worker process died; finished clips stay and are not converted again.
    """
    chosen = audio.choose_resampler(resampler)
    there = [index for index, item in enumerate(plan.items) if item.source is not None]
    # A missing recording has its path too, so that the others keep theirs when it comes.
    paths = _paths(plan.items) if there else []
    pending = [_record(plan.items[index], paths[index]) for index in there]
    records = dict(zip(there, earlier.take_over(pending, progress), strict=True))
    todo = [index for index, record in records.items() if record.md5 is None]
    kept = len(records) - len(todo)

    outcomes: dict[int, Outcome] = {}
    note = "converting" if produce is None else "generating"
    work = [(plan.items[index].source or "", root / records[index].path) for index in todo]
    converter = Converter(produce, chosen, partial)
    converting = convert_all(converter, work, workers) if engine is None else convert_elsewhere(engine, converter, work, root)
    conversion = contextlib.closing(converting)
    with _no_leftovers(root), (root / JOURNAL).open("a", encoding="utf-8") as journal, conversion as converted:
        progress(0, len(todo), note)
        for done, (number, outcome) in enumerate(converted, 1):
            index = todo[number]
            outcomes[index] = outcome
            records[index] = records[index]._replace(frames=outcome.frames, md5=outcome.md5, skipped=outcome.skipped)
            if outcome.skipped is None:
                append(journal, records[index])
            progress(done, len(todo), note)

    ready = [record for record in records.values() if record.skipped is None]
    if ready:
        with no_collection():
            whole = [records.get(index) or _missing(item, paths[index]) for index, item in enumerate(plan.items)]
        write_manifest(root, whole, {"kind": kind, **(info or {})})
    if ready or (root / JOURNAL).stat().st_size == 0:
        (root / JOURNAL).unlink()
    return Report(
        name=root.name,
        root=root,
        resampler=chosen,
        converted=len(ready) - kept,
        kept=kept,
        clipped=sum(outcome.clipped > 0 for outcome in outcomes.values()),
        partial=sum(outcome.partial is not None for outcome in outcomes.values()),
        splits=count_splits([item.split for item in plan.items], ready, official),
        skipped=[*plan.skipped, *_skips(plan.items, records)],
        notes=[
            *earlier.notes,
            *plan.notes,
            *_changed({records[index].path: outcome for index, outcome in outcomes.items()}),
            *leaks(ready),
        ],
    )


def _record(item: Item, path: str) -> Record:
    """What the manifest says of a clip before it is converted."""
    assert item.source is not None
    size = mtime_ns = 0
    with contextlib.suppress(OSError, ValueError):  # what is generated has no file; a file gone since is told when read
        stat = os.stat(item.source)
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    source = as_text(item.source)
    return Record(item.clip_id, item.split, item.captions, path, source, size, mtime_ns, license=item.license)


def _missing(item: Item, path: str) -> Record:
    """What the manifest says of a clip whose recording is missing."""
    return Record(item.clip_id, item.split, item.captions, path, license=item.license, skipped=_MISSING)


@no_collection()
def _skips(items: Sequence[Item], records: Mapping[int, Record]) -> list[Skip]:
    """The items that came to nothing, in order; `records` holds by their number those whose recording is there."""
    skips: list[Skip] = []
    for index, item in enumerate(items):
        record = records.get(index)
        if record is None:
            skips.append(Skip(item.split, item.clip_id, _MISSING))
        elif record.skipped is not None:
            skips.append(Skip(item.split, record.source or item.clip_id, record.skipped))
    return skips


def _paths(items: list[Item]) -> list[str]:
    """Where each item is written, relative to the root: its name, kept inside its split, unique even where case is ignored.

    No path is a folder of another: `x.wav/y.wav` beside `x.wav` goes to a folder of another name.
    """
    files: set[str] = set()
    folders: set[str] = set()
    paths: list[str] = []
    for item in items:
        parts = [part for part in item.name.split("/") if part not in ("", ".", "..")]
        # File systems end names at 255 bytes, temporary ones included, and paths at some thousand.
        if not parts or len(item.name.encode()) > 1000 or any(len(part.encode()) > 200 for part in parts):
            parts = [hashlib.sha256(item.name.encode()).hexdigest()]
        folder = item.split
        for part in parts[:-1]:
            folder = _like(f"{folder}/{part}", "", lambda path: path in files)
            folders.add(folded(folder))
        stem = f"{folder}/{parts[-1].removesuffix('.wav')}"
        paths.append(_like(stem, ".wav", lambda path: path in files or path in folders))
        files.add(folded(paths[-1]))
    return paths


def _like(stem: str, ending: str, taken: Callable[[str], bool]) -> str:
    """A path like stem + ending that is free: numbered from 2 on, if need be."""
    path, number = stem + ending, 1
    while taken(folded(path)):
        number += 1
        path = f"{stem}~{number}{ending}"
    return path


@contextlib.contextmanager
def _no_leftovers(root: Path) -> Iterator[None]:
    """Remove half-written files, of an earlier run that was killed, and of this one where it is cut off."""
    _remove_leftovers(root)
    try:
        yield
    except BaseException:
        _remove_leftovers(root)
        raise


def _remove_leftovers(root: Path) -> None:
    for split in SPLITS:
        for parent, _, names in os.walk(root / split):
            for name in names:
                if re.fullmatch(r"\..*\.\d+\.tmp", name):
                    Path(parent, name).unlink(missing_ok=True)


def count_splits(
    listed: Iterable[str], ready: Sequence[Record], official: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, SplitCounts]:
    """What each split came to, by the splits of all clips that are listed and the records of those that are prepared."""
    number = Counter(listed)
    counts: dict[str, SplitCounts] = {}
    for split in SPLITS:
        mine = [record for record in ready if record.split == split]
        captions, seconds = sum(len(record.captions) for record in mine), sum(record.frames for record in mine) / SAMPLE_RATE
        counts[split] = SplitCounts(len(mine), captions, seconds / 3600, number[split], (official or {}).get(split))
    return counts


def _changed(made: dict[str, Outcome]) -> list[str]:
    """Notes of clips that are not all that their recordings were, by path."""
    notes = []
    if clipped := {path: outcome for path, outcome in made.items() if outcome.clipped}:
        path, outcome = max(clipped.items(), key=lambda item: item[1].clipped / item[1].frames)
        share = 100 * outcome.clipped / outcome.frames
        which = f"{counted(len(clipped), 'clip')} louder than full scale {are(len(clipped))} clipped"
        notes.append(f"{which}, {path} the most ({share:.2g} % of it)")
    if partial := [path for path, outcome in made.items() if outcome.partial]:
        notes.append(
            f"{counted(len(partial), 'clip')} {are(len(partial))} what is left of recordings cut short, such as {partial[0]}"
        )
    if remarks := [f"{path}: {note}" for path, outcome in made.items() if not outcome.partial for note in outcome.notes[:1]]:
        which = f"{counted(len(remarks), 'recording')} {are(len(remarks))} not quite as the header says"
        notes.append(f"{which}, such as {remarks[0]}")
    return notes


def leaks(ready: list[Record], alike: tuple[str, str] = ("sounds exactly like", "sound exactly like")) -> list[str]:
    """A note when the same audio is in more than one split. `alike`: what one clip does then, and what several do."""
    first: dict[str | None, Record] = {}
    pairs = [(first[record.md5], record) for record in ready if first.setdefault(record.md5, record).split != record.split]
    if not pairs:
        return []
    one, other = pairs[0]
    return [
        f"{counted(len(pairs), 'clip')} {alike[len(pairs) > 1]} one of another split, such as {one.path or one.clip_id} and "
        f"{other.path or other.clip_id}"
    ]
