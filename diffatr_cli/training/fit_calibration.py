"""Fitting what scores are worth on a validation split: phase two's last step (Platt scaling).

What is fitted is what a search shows: a recording scores by its best window, and a sound that asks is the mean of its windows.
Queries meet made-up folders of several sizes, of clips and of long recordings joined from them, with their sound and without.

T distinct captions, n clips, W windows, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from ..core.calibration import EXPECTED, Calibration, Logistic, distribution_of_cosines, presence_features, score_features
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
COMMON = 0.25
"""Of the others in a made-up folder, how many match at most besides, where the sound is common."""
LISTS = (5, 16, 50, 10**9)
"""Sizes of the made-up lists in which a sound's caption is there or is not."""
SHOWN = 60  # of each folder, the best candidates, for which probabilities are fitted


class Shelf(NamedTuple):
    """Recordings to search: their windows (W, D), windows offsets[i]..offsets[i + 1] of recording i, and which match, (T, n).

    `held`: (W,) what the model's prior takes from the cosines of the windows.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    matches: np.ndarray
    held: np.ndarray

    def best(self, query: np.ndarray, recordings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some recordings, best first, the cosines of their best windows, and those windows' rows."""
        bounds = [(self.offsets[each], self.offsets[each + 1]) for each in recordings]
        rows = np.concatenate([np.arange(a, b) for a, b in bounds])
        offsets = np.cumsum([0, *(b - a for a, b in bounds)])
        cosine = (self.vectors[rows] @ query).astype(np.float64)
        order, best = best_windows(cosine, offsets, len(recordings))
        return recordings[order], cosine[best], rows[best]


def fit_calibration(
    windows: EmbeddedWindows,
    text: np.ndarray,
    captions: Captions,
    reranker: Reranker | None,
    seed: int,
    states: States | None = None,
    novelty: Novelty | None = None,
    joined: tuple[EmbeddedWindows, Sequence[np.ndarray]] | None = None,
    meant: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Calibration:
    """Fit each of a model's probabilities on a validation split; None for one whose examples are all of one label.

    Which captions and clips match is `matching`'s. Two clips match if they share a caption. Whether a sound is there at all is
    fitted on folders made of some of the clips, with those that match a query left out of half of them; whether any caption of
    a list fits a sound, on lists made of some of the captions.

    Args:
        windows: of the n clips.
        text: (m, D) unit vectors of `captions`.
        reranker: the model's diffusion; None of a model that ranks by its cosine.
        seed: of the queries and folders drawn, and of the noise.
        states: of the m captions and of the W windows, for a reranker whose candidates depend on the query.
        novelty: of these captions, and of names that were never taught; None of a model whose captions are not known.
        joined: the windows of long recordings made of the clips, and which clips each holds (`embed_joined`); not for a
            reranker whose candidates depend on the query.
        meant: which clips match distinct captions beyond `matching`, (T, n) booleans, where somebody knows what words mean.
    """
    rng = numpy_stream(seed, "calibration")
    sampling = (reranker.sampling if reranker else Sampling()).for_folder(seed=seed)
    distinct, matches = matching(captions)
    if meant is not None:
        matches = matches | meant(distinct)
    first = {normalise_caption(caption): row for row, caption in reversed(list(enumerate(captions.texts)))}
    rows_of_text = np.array([first[caption] for caption in distinct])
    nothing = np.zeros(len(distinct))
    text, strange, expected = (
        text[rows_of_text],
        nothing if novelty is None else novelty.of_captions[rows_of_text],
        nothing if novelty is None else novelty.expected[rows_of_text],
    )

    def offsets(direction: Direction, candidates: np.ndarray) -> np.ndarray:
        """What the model's prior takes from the cosines of some candidates (N, D): (N,)."""
        vectors = torch.from_numpy(candidates)
        return np.zeros(len(candidates)) if reranker is None else reranker.offsets(direction, vectors).double().numpy()

    of_clips = Shelf(windows.vectors, windows.offsets, matches, offsets("t2a", windows.vectors))
    shelves, held_of_text = [of_clips], offsets("a2t", text)
    if joined is not None and states is None:
        long, members = joined
        of_long = np.stack([matches[:, clips].any(1) for clips in members], 1)
        shelves.append(Shelf(long.vectors, long.offsets, of_long, offsets("t2a", long.vectors)))
    bounds = list(pairwise(windows.offsets))
    sounds = np.stack([mean_direction(windows.vectors[a:b]) for a, b in bounds])  # (n, D)
    asked = np.sort(rng.permutation(len(distinct))[:QUERIES])
    drawn = np.sort(rng.permutation(len(sounds))[:QUERIES])
    near, everything = slice(sampling.shortlist), np.arange(len(sounds))

    def sampled_by(direction: Direction) -> Reranker | None:
        """The model's diffusion where a search samples."""
        return reranker if reranker and reranker.counts(direction) else None

    def draws(direction: Direction, query: np.ndarray, candidates: np.ndarray, met: States | None) -> np.ndarray:
        sampled = sampled_by(direction)
        if sampled is None:
            return distribution_of_cosines(candidates @ query)
        vectors = torch.from_numpy(query), torch.from_numpy(candidates)
        return sampled.draws(direction, *vectors, sampling, states=met).double().cpu().numpy()

    def final(direction: Direction, scores: np.ndarray, x0_hat: np.ndarray) -> np.ndarray:
        sampled = sampled_by(direction)
        return scores if sampled is None else sampled.shortlist_scores(direction, scores, x0_hat)

    def of_text(
        query: np.ndarray, shelf: Shelf, recordings: np.ndarray, about: About, tokens: Ragged | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some recordings, best first for a text, their final scores, and the features of presence."""
        order, cosine, best = shelf.best(query, recordings)
        met = None if states is None or tokens is None else States(tokens, states.frames.take(best[near]))
        x0_hat = draws("t2a", query, shelf.vectors[best[near]], met)
        scores = final("t2a", cosine - shelf.held[best], x0_hat.mean(0))
        features = presence_features(
            cosine[near], x0_hat, about.strangeness, about.expected, len(order), about.heard(shelf.vectors[best[0]])
        )
        return order, scores, features

    def like_learnt(row: int, sound: np.ndarray) -> np.ndarray:
        """What learnt sounds tell of a sound and one of the distinct captions."""
        return np.zeros(2) if novelty is None else novelty.heard(rows_of_text[row], sound)

    def text_to_audio() -> Iterator[Example]:
        for row in asked.tolist():
            tokens = states and states.tokens.take(rows_of_text[[row]])
            about = About(float(strange[row]), float(expected[row]), partial(like_learnt, row))
            for shelf in shelves:
                for there, recordings in _folders(shelf.matches[row], rng, FOLDERS):
                    order, scores, features = of_text(text[row], shelf, recordings, about, tokens)
                    labels = shelf.matches[row, order[:SHOWN]]
                    yield Example(row, features, there, True, scores[:SHOWN], labels, len(distinct[row].split()), len(order))
        if novelty is not None:
            for number, name in enumerate(novelty.names):
                by_name = partial(novelty.heard_by_name, number)
                about = About(float(novelty.of_names[number]), float(novelty.expected_of_names[number]), by_name)
                tokens = novelty.tokens and novelty.tokens.take(np.array([number]))
                for size in FOLDERS:
                    clips = rng.permutation(everything)[:size]
                    features = of_text(name, of_clips, clips, about, tokens)[2]
                    yield Example(-1 - number, features, there=False, learnt=False)

    def audio_to_text() -> Iterator[Example]:
        for clip in drawn.tolist():
            frames = states and states.frames.take(np.arange(*bounds[clip])).joined()
            for there, listed in _lists(matches[:, clip], rng, LISTS):
                cosine = (text[listed] @ sounds[clip]).astype(np.float64)
                order = np.argsort(-cosine, kind="stable")
                best, cosine = listed[order], cosine[order]
                met = None if states is None or frames is None else States(states.tokens.take(rows_of_text[best[near]]), frames)
                x0_hat = draws("a2t", sounds[clip], text[best[near]], met)
                scores = final("a2t", cosine - held_of_text[best], x0_hat.mean(0))
                features = presence_features(
                    cosine[near], x0_hat, candidates=len(order), heard=like_learnt(best[0], sounds[clip])
                )
                yield Example(clip, features, there, True, scores[:SHOWN], matches[best[:SHOWN], clip], 1, len(order))

    def audio_to_audio() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        group = captions.positive_groups("positives")
        for clip in drawn:
            if len(others := everything[everything != clip]):
                order, cosine, _ = of_clips.best(sounds[clip], others)
                yield cosine[:, None], group[order] == group[clip]

    of_texts, of_sounds = list(text_to_audio()), list(audio_to_text())
    presence, fitting = fit_presence(of_texts), fit_presence(of_sounds)
    return Calibration(
        text_to_audio=_fit_scores(of_texts, presence.judged),
        audio_to_text=_fit_scores(of_sounds, fitting.judged),
        audio_to_audio=_fit(list(audio_to_audio())),
        presence=presence.fit,
        told_below=presence.told_below,
        measured=dict(presence.measured),
        captions=fitting.fit,
        captions_told_below=fitting.told_below,
        captions_measured=dict(fitting.measured),
    )


class About(NamedTuple):
    """What is known of a text that asks: as in `presence_features`, and `heard` of the sound nearest to it, (D,) -> (2,)."""

    strangeness: float
    expected: float
    heard: Callable[[np.ndarray], np.ndarray]


class Example(NamedTuple):
    """A query in a made-up folder: its number, `presence_features`, whether its sound is there, and whether any was taught.

    `scores` and `labels` are of the best candidates, of so many; `words` those of the query.
    """

    query: int
    features: np.ndarray
    there: bool
    learnt: bool
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    words: int = 1
    candidates: int = 1


class Presence(NamedTuple):
    """A fit, the probability below which to say that nothing is there, what both reach, and each example judged by others.

    `judged` is None where the examples do not do for a fit on others.
    """

    fit: Logistic | None = None
    told_below: float = 0.5
    measured: Mapping[str, float] = MappingProxyType({})
    judged: np.ndarray | None = None


def fit_presence(examples: Sequence[Example]) -> Presence:
    """P(there | features), the probability below which to say that nothing is, and what both reach.

    Names that were never taught count as much together as sounds that were taken away. The second is the highest that calls at
    most `LOST` of what is there absent, and never above one half. What is reached is measured with each query judged by a fit on
    others.
    """
    if not examples:
        return Presence()
    features, there = np.stack([each.features for each in examples]), np.array([each.there for each in examples])
    learnt, query = (np.array([getattr(each, name) for each in examples]) for name in ("learnt", "query"))
    away, never = ~there & learnt, ~there & ~learnt
    weights = np.where(never, away.sum() / max(1, never.sum()), 1.0)
    if there.all() or not there.any():
        return Presence()
    fit = Logistic.fit(features, there, weights)
    part = np.unique(query, return_inverse=True)[1] % PARTS
    judged = np.zeros(len(examples))
    for number in range(PARTS):
        others = part != number
        if there[others].all() or not there[others].any():
            return Presence(fit)
        judged[~others] = Logistic.fit(features[others], there[others], weights[others])(features[~others])
    told_below = min(0.5, float(np.quantile(judged[there], LOST)))
    groups = {"taken_away": away, "never_taught": never}
    measured = {"told_below": told_below, "lost": float((judged[there] < told_below).mean())}
    for name, absent in groups.items():
        if absent.any():
            measured[f"auroc_{name}"] = auroc(judged[there | absent], there[there | absent])
            measured[f"told_{name}"] = float((judged[absent] < told_below).mean())
    return Presence(fit, told_below, measured, judged)


def _fit_scores(examples: Sequence[Example], judged: np.ndarray | None) -> Logistic | None:
    """P(match | `score_features`) of the best candidates of each folder, every folder counting the same.

    `judged`: the probability of presence in each example, as a search will know it.
    """
    present = [None] * len(examples) if judged is None else judged.tolist()
    rows = [
        (score_features(each.scores, sure, each.features[EXPECTED], each.words, each.candidates), each.labels)
        for each, sure in zip(examples, present, strict=True)
        if each.scores is not None and each.labels is not None
    ]
    fit = _fit(rows, evenly=True)
    if fit is not None and fit.weights[1] < 0:  # then a match would be the less probable the surer it is that there is one
        rows = [(np.where(np.arange(features.shape[1]) == 1, 0, features), labels) for features, labels in rows]
        fit = _fit(rows, evenly=True)
    if fit is not None and fit.weights[0] <= 0:  # then probabilities would contradict the order of scores
        fit = _fit([(features[:, :1], labels) for features, labels in rows], evenly=True)
    return fit


def _fit(examples: Sequence[tuple[np.ndarray, np.ndarray]], *, evenly: bool = False) -> Logistic | None:
    """A fit to features (n, f) and labels (n,); None where they are of one label. `evenly`: all examples count the same."""
    if not examples:
        return None
    features, labels = (np.concatenate(column) for column in zip(*examples, strict=True))
    sizes = [len(each) for _, each in examples]
    weights = np.repeat(1 / np.array(sizes), sizes) if evenly else None
    return Logistic.fit(features, labels, weights) if labels.any() and not labels.all() else None


def _folders(matches: np.ndarray, rng: np.random.Generator, sizes: Sequence[int]) -> Iterator[tuple[bool, np.ndarray]]:
    """Made-up folders of some sizes, as candidates, without and with some that match a query: whether its sound is there.

    Where it is, it is as rare as in the whole, and in a further folder as common as there are recordings for, up to `COMMON`:
    fitted on rare sounds alone, probabilities are far too low in a folder full of what is asked for.
    """
    own, others = np.flatnonzero(matches), np.flatnonzero(~matches)
    if len(others) < 2 or not len(own):
        return
    for size in sizes:
        absent = rng.permutation(others)[:size]
        share = max(1, round(len(own) * len(absent) / len(others)))
        common = min(len(own), max(2, int(COMMON * len(absent))))
        yield False, absent
        for count in sorted({share, max(share, common)}):
            yield True, np.concatenate([absent, rng.permutation(own)[:count]])


def _lists(matches: np.ndarray, rng: np.random.Generator, sizes: Sequence[int]) -> Iterator[tuple[bool, np.ndarray]]:
    """Made-up lists of captions of some sizes, without and with one that fits a sound: whether one does.

    A list names different things, so that one of them fits. Of a split's captions many say the same of one sound: fitted on lists
    with all of those, the second best of a list is given far too much.
    """
    own, others = np.flatnonzero(matches), np.flatnonzero(~matches)
    if len(others) < 2 or not len(own):
        return
    for size in sizes:
        absent = rng.permutation(others)[:size]
        yield False, absent
        yield True, np.concatenate([absent, rng.permutation(own)[:1]])
