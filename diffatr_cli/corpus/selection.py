"""Which files a search may find, and what their names add to their sound.

A name adds at most `WEIGHT` times the spread of the query's cosines over the corpus. So of two files whose sounds differ by more
than that, the better sound comes first whatever they are called; where no name has a word of the query, nothing changes; and it
is the same for every model, whatever its cosines are like. The weight was chosen on validation: docs/names.md.

F files, C contents, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .snapshot import Recordings

By = Literal["sound", "name", "both"]
WEIGHT = 2.0
"""Of a name that has all words of the query, in spreads of the cosines."""
_SAMPLE = 4096  # windows, of which the spread is taken
_FAR = 1e3  # beyond all cosines: where names alone count, sound only orders what is called alike


@dataclass(frozen=True)
class Selection:
    """What is asked of a search beside the sound.

    Attributes:
        files: (F,) bool, which may be found; None for all.
        names: (F,) in [0, 1], how well each is described by its name and metadata; None where they do not count.
        by: what files are found by.
        spread: of the query's cosines, where it is known; else it is worked out.
    """

    files: np.ndarray | None = None
    names: np.ndarray | None = None
    by: By = "sound"
    spread: float | None = None

    def contents(self, recordings: Recordings) -> np.ndarray | None:
        """(C,) bool: the contents of which a file may be found; None for all."""
        if self.files is None:
            return None
        found = np.zeros(len(recordings.offsets) - 1, bool)
        found[recordings.content[self.files]] = True
        return found

    def bonus(self, recordings: Recordings, query: np.ndarray) -> np.ndarray | None:
        """(F,) float64: what each name adds to the score of its sound; None where names do not count."""
        if self.names is None:
            return None
        if self.by == "name":
            return _FAR * self.names.astype(np.float64)
        unit = spread(recordings, query) if self.spread is None else self.spread
        return WEIGHT * unit * self.names.astype(np.float64)

    def among(self, files: np.ndarray, spread: float | None) -> Selection:
        """The same for some of the files, by their numbers, with the spread of the whole."""
        mask = None if self.files is None else self.files[files]
        names = None if self.names is None else self.names[files]
        return replace(self, files=mask, names=names, spread=spread)


EVERYTHING = Selection()


def spread(recordings: Recordings, query: np.ndarray) -> float:
    """The standard deviation of the cosines of windows from all over the corpus to a query (D,)."""
    if recordings.store:
        vectors = recordings.store.some(recordings, _SAMPLE)
    else:
        vectors = recordings.vectors[:: max(1, len(recordings.vectors) // _SAMPLE)]
    return float(np.std(vectors @ query.astype(np.float32))) if len(vectors) else 0.0


def best_of_contents(recordings: Recordings, of_files: np.ndarray, files: np.ndarray | None) -> np.ndarray:
    """The highest value among the files of each content, of those that may be found, (F,) -> (C,); 0 for one without any."""
    found = np.zeros(len(recordings.offsets) - 1)
    chosen = slice(None) if files is None else files
    np.maximum.at(found, recordings.content[chosen], of_files[chosen])
    return found
