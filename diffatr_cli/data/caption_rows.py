"""What a row of captions says, in whatever table it stands: file names, captions and a split."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DiffATRError
from .listing import has_ending
from .plan import Plan, Skip
from .tables import Row, read_csv, read_json, text_problem

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
FILE_COLUMNS = ("file", "file_name", "filename", "path", "file_path", "audio", "audio_path", "wav")
_CAPTION = re.compile(r"captions?(_?\d+)?")
_TEXT = re.compile(r"texts?(_?\d+)?")  # where no column is called caption
_NO_CAPTION = frozenset(("nan", "-nan", "none", "null", "n/a", "na", "<na>", "#n/a", "#na"))
"""What programs write into cells that have no value, in small letters."""
_NO_TEXT = (bool, dict, list)
_LONGEST = 10_000
"""Characters of a caption; a longer one is a file that went into a cell by mistake."""
_PRINTED = re.compile(r"""\s*+(?:('(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")|None|nan)\s*+""")


class Columns(NamedTuple):
    """The names of a row's columns that hold files and captions, in the order in which they are looked at."""

    files: list[str]
    captions: list[str]


@lru_cache(maxsize=64)  # the rows of a table have the same columns
def _columns(names: tuple[str, ...]) -> Columns:
    captions = [name for name in names if _CAPTION.fullmatch(name)] or [name for name in names if _TEXT.fullmatch(name)]
    return Columns([name for name in FILE_COLUMNS if name in names], captions)


class CaptionRow(NamedTuple):
    """One usable row."""

    place: str
    """FILE:LINE."""
    names: tuple[str, ...]
    """Of the file, as the columns give them; several columns may name one, and some hold what is no name."""
    number: str
    """The `id` of a JSON object, where WavCaps names the file by it; "" elsewhere."""
    captions: tuple[str, ...]
    """Each a text with a letter or digit in it, and each once; at least one."""
    split: str
    """As written; "" where there is none."""


def caption_rows(path: Path, plan: Plan, split: str, files: bool) -> Iterator[CaptionRow]:
    """The rows of a table of captions; those that cannot be used are skipped in `plan`. `files`: whether a file must be named.

    Raises:
        DiffATRError: the table cannot be read, or lacks a column.
    """
    is_json, names, number, named, problem = named_json(path), [], "", "", None
    for place, columns, row in table_rows(path, plan, split, FILE_COLUMNS if files else ()):
        if files:
            names = [name for column in columns.files if (name := row[column]) not in (None, "")]
            named = row.get("split") or ""
            if is_json:  # the cells of a CSV are texts, and were looked at as such
                number = _wavcaps_id(row, names)
                problem = _file_problem((*names, number, named))
        captions = problem or _usable_captions(judged_captions(row, columns), place, plan)
        if isinstance(captions, str):
            plan.skipped.append(Skip(split, place, captions))
        else:
            yield CaptionRow(place, tuple(names), number, captions, named)


def table_rows(path: Path, plan: Plan, split: str, keys: tuple[str, ...]) -> Iterator[tuple[str, Columns, Row]]:
    """The rows of a table of captions, each after its place `FILE:LINE`; those that cannot be read are skipped in `plan`.

    Args:
        keys: columns of which a CSV must have one, beside one of captions; none where it is empty.

    Raises:
        DiffATRError: the table cannot be read, or lacks a column.
    """
    if named_json(path):
        for place, row in read_json(path, split, plan):
            yield place, _columns(tuple(row)), row
        return
    columns = None
    for place, row in read_csv(path, split, (), plan):
        columns = columns or _checked_columns(row, path, keys)
        yield place, columns, row


def named_json(path: Path) -> bool:
    """Whether a table is one of JSON objects, by its name."""
    return path.suffix.lower() in (".json", ".jsonl", ".ndjson")


def _wavcaps_id(row: dict[str, Any], names: list[Any]) -> Any:
    """The `id` of an object that names no sound file, or that says where to download it and may call it by its title."""
    number = row.get("id")
    if number is None or ("download_link" not in row and any(isinstance(name, str) and has_ending(name) for name in names)):
        return ""
    return str(number) if type(number) is int else number or ""


def _file_problem(texts: tuple[Any, ...]) -> str | None:
    try:
        return text_problem("".join(texts))
    except TypeError:
        return "file and split must be text"


def _checked_columns(row: Row, path: Path, keys: tuple[str, ...]) -> Columns:
    """The columns of a CSV. Raises DiffATRError where one is lacking."""
    columns = _columns(tuple(row))
    named = "clip, file, file_name, path or audio" if "clip" in keys else "file, file_name, path or audio"
    lacking = named if keys and not row.keys() & set(keys) else None
    if not lacking and not columns.captions:
        lacking = "caption, captions, caption_1 or text"
    if lacking:
        raise DiffATRError(f"{path}:1: no column {lacking}; the heading is {','.join(row)[:200]!r}")
    return columns


def items_in(cell: Any) -> Sequence[Any]:
    """The items of a list that a cell holds, as one or printed as JSON or Python print it; else the cell alone."""
    listed = _listed(cell.strip()) if isinstance(cell, str) else cell if isinstance(cell, list) else None
    return (cell,) if listed is None else listed


def _listed(cell: str) -> list[Any] | None:
    """The items of a list that a cell holds; None where the cell is a plain text, which may begin with a bracket."""
    if not cell.startswith(("[", "(")) or not cell.endswith("]" if cell[0] == "[" else ")"):
        return None
    if cell[0] == "[":
        with contextlib.suppress(ValueError, RecursionError):
            listed: list[Any] = json.loads(cell)
            return listed
    items: list[Any] = []
    inner, position = cell[1:-1], 0
    while position < len(inner) and (item := _PRINTED.match(inner, position)):
        try:
            items.append(_unquoted(item[1]) if item[1] else None)
        except (ValueError, SyntaxError):
            return None
        position = item.end()
        if inner.startswith(",", position):
            position += 1
        elif position < len(inner) and (cell[0] == "(" or not inner[position - 1].isspace()):  # numpy puts no commas
            return None
    if inner[position:].strip() or (cell[0] == "(" and "," not in inner):
        return None
    return items


def _unquoted(literal: str) -> str:
    """The text of a string literal of Python. Raises ValueError or SyntaxError for a broken escape."""
    if "\\" not in literal:
        return literal[1:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # over escapes that Python does not know and leaves as they are
        return str(ast.literal_eval(literal))


def judged_captions(row: Row, columns: Columns) -> list[tuple[str, str | None]]:
    """What stands in a row's columns of captions, in their order, stripped, each with why it is no caption; None if it is one.

    A table with caption_1 to caption_5 leaves cells empty where a clip has fewer: these do not count.
    """
    judged: list[tuple[str, str | None]] = []
    for column in columns.captions:
        for item in items_in(row[column]):
            if item is not None and (text := str(item).strip()):
                judged.append((text, "a caption must be text" if isinstance(item, _NO_TEXT) else caption_problem(text)))
    return judged


def _usable_captions(judged: list[tuple[str, str | None]], place: str, plan: Plan) -> tuple[str, ...] | str:
    """Those that are captions; the others are noted in `plan`. Without any: the reason, in a few words."""
    texts = [text for text, problem in judged if not problem]
    if len(texts) < len(judged):
        problems = [problem for _, problem in judged if problem]
        if not texts:
            return problems[0]
        plan.notes.extend(f"{place}: {problem}; it is left out" for problem in problems)
    return tuple(dict.fromkeys(texts)) or "empty caption"


def caption_problem(text: str) -> str | None:
    """Why a stripped text is no caption; None if it is one."""
    if not text:
        return "empty caption"
    if text.lower() in _NO_CAPTION:
        return f"{text!r} is no caption"
    if len(text) > _LONGEST:
        return f"a caption of {len(text)} characters"
    if problem := text_problem(text):
        return problem
    return None if any(map(str.isalnum, text)) else "a caption without a letter or digit"
