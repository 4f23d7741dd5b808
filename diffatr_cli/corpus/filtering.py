"""Which files of an index fit the filters of a query, by whole columns: 100,000 files take some milliseconds.

F files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import cached_property

import numpy as np

from .filters import Condition, Interval
from .notes import Notes, format_of
from .snapshot import Recordings
from .words import parts_of


class Columns:
    """What filters ask of the files of an index, each worked out once, when it is first asked for."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    @classmethod
    def of(cls, recordings: Recordings) -> Columns:
        """Those of these recordings, which are kept with them."""
        # What a frozen dataclass works out once lies in its `__dict__`, as `cached_property` has it.
        columns: Columns = recordings.__dict__.setdefault("_columns", cls(recordings))
        return columns

    @cached_property
    def notes(self) -> Notes:
        """What is known beside the sound; nothing but the names where nothing was noted."""
        return self._recordings.known

    @cached_property
    def seconds(self) -> np.ndarray:
        """(F,) how long each is."""
        recordings = self._recordings
        return np.asarray(recordings.spans[recordings.offsets[recordings.content + 1] - 1, 1])

    @cached_property
    def folders(self) -> tuple[list[str], np.ndarray]:
        """The different folders, and (F,) which of them each file is in."""
        return _coded([path.rpartition(os.sep)[0] for path in self._recordings.paths])

    @cached_property
    def formats(self) -> tuple[list[str], np.ndarray]:
        """The different formats, and (F,) which of them each file has."""
        return _coded([format_of(path) for path in self._recordings.paths])

    def prepare(self) -> None:
        """Work out now what takes longest, so that no search has to: some tenths of a second for 100,000 files."""
        for _ in (self.folders, self.formats, self.seconds, self._recordings.number_of):
            pass

    def fitting(self, conditions: Sequence[Condition]) -> np.ndarray:
        """Which files fit all conditions, (F,) bool."""
        fits = np.ones(len(self._recordings), bool)
        for condition in conditions:
            fits &= self._fitting(condition)
        return fits

    def _fitting(self, condition: Condition) -> np.ndarray:
        known = np.ones(len(self._recordings), bool)
        match condition.key:
            case "word":
                fits = _any([self.notes.names.having(word) for word in condition.words])
            case "in":
                folders, of_file = self.folders
                fits = np.array([any(is_in(folder, word) for word in condition.words) for folder in folders], bool)[of_file]
            case "format":
                formats, of_file = self.formats
                fits = np.array([each in condition.words for each in formats], bool)[of_file]
            case _:
                values, known = self._numbers[condition.key]()
                fits = _any([_within(values, interval) for interval in condition.intervals])
        return np.asarray(known & (fits != condition.negated))

    @property
    def _numbers(self) -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
        """The numbers of files, and which of them are known."""
        notes = self.notes
        return {
            "length": lambda: (self.seconds, np.ones(len(self.seconds), bool)),
            "channels": lambda: (notes.channels, notes.channels > 0),
            "rate": lambda: (notes.rate, notes.rate > 0),
            "date": lambda: (notes.day, notes.day >= 0),
        }


def is_in(folder: str, word: str) -> bool:
    """Whether a folder, by its path below the searched one, is, or lies in, one that a filter `in:` names, in any case.

    A name names each folder that has its words one after the other; with `*`, `?` or `[...]` it is a pattern of the whole name
    of a folder. With `/` it names folders within folders.
    """
    wanted, parts = word.replace(os.sep, "/").split("/"), folder.replace(os.sep, "/").split("/")
    return any(
        all(_is_called(part, each) for part, each in zip(parts[at:], wanted, strict=False))
        for at in range(len(parts) - len(wanted) + 1)
    )


def _is_called(name: str, word: str) -> bool:
    if any(sign in word for sign in "*?["):
        return re.match(translate(word.casefold()), name.casefold()) is not None
    if name.casefold() == word.casefold():
        return True
    wanted, words = parts_of(word), parts_of(name)
    return bool(wanted) and any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))


def _coded(values: list[str]) -> tuple[list[str], np.ndarray]:
    numbers: dict[str, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int32, len(values))
    return list(numbers), codes


def _any(masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.logical_or.reduce(masks))


def _within(values: np.ndarray, interval: Interval) -> np.ndarray:
    above = values > interval.low if interval.low_open else values >= interval.low
    return np.asarray(above & (values < interval.high if interval.high_open else values <= interval.high))
