"""Reading tables as people have them: CSV with any delimiter and encoding, JSON and JSON lines, rows broken here and there.

A row that cannot be read costs that row: it is skipped in the plan, by file and line. Names of columns are brought to one form:
`File Name`, `file-name` and `FILE_NAME` are `file_name`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DiffATRError
from .plan import Plan, Skip

_DELIMITERS = ",;\t"
_MOST_LINES = 100
"""Lines that one row may go on over; more, and a quote is missing."""
_LONGEST_LINE = 100_000
"""Characters; the csv module refuses cells of 131072."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*+")
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and Infinity, which JSON does not have

Row = dict[str, Any]


# --- text ------------------------------------------------------------------------------------------------------------


def read_text(path: Path, plan: Plan, encoding: str | None = None) -> str:
    """A text file in `encoding`, or else in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Lines that are not UTF-8 are read as Windows-1252, which is Latin-1 with quotation marks, and noted.

    Raises:
        DiffATRError: the file is missing or cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DiffATRError(f"{path}: cannot be read ({error.strerror})") from None
    if encoding is not None:
        return raw.decode(encoding)
    if wide := _wide_encoding(raw):
        width = 4 if wide.startswith("utf-32") else 2
        if len(raw) % width:
            plan.notes.append(f"{path.name}: cut off within its last character")
        # Halves of surrogate pairs pass: they cost their rows, not the file.
        text = raw[: len(raw) // width * width].decode(wide, "surrogatepass" if width == 2 else "replace")
        return text.removeprefix("\ufeff")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(_decode_line(line, f"{path.name}:{n}", plan) for n, line in enumerate(raw.splitlines(keepends=True), 1))


def _wide_encoding(raw: bytes) -> str | None:
    """UTF-16 or UTF-32 with its byte order, by the mark, or by the zero bytes of ASCII letters in UTF-16."""
    # The mark of UTF-32, least byte first, begins with that of UTF-16.
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if raw.startswith(mark):
            return name
    head = raw[:4096]
    if len(head) >= 4:
        high_second, high_first = head[1::2].count(0) / (len(head) // 2), head[::2].count(0) / (len(head) // 2)
        if max(high_second, high_first) > 0.5 > 0.1 > min(high_second, high_first):
            return "utf-16-le" if high_second > high_first else "utf-16-be"
    return None


def _decode_line(line: bytes, place: str, plan: Plan) -> str:
    try:
        # Some programs write the two halves of a character one by one. They are joined; a half that is alone costs its row.
        return line.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    except UnicodeDecodeError:
        plan.notes.append(f"{place}: not UTF-8, read as Latin-1 (Windows-1252)")
    try:
        return line.decode("cp1252")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def text_problem(text: str) -> str | None:
    """Why a text cannot be a name or a caption: characters that no file name and no tokenizer takes; None if it can."""
    if "\0" in text:
        return "a NUL character in it"
    halves = not text.isascii() and _SURROGATE.search(text)
    return "half a surrogate pair in it, which is no character" if halves else None


@lru_cache(maxsize=1024)
def column_name(heading: str) -> str:
    """The one form of a column's name: lower case, with underscores between its words."""
    return re.sub(r"[\s._-]+", "_", heading.strip().strip("\ufeff").casefold()).strip("_")


# --- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(
    path: Path, split: str, required: Collection[str], plan: Plan, encoding: str | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a heading, each with its place `FILE:LINE`; rows that cannot be used are skipped in `plan`.

    The delimiter is a comma, a semicolon or a tab, whichever the heading has most of, or what a first line `sep=` says.

    Raises:
        DiffATRError: the file cannot be read, or a required column is missing.
    """
    # Ends of lines stay as they are: the csv module takes all kinds.
    text = read_text(path, plan, encoding)
    lines, checked, table = list(io.StringIO(text, newline="")), text_problem(text) is not None, path.name
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    first = lines[start] if start < len(lines) else ""
    if chosen := re.fullmatch(r'"?sep=([^\r\n])"?[\r\n]*', first):  # Excel's own
        delimiter, start = chosen[1], start + 1
    else:
        delimiter = max(_DELIMITERS, key=lambda sign: len(_cells(first, sign)))  # the first one of equals
    rows = _csv_rows(lines, start, delimiter)
    number, _, cells, _ = next(rows, (start, 1, None, None))
    heading = _distinct([column_name(cell) for cell in cells or ()])
    if missing := [name for name in required if name not in heading]:
        shown = f"the heading is {','.join(cells or ())[:200]!r}"
        raise DiffATRError(f"{path}:{number + 1}: no column {' or '.join(map(repr, missing))}; {shown}")
    for number, count, cells, problem in rows:
        if cells == []:
            continue
        place = f"{table}:{number + 1}"
        if cells is None or (len(cells) != len(heading) and (len(cells) < len(heading) or any(cells[len(heading) :]))):
            reason = problem or f"{len(cells or ())} cells where the heading has {len(heading)}"
            plan.skipped.append(Skip(split, place, reason))
            continue
        if checked and (unusable := text_problem("".join(cells))):
            plan.skipped.append(Skip(split, place, unusable))
            continue
        if problem:
            plan.notes.append(f"{place}: {problem}")
        elif count > 1:
            plan.notes.append(f"{place}: this row goes on over {count} lines; is a quote missing?")
        yield place, dict(zip(heading, cells, strict=False))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _distinct(heading: list[str]) -> list[str]:
    """Names of columns without empty ones at the end, and none twice: the second `caption` is `caption_2`."""
    while heading and not heading[-1]:
        heading = heading[:-1]
    found: dict[str, None] = {}
    numbers: dict[str, int] = {}
    for name in heading:
        unlike = name
        while unlike in found:
            numbers[name] = numbers.get(name, 1) + 1
            unlike = f"{name}_{numbers[name]}"
        found[unlike] = None
    return list(found)


class _Lines(Iterator[str]):
    """Hands lines from `position` on to the csv module, but no more than a row may have after `row`."""

    def __init__(self, lines: list[str], position: int) -> None:
        self.lines = lines
        self.row = self.position = position

    def __next__(self) -> str:
        if self.position >= min(len(self.lines), self.row + _MOST_LINES) or len(self.lines[self.position]) > _LONGEST_LINE:
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]


def _csv_rows(lines: list[str], start: int, delimiter: str) -> Iterator[tuple[int, int, list[str] | None, str | None]]:
    """(number of its first line, how many lines, cells or None, what is wrong) for each row.

    A quote that is opened and not closed within `_MOST_LINES`, or closed in the middle of a cell of a later line, costs one
    line: the line is taken alone, and the next one begins a row.
    """
    source = _Lines(lines, start)
    while (row := source.position) < len(lines):
        if len(lines[row]) > _LONGEST_LINE:
            source.position += 1
            yield row, 1, None, f"a line of {len(lines[row])} characters"
            continue
        for cells in _until_error(source, delimiter):
            count = source.position - row
            if count > 1 and not _is_strict(lines[row : source.position], delimiter):
                cells = None
            if cells is None:
                break
            yield row, count, cells, None
            row = source.position
        else:
            continue
        source.position = row + 1
        yield row, 1, _cells(lines[row], delimiter), "a quote is opened and not closed"


def _until_error(source: _Lines, delimiter: str) -> Iterator[list[str] | None]:
    """The rows that the csv module reads; None, and the end, where it gives up, which it does over cells that are too long."""
    source.row = source.position
    try:
        for cells in csv.reader(source, delimiter=delimiter):
            yield cells
            source.row = source.position
    except csv.Error:
        yield None


def _is_strict(lines: list[str], delimiter: str) -> bool:
    """Whether lines are one row whose quotes are where they belong."""
    try:
        return len(list(csv.reader(lines, delimiter=delimiter, strict=True))) == 1
    except csv.Error:
        return False


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, split: str, plan: Plan) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON file, each with its place `FILE:LINE`; what is no object is skipped in `plan`.

    The file holds an object a line, or one list of objects, or one object that has such a list under `data` as WavCaps has.

    Raises:
        DiffATRError: the file cannot be read, or is one JSON value of another kind.
    """
    text = read_text(path, plan)
    begin = _list_begins(text)
    if begin is None and not _is_lines(text):
        raise DiffATRError(
            f"{path}: neither a list of objects, nor an object with such a list named data, nor an object on each line."
        )
    table = path.name
    for number, value, problem in _elements(text, begin) if begin is not None else _json_lines(text):
        place = f"{table}:{number}"
        if problem or not isinstance(value, dict):
            plan.skipped.append(Skip(split, place, problem or "not a JSON object"))
        else:
            yield place, {column_name(name): cell for name, cell in value.items()}


def _decode(text: str, position: int = 0) -> tuple[Any, int]:
    """The JSON value at a position and where it ends. Raises ValueError with few words, for counting."""
    try:
        return _DECODER.raw_decode(text, position)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}") from None
    except ValueError:
        raise ValueError("a number of too many digits") from None


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _list_begins(text: str) -> int | None:
    """Where the list of rows begins: at the start, or under `data` in an object; None if there is no such list."""
    position = _skip_space(text, 0)
    if text.startswith("[", position):
        return position
    if not text.startswith("{", position):
        return None
    try:
        while True:
            key, position = _decode(text, _skip_space(text, position + 1))
            position = _skip_space(text, position)
            if not text.startswith(":", position):
                return None
            position = _skip_space(text, position + 1)
            if key == "data":
                return position if text.startswith("[", position) else None
            _, position = _decode(text, position)
            position = _skip_space(text, position)
            if not text.startswith(",", position):
                return None
    except ValueError:
        return None


def _is_lines(text: str) -> bool:
    """Whether a text is a JSON value a line, rather than one value that spans lines."""
    try:
        value, end = _decode(text, _skip_space(text, 0))
    except ValueError:
        return True  # a broken first line, perhaps; every line is judged for itself
    return isinstance(value, dict) and "\n" not in text[:end].strip()


def _json_lines(text: str) -> Iterator[tuple[int, Any, str | None]]:
    """(line, value, problem) for each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value, end = _decode(line, _skip_space(line, 0))
            yield number, value, "not JSON: extra data" if line[end:].strip() else None
        except ValueError as error:
            yield number, None, str(error)


def _elements(text: str, begin: int) -> Iterator[tuple[int, Any, str | None]]:
    """(line, value, problem) for each element of the list that begins at `begin`; a broken one costs itself only."""
    number, counted, position = 1, 0, begin + 1
    while True:
        position = _skip_space(text, position)
        number, counted = number + text.count("\n", counted, position), position
        if text.startswith("]", position):
            return
        if position == len(text):
            yield number, None, "the list is cut off here"
            return
        value, problem = None, None
        try:
            value, end = _decode(text, position)
            end = _skip_space(text, end)
            if not text.startswith((",", "]"), end) and end < len(text):
                problem = "not JSON: expecting a comma"
        except ValueError as error:
            end, problem = position, str(error)
        if problem:
            end = _element_end(text, position)
        yield number, value, problem
        position = end + text.startswith(",", end)


def _element_end(text: str, position: int) -> int:
    """Where the comma or bracket stands that ends the element at a position, by its brackets alone."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text, position):
        sign = found[0]
        if sign in "[{":
            depth += 1
        elif sign in "]}":
            if depth == 0 and sign == "]":
                return found.start()
            depth = max(0, depth - 1)  # a brace that nothing opened is part of the damage
        elif sign == "," and depth == 0:
            return found.start()
    return len(text)
