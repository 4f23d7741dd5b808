"""Captions without sounds, as `query --captions` ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DiffATRError
from .caption_rows import TABLE_SUFFIXES, caption_problem, caption_rows
from .plan import Plan, Skip
from .tables import read_text


def read_captions(path: Path) -> tuple[list[str], list[str]]:
    """The captions of a file in its order, each once, and notes about rows that cannot be used (`FILE:LINE: reason`).

    A CSV, TSV, JSON or JSONL file holds them in columns named `caption`, `captions` or `caption_1`, `caption_2`, ..., or `text`,
    as a folder of captioned sounds does; other columns do not matter. Any other file holds one a line; blank lines do not count.

    Raises:
        DiffATRError: the file is missing or no text, a CSV has no such column, or there is no caption in it.
    """
    plan = Plan()
    found: dict[str, None] = {}
    if path.suffix.lower() in TABLE_SUFFIXES:
        for row in caption_rows(path, plan, split="", files=False):
            found.update(dict.fromkeys(row.captions))
    else:
        for place, caption in caption_lines(path, plan):
            if problem := caption_problem(caption):
                plan.skipped.append(Skip("", place, problem))
            else:
                found[caption] = None
    if not found:
        raise DiffATRError(f"{path}: no captions in it. Give one caption a line, or a CSV or JSON file with captions.")
    return list(found), [*plan.notes, *(f"{skip.what}: {skip.reason}" for skip in plan.skipped)]


def caption_lines(path: Path, plan: Plan) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, stripped, each after its place `FILE:LINE`.

    Raises:
        DiffATRError: the file is missing or no text.
    """
    for number, line in enumerate(read_text(path, plan).splitlines(), 1):
        if "\0" in line:
            raise DiffATRError(f"{path}: not a text file. Give one caption a line, or a CSV or JSON file with captions.")
        if caption := line.strip():
            yield f"{path.name}:{number}", caption
