"""Which files are called, or described, by the words of a query: an inverted index over names and metadata, in a few arrays.

It is made when an index is updated and kept in the snapshot, so that a search needs no table for it, in no process of a service
and for no place where an index may be kept.

A word counts by its rarity, as BM25 has it (Robertson and Zaragoza 2009, the idf that is never negative), and in a file by where
it stands: in its name, in its folders or in what is written in it. The score of a file is the share of the query's words that it
has, weighed by both, so it lies in [0, 1] and is 1 only where the name itself has them all.

F files, V words, P pairs of a word and a file that has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .words import parts_of, stem, stems_of

IN_NAME, IN_FOLDER, IN_TEXT = 1.0, 0.7, 0.7
"""What a word is worth where it stands, in descending order; where it stands in several places, the most of these."""
_NO_LETTER = b"\n"  # between words; `words.parts_of` gives none with it


@dataclass(frozen=True)
class NameIndex:
    """The words of files.

    Attributes:
        files: F.
        words: V stems, each once, sorted by their UTF-8 bytes.
        starts: (V + 1,): the pairs of word v are starts[v]..starts[v + 1].
        who: (P,) int32 the numbers of files, ascending within a word.
        worth: (P,) float32 in (0, 1].
    """

    files: int
    words: np.ndarray
    starts: np.ndarray
    who: np.ndarray
    worth: np.ndarray

    def scores(self, text: str) -> np.ndarray:
        """How well each file is described by a text, (F,) float32 in [0, 1]; 0 for a text of no words that tell sounds apart."""
        found = np.zeros(self.files, np.float32)
        total = 0.0
        for options in asked_words(text):
            pairs = [self._pairs(each) for each in options]
            # A word and the two that it is written as elsewhere are one, and as rare as the more frequent of them.
            rarity = min(self._rarity(each.stop - each.start) for each in pairs)
            total += rarity
            best: dict[int, slice] = {each.start: each for each in pairs if each.stop > each.start}
            if len(best) == 1:
                (each,) = best.values()
                found[self.who[each]] += np.float32(rarity) * self.worth[each]
            elif best:
                own = np.zeros(self.files, np.float32)
                for each in best.values():
                    np.maximum.at(own, self.who[each], self.worth[each])
                found += np.float32(rarity) * own
        return found / np.float32(total) if total else found

    def having(self, word: str) -> np.ndarray:
        """Which files have all words of a text in their name, folders or metadata, (F,) bool; none for a text without words."""
        stems = [stem(part) for part in parts_of(word)]
        have = np.full(self.files, bool(stems))
        for each in stems:
            pairs, own = self._pairs(each), np.zeros(self.files, bool)
            own[self.who[pairs]] = True
            have &= own
        return have

    def _pairs(self, word: str) -> slice:
        raw = word.encode()
        at = int(np.searchsorted(self.words, raw))
        if at == len(self.words) or self.words[at] != raw:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def _rarity(self, count: int) -> float:
        return float(np.log1p((self.files - count + 0.5) / (count + 0.5)))

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays to be kept; `of_arrays` gives it back."""
        words = np.frombuffer(_NO_LETTER.join(self.words.tolist()), np.uint8)
        return {"words": words, "word_starts": self.starts, "word_files": self.who, "word_worth": self.worth}

    @classmethod
    def of_arrays(cls, files: int, arrays: Mapping[str, np.ndarray]) -> NameIndex:
        """From what `arrays` gave."""
        packed = arrays["words"].tobytes()
        words = np.array(packed.split(_NO_LETTER) if packed else [], dtype=bytes)
        return cls(files, words, arrays["word_starts"], arrays["word_files"], arrays["word_worth"])


def gathered(parts: Sequence[tuple[NameIndex, np.ndarray]], files: int) -> NameIndex:
    """The index of `files` files out of those of others.

    With each of these goes (F,), the new number of each of its files; -1 for one that is left out.
    """
    words, who, worth = [np.zeros(0, "S1")], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for index, places in parts:
        own = places[index.who] >= 0
        words.append(np.repeat(index.words, np.diff(index.starts))[own])
        who.append(places[index.who[own]].astype(np.int32))
        worth.append(index.worth[own])
    numbers = np.concatenate(who)
    different, word = np.unique(np.concatenate(words), return_inverse=True)
    order = np.lexsort((numbers, word))
    starts = np.searchsorted(word[order], np.arange(len(different) + 1))
    return NameIndex(files, different, starts, numbers[order], np.concatenate(worth)[order])


def asked_words(text: str) -> Iterator[tuple[str, ...]]:
    """The words of a query by their stems, each once; with each what it makes with its neighbours: `door bell` is `doorbell`."""
    stems = list(dict.fromkeys(stems_of(text)))
    joined: dict[str, list[str]] = {}
    parts = parts_of(text)
    for one, other in pairwise(parts):
        both = stem(one + other)
        for each in (stem(one), stem(other)):
            joined.setdefault(each, []).append(both)
    return ((each, *dict.fromkeys(joined.get(each, ()))) for each in stems)


def index_names(paths: Iterable[str], texts: Iterable[str]) -> NameIndex:
    """The index of files by their paths and by what is written in each."""
    of_word: dict[str, list[tuple[int, float]]] = {}
    of_folder: dict[str, dict[str, float]] = {}
    count = 0
    for count, (path, text) in enumerate(zip(paths, texts, strict=True), 1):
        folder, name = os.path.split(path)
        if folder not in of_folder:
            of_folder[folder] = dict.fromkeys(_stems(folder), IN_FOLDER)
        worth = dict.fromkeys(_stems(text), IN_TEXT) if text else {}
        worth |= of_folder[folder]
        worth |= dict.fromkeys(_stems(os.path.splitext(name)[0], joined=True), IN_NAME)
        for word, value in worth.items():
            of_word.setdefault(word, []).append((count - 1, value))
    words = sorted(of_word, key=str.encode)
    pairs = [of_word[word] for word in words]
    flat = [pair for some in pairs for pair in some]
    return NameIndex(
        count,
        np.array([word.encode() for word in words], dtype=bytes),
        np.cumsum([0, *map(len, pairs)]),
        np.array([file for file, _ in flat], np.int32),
        np.array([value for _, value in flat], np.float32),
    )


def _stems(text: str, *, joined: bool = False) -> set[str]:
    """The stems of a name or text; `joined`: also of each two words that stand together, which queries may write as one."""
    parts = parts_of(text.encode("utf-8", "replace").decode())
    pairs = pairwise(parts) if joined else ()
    return {stem(part) for part in parts} | {stem(one + two) for one, two in pairs if one.isalpha() and two.isalpha()}
