"""Any folder of sounds with a table of captions."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..collection import no_collection
from ..engines import Engine
from ..errors import DiffATRError, UsageError
from ..files import reason
from ..progress import Progress, silent
from .audio import Partial, Resampler
from .caption_rows import TABLE_SUFFIXES, CaptionRow, caption_rows
from .listing import Found, Listing, as_text, file_stem, has_ending, none_found, plain_name, walk_sounds
from .manifest import SPLITS
from .plan import Item, Plan, Skip
from .prepare import Report, claim, prepare

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What a column `split` may say, in small letters."""
_VAL, _TEST = (int(share * 2**64).to_bytes(8) for share in (0.8, 0.9))
"""Where val and test begin among the hashes of names."""
_ALL = "all"  # where rows are counted that belong to no split


def prepare_folder(
    out: Path,
    source: Path,
    captions: Path | None = None,
    resampler: Resampler = "soxr",
    workers: int | None = None,
    progress: Progress = silent,
    partial: Partial = "skip",
    engine: Engine | None = None,
) -> Report:
    """Prepare the sounds below `source` that a caption file names, relative to `source` or to the caption file.

    The caption file (by default the only CSV, TSV, JSONL or JSON file directly in `source`) has a column `file`, `file_name`,
    `filename`, `path` or `audio`; captions in `caption`, `captions` or `caption_1`, `caption_2`, ..., or in `text`; and perhaps
    a `split`. Several rows of one file are several captions. Files without a split are dealt out by a hash of their name: 80 %
    train, 10 % val, 10 % test.

    Raises:
        UsageError: there are several caption files to choose from.
        DiffATRError: no caption file, a missing column, a full disk.
    """
    if not os.path.isdir(source):
        raise DiffATRError(f"{source}: no such folder")
    table = captions or _only_table(source)
    with claim(out, "folder") as earlier:
        with no_collection():
            plan = _plan(table, _Clips(source, table.parent, out))
        return prepare(out, "folder", plan, earlier, None, None, resampler, workers, progress, None, partial, engine)


def _plan(table: Path, clips: _Clips) -> Plan:
    """What the table asks for, with the files that `clips` finds."""
    plan = Plan()
    for row in caption_rows(table, plan, _ALL, files=True):
        if problem := clips.add(row):
            plan.skipped.append(Skip(_ALL, row.place, problem))
    dealt = deal([clip.name for clip in clips if not clip.split])
    for clip in clips:
        split = clip.split or dealt[clip.name]
        # The whole name stays, ending included: a.wav and a.flac are two sounds.
        plan.items.append(Item(f"{split}/{clip.name}", split, tuple(clip.captions), clip.name, clip.source))
    plan.notes.extend(clips.notes())
    return plan


@dataclass(slots=True)
class _Clip:
    name: str
    """Of the file, relative to the folder of sounds; each once."""
    source: str | None
    split: str
    """"" as long as no row names one."""
    written: tuple[str, ...]
    """As the first row spells it."""
    captions: tuple[str, ...] | dict[str, None]
    """Each once; a dictionary, which is large, only where more than one row has them."""


class _Clips:
    """The clips that rows add up to: one for each file, however it is spelled."""

    def __init__(self, source: Path, beside: Path, out: Path) -> None:
        self._bases = [*dict.fromkeys((str(source.absolute()), str(beside.absolute())))]
        self._out = out
        self._listing = Listing()
        self._clips: dict[Hashable, _Clip] = {}
        self._names: set[str] = set()
        self._joined: list[str] = []
        self._stems: dict[str, list[Path]] | None = None

    def __iter__(self) -> Iterator[_Clip]:
        return iter(self._clips.values())

    def add(self, row: CaptionRow) -> str | None:
        """Add what a row says to its file's clip. Returns why it cannot be used, or None."""
        written = (*filter(has_ending, row.names), row.number, *row.names) if row.number else row.names
        plain = next(filter(None, map(plain_name, written)), None)
        if plain is None:
            return "not the name of a file" if row.names else "no file name"
        if len(plain) > 63 and any(len(part.encode()) > 255 for part in plain.split("/")):
            return "a name of more than 255 bytes, which no file has"
        split = SPLIT_NAMES.get(row.split.strip().lower(), "")
        if not split and row.split.strip():
            return f"unknown split {row.split.strip()[:40]!r}"
        found = self._find(row)
        key: Hashable = found.key if found else ("missing", plain)
        clip = self._clips.get(key)
        if clip is None:
            name = self._free(self._name(found.path) if found else plain)
            self._clips[key] = _Clip(name, found.path if found else None, split, row.names, row.captions)
            return None
        if split and clip.split and split != clip.split:
            return f"the file is already in {clip.split}"
        if row.names != clip.written and not row.number:
            self._joined.append(f"{row.place}: {row.names[0]} is the file {clip.name}")
        clip.split = clip.split or split
        if isinstance(clip.captions, tuple):
            clip.captions = dict.fromkeys(clip.captions)
        known = len(clip.captions)
        clip.captions.update(dict.fromkeys(row.captions))
        return None if len(clip.captions) > known else "duplicate row"

    def _find(self, row: CaptionRow) -> Found | None:
        for name in (*row.names, row.number) if row.number else row.names:
            if found := self._listing.find(self._bases, name):
                return found
        if not row.number:
            return None
        # WavCaps names its files by their id, in an archive of other folders and perhaps another format.
        if self._stems is None:
            self._stems = {}
            for path in walk_sounds(map(Path, self._bases), self._out, self._listing.problems):
                self._stems.setdefault(file_stem(path.name), []).append(path)
        paths = next(filter(None, (self._stems.get(file_stem(name)) for name in (row.number, *row.names))), [])
        return self._listing.find([str(paths[0].parent)], paths[0].name) if len(paths) == 1 else None

    def _name(self, path: str) -> str:
        """The one name of a file that was found: relative to where it was looked for, in composed letters."""
        for base in self._bases:
            if (within := Path(path)).is_relative_to(base):
                path = str(within.relative_to(base))
                break
        return unicodedata.normalize("NFC", as_text(path))

    def _free(self, name: str) -> str:
        """The name, or one like it if another file has it: some disks hold a name in composed letters and one taken apart."""
        number, free = 1, name
        while free in self._names:
            number += 1
            free = f"{name}~{number}"
        self._names.add(free)
        return free

    def notes(self) -> list[str]:
        """What is worth knowing once all rows are added."""
        notes = [f"{folder}: cannot be read ({reason})" for folder, reason in self._listing.problems.items()]
        if self._joined:
            more = f", and {len(self._joined) - 1} more rows like this" if len(self._joined) > 1 else ""
            notes.append(f"{self._joined[0]}{more}: their captions are joined")
        clips = list(self._clips.values())
        if clips and not any(clip.source for clip in clips):
            found = next(walk_sounds(map(Path, self._bases), self._out), None)
            notes.insert(0, none_found(clips[0].name, None if found is None else self._name(str(found))))
        return notes


def _only_table(source: Path) -> Path:
    try:
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    except OSError as error:
        raise DiffATRError(f"{source}: {reason(error)}") from error
    # Beside another table, a .json file is more likely something else.
    tables = [path for path in found if path.suffix.lower() != ".json"] or found
    if not tables:
        raise DiffATRError(f"{source}: no CSV or JSON file of captions here; name one with --captions FILE.")
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UsageError(f"{source}: several caption files ({names}); choose one with --captions FILE.")
    return tables[0]


def deal(files: Sequence[str]) -> dict[str, str]:
    """A split for each file, by a hash of its name, so that new files do not move the others; none empty if three are there."""
    dealt = {file: "train" if (at := _position(file)) < _VAL else "val" if at < _TEST else "test" for file in files}
    for split in SPLITS:
        if len(files) >= 3 and split not in dealt.values():
            most = max(SPLITS, key=list(dealt.values()).count)
            dealt[min((file for file in files if dealt[file] == most), key=_position)] = split
    return dealt


def _position(file: str) -> bytes:
    return hashlib.sha256(file.encode()).digest()
