"""What is known of files beside their sound, in memory: their words, what is written in them, and how they were recorded.

F files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np

from .name_index import NameIndex, gathered, index_names

_OWN = ("channels", "rate", "day", "text_starts")
_KEPT = (*_OWN, "texts", "words", "word_starts", "word_files", "word_worth")
ARRAYS = tuple(f"notes_{name}" for name in _KEPT)
"""The names of the arrays of `Notes.arrays`."""
_FIRST_DAY = date(1970, 1, 1).toordinal()


class Note(NamedTuple):
    """What is known of one file beside its sound.

    Attributes:
        channels, rate: 0 where they are not known; Hz.
        day: of the recording by the file's own words, else of its last change: days since 1970-01-01.
        fields: what is written in it, as text: a JSON object of texts, or nothing.
    """

    channels: int
    rate: int
    day: int
    fields: str


class FileFacts(NamedTuple):
    """What is shown of a file beside its sound.

    Attributes:
        format: the ending of its name, in small letters without the dot.
        channels, rate: None where they are not known; Hz.
        date: as `Note.day`, in ISO 8601; None where it is not known.
        metadata: what is written in it, by the name of the field.
    """

    format: str
    channels: int | None
    rate: int | None
    date: str | None
    metadata: dict[str, str]


UNKNOWN = Note(0, 0, -1, "")
"""Of a file of which nothing was noted."""


@dataclass(frozen=True)
class Notes:
    """What is known of F files beside their sound, in the order of `Recordings.paths`.

    Attributes:
        channels: (F,) int32, 0 where unknown.
        rate: (F,) int32 in Hz, 0 where unknown.
        day: (F,) int32, `Note.day`; -1 where unknown.
        text_starts: (F + 1,): the text of file f is texts[text_starts[f]:text_starts[f + 1]], UTF-8, `Note.fields`.
        texts: uint8.
        names: the index of their words.
    """

    channels: np.ndarray
    rate: np.ndarray
    day: np.ndarray
    text_starts: np.ndarray
    texts: np.ndarray
    names: NameIndex

    @classmethod
    def of(cls, paths: Sequence[str], notes: Sequence[Note]) -> Notes:
        """The notes of files by their paths."""
        raw = [note.fields.encode("utf-8", "replace") for note in notes]
        channels, rate, day = (np.array([note[column] for note in notes], np.int32) for column in range(3))
        texts = np.frombuffer(b"".join(raw), np.uint8)
        written = (" ".join(_fields(text).values()) for text in raw)
        return cls(channels, rate, day, np.cumsum([0, *map(len, raw)]), texts, index_names(paths, written))

    @classmethod
    def gathered(cls, parts: Sequence[tuple[Notes, np.ndarray]], files: int) -> Notes:
        """The notes of `files` files out of those of others.

        With each of these goes (F,), the new number of each of its files; -1 for one that is left out.
        """
        columns = [np.full(files, nothing, np.int32) for nothing in UNKNOWN[:3]]
        texts = [b""] * files
        for notes, places in parts:
            own = np.flatnonzero(places >= 0)
            for column, values in zip(columns, (notes.channels, notes.rate, notes.day), strict=True):
                column[places[own]] = values[own]
            for file in own[np.diff(notes.text_starts)[own] > 0].tolist():
                texts[places[file]] = notes._raw(file)
        names = gathered([(notes.names, places) for notes, places in parts], files)
        channels, rate, day = columns
        starts, packed = np.cumsum([0, *map(len, texts)]), np.frombuffer(b"".join(texts), np.uint8)
        return cls(channels, rate, day, starts, packed, names)

    def _raw(self, file: int) -> bytes:
        return self.texts[self.text_starts[file] : self.text_starts[file + 1]].tobytes()

    def facts(self, file: int, path: str) -> FileFacts:
        """What is shown of a file."""
        day = int(self.day[file])
        return FileFacts(
            format_of(path),
            int(self.channels[file]) or None,
            int(self.rate[file]) or None,
            date.fromordinal(_FIRST_DAY + day).isoformat() if day >= 0 else None,
            _fields(self._raw(file)),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays to be kept, by the names of `ARRAYS`; `of_arrays` gives it back."""
        own = {name: getattr(self, name) for name in (*_OWN, "texts")}
        return {f"notes_{name}": array for name, array in (own | self.names.arrays()).items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Notes:
        """From what `arrays` gave. Raises KeyError where some are missing."""
        own = {name: arrays[f"notes_{name}"] for name in _KEPT}
        names = NameIndex.of_arrays(len(own["channels"]), own)
        return cls(own["channels"], own["rate"], own["day"], own["text_starts"], own["texts"], names)


def format_of(path: str) -> str:
    """The ending of a name, in small letters without the dot."""
    _, dot, ending = path.rpartition(".")
    return ending.lower() if dot and os.sep not in ending else ""


def day_of(told: date | None, mtime_ns: int) -> int:
    """`Note.day` of a file that names a day, or was changed last at a time, by the calendar of UTC."""
    try:
        day = told or datetime.fromtimestamp(mtime_ns / 1e9, UTC).date()
    except (ValueError, OverflowError, OSError):  # a time beyond all calendars
        return -1
    return max(-1, day.toordinal() - _FIRST_DAY)


def _fields(raw: bytes) -> dict[str, str]:
    """The fields of `Note.fields`."""
    return {str(name): str(text) for name, text in json.loads(raw).items()} if raw else {}
