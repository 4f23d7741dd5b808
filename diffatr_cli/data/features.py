"""Vectors of one's own: what a model that was run elsewhere made of clips and of captions, as a data set without audio.

A matrix has a vector in each row. n clips, m captions, F and F' numbers in a vector of a clip and of a caption.
"""

from __future__ import annotations

import hashlib
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from ..files import reason
from ..interrupts import interrupts_wait
from ..printable import counted
from ..progress import Progress, silent
from .caption_rows import FILE_COLUMNS, judged_captions, table_rows
from .folder import SPLIT_NAMES, deal
from .manifest import SPLITS, Record, write_manifest
from .plan import Plan, Skip
from .prepare import Report, claim, count_splits, leaks
from .tables import text_problem
from .vectors import DIGEST, write_vectors

KIND = "features"
_KEYS = ("clip", *FILE_COLUMNS)
_ALL = "all"  # where rows are counted that belong to no split
_BLOCK = 4096  # rows of a matrix that are looked at together
_SHORTEST = 1e-12  # torch's normalize brings no shorter vector to length 1
_SAVE = "Save it with numpy.save(FILE, vectors.astype('float32'))."


class Source(NamedTuple):
    """What a model made of clips and of captions, and the table that says what is what."""

    audio: Path
    """A matrix (n, F): a row for each clip, in the order in which the table names them first."""
    text: Path
    """A matrix (m, F'): a row for each caption of the table, in its order."""
    captions: Path


def prepare_features(
    out: Path, source: Source, others: Mapping[str, Source] | None = None, progress: Progress = silent
) -> Report:
    """Make a data set of vectors: a manifest of clips and captions as other sets have it, and the vectors beside it.

    The table is one as `prepare_folder` takes, and a column `clip` may name the clips. Every cell of a caption that is not empty
    has a row of `text`, and every name of a clip one of `audio`, whether they can be used or not. Clips and captions are skipped
    where the vector cannot be used, or the table's row.

    Args:
        others: by `val` or `test`, the sources of those splits. `source` is for training then, but for rows that name a split;
            without any, clips that name none are dealt out as `prepare_folder` deals.

    Raises:
        UsageError: a matrix is none, or has not a row for each clip or caption, or sizes differ between sources.
        DiffATRError: a table cannot be read or lacks a column, or the disk is full.
    """
    with claim(out, KIND):
        plan, others = Plan(), others or {}
        tables = [_read(source, None, plan), *(_read(others[split], split, plan) for split in SPLITS if split in others)]
        for one in tables[1:]:
            _check_size(tables[0].source.audio, tables[0].audio, one.source.audio, one.audio)
            _check_size(tables[0].source.text, tables[0].text, one.source.text, one.text)
        clips = [clip for table in tables for clip in _clips(table, plan, progress)]
        if others:
            dealt = dict.fromkeys((clip.name for clip in clips), "train")
        else:
            dealt = deal([clip.name for clip in clips if not clip.split])
        records, chosen = _records(clips, dealt, plan)
        if chosen:
            by_table = [(table, [clip for clip in chosen if clip.table is table]) for table in tables]
            audio = np.concatenate([_rows(table.audio, [clip.row for clip in mine]) for table, mine in by_table])
            text = np.concatenate(
                [_rows(table.text, [row for clip in mine for row in clip.captions.values()]) for table, mine in by_table]
            )
            hashes = (hashlib.md5(vector.tobytes()).hexdigest() for vector in audio)
            records = [record if record.skipped else record._replace(md5=next(hashes)) for record in records]
            with interrupts_wait():  # the two files belong together
                write_manifest(out, records, {"kind": KIND, DIGEST: write_vectors(out, audio, text)})
        ready = [record for record in records if not record.skipped]
        splits = count_splits([record.split for record in records], ready)
        if chosen and (lacking := [split for split, count in splits.items() if not count.clips]):
            plan.notes.append(f"no clips in {', '.join(lacking)}; training needs train and val, and evaluation most often test")
        return Report(
            name=out.name,
            root=out,
            resampler=None,
            converted=len(ready),
            kept=0,
            clipped=0,
            partial=0,
            splits=splits,
            skipped=[
                *plan.skipped,
                *(Skip(record.split, record.source or record.clip_id, record.skipped) for record in records if record.skipped),
            ],
            notes=[*plan.notes, *leaks(ready, ("has exactly the vector of", "have exactly the vector of"))],
            sizes=(tables[0].audio.shape[1], tables[0].text.shape[1]),
        )


# --- matrices --------------------------------------------------------------------------------------------------------


def open_matrix(path: Path) -> np.ndarray:
    """The matrix of a .npy file, float16, float32 or float64, mapped into memory; nothing pickled is loaded.

    Raises:
        UsageError: the file cannot be read, is no .npy file, is cut off, or holds something else than a matrix of such numbers.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        matrix = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}") from None
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, MemoryError, tokenize.TokenError) as error:
        if "Python objects" in str(error):
            problem = "holds Python objects, which are never loaded"
        elif magic.startswith(b"PK"):
            problem = "is an archive, as numpy.savez writes it, and no .npy file of one array"
        elif magic != b"\x93NUMPY":
            problem = "is no .npy file"
        else:
            problem = "is damaged or cut off"
        raise UsageError(f"{path}: {problem}. {_SAVE}") from None
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        raise UsageError(f"{path}: holds {matrix.dtype}, where float32, float16 or float64 is wanted. {_SAVE}")
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        shape = " x ".join(map(str, matrix.shape)) or "one number"
        raise UsageError(f"{path}: holds an array of {shape}, where one row with a vector for each clip or caption is wanted.")
    return matrix


def _check_size(one_path: Path, one: np.ndarray, other_path: Path, other: np.ndarray) -> None:
    if one.shape[1] != other.shape[1]:
        raise UsageError(
            f"{other_path}: has vectors of {other.shape[1]} numbers, and {one_path} of {one.shape[1]}. Make all by one model."
        )


def _check_rows(path: Path, matrix: np.ndarray, number: int, what: str, table: Path, remedy: str) -> None:
    if len(matrix) != number:
        raise UsageError(f"{path}: has {counted(len(matrix), 'row')}, and {table} {what}. {remedy}")


def _unusable(matrix: np.ndarray, note: str, progress: Progress) -> dict[int, str]:
    """The rows of a matrix that are no vectors, each with the reason."""
    found: dict[int, str] = {}
    for start in range(0, len(matrix), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        with np.errstate(all="ignore"):
            length = np.linalg.norm(rows.astype(np.float32), axis=1)
        for row in np.flatnonzero(~((length > _SHORTEST) & np.isfinite(length))).tolist():
            if not np.isfinite(rows[row]).all():
                problem = "NaN or infinity in its vector"
            else:
                problem = "its vector is zero" if length[row] <= _SHORTEST else "its vector is too long for float32"
            found[start + row] = problem
        progress(min(start + _BLOCK, len(matrix)), len(matrix), note)
    return found


def _rows(matrix: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    return np.ascontiguousarray(matrix[np.array(rows, int)], np.float32)


# --- tables ----------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    place: str
    """FILE:LINE."""
    name: str
    """Of the clip; "" where there is none."""
    split: str
    """As written; "" where there is none."""
    captions: list[tuple[str, str | None]]
    """Each with why it cannot be used; None if it can."""


@dataclass(frozen=True)
class _Table:
    """A source that was read, with as many rows in its matrices as its table wants."""

    source: Source
    split: str | None
    """Of all its clips; None where its rows say it."""
    rows: list[_Row]
    audio: np.ndarray
    text: np.ndarray


@dataclass(eq=False)
class _Clip:
    name: str
    table: _Table
    row: int
    """Of the matrix of clips."""
    problem: str | None
    """Why its vector cannot be used; None if it can."""
    split: str
    """"" as long as no row names one."""
    captions: dict[str, int] = field(default_factory=dict)
    """Those that can be used, each with its row of the matrix of captions."""


def _read(source: Source, split: str | None, plan: Plan) -> _Table:
    audio, text = open_matrix(source.audio), open_matrix(source.text)
    read = Plan()
    rows = [
        _Row(place, _name(row), str(row.get("split") or "").strip(), judged_captions(row, columns))
        for place, columns, row in table_rows(source.captions, read, split or _ALL, _KEYS)
    ]
    plan.skipped += read.skipped
    plan.notes += read.notes
    captions, clips = sum(len(row.captions) for row in rows), len(_numbered(rows))
    if not captions:
        raise UsageError(f"{source.captions}: no captions in it. Give a table with a column of clips and one of captions.")
    besides = ""
    if read.skipped:
        first = read.skipped[0]
        besides = f", besides {counted(len(read.skipped), 'row')} that cannot be read, the first at {first.what} ({first.reason})"
    _check_rows(
        source.text,
        text,
        captions,
        f"holds {counted(captions, 'caption')}{besides}",
        source.captions,
        "Give it a row for each cell of a caption that is not empty, in the order of the table.",
    )
    _check_rows(
        source.audio,
        audio,
        clips,
        f"names {clips} different clips{besides}",
        source.captions,
        "Give it a row for each clip, in the order in which the table names them first.",
    )
    return _Table(source, split, rows, audio, text)


def _name(row: dict[str, Any]) -> str:
    """The clip that a row names, as it is written."""
    for column in _KEYS:
        value = row.get(column)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""


def _numbered(rows: Sequence[_Row]) -> dict[str, int]:
    """The names of clips in the order in which they come first, each with its number."""
    return {name: number for number, name in enumerate(dict.fromkeys(row.name for row in rows if row.name))}


def _clips(table: _Table, plan: Plan, progress: Progress) -> list[_Clip]:
    """The clips that the rows of a table add up to; what cannot be used is skipped in `plan`."""
    bad_audio = _unusable(table.audio, f"checking {table.source.audio.name}", progress)
    bad_text = _unusable(table.text, f"checking {table.source.text.name}", progress)
    number, found, following = _numbered(table.rows), dict[str, _Clip](), 0

    def skip(what: str, problem: str) -> None:
        plan.skipped.append(Skip(table.split or _ALL, what, problem))

    for row in table.rows:
        vectors = range(following, following + len(row.captions))
        following += len(row.captions)
        written = "" if table.split else row.split
        split = table.split or SPLIT_NAMES.get(written.lower(), "")
        clip = found.get(row.name) or _Clip(row.name, table, number.get(row.name, 0), None, split)
        if problem := _problem(row, written, split, clip):
            skip(row.place, problem)
            continue
        found[row.name] = clip
        clip.problem, clip.split = bad_audio.get(clip.row), clip.split or split
        for (caption, problem), vector in zip(row.captions, vectors, strict=True):
            if problem:
                skip(row.place, problem)
            elif vector in bad_text:
                skip(f"{table.source.text.name}[{vector}]", bad_text[vector])
            elif caption in clip.captions:
                skip(row.place, "a caption that its clip has already")
            else:
                clip.captions[caption] = vector
    return list(found.values())


def _problem(row: _Row, written: str, split: str, clip: _Clip) -> str | None:
    """Why a row cannot be used; None if it can."""
    if not row.name:
        return "no clip is named"
    if problem := text_problem(row.name):
        return problem
    if written and not split:
        return f"unknown split {written[:40]!r}"
    if split and clip.split and split != clip.split:
        return f"the clip is already in {clip.split}"
    return None if row.captions else "empty caption"


def _records(clips: Sequence[_Clip], dealt: Mapping[str, str], plan: Plan) -> tuple[list[Record], list[_Clip]]:
    """The manifest's rows, and the clips among them that can be used."""
    records: dict[str, Record] = {}
    chosen = []
    for clip in clips:
        split = clip.split or dealt[clip.name]
        name, source = f"{split}/{clip.name}", f"{clip.table.source.audio.name}[{clip.row}]"
        if name in records:
            plan.skipped.append(Skip(split, source, "a clip of that name is in another table already"))
            continue
        skipped = clip.problem or (None if clip.captions else "none of its captions can be used")
        records[name] = Record(name, split, tuple(clip.captions), "", source, skipped=skipped)
        if not skipped:
            chosen.append(clip)
    return list(records.values()), chosen
