"""What a row of captions says, in whatever table it stands: file names, captions and a split."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Iterator
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
_LONGEST = 10_000
"""Characters of a caption; a longer one is a file that went into a cell by mistake."""
_PRINTED = re.compile(r"""\s*+(?:('(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")|None|nan)\s*+""")


class CaptionRow(NamedTuple):
    """One usable row."""

    place: str
    """FILE:LINE."""
    names: tuple[str, ...]
    """Of the file, as the columns give them; several columns may name one, and some hold what is no name."""
    number: str
    """The `id` of a JSON object, where WavCaps names the file by it; "" elsewhere."""
    captions: tuple[str, ...]
    """Each a text with a letter or digit in it; at least one."""
    split: str
    """As written; "" where there is none."""


def caption_rows(path: Path, plan: Plan, split: str, files: bool) -> Iterator[CaptionRow]:
    """The rows of a table of captions; those that cannot be used are skipped in `plan`. `files`: whether a file must be named.

    Raises:
        DiffATRError: the table cannot be read, or lacks a column.
    """
    is_json = _is_json(path)
    for place, row in table_rows(path, plan, split, FILE_COLUMNS if files else ()):
        names = [row[column] for column in _file_columns(tuple(row)) if row[column] not in (None, "")] if files else []
        number, named = (_wavcaps_id(row, names) if is_json else "", row.get("split") or "") if files else ("", "")
        texts = (*names, number, named)
        captions = _file_problem(texts) or usable_captions(captions_in(row), place, plan)
        if isinstance(captions, str):
            plan.skipped.append(Skip(split, place, captions))
        else:
            yield CaptionRow(place, tuple(names), number, captions, named)


def table_rows(path: Path, plan: Plan, split: str, keys: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """The rows of a table of captions, each with its place `FILE:LINE`; those that cannot be read are skipped in `plan`.

    Args:
        keys: columns of which a CSV must have one, beside one of captions; none where it is empty.

    Raises:
        DiffATRError: the table cannot be read, or lacks a column.
    """
    if _is_json(path):
        yield from read_json(path, split, plan)
        return
    for number, (place, row) in enumerate(read_csv(path, split, (), plan)):
        if number == 0:
            _check_columns(row, path, keys)
        yield place, row


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".json", ".jsonl", ".ndjson")


def _wavcaps_id(row: dict[str, Any], names: list[Any]) -> Any:
    """The `id` of an object that names no sound file, or that says where to download it and may call it by its title."""
    if "download_link" not in row and any(isinstance(name, str) and has_ending(name) for name in names):
        return ""
    return str(row["id"]) if type(row.get("id")) is int else row.get("id") or ""


def _file_problem(texts: tuple[Any, ...]) -> str | None:
    try:
        return text_problem("".join(texts))
    except TypeError:
        return "file and split must be text"


def _check_columns(row: Row, path: Path, keys: tuple[str, ...]) -> None:
    named = "clip, file, file_name, path or audio" if "clip" in keys else "file, file_name, path or audio"
    lacking = named if keys and not row.keys() & set(keys) else None
    if not lacking and not _caption_columns(tuple(row)):
        lacking = "caption, captions, caption_1 or text"
    if lacking:
        raise DiffATRError(f"{path}:1: no column {lacking}; the heading is {','.join(row)[:200]!r}")


def captions_in(row: dict[str, Any]) -> list[Any]:
    """What stands in a row's columns of captions, in their order; a cell may hold a list, as JSON or as Python prints it."""
    found: list[Any] = []
    for value in map(row.__getitem__, _caption_columns(tuple(row))):
        listed = _listed(value.strip()) if isinstance(value, str) else value if isinstance(value, list) else None
        if listed is None:
            found.append(value)
        else:
            found.extend(listed)
    return found


@lru_cache(maxsize=64)  # the rows of a table have the same columns
def _file_columns(columns: tuple[str, ...]) -> list[str]:
    return [column for column in FILE_COLUMNS if column in columns]


@lru_cache(maxsize=64)
def _caption_columns(columns: tuple[str, ...]) -> list[str]:
    return [name for name in columns if _CAPTION.fullmatch(name)] or [name for name in columns if _TEXT.fullmatch(name)]


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


def usable_captions(values: list[Any], place: str, plan: Plan) -> tuple[str, ...] | str:
    """The captions among cells, stripped; those that are none are noted in `plan`. Without any: the reason, in a few words."""
    judged = judged_captions(values)
    texts, problems = [text for text, problem in judged if not problem], [problem for _, problem in judged if problem]
    if not texts:
        return problems[0] if problems else "empty caption"
    if problems:
        plan.notes.extend(f"{place}: {problem}; it is left out" for problem in problems)
    return tuple(texts)


def judged_captions(values: list[Any]) -> list[tuple[str, str | None]]:
    """The cells that are not empty, stripped, each with why it is no caption; None if it is one.

    A table with caption_1 to caption_5 leaves cells empty where a clip has fewer.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    return [
        (text, "a caption must be text" if isinstance(value, bool | dict | list) else caption_problem(text))
        for text, value in zip(texts, values, strict=True)
        if text
    ]


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
