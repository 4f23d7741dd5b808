"""Any folder of sounds with a CSV or JSONL file of captions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DiffATRError, UsageError
from ..progress import Progress, silent
from .audio import Partial, Resampler
from .manifest import SPLITS
from .prepare import Item, Plan, Report, Skip, claim, prepare
from .tables import read_csv, read_text

FILE_COLUMNS = ("file", "file_name", "path", "audio")
CAPTION_COLUMN = re.compile(r"captions?|caption_?\d+")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_ALL = "all"  # where rows are counted that belong to no split


def prepare_folder(
    out: Path,
    source: Path,
    captions: Path | None = None,
    resampler: Resampler = "soxr",
    workers: int | None = None,
    progress: Progress = silent,
    partial: Partial = "skip",
) -> Report:
    """Prepare the sounds below `source` that a caption file names, relative to `source` or to the caption file.

    The caption file (by default the only CSV or JSONL file directly in `source`) has a column `file`, `file_name`, `path` or
    `audio`; captions in `caption`, `captions` or `caption_1`, `caption_2`, ...; and perhaps a `split`. Several rows of one
    file are several captions. Files without a split are dealt out by a hash of their name: 80 % train, 10 % val, 10 % test.

    Raises:
        UsageError: there are several caption files to choose from.
        DiffATRError: no caption file, a missing column, a full disk.
    """
    if not source.is_dir():
        raise DiffATRError(f"{source}: no such folder")
    table = captions or _only_table(source)
    with claim(out, "folder"):
        plan = Plan()
        rows = jsonl_rows(table, plan) if table.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(table, plan)
        texts: dict[str, list[str]] = {}
        splits: dict[str, str] = {}
        for place, file, captions_here, named in rows:
            split = _SPLIT_NAMES.get(named.strip().lower(), "")
            known = splits.get(file, split)
            fresh = [caption for caption in dict.fromkeys(captions_here) if caption not in texts.get(file, [])]
            reason = None
            if not file:
                reason = "no file name"
            elif named.strip() and not split:
                reason = f"unknown split {named.strip()!r}"
            elif split and split != known:
                reason = f"the file is already in {known or 'no split'}"
            elif not captions_here:
                reason = "empty caption"
            elif not fresh:
                reason = "duplicate row"
            if reason:
                plan.skipped.append(Skip(_ALL, place, reason))
                continue
            splits.setdefault(file, split)
            texts.setdefault(file, []).extend(fresh)
        dealt = _deal([file for file, split in splits.items() if not split])
        for file, some in texts.items():
            split = splits[file] or dealt[file]
            # The whole name stays, ending included: a.wav and a.flac are two sounds.
            plan.items.append(Item(f"{split}/{file}", split, tuple(some), file, _locate(file, source, table.parent)))
        return prepare(out, "folder", plan, None, None, resampler, workers, progress, partial=partial)


def _only_table(source: Path) -> Path:
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in (".csv", ".jsonl", ".ndjson"))
    if not tables:
        raise DiffATRError(f"{source}: no CSV or JSONL file of captions here; name one with --captions FILE.")
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UsageError(f"{source}: several caption files ({names}); choose one with --captions FILE.")
    return tables[0]


def _csv_rows(table: Path, plan: Plan) -> Iterator[tuple[str, str, list[str], str]]:
    """(place, file, captions, split or "") for every usable row."""
    file_column: str | None = None
    for place, row in read_csv(table, _ALL, (), plan):
        if file_column is None:
            file_column = _file_column(row, table)
        yield place, row[file_column], captions_in(row), row.get("split", "")


def jsonl_rows(table: Path, plan: Plan) -> Iterator[tuple[str, str, list[str], str]]:
    for number, line in enumerate(read_text(table, plan).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{table.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            plan.skipped.append(Skip(_ALL, place, f"not JSON ({error})"))
            continue
        if not isinstance(row, dict):
            plan.skipped.append(Skip(_ALL, place, "not a JSON object"))
            continue
        file = next((row[column] for column in FILE_COLUMNS if column in row), "")
        if not isinstance(file, str) or not isinstance(row.get("split") or "", str):
            plan.skipped.append(Skip(_ALL, place, "file and split must be text"))
            continue
        yield place, file, captions_in(row), row.get("split") or ""


def _file_column(row: dict[str, Any], table: Path) -> str:
    column = next((column for column in FILE_COLUMNS if column in row), None)
    if column is None or not any(map(CAPTION_COLUMN.fullmatch, row)):
        lacking = "file, file_name, path or audio" if column is None else "caption, captions or caption_1"
        raise DiffATRError(f"{table}:1: no column {lacking}; the heading is {','.join(row)!r}")
    return column


def captions_in(row: dict[str, Any]) -> list[str]:
    """All captions of a row, in the columns' order; a cell may hold a JSON list."""
    found: list[str] = []
    for column, value in row.items():
        if not CAPTION_COLUMN.fullmatch(column):
            continue
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(ValueError):  # a caption that begins with a bracket
                value = json.loads(value)
        values = value if isinstance(value, list) else [value]
        found.extend("" if text is None else str(text).strip() for text in values)
    # A table with caption_1 to caption_5 leaves cells empty where a clip has fewer.
    return [text for text in found if text]


def _deal(files: list[str]) -> dict[str, str]:
    """A split for each file, by a hash of its name, so that new files do not move the others; none empty if three are there."""
    position = {file: int.from_bytes(hashlib.sha256(file.encode()).digest()[:8]) / 2**64 for file in files}
    dealt = {file: "train" if at < 0.8 else "val" if at < 0.9 else "test" for file, at in position.items()}
    for split in SPLITS:
        if len(files) >= 3 and split not in dealt.values():
            most = max(SPLITS, key=list(dealt.values()).count)
            dealt[min((file for file in files if dealt[file] == most), key=position.__getitem__)] = split
    return dealt


def _locate(file: str, *folders: Path) -> str | None:
    for folder in folders:
        for form in ("NFC", "NFD"):  # some systems take accented letters apart when they write names
            path = folder / unicodedata.normalize(form, file)
            if path.is_file():
                return str(path.absolute())
    return None
