"""Captions without sounds, as `query --captions` ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DiffATRError
from .folder import CAPTION_COLUMN, captions_in, jsonl_rows
from .prepare import Plan, Skip
from .tables import read_csv, read_text


def read_captions(path: Path) -> tuple[list[str], list[str]]:
    """The captions of a file in its order, each once, and notes about rows that cannot be used (`FILE:LINE: reason`).

    A `.csv`, `.jsonl` or `.ndjson` file holds them in columns named `caption`, `captions` or `caption_1`, `caption_2`, ..., as a
    folder of captioned sounds does; other columns do not matter. Any other file holds one a line. Blank captions are left out.

    Raises:
        DiffATRError: the file is missing or no text, a CSV has no such column, or there is no caption in it.
    """
    plan = Plan()
    if path.suffix.lower() == ".csv":
        rows = _csv(path, plan)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = ((place, captions) for place, _, captions, _ in jsonl_rows(path, plan))
    else:
        rows = ((f"{path.name}:{number}", [line]) for number, line in enumerate(read_text(path, plan).splitlines(), 1))
    found: dict[str, None] = {}
    for place, captions in rows:
        for caption in filter(None, map(str.strip, captions)):
            if "\0" in caption:
                raise DiffATRError(f"{path}: not a text file. Give one caption a line, or a CSV or JSONL file with captions.")
            if not any(character.isalnum() for character in caption):
                plan.skipped.append(Skip("", place, "a caption without a letter or digit"))
                continue
            found[caption] = None
    if not found:
        raise DiffATRError(f"{path}: no captions in it. Give one caption a line, or a CSV or JSONL file with captions.")
    return list(found), [*plan.notes, *(f"{skip.what}: {skip.reason}" for skip in plan.skipped)]


def _csv(path: Path, plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """(place, captions) for every usable row."""
    for number, (place, row) in enumerate(read_csv(path, "", (), plan)):
        if not number and not any(map(CAPTION_COLUMN.fullmatch, row)):
            raise DiffATRError(f"{path}:1: no column caption, captions or caption_1; the heading is {','.join(row)!r}")
        yield place, captions_in(row)
