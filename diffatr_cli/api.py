"""DiffATR from Python: a model that embeds sounds and texts, ranks the one by the other, and searches folders.

n sounds or texts, D embedding size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .core.ragged import Ragged
from .core.windows import mean_direction, spans
from .corpus.asking import ask_sound, ask_texts
from .corpus.describe import Described, describe
from .corpus.index import Recordings
from .corpus.library import open_corpora, through_ancestors
from .corpus.reading import Reading, as_words, read_queries
from .corpus.search import Found, Hit, check_texts, embed_texts, hear_sound, search, search_texts
from .corpus.selection import By
from .data.audio import load_audio
from .data.resample import resample
from .errors import UsageError
from .model import sampling_of
from .two_tower import load_any
from .types import SAMPLE_RATE

Sound = Path | np.ndarray
"""A sound file, or mono samples at 32 kHz with full scale +-1."""
Folders = str | Path | Sequence[str | Path]
"""A folder of recordings, or several."""


@dataclass(frozen=True)
class Ranked:
    """One candidate: `rank` from 1, `index` in the list that was given, and what it was ranked by.

    `score` is a probability where the model is calibrated for this kind of query, else it only orders.
    """

    rank: int
    index: int
    score: float


def load_model(name: str | Path | None = None, device: str = "auto") -> Model:
    """A trained model, of this package or of others.

    Args:
        name: a run's folder, `runs/RECIPE/seed-N`; a CLAP by its hub name, `laion/clap-htsat-unfused`, or its folder; None is the
            model that ships with the package.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DiffATRError: there is no finished model there.
    """
    return Model(name, device)


class Model:
    """A loaded model (`load_model`). Vectors are float32 of norm 1; the dot product of two is their cosine.

    Attributes:
        dim: D.
    """

    def __init__(self, name: str | Path | None = None, device: str = "auto") -> None:
        self._retriever = load_any(name, device)
        self.dim = self._retriever.dim

    def embed_audio(self, sounds: str | Sound | Sequence[str | Sound], rate: int = SAMPLE_RATE) -> np.ndarray:
        """Sounds as vectors, (n, D). One longer than the model's windows (10 s or less) is the direction of the mean over them.

        Args:
            sounds: files, by path, or mono arrays with full scale +-1.
            rate: of the arrays, in Hz.

        Raises:
            AudioError: a file cannot be read as a sound.
            UsageError: an array is no mono sound.
        """
        several = [sounds] if isinstance(sounds, (str, Path, np.ndarray)) else list(sounds)
        windows, offsets = self._windows([Path(each) if isinstance(each, str) else each for each in several], rate)
        vectors = [mean_direction(windows[a:b]) for a, b in pairwise(offsets)]
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), np.float32)

    def embed_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Texts as vectors, (n, D). Raises UsageError for a text without a letter or digit."""
        several = [texts] if isinstance(texts, str) else list(texts)
        return embed_texts(self._retriever, several) if several else np.zeros((0, self.dim), np.float32)

    def read(self, text: str) -> Reading:
        """What is known of a query that is a text: whether such a sound was learned, respelling, negation, language.

        Raises:
            UsageError: a text without a letter or digit.
        """
        check_texts([text])
        return read_queries(self._retriever, [as_words(text)])[0]

    def rank(self, query: str | Sound, candidates: Sequence[str] | Sequence[Sound], top: int | None = None) -> list[Ranked]:
        """Candidates by how well they fit a query, best first, as `diffatr query` ranks them.

        Args:
            query: a text (str), or a sound (Path or array).
            candidates: texts for a sound, or sounds for either.
            top: how many at most; None is all.

        Raises:
            AudioError, UsageError: as `embed_audio` and `embed_text`; and texts are not ranked by a text.
        """
        if not len(candidates):
            return []
        top = len(candidates) if top is None else top
        texts = [each for each in candidates if isinstance(each, str)]
        if not texts:
            sounds = [each for each in candidates if not isinstance(each, str)]
            refine = isinstance(query, str)
            vectors, offsets, of_windows = self._windows_with_frames(sounds, SAMPLE_RATE, wanted=refine)
            names = [str(index) for index in range(len(candidates))]
            recordings = Recordings(names, np.arange(len(names)), offsets, np.zeros((len(vectors), 2)), vectors, of_windows)
            found = self._search(recordings, query, top=top)
            return [Ranked(hit.rank, int(hit.path), hit.score) for hit in found.hits]
        if isinstance(query, str) or len(texts) < len(candidates):
            raise UsageError("candidates are sounds (Path or array), or, for a query that is a sound, texts (str)")
        index = {text: number for number, text in reversed(list(enumerate(texts)))}
        return [Ranked(hit.rank, index[hit.caption], hit.score) for hit in self.describe(query, list(index), top).hits]

    def describe(self, sound: Sound, captions: Sequence[str], top: int = 10) -> Described:
        """The captions that fit a sound (Path or array), best first, and whether any of them does.

        Args:
            captions: different texts.

        Raises:
            AudioError, UsageError: as `embed_audio` and `embed_text`.
        """
        (wave,) = self._waves([sound], SAMPLE_RATE)
        vector, frames = hear_sound(self._retriever, wave)
        return describe(self._retriever, vector, captions, frames=frames, top=top)

    def search(
        self,
        folder: Folders,
        query: str | Sound,
        top: int = 10,
        index: str | Path | None = None,
        unwanted: str | None = None,
        *,
        by: By = "both",
        only: str = "",
    ) -> list[Hit]:
        """The best files of a folder for a text (str) or a sound (Path or array), after bringing its index up to date.

        `find` says more: whether they are matches at all.

        Args:
            folder: one, or several that are searched together; then each hit's path begins with its folder's. One that lies below
                a folder which is indexed for this model is searched through that index, where `index` is not given.
            index: where the index is kept, a folder or an address such as s3://bucket/prefix; `folder/.diffatr` if None.
            unwanted: what they should not sound like, as `query --not`.
            by: what a text finds files by: their `sound`, their `name` and metadata, or `both`. Sounds are found by sound.
            only: filters, such as "length:<5 in:field -music"; a text may hold its own.

        Raises:
            DiffATRError: there is no such folder, no sound in it, or its index cannot be written. Of several, one with which
                something is wrong is left out, and logged.
            UsageError: there is no folder to search.
            FilterError: a filter makes no sense; a UsageError that points at the place.
        """
        return self.find(folder, query, top, index, unwanted, by=by, only=only).hits

    def find(
        self,
        folder: Folders,
        query: str | Sound,
        top: int = 10,
        index: str | Path | None = None,
        unwanted: str | None = None,
        *,
        by: By = "both",
        only: str = "",
    ) -> Found:
        """What `search` finds, with the probability that anything in the folder matches, the verdict, and what is known of the
        text. The arguments and errors are those of `search`."""
        folders = [folder] if isinstance(folder, (str, Path)) else list(folder)
        if not folders:
            raise UsageError("there is no folder to search")
        tell = logging.getLogger(__name__).warning
        corpus = through_ancestors(open_corpora(list(map(Path, folders)), index, tell=tell), self._retriever.model_id)
        corpus.update(self._retriever, tell=tell)
        against = None if unwanted is None else self.embed_text(unwanted)[0]
        recordings = corpus.read(self._retriever.model_id, frames=self._retriever.sees_frames)
        how: dict[str, Any] = {"top": top, "unwanted": against, "only": only}
        sampling = sampling_of(self._retriever, folder=True)
        if isinstance(query, str):
            return ask_texts(self._retriever, recordings, [query], sampling, by=by, **how)[0]
        return ask_sound(self._retriever, recordings, self._query(query)[0], sampling, **how)

    def _search(self, recordings: Recordings, query: str | Sound, **options: Any) -> Found:
        sampling = sampling_of(self._retriever, folder=True)
        if isinstance(query, str):
            return search_texts(self._retriever, recordings, [query], sampling, **options)[0]
        return search(self._retriever, recordings, self._query(query), sampling, refine=False, **options)[0]

    def _query(self, query: str | Sound) -> np.ndarray:
        return self.embed_text(query) if isinstance(query, str) else self.embed_audio(query)

    def _windows(self, sounds: Sequence[Sound], rate: int) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of all windows, and where each sound's begin."""
        return self._windows_with_frames(sounds, rate, wanted=False)[:2]

    def _windows_with_frames(
        self, sounds: Sequence[Sound], rate: int, *, wanted: bool
    ) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], Ragged] | None]:
        """The same, and what gives the windows' frames where they are wanted and the model re-ranks by them."""
        windowing = self._retriever.windowing
        cut = [[wave[start:end] for start, end in spans(len(wave), windowing)] for wave in self._waves(sounds, rate)]
        pieces, offsets = [piece for some in cut for piece in some], np.cumsum([0, *map(len, cut)])
        if not pieces:
            return np.zeros((0, self.dim), np.float32), offsets, None
        if not (wanted and self._retriever.sees_frames):
            return self._retriever.embed_audio(pieces), offsets, None
        vectors, frames = self._retriever.embed_with_frames(pieces)
        return vectors, offsets, Ragged.of(frames).take

    def _waves(self, sounds: Sequence[Sound], rate: int) -> list[np.ndarray]:
        """Sounds at the rate of the model's windows."""
        to = self._retriever.windowing.rate
        return [load_audio(each, partial="keep", rate=to) if isinstance(each, Path) else _at(to, each, rate) for each in sounds]


def _at(to: int, samples: np.ndarray, rate: int) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise UsageError(f"a sound is a mono array of finite samples, (samples,), not empty; got shape {samples.shape}")
    return resample(samples, rate, to=to)
