"""What the jobs hand back, as plain values: metrics over seeds, and the hits of a query. No console, no files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import Direction, System
from .paper import CHAIN, PaperValue, paper_result

METRICS = ("r1", "r5", "r10", "map10", "medr", "meanr")


@dataclass(frozen=True)
class SystemResult:
    """One system in one direction: the metrics of `core.metrics.retrieval_metrics`, one mapping a training seed."""

    system: System
    direction: Direction
    per_seed: tuple[Mapping[str, float], ...]

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
            for metric in METRICS
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Models of one recipe, one a seed, trained on `source` and tested on `split` of `target`.

    `clips` and `captions` are counts of that split as it was ranked. `chain` is K, `steps` the DDIM steps taken,
    `shortlist` how many candidates diffusion re-ranked (None: all). `fusion_weights` holds the weight of x0_hat beside the
    cosine, one a seed, chosen on the validation split of `source`; it is empty where nothing was fused. `notes`: what is worth
    knowing beside it.
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

    def paper(self, system: System, direction: Direction) -> dict[str, PaperValue] | None:
        """The paper's numbers for the same setting, or None. They are all of test splits."""
        if self.split != "test":
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
        """The document of `evaluate --json`; percent for r1, r5, r10 and map10, ranks for medr and meanr.

        `systems[system][direction][metric]` holds `mean`, `std` and `per_seed`; `paper` has the same nesting, with `mean`
        and `std` alone, for what the paper reports.
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
            "strategy": self.strategy,
            "batch_size": self.batch_size,
            "seeds": list(self.seeds),
            "clips": self.clips,
            "captions": self.captions,
            "chain": self.chain,
            "steps": self.steps,
            "shortlist": self.shortlist,
            "fusion_weights": {direction: list(weights) for direction, weights in (self.fusion_weights or {}).items()},
            "notes": list(self.notes),
            "systems": systems,
            "paper": paper,
        }
