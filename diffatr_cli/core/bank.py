"""What a model learnt from: captions as vectors of its caption encoder, which it can know the name of, and sounds called so.

Names that were never taught lie anywhere in the shared space, often near some sound or other. In the caption encoder's own
space, which knows far more words than the captions have, such a name lies far from all captions.

B captions, S sounds, Q queries, F size of a caption vector, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np

FAMILIAR_SHARE = 0.9
"""Of the validation captions that the model should take for known, by their nearest training caption of other words."""

_NEAR = 0.05  # by how much a cosine may lie below the best one and still count a third of it
ARTICLES = frozenset(("a", "an", "the"))
_AT_ONCE = 2**24  # entries of a matrix of cosines
# Of the learnt sounds that tell what a sound is called: how many, and by how much a cosine may lie below the nearest one's and
# still count a third of it. From 8 to 64 of them and 0.03 to 0.05 tell the same on validation.
_NEIGHBOURS, _ALIKE = 8, 0.03


class LearntSounds(NamedTuple):
    """Some training clips: (S, D) float32 unit vectors, and the rows of captions said of each, (S, C), some repeated."""

    vectors: np.ndarray
    captions: np.ndarray


@dataclass(frozen=True, eq=False)
class CaptionBank:
    """Training captions and their vectors, and some of the sounds that they describe.

    Attributes:
        texts: B different captions, normalised.
        vectors: (B, F) float32 unit vectors.
        familiar: the cosine to the nearest of them from which on a query names something learnt.
        worth: (B,) the mean cosine of each, in the space shared with sounds, to the training clips that it describes; None
            where it is not known.
        sounds: some of the clips that these captions describe; None where none were kept.

    Raises:
        ValueError: other shapes.
    """

    texts: tuple[str, ...]
    vectors: np.ndarray
    familiar: float
    worth: np.ndarray | None = None
    sounds: LearntSounds | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.texts) or not self.texts:
            raise ValueError(f"{len(self.texts)} captions with vectors {self.vectors.shape}")
        if self.worth is not None and self.worth.shape != (len(self.texts),):
            raise ValueError(f"{len(self.texts)} captions with the worth of {self.worth.shape}")
        if self.sounds is not None:
            vectors, rows = self.sounds
            if vectors.ndim != 2 or rows.ndim != 2 or len(vectors) != len(rows) or not vectors.size or not rows.size:
                raise ValueError(f"sounds {vectors.shape} with captions {rows.shape}")
            if rows.min() < 0 or rows.max() >= len(self.texts):
                raise ValueError(f"sounds of other captions than these {len(self.texts)}")

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the captions."""
        return frozenset(word for text in self.texts for word in text.split())

    @cached_property
    def places(self) -> dict[str, int]:
        """The row of each caption."""
        return {text: row for row, text in enumerate(self.texts)}

    def nearest(self, queries: np.ndarray, *, but: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """The cosine of each query, unit vectors (Q, F), to its nearest caption, (Q,), and that caption.

        Args:
            but: a text for each query that does not count as its nearest.
        """
        best, rows = np.full(len(queries), -1.0), np.zeros(len(queries), int)
        for some, cosine in self._cosines(queries, but):
            rows[some], best[some] = cosine.argmax(1), cosine.max(1)
        return best.clip(-1, 1), [self.texts[row] for row in rows.tolist()]  # products of unit vectors go over by a rounding

    def expected(self, queries: np.ndarray, *, but: Sequence[str] | None = None) -> np.ndarray:
        """The cosine that each query may expect of a sound that matches, (Q,): the worth of the captions near to it.

        Some kinds of sound are recognised by high cosines and others by low ones; 0 where nothing is known of that. `but` is
        that of `nearest`.
        """
        expected = np.zeros(len(queries))
        if self.worth is not None:
            for some, cosine in self._cosines(queries, but):
                weights = np.exp((cosine - cosine.max(1, keepdims=True)) / _NEAR)
                expected[some] = weights @ self.worth / weights.sum(1)
        return expected

    def heard(self, sounds: np.ndarray, queries: np.ndarray, *, but: Sequence[str] | None = None) -> np.ndarray:
        """Whether each sound is like something learnt, and whether that is called as its query says, (Q, 2); 0 without any.

        The cosine of each sound to the nearest learnt one; and the cosine of each query to what the nearest ones are called, a
        mean in which of each of them its nearest caption counts. What a query means is near to sounds of captions like it.

        Args:
            sounds: (Q, D) unit vectors, in the space shared with texts.
            queries: (Q, F) unit vectors.
            but: a text for each query, which does not count where something else is said of a learnt sound too. Where all is
                labels, nothing else is: people ask by those.
        """
        told = np.zeros((len(queries), 2))
        if self.sounds is None:
            return told
        learnt, captions = self.sounds
        few = min(_NEIGHBOURS, len(learnt))
        step = max(1, _AT_ONCE // max(len(learnt), few * captions.shape[1] * self.vectors.shape[1]))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            cosine = sounds[some].astype(np.float32) @ learnt.T
            near = np.argpartition(-cosine, few - 1, 1)[:, :few]
            cosine, rows = np.take_along_axis(cosine, near, 1), captions[near]  # (q, few), (q, few, C)
            called = np.einsum("qncf,qf->qnc", self.vectors[rows], queries[some].astype(np.float32))
            if but is not None:
                own = rows == np.array([self.places.get(text, -1) for text in but[some]])[:, None, None]
                called = np.where(own & ~own.all(2, keepdims=True), -1, called)
            weights = np.exp((cosine - cosine.max(1, keepdims=True)) / _ALIKE)
            told[some, 0] = cosine.max(1)
            told[some, 1] = (weights * called.max(2)).sum(1) / weights.sum(1)
        return told

    @cached_property
    def _words_of(self) -> list[frozenset[str]]:
        """Of each caption."""
        return [frozenset(text.split()) for text in self.texts]

    def holds(self, text: str) -> bool:
        """Whether one caption has all words of a normalised text but articles, in whatever form: "dogs" of "a dog barks"."""
        import snowballstemmer

        stem = snowballstemmer.stemmer("english").stemWord

        def forms_of(word: str) -> set[str]:
            own = stem(word)
            return {each for each in self.words if each[:2] == word[:2] and stem(each) == own}

        forms = [forms_of(word) for word in text.split() if word not in ARTICLES]
        return bool(forms) and any(all(some & held for some in forms) for held in self._words_of)

    def _cosines(self, queries: np.ndarray, but: Sequence[str] | None) -> Iterator[tuple[slice, np.ndarray]]:
        """The cosines of some queries at a time to all captions, and which queries these are."""
        step = max(1, _AT_ONCE // len(self.texts))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            cosine = queries[some].astype(np.float32) @ self.vectors.T
            for row, text in enumerate(but[some] if but else ()):
                if (place := self.places.get(text)) is not None:
                    cosine[row, place] = -2  # below any cosine
            yield some, cosine

    def strangeness(self, best: np.ndarray) -> np.ndarray:
        """By how much the cosine of the nearest caption falls short of `familiar`; 0 for what names something learnt."""
        return np.maximum(0.0, self.familiar - best)

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        vectors: np.ndarray,
        held_out: Sequence[str],
        queries: np.ndarray,
        worth: np.ndarray | None = None,
        sounds: LearntSounds | None = None,
    ) -> Self:
        """A bank whose `familiar` takes in `FAMILIAR_SHARE` of some captions that the model does know.

        Args:
            texts: different, normalised training captions, and `vectors` (B, F) theirs.
            held_out: validation captions, normalised; each is measured against captions of other words than its own.
            queries: (Q, F) their vectors.
            worth, sounds: of the training captions, as kept.
        """
        bank = cls(tuple(texts), vectors, 0.0)
        best, _ = bank.nearest(queries, but=held_out)
        return cls(bank.texts, vectors, float(np.quantile(best, 1 - FAMILIAR_SHARE)), worth, sounds)


def simple_captions(texts: Sequence[str]) -> list[str]:
    """The different captions less those composed of others: whoever asks for both parts is near either.

    Composed is a caption in which two of the others stand apart, word for word.

    Args:
        texts: normalised captions.
    """
    different = sorted(set(texts), key=lambda text: (len(text.split()), text))
    known = {tuple(text.split()) for text in different}
    longest = max((len(words) for words in known), default=0)
    return [text for text in different if _parts(text.split(), known, longest) < 2]


def _parts(words: list[str], known: set[tuple[str, ...]], longest: int) -> int:
    """How many known texts, shorter than this one, stand in it one after another, taken greedily, the longest first."""
    count = place = 0
    while place < len(words):
        for size in range(min(longest, len(words) - place, len(words) - 1), 0, -1):
            if tuple(words[place : place + size]) in known:
                count, place = count + 1, place + size
                break
        else:
            place += 1
    return count
