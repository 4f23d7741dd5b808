"""What the jobs hand back, as plain values: metrics over seeds, and the hits of a query. No console, no files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..types import DIRECTIONS, Direction, System
from .paper import CHAIN, PaperValue, paper_result
from .protocol import PAPER

if TYPE_CHECKING:
    import numpy as np

    from ..core.intervals import Interval, Queries

METRICS = ("r1", "r5", "r10", "map10", "medr", "meanr")
BASELINE: System = "baseline"


@dataclass(frozen=True)
class SystemResult:
    """One system in one direction: the metrics of `core.metrics.retrieval_metrics`, one mapping a training seed.

    `queries` holds what each query got, `core.metrics.MetricAccumulator.queries`, one mapping a seed; it is empty where only the
    means are known. It stays out of the JSON document.
    """

    system: System
    direction: Direction
    per_seed: tuple[Mapping[str, float], ...]
    queries: tuple[Queries, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.per_seed:
            raise ValueError("a result needs the metrics of at least one seed")

    def mean(self, metric: str) -> float:
        """The mean over seeds."""
        return statistics.fmean(seed[metric] for seed in self.per_seed)

    def std(self, metric: str) -> float | None:
        """The sample standard deviation over seeds (divisor n - 1); None for one seed, of which nothing deviates."""
        return statistics.stdev(seed[metric] for seed in self.per_seed) if len(self.per_seed) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Metric to its mean, its std (null for one seed) and its value for each seed."""
        return {
            metric: {"mean": self.mean(metric), "std": self.std(metric), "per_seed": [seed[metric] for seed in self.per_seed]}
            for metric in self.per_seed[0]
        }


MetricIntervals = Mapping[str, "Interval"]
"""Metric to a value with its 95 % interval,"""
Intervals = dict[System, dict[Direction, MetricIntervals]]
"""and that of each system and direction."""


def paired_intervals(
    query_clips: Mapping[Direction, np.ndarray],
    of: Sequence[SystemResult],
    minus: Mapping[tuple[System, Direction], SystemResult] | None = None,
) -> Intervals:
    """Intervals of some systems' metrics, by the bootstrap over queries, clustered by clip, of all their seeds.

    Args:
        query_clips: the clip of each query, by direction.
        of: systems whose `queries` are known; others are left out.
        minus: takes off, from the system and direction of its keys, another system over the same queries: then these are
            paired differences, and systems without a partner are left out. None gives intervals of the metrics themselves.
    """
    from ..core.intervals import ClusterBootstrap, metric_intervals

    found: Intervals = {}
    for direction in DIRECTIONS:
        bootstrap = None  # one for all systems: it takes most of the time
        for result in of:
            other = minus.get((result.system, direction)) if minus is not None else None
            if result.direction != direction or not result.queries or (minus is not None and not (other and other.queries)):
                continue
            bootstrap = bootstrap or ClusterBootstrap(query_clips[direction])
            intervals = metric_intervals(bootstrap, result.queries, other.queries if other else ())
            found.setdefault(result.system, {})[direction] = intervals
    return found


def intervals_json(intervals: Intervals) -> dict[str, Any]:
    """As plain values: `mean`, `low` and `high` of each metric."""
    return {
        system: {direction: {m: each.to_json() for m, each in of.items()} for direction, of in directions.items()}
        for system, directions in intervals.items()
    }


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Models of one recipe, one a seed, trained on `source` and tested on `split` of `target`.

    `clips` and `captions` are counts of that split as it was ranked. `chain` is K, `steps` the DDIM steps taken,
    `shortlist` how many candidates diffusion re-ranked (None: all). `fusion_weights` holds the weight of x0_hat beside the
    cosine, one a seed, chosen on the validation split of `source`, and `fusion_shapes` how it is joined to it (`scoring.fuse`);
    they are empty where nothing was fused. `bank_weights` holds that of the prior (`querybank.Prior`), 0 where validation chose
    none; it is empty where the recipe asks for none. `querybank_betas` holds the inverse temperature of querybank normalisation,
    chosen likewise, `walk_weights` and `walk_shapes` how the random walk joins the cosine. `objective` is the recipe's: what
    `diff` was trained as. `protocol` names the definitions that the metrics follow. `query_clips` is the clip of each query, by
    direction. `notes`: what is worth knowing beside it.
    """

    source: str
    target: str
    recipe: str
    model: str
    seeds: tuple[int, ...]
    clips: int
    captions: int
    systems: tuple[SystemResult, ...]
    split: str = "test"
    strategy: str = "gen-dis"
    batch_size: int | None = None
    chain: int = CHAIN
    steps: int = CHAIN
    shortlist: int | None = None
    fusion_weights: Mapping[Direction, tuple[float, ...]] | None = None
    fusion_shapes: Mapping[Direction, tuple[str, ...]] | None = None
    bank_weights: Mapping[Direction, tuple[float, ...]] | None = None
    protocol: str = PAPER
    query_clips: Mapping[Direction, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    querybank_betas: Mapping[Direction, tuple[float, ...]] | None = None
    walk_weights: Mapping[Direction, tuple[float, ...]] | None = None
    walk_shapes: Mapping[Direction, tuple[str, ...]] | None = None
    objective: str = "diffusion"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [(result.system, result.direction) for result in self.systems]
        if len(set(names)) < len(names):
            raise ValueError("a system occurs twice in one direction")
        if any(len(result.per_seed) != len(self.seeds) for result in self.systems):
            raise ValueError("every system needs the metrics of every seed")

    def get(self, system: System, direction: Direction) -> SystemResult | None:
        """The result of that system in that direction, or None if it was not run."""
        return next((r for r in self.systems if (r.system, r.direction) == (system, direction)), None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were measured, in their order."""
        return tuple(self.systems[0].per_seed[0]) if self.systems else METRICS

    @cached_property
    def differences(self) -> Intervals:
        """Each other system minus the baseline, with 95 % intervals; where what each query got is known of both."""
        baseline = [result for result in self.systems if result.system == BASELINE]
        others = [result for result in self.systems if result.system != BASELINE]
        minus = {(other.system, result.direction): result for result in baseline for other in others}
        return paired_intervals(self.query_clips, others, minus)

    def paper(self, system: System, direction: Direction) -> dict[str, PaperValue] | None:
        """The paper's numbers for the same setting, or None. They are all of test splits, by the paper's protocol."""
        if self.split != "test" or self.protocol != PAPER or (system == "diff" and self.objective != "diffusion"):
            return None
        return paper_result(
            self.source,
            self.target,
            self.model,
            system,
            direction,
            strategy=self.strategy,
            chain=self.chain,
            batch_size=self.batch_size,
        )

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluate --json`; percent for r1, r5, r10 and mean AP, ranks for medr and meanr.

        `systems[system][direction][metric]` holds `mean`, `std` and `per_seed`; `difference` has the same nesting, with `mean`,
        `low` and `high` of the 95 % interval of each system minus the baseline; `paper` too, with `mean` and `std` alone, for
        what the paper reports.
        """
        systems: dict[str, dict[str, Any]] = {}
        paper: dict[str, dict[str, Any]] = {}
        for result in self.systems:
            systems.setdefault(result.system, {})[result.direction] = result.to_json()
            if numbers := self.paper(result.system, result.direction):
                paper.setdefault(result.system, {})[result.direction] = {m: value._asdict() for m, value in numbers.items()}
        return {
            "source": self.source,
            "target": self.target,
            "split": self.split,
            "recipe": self.recipe,
            "model": self.model,
            "protocol": self.protocol,
            "strategy": self.strategy,
            "batch_size": self.batch_size,
            "seeds": list(self.seeds),
            "clips": self.clips,
            "captions": self.captions,
            "chain": self.chain,
            "steps": self.steps,
            "shortlist": self.shortlist,
            "objective": self.objective,
            "querybank_betas": {direction: list(betas) for direction, betas in (self.querybank_betas or {}).items()},
            "walk_weights": {direction: list(weights) for direction, weights in (self.walk_weights or {}).items()},
            "walk_shapes": {direction: list(shapes) for direction, shapes in (self.walk_shapes or {}).items()},
            "fusion_weights": {direction: list(weights) for direction, weights in (self.fusion_weights or {}).items()},
            "fusion_shapes": {direction: list(shapes) for direction, shapes in (self.fusion_shapes or {}).items()},
            "bank_weights": {direction: list(weights) for direction, weights in (self.bank_weights or {}).items()},
            "notes": list(self.notes),
            "systems": systems,
            "difference": intervals_json(self.differences),
            "paper": paper,
        }


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """Two runs, or recipes over their seeds, on one split: `second` minus `first`, query by query."""

    names: tuple[str, str]
    first: EvaluationResult
    second: EvaluationResult

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing beside both, each once."""
        return tuple(dict.fromkeys((*self.first.notes, *self.second.notes)))

    @cached_property
    def differences(self) -> Intervals:
        """Of each system that both have, with 95 % intervals."""
        minus = {(result.system, result.direction): result for result in self.first.systems}
        return paired_intervals(self.second.query_clips, self.second.systems, minus)

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluate --compare --json`: `difference[system][direction][metric]`, and both results whole."""
        return {
            "first": {"run": self.names[0], **self.first.to_json()},
            "second": {"run": self.names[1], **self.second.to_json()},
            "difference": intervals_json(self.differences),
        }


@dataclass(frozen=True, kw_only=True)
class ScoresResult:
    """Somebody's scores of a split, measured: `directions` holds each metric with its 95 % interval."""

    scores: str
    target: str
    split: str
    protocol: str
    clips: int
    captions: int
    directions: Mapping[Direction, MetricIntervals]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluate --scores --json`: `directions[direction][metric]` holds `mean`, `low` and `high`."""
        return {
            "scores": self.scores,
            "target": self.target,
            "split": self.split,
            "protocol": self.protocol,
            "clips": self.clips,
            "captions": self.captions,
            "notes": list(self.notes),
            "directions": {d: {m: each.to_json() for m, each in of.items()} for d, of in self.directions.items()},
        }
