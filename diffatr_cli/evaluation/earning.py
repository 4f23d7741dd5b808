"""What a correction of the cosine has to earn on a validation split before it has a part in the ranking.

Recalls of a split whose clips share captions are near 100 % for any ranking, and a sum of them is then decided by noise. What
chooses here is the mean average precision over all that match, of which a clip among its like, a scene found first and a
ranking's tail all have their part; and each domain of the split counts the same.

Q queries, N candidates, C clusters of queries that are alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..core.metrics import Measure
from ..core.text import normalise_caption
from ..data.manifest import Clip
from ..types import Direction
from .embedded_split import Captions, EmbeddedSplit
from .matching import matching

FEWEST = 20
"""Clusters that a domain needs to count as one; smaller ones are put together."""

EARNED = 2
"""Standard errors by which a weight must gain on the cosine: of some twenty that are tried, one gains by chance."""

Option = TypeVar("Option")

MEASURE = Measure(ap_cutoff=None)


@dataclass(frozen=True)
class FusionTask:
    """What the choice is made on: the queries of `EmbeddedSplit.task`, or some of them.

    Attributes:
        rows: (Q,) their places among the task's queries.
        relevant: for each the indices of the candidates that match, of those of its split.
        cluster: (Q,) equal for queries that are alike, as the captions of one clip are.
        domain: (Q,) a number for the domain of each.
    """

    rows: np.ndarray
    relevant: list[np.ndarray]
    cluster: np.ndarray
    domain: np.ndarray


def domains_of(clips: Sequence[Clip]) -> np.ndarray:
    """(n,) a number for the domain of each clip: the folder that its file was in.

    Whoever collects recordings from several places keeps them in folders; a set that is all in one folder is one domain.
    """
    folders = [os.path.dirname(clip.clip_id) for clip in clips]
    number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
    return np.array([number[folder] for folder in folders])


def fusion_task(split: EmbeddedSplit, direction: Direction, clips: Sequence[Clip], same_captions: str) -> FusionTask:
    """The queries of a validation split to choose by.

    Where equal captions mean equal sounds (`positives`), each text asks once, and what matches is `matching`'s, which knows that
    a scene with rain in it is one with rain. Else queries and matches are those that evaluation counts.
    """
    captions = Captions.of(clips)
    domain = domains_of(clips)
    _, _, relevant = split.task(direction)
    rows = np.arange(len(relevant))
    cluster = np.array(captions.positive_groups(same_captions))
    if same_captions == "positives":
        distinct, matches = matching(captions)
        number = {text: i for i, text in enumerate(distinct)}
        of_caption = np.array([number[normalise_caption(text)] for text in captions.texts])
        if direction == "t2a":
            rows = np.unique(of_caption, return_index=True)[1]
        table = matches[of_caption[rows]] if direction == "t2a" else matches[of_caption].T
        relevant = [np.flatnonzero(row) for row in table]
    if direction == "t2a":
        domain, cluster = domain[captions.clip_index[rows]], cluster[captions.clip_index[rows]]
    return FusionTask(rows, relevant, cluster, _large_enough(domain, cluster))


def _large_enough(domain: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Domains with `FEWEST` clusters at least, the smaller ones put together."""
    domain = domain.copy()
    while True:
        sizes = sorted((len(np.unique(cluster[domain == each])), each) for each in np.unique(domain).tolist())
        if len(sizes) == 1 or sizes[0][0] >= FEWEST:
            return domain
        domain[domain == sizes[0][1]] = sizes[1][1]


def joined(tasks: Sequence[FusionTask]) -> FusionTask:
    """The queries of some splits, one split's after the other's: no two of different splits share a cluster or a domain."""

    def apart(name: str) -> np.ndarray:
        parts, first = [], 0
        for task in tasks:
            numbers = np.unique(getattr(task, name), return_inverse=True)[1]
            parts.append(numbers + first)
            first += int(numbers.max(initial=-1)) + 1
        return np.concatenate(parts)

    rows = np.concatenate([task.rows for task in tasks])
    return FusionTask(rows, [each for task in tasks for each in task.relevant], apart("cluster"), apart("domain"))


def earned(
    precision: Mapping[Option, np.ndarray], plain: np.ndarray, task: FusionTask, moves: Callable[[Option], tuple[float, ...]]
) -> tuple[Option, float, float]:
    """The option that a validation split earns, how much mean AP it gains (the mean over domains), and its standard error.

    An option is earned where mean AP gains more than `EARNED` standard errors over the plain ranking, and no domain loses more
    than one. The best of those has the highest mean AP, and the one taken is that which moves scores least and is within one
    standard error of the best. Standard errors are those of paired differences, with the queries of one cluster taken together.

    Args:
        precision: average precision of each query, (Q,), by option.
        plain: of each query by the ranking without any.
        moves: how far an option moves scores, the least first. One that begins with 0 is the plain ranking, which has nothing to
            earn; where none is, no option has.
    """
    means = {option: mean_over_domains(each, task)[0] for option, each in precision.items()}
    is_free = {option: moves(option)[0] == 0 for option in precision}

    def is_earned(option: Option) -> bool:
        over = precision[option] - plain
        gained, error = mean_over_domains(over, task)
        return gained > EARNED * error and all(mean >= -error for mean, error in _by_domain(over, task))

    eligible = [option for option in precision if is_free[option] or is_earned(option)] if any(is_free.values()) else [*precision]
    best = max(eligible, key=means.__getitem__)

    def is_as_good(option: Option) -> bool:
        lost, error = mean_over_domains(precision[best] - precision[option], task)
        return lost <= error

    chosen = min(filter(is_as_good, eligible), key=lambda option: (*moves(option), -means[option]))
    return chosen, *mean_over_domains(precision[chosen] - plain, task)


def _by_domain(values: np.ndarray, task: FusionTask) -> Iterator[tuple[float, float]]:
    """The mean of some values (Q,) in each domain, and its standard error."""
    for domain in np.unique(task.domain):
        inside = task.domain == domain
        mean = float(values[inside].mean())
        _, cluster = np.unique(task.cluster[inside], return_inverse=True)
        sums = np.bincount(cluster, weights=values[inside] - mean)
        count = len(sums)
        # Of one cluster there is no telling how another one would be.
        error = float(np.sqrt(count / (count - 1) * (sums**2).sum()) / inside.sum()) if count > 1 else np.inf
        yield mean, error


def mean_over_domains(values: np.ndarray, task: FusionTask) -> tuple[float, float]:
    """The mean over domains, and its standard error."""
    means, errors = (np.array(column) for column in zip(*_by_domain(values, task), strict=True))
    return float(means.mean()), float(np.sqrt((errors**2).sum()) / len(means))
