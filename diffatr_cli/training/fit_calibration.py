"""Fitting what scores are worth on a validation split: phase two's last step (Platt scaling).

What is fitted is what a search shows: a recording scores by its best window, and a sound that asks is the mean of its windows.

T distinct captions, n clips, W windows, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from ..core.calibration import Calibration, Logistic, distribution_of_cosines, presence_features
from ..core.metrics import auroc
from ..core.ragged import Ragged
from ..core.sampling import Sampling
from ..core.scoring import Reranker
from ..core.sight import States
from ..core.text import normalise_caption
from ..core.windows import best_windows, mean_direction
from ..evaluation.embedded_split import Captions, EmbeddedWindows
from ..evaluation.matching import matching
from ..types import Direction
from .learnt_captions import Novelty
from .streams import numpy_stream

QUERIES = 400  # at most, drawn from the captions and from the clips
LOST = 0.05
"""Of the queries whose sound is there, those that may be told that it is not."""
PARTS = 5  # of the queries, each judged by a fit on the others
FOLDERS = (16, 50, 150, 10**9)
"""Sizes of the made-up folders in which a query's sound is there or is not: distributions look different over few clips."""


def fit_calibration(
    windows: EmbeddedWindows,
    text: np.ndarray,
    captions: Captions,
    reranker: Reranker | None,
    seed: int,
    states: States | None = None,
    novelty: Novelty | None = None,
) -> Calibration:
    """Fit each of a model's probabilities on a validation split; None for one whose examples are all of one label.

    Which captions and clips match is `matching`'s. Two clips match if they share a caption. Whether a sound is there at all is
    fitted on folders made of some of the clips, with those that match a query left out of half of them.

    Args:
        windows: of the n clips.
        text: (m, D) unit vectors of `captions`.
        reranker: the model's diffusion; None of a model that ranks by its cosine.
        seed: of the queries and folders drawn, and of the noise.
        states: of the m captions and of the W windows, for a reranker whose candidates depend on the query.
        novelty: of these captions, and of names that were never taught; None of a model whose captions are not known.
    """
    rng = numpy_stream(seed, "calibration")
    sampling = (reranker.sampling if reranker else Sampling()).for_folder(seed=seed)
    distinct, matches = matching(captions)
    first = {normalise_caption(caption): row for row, caption in reversed(list(enumerate(captions.texts)))}
    rows_of_text = np.array([first[caption] for caption in distinct])
    text, strange = text[rows_of_text], np.zeros(len(distinct)) if novelty is None else novelty.of_captions[rows_of_text]
    bounds = list(pairwise(windows.offsets))
    sounds = np.stack([mean_direction(windows.vectors[a:b]) for a, b in bounds])  # (n, D)
    asked = np.sort(rng.permutation(len(distinct))[:QUERIES])
    heard = np.sort(rng.permutation(len(sounds))[:QUERIES])

    def draws(direction: Direction, query: np.ndarray, candidates: np.ndarray, met: States | None) -> np.ndarray:
        if reranker is None or not reranker.counts(direction):  # then a search does not sample either
            return distribution_of_cosines(candidates @ query)
        vectors = torch.from_numpy(query), torch.from_numpy(candidates)
        return reranker.draws(direction, *vectors, sampling, states=met).double().cpu().numpy()

    def tokens_of(row: int) -> Ragged | None:
        return states and states.tokens.take(rows_of_text[[row]])

    def of_clips(query: np.ndarray, tokens: Ragged | None, best: np.ndarray) -> np.ndarray:
        """What a text gets of the shortlist of some windows, by their rows, best first."""
        met = None if states is None or tokens is None else States(tokens, states.frames.take(best[near]))
        return draws("t2a", query, windows.vectors[best[near]], met)

    def of_captions(clip: int, order: np.ndarray) -> np.ndarray:
        """What a sound gets of the shortlist of some distinct captions, best first."""
        frames = states and states.frames.take(np.arange(*bounds[clip])).joined()
        met = None if states is None or frames is None else States(states.tokens.take(rows_of_text[order[near]]), frames)
        return draws("a2t", sounds[clip], text[order[near]], met)

    def final(direction: Direction, cosine: np.ndarray, x0_hat: np.ndarray) -> np.ndarray:
        if reranker is None or not reranker.counts(direction):
            return cosine
        near = len(x0_hat)
        of_near = reranker.final_score(direction, torch.from_numpy(cosine[:near]), torch.from_numpy(x0_hat))
        return np.concatenate([of_near.numpy(), cosine[near:]])

    def found(query: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some clips, best first, the cosines of their best windows, and those windows' rows."""
        rows = np.concatenate([np.arange(*bounds[clip]) for clip in clips])
        offsets = np.cumsum([0, *(bounds[clip][1] - bounds[clip][0] for clip in clips)])
        cosine = (windows.vectors[rows] @ query).astype(np.float64)
        order, best = best_windows(cosine, offsets, len(clips))
        return clips[order], cosine[best], rows[best]

    near, everything = slice(sampling.shortlist), np.arange(len(sounds))

    def text_to_audio() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for row in asked:
            order, cosine, best = found(text[row], everything)
            yield final("t2a", cosine, of_clips(text[row], tokens_of(row), best).mean(0)), matches[row, order]

    def audio_to_text() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for clip in heard:
            cosine = (text @ sounds[clip]).astype(np.float64)
            order = np.argsort(-cosine, kind="stable")
            yield final("a2t", cosine[order], of_captions(clip, order).mean(0)), matches[order, clip]

    def audio_to_audio() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        group = captions.positive_groups("positives")
        for clip in heard:
            if len(others := everything[everything != clip]):
                order, cosine, _ = found(sounds[clip], others)
                yield cosine, group[order] == group[clip]

    def features(query: np.ndarray, clips: np.ndarray, strangeness: float, tokens: Ragged | None) -> np.ndarray:
        _, cosine, best = found(query, clips)
        return presence_features(cosine[near], of_clips(query, tokens, best), strangeness)

    def presence() -> Iterator[Example]:
        for row in asked.tolist():
            for there, clips in _folders(matches[row], rng):
                yield Example(row, features(text[row], clips, strange[row], tokens_of(row)), there, learnt=True)
        if novelty is not None:
            for number, (name, strangeness) in enumerate(zip(novelty.names, novelty.of_names.tolist(), strict=True)):
                for size in FOLDERS:
                    clips = rng.permutation(everything)[:size]
                    of_name = features(name, clips, strangeness, novelty.tokens and novelty.tokens.take(np.array([number])))
                    yield Example(-1 - number, of_name, there=False, learnt=False)

    fit, told_below, measured = fit_presence(list(presence()))
    return Calibration(
        text_to_audio=_fit_scores(text_to_audio()),
        audio_to_text=_fit_scores(audio_to_text()),
        audio_to_audio=_fit_scores(audio_to_audio()),
        presence=fit,
        told_below=told_below,
        measured=measured,
    )


class Example(NamedTuple):
    """A query in a made-up folder: its number, `presence_features`, whether its sound is there, and whether any was taught."""

    query: int
    features: np.ndarray
    there: bool
    learnt: bool


def fit_presence(examples: Sequence[Example]) -> tuple[Logistic | None, float, dict[str, float]]:
    """P(there | features), the probability below which to say that nothing is, and what both reach.

    Names that were never taught count as much together as sounds that were taken away. The second is the highest that calls at
    most `LOST` of what is there absent, and never above one half. What is reached is measured with each query judged by a fit on
    others.
    """
    if not examples:
        return None, 0.5, {}
    features, there = np.stack([each.features for each in examples]), np.array([each.there for each in examples])
    learnt, query = (np.array([getattr(each, name) for each in examples]) for name in ("learnt", "query"))
    away, never = ~there & learnt, ~there & ~learnt
    weights = np.where(never, away.sum() / max(1, never.sum()), 1.0)
    if there.all() or not there.any():
        return None, 0.5, {}
    fit = Logistic.fit(features, there, weights)
    part = np.unique(query, return_inverse=True)[1] % PARTS
    judged = np.zeros(len(examples))
    for number in range(PARTS):
        others = part != number
        if there[others].all() or not there[others].any():
            return fit, 0.5, {}
        judged[~others] = Logistic.fit(features[others], there[others], weights[others])(features[~others])
    told_below = min(0.5, float(np.quantile(judged[there], LOST)))
    groups = {"taken_away": away, "never_taught": never}
    measured = {"told_below": told_below, "lost": float((judged[there] < told_below).mean())}
    for name, absent in groups.items():
        if absent.any():
            measured[f"auroc_{name}"] = auroc(judged[there | absent], there[there | absent])
            measured[f"told_{name}"] = float((judged[absent] < told_below).mean())
    return fit, told_below, measured


def _fit_scores(examples: Iterator[tuple[np.ndarray, np.ndarray]]) -> Logistic | None:
    return _fit([(scores[:, None], labels) for scores, labels in examples])


def _fit(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Logistic | None:
    """A fit to features (n, f) and labels (n,); None where they are of one label."""
    if not examples:
        return None
    features, labels = (np.concatenate(column) for column in zip(*examples, strict=True))
    return Logistic.fit(features, labels) if labels.any() and not labels.all() else None


def _folders(matches: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[bool, np.ndarray]]:
    """Made-up folders of several sizes, as clips, without and with some that match a query: whether its sound is there."""
    own, others = np.flatnonzero(matches), np.flatnonzero(~matches)
    if len(others) < 2:
        return
    for size in FOLDERS:
        absent = rng.permutation(others)[:size]
        share = max(1, round(len(own) * len(absent) / len(others)))
        yield False, absent
        yield True, np.concatenate([absent, rng.permutation(own)[:share]])
