"""Finding the sounds of a folder: cosine over every window, then diffusion over the best files.

Q queries, F files, W windows, S files of the shortlist, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..core.calibration import presence_features
from ..core.denoiser import AttentionDenoiser
from ..core.factored import FactoredDenoiser
from ..core.scoring import diffusion_draws
from ..errors import UsageError
from .index import Recordings, spans

if TYPE_CHECKING:
    from ..core.sampler import OnStep
    from ..model import Retriever
    from ..types import Direction


@dataclass(frozen=True)
class Hit:
    """One found file: `path` below the searched folder, and the window in it that fits best, in seconds.

    `score` is the probability that the window matches, or, of a model without calibration, cosine + weight * x0_hat.
    """

    rank: int
    path: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class Found:
    """What a search found: hits, best first; `present`: the probability that anything searched matches, None if unknown."""

    hits: list[Hit]
    present: float | None


@dataclass(frozen=True)
class CaptionHit:
    """One caption that fits a sound; `score` as a `Hit` has it."""

    rank: int
    caption: str
    score: float


def embed_sound(retriever: Retriever, waveform: np.ndarray) -> np.ndarray:
    """A sound as a query, (D,) unit vector: the direction of the mean over its windows. `waveform` is 32 kHz mono, not empty."""
    mean = retriever.embed_audio([waveform[start:end] for start, end in spans(len(waveform))]).mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


def search(
    retriever: Retriever,
    recordings: Recordings,
    queries: np.ndarray,
    *,
    unwanted: np.ndarray | None = None,
    refine: bool = True,
    top: int = 10,
    shortlist: int = 100,
    steps: int | None = None,
    min_score: float | None = None,
    seed: int = 0,
) -> list[Found]:
    """The best files for each query, best first, each with its best window; files of equal score in order of their paths.

    Stage one gives each window its cosine to the query, and each file its best window. Stage two runs the reverse chain over
    the windows of the `shortlist` best files, one a file, since windows of one recording would share out the probability
    among themselves; the score becomes cosine + weight * x0_hat, with the weight, eta and draws of the model's validation.
    Files beyond the shortlist keep their cosine. (A model trained by L_G alone has no weight; its shortlist is ranked by
    x0_hat, and nothing else is found.) Where the model is calibrated, a hit's score is what that sum is worth as a
    probability, and `present` comes from how far the generated distribution concentrates and how much it moves between draws.

    With `unwanted`, max(0, cosine to it) is subtracted in stage one, and so from the final score. Only the positive part:
    sounding unlike speech is no evidence for a dog, and would lift whatever is farthest from speech above the dogs.

    Args:
        queries: (Q, D) unit vectors, of texts or sounds.
        unwanted: (D,) unit vector of what the hits should not sound like.
        refine: the queries are texts: run stage two with the text-to-audio denoiser, if the model has it. For queries that
            are sounds there is none.
        top: hits a query at most.
        steps: noise levels that the sampler visits; None takes the recipe's `evaluation.steps`.
        min_score: leave out hits that score less.
        seed: of the noise. A query's hits depend on it, but, up to rounding, not on the queries beside it.

    Raises:
        UsageError: top or shortlist below 1, or steps beyond the model's chain.
    """
    _check_counts(top, shortlist)
    calibration = retriever.calibration
    probability = calibration and (calibration.text_to_audio if refine else calibration.audio_to_audio)
    refine = refine and "t2a" in retriever.denoisers
    if refine:
        check_steps(retriever, steps)
    if not len(recordings):
        return [Found([], None) for _ in queries]
    cosine = recordings.vectors @ queries.T.astype(np.float32)  # (W, Q)
    if unwanted is not None:
        cosine -= np.maximum(0, recordings.vectors @ unwanted.astype(np.float32))[:, None]
    depth = max(top, shortlist) if refine and "t2a" in retriever.fusion_weights else shortlist if refine else top
    results = []
    for query, of_window in zip(queries, cosine.T, strict=True):
        order, windows = best_windows(recordings, of_window, depth)
        scores, present = of_window[windows].astype(np.float64), None
        if refine:
            near = slice(shortlist)
            x0_hat = draws(retriever, "t2a", query, recordings.vectors[windows[near]], steps, seed)
            if calibration:
                present = float(calibration.presence(presence_features(scores[near], x0_hat)))
            scores[near] = _fused(retriever, "t2a", scores[near], x0_hat.mean(0))
        if probability:
            scores = probability(scores[:, None])
        hits = []
        for rank, i in _best(scores, order, top, min_score):
            start, end = recordings.spans[windows[i]].tolist()
            hits.append(Hit(rank, recordings.paths[order[i]], start, end, float(scores[i])))
        results.append(Found(hits, present))
    return results


def best_windows(recordings: Recordings, scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Stage one: the `depth` best files by their best windows, best first, equal ones in order of their paths.

    Args:
        scores: (W,) of every window.

    Returns:
        The files' numbers and the rows of their best windows, both (min(depth, F),).
    """
    files = np.argsort(-np.maximum.reduceat(scores, recordings.offsets[:-1]), kind="stable")[:depth]
    bounds = zip(recordings.offsets[files], recordings.offsets[files + 1], strict=True)
    return files, np.array([a + int(scores[a:b].argmax()) for a, b in bounds])


def best_captions(
    retriever: Retriever,
    sound: np.ndarray,
    captions: Sequence[str],
    *,
    top: int = 10,
    shortlist: int = 100,
    steps: int | None = None,
    min_score: float | None = None,
    seed: int = 0,
) -> list[CaptionHit]:
    """The captions that fit a sound best, best first; of equal score in the order given.

    As `search`, with the audio-to-text denoiser over the `shortlist` best by cosine.

    Args:
        sound: (D,) unit vector.
        captions: different texts.

    Raises:
        UsageError: as `search` and `embed_texts`.
    """
    _check_counts(top, shortlist)
    if "a2t" in retriever.denoisers:
        check_steps(retriever, steps)
    if not captions:
        return []
    vectors = embed_texts(retriever, captions)
    cosine = vectors @ sound.astype(np.float32)
    order = np.argsort(-cosine, kind="stable")
    scores = cosine[order].astype(np.float64)
    if "a2t" in retriever.denoisers:
        near = slice(shortlist)
        x0_hat = draws(retriever, "a2t", sound, vectors[order[near]], steps, seed).mean(0)
        scores[near] = _fused(retriever, "a2t", scores[near], x0_hat)
        if "a2t" not in retriever.fusion_weights:
            order, scores = order[near], scores[near]
    if retriever.calibration:
        scores = retriever.calibration.audio_to_text(scores[:, None])
    best = _best(scores, order, top, min_score)
    return [CaptionHit(rank, captions[order[i]], float(scores[i])) for rank, i in best]


def _best(scores: np.ndarray, order: np.ndarray, top: int, min_score: float | None) -> Iterator[tuple[int, int]]:
    """Ranks from 1 and the places in `scores` that have them; of equal scores that of the smaller `order` comes first."""
    for rank, i in enumerate(sorted(range(len(order)), key=lambda i: (-scores[i], order[i]))[:top], 1):
        if min_score is None or scores[i] >= min_score:
            yield rank, i


def _check_counts(top: int, shortlist: int) -> None:
    if top < 1 or shortlist < 1:
        raise UsageError(f"top and shortlist must be at least 1, got {top} and {shortlist}")


def check_steps(retriever: Retriever, steps: int | None) -> None:
    """Raise UsageError for more noise levels than the model's chain has, or none."""
    if steps is not None and not 1 <= steps <= len(retriever.schedule):
        raise UsageError(f"steps must lie between 1 and this model's {len(retriever.schedule)}, got {steps}")


def draws(
    retriever: Retriever,
    direction: Direction,
    query: np.ndarray,
    candidates: np.ndarray,
    steps: int | None,
    seed: int,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Stage two for one query (D,) and N candidates (N, D): x0_hat of each of the recipe's noise draws, (S, N)."""
    settings = retriever.recipe.evaluation
    return (
        diffusion_draws(
            torch.from_numpy(query).to(retriever.device),
            _factored(retriever.denoisers[direction]).prepare(torch.from_numpy(candidates).to(retriever.device)),
            retriever.schedule,
            steps=settings.steps if steps is None else steps,
            eta=settings.eta,
            draws=settings.draws,
            seed=seed,
            x0=retriever.x0,
            on_step=on_step,
        )
        .cpu()
        .numpy()
    )


def _fused(retriever: Retriever, direction: Direction, cosine: np.ndarray, x0_hat: np.ndarray) -> np.ndarray:
    """The final score, cosine + weight * x0_hat; of a model without a weight, x0_hat alone."""
    weight = retriever.fusion_weights.get(direction)
    return x0_hat.astype(np.float64) if weight is None else cosine + weight * x0_hat


@lru_cache(maxsize=2)  # both directions of one model
def _factored(denoiser: AttentionDenoiser) -> FactoredDenoiser:
    """A loaded model's denoiser multiplied out once, not at every search, where it would take most of the time."""
    return FactoredDenoiser(denoiser)


def embed_texts(retriever: Retriever, texts: Sequence[str]) -> np.ndarray:
    """Texts as queries, (Q, D) unit vectors. Raises UsageError for a text without a letter or digit."""
    for text in texts:
        if not any(character.isalnum() for character in text):
            raise UsageError(f"nothing to search for in the text {text!r}: describe a sound, such as 'dog barking'")
    return retriever.embed_text(texts)
