"""Captions for sounds: which of some texts fit a sound, and whether any does; of one sound, or of all of a folder.

N captions, W windows of a sound, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..core.calibration import distribution_of_cosines, of_known, presence_features, score_features
from ..core.ragged import Ragged
from ..core.sight import States
from ..core.text import normalise_caption
from ..core.windows import mean_direction
from ..model import sampling_of
from .reading import as_words
from .search import PLAINLY, can_judge, check_texts, check_top, depth, final_scores, first, sample_x0, second_stage, token_states
from .stopwatch import stage

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever


@dataclass(frozen=True)
class CaptionHit:
    """One caption for a sound. `score` is the probability that it fits, or, of a model without calibration, cosine + weight *
    x0_hat, which only ranks."""

    rank: int
    caption: str
    score: float


@dataclass(frozen=True)
class Described:
    """Captions for a sound.

    Attributes:
        hits: best first.
        present: the probability that any of the captions fits, None if unknown.
        calibrated: whether the hits' scores are probabilities.
        verdict: `found`; `absent`, where `present` is below what the calibration states; None where nothing is judged.
    """

    hits: list[CaptionHit]
    present: float | None
    calibrated: bool = False
    verdict: Literal["found", "absent"] | None = None

    @property
    def certain(self) -> bool:
        """Whether the hits are given out as fitting; else they are the nearest there is, and their scores no promise."""
        return self.verdict != "absent"

    @property
    def remark(self) -> str | None:
        """What is to be said of the captions, for people; None where there is nothing to say."""
        if not self.calibrated and self.hits:
            return "scores compare the captions of this list with one another; where none fits, one of them still scores high."
        return None if self.certain else "none of these captions fits."


class Choices:
    """Captions to choose from, embedded once for any number of sounds.

    Attributes:
        captions: N different texts.
        vectors: (N, D) unit vectors.

    Raises:
        UsageError: as `embed_texts`.
    """

    def __init__(self, retriever: Retriever, captions: Sequence[str]) -> None:
        check_texts(captions)
        self._retriever, self.captions = retriever, list(captions)
        self.vectors, self._pooled = np.zeros((0, retriever.dim), np.float32), np.zeros((0, 1), np.float32)
        if captions:
            with stage("embed"):
                self.vectors, self._pooled = retriever.embed_and_pool_text([as_words(caption) for caption in captions])

    @classmethod
    def of(cls, retriever: Retriever, captions: Sequence[str] | Choices) -> Choices:
        """Captions as they are, or embedded now."""
        return captions if isinstance(captions, Choices) else cls(retriever, captions)

    @cached_property
    def tokens(self) -> Ragged | None:
        """Of each caption, for a model that re-ranks by frames."""
        return token_states(self._retriever, self.captions)

    def heard(self, rows: np.ndarray, sounds: np.ndarray) -> np.ndarray:
        """What `CaptionBank.heard` tells of some of them (Q,), each with a sound, (Q, D) -> (Q, 2); zeros without a bank."""
        bank = self._retriever.bank
        return np.zeros((len(rows), 2)) if bank is None else bank.heard(sounds, self._pooled[rows])

    def unfamiliar(self) -> list[int]:
        """Which of them plainly name no sound that the model learnt; none of a model that cannot tell."""
        bank = self._retriever.bank
        if bank is None or not self.captions:
            return []
        strange = np.flatnonzero(bank.strangeness(bank.nearest(self._pooled)[0]) > PLAINLY).tolist()
        return [row for row in strange if not bank.holds(normalise_caption(self.captions[row]))]


def describe(
    retriever: Retriever,
    sound: np.ndarray,
    captions: Sequence[str] | Choices,
    sampling: Sampling | None = None,
    *,
    frames: Ragged | None = None,
    top: int = 10,
    min_score: float | None = None,
) -> Described:
    """The captions that fit a sound best, best first, of equal score in the order given; and whether any of them fits.

    As `search`, with the audio-to-text denoiser over the shortlist. No caption is given a higher probability than that any fits.

    A caption's cosine is that of the window which it fits best: in a recording of minutes many things sound, one after another,
    and the mean over all of it is near to none of them. The denoiser hears the whole recording, by the mean and all frames.

    Args:
        sound: (W, D) unit vectors of its windows, or (D,) of a sound that is one.
        captions: different texts; as `Choices` where there are several sounds.
        frames: of the sound, for a model that re-ranks by frames (`hear_sound`).

    Raises:
        UsageError: as `search` and `embed_texts`.
        ValueError: the model re-ranks by frames, and there are none.
    """
    check_top(top)
    calibration = retriever.calibration
    if calibration and not can_judge(retriever, calibration.captions):
        calibration = None
    probability = calibration and calibration.audio_to_text
    sampling = sampling or sampling_of(retriever, folder=True)
    choices = Choices.of(retriever, captions)
    if not choices.captions:
        return Described([], None, calibrated=bool(probability))
    vectors = choices.vectors
    windows = np.atleast_2d(sound).astype(np.float32)
    cosine = (vectors @ windows.T).max(1)
    reranker = second_stage(retriever, "a2t")
    order = np.argsort(-cosine, kind="stable")[: depth(reranker, sampling, len(vectors))]
    scores, near, x0_hat = cosine[order].astype(np.float64), slice(sampling.shortlist), None
    if reranker and reranker.counts("a2t"):
        whole = windows[0] if len(windows) == 1 else mean_direction(windows)
        tokens = choices.tokens
        states = None if tokens is None or frames is None else States(tokens.take(order[near]), frames)
        x0_hat = sample_x0(retriever, "a2t", whole, vectors[order[near]], sampling, states=states)
    spread = distribution_of_cosines(scores[near]) if x0_hat is None else x0_hat
    heard = choices.heard(order[:1], windows[[(windows @ vectors[order[0]]).argmax()]])[0]
    features = presence_features(scores[near], spread, candidates=len(vectors), heard=heard)
    present = calibration.fits(features) if calibration else None
    if reranker:
        scores = final_scores(reranker, "a2t", scores, vectors[order], x0_hat)
    best = first(scores, order, top)
    if probability:
        scores = of_known(probability, score_features(scores, present, candidates=len(vectors)))
        scores = scores if present is None else np.minimum(scores, present)
    best = [i for i in best if min_score is None or scores[i] >= min_score]
    hits = [CaptionHit(rank, choices.captions[order[i]], float(scores[i])) for rank, i in enumerate(best, 1)]
    verdict: Literal["found", "absent"] | None = None
    if calibration and present is not None:
        verdict = "found" if present >= calibration.captions_told_below else "absent"
    return Described(hits, present, bool(probability), verdict)
