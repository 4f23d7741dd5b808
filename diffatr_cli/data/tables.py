"""Reading caption files as people have them: byte-order marks, Latin-1, CRLF, rows cut short."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import DiffATRError
from .prepare import Plan, Skip


def read_text(path: Path, plan: Plan, encoding: str = "utf-8-sig") -> str:
    """A text file in UTF-8, with or without a byte-order mark; lines that are not UTF-8 are read as Latin-1 and noted.

    Raises:
        DiffATRError: the file is missing or cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DiffATRError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        lines = raw.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    text = []
    for number, line in enumerate(lines, 1):
        try:
            text.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            text.append(line.decode("latin-1"))
            plan.notes.append(f"{path.name}:{number}: not UTF-8, read as Latin-1")
    return "".join(text)


def read_csv(
    path: Path, split: str, required: Collection[str], plan: Plan, encoding: str = "utf-8-sig"
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a heading, each with its place `FILE:LINE`; rows that cannot be used are skipped in `plan`.

    Raises:
        DiffATRError: the file cannot be read, or a required column is missing.
    """
    # Ends of lines stay as they are: the csv module takes all kinds.
    reader = csv.reader(io.StringIO(read_text(path, plan, encoding), newline=""))
    try:
        heading = [name.strip() for name in next(reader, [])]
        missing = [name for name in required if name not in heading]
        if missing:
            raise DiffATRError(f"{path}:1: no column {' or '.join(map(repr, missing))}; the heading is {','.join(heading)!r}")
        before = reader.line_num
        for cells in reader:
            place, before, lines = f"{path.name}:{before + 1}", reader.line_num, reader.line_num - before
            if not cells:
                continue
            if len(cells) != len(heading):
                plan.skipped.append(Skip(split, place, f"{len(cells)} cells where the heading has {len(heading)}"))
                continue
            if lines > 1:
                plan.notes.append(f"{place}: this row goes on over {lines} lines; is a quote missing?")
            yield place, dict(zip(heading, cells, strict=True))
    except csv.Error as error:
        raise DiffATRError(f"{path}:{reader.line_num}: {error}") from None
