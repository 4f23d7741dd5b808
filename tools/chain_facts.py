"""Measure two facts about a trained model: what its chain adds to its first step, and what exact ties do to the figures.

    python tools/chain_facts.py --data DATA --target NAME [--run RUN] [--split test] [--draws 8]

Without --run, the model that ships. Prints one JSON document:

- `steps`: R@1 of the final score and of x0_hat alone, for one step and for all of the chain: from one noise draw at a time (mean,
  lowest and highest over draws), and with x0_hat averaged over all draws; and for one pass with x_K = 0, which draws nothing.
  With them the spread of x0_hat over draws (standard deviation: of all candidates, the true ones and each query's best), and
  `same_first`, how often two answers name the same candidate first.
- `attention`: the spread over the candidates of Q K^T, and of x_K that is added to it.
- `ties`: how many candidates are equal to another, and R@k of the cosine, and of the cosine with noise of 1e-6 added, by four
  rules for ties: by expectation as `core.metrics` has it, all ties against the true candidates, all for them, and in the order of
  a stable sort.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffatr_cli.core.losses import cosine_similarity
from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.scoring import Reranker, diffusion_scores
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.evaluation.embedded_split import EmbeddedSplit, embed_split
from diffatr_cli.model import load_retriever, sampling_of, shipped_model
from diffatr_cli.types import DIRECTIONS, Direction

CUTOFFS = (1, 5, 10)
NOISE = 1e-6


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, lowest and highest."""
    return {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}


def same_first(one: Tensor, other: Tensor) -> float:
    """How often two answers (Q, N) name the same candidate first."""
    return float((one.argmax(1) == other.argmax(1)).float().mean())


def steps_of(split: EmbeddedSplit, direction: Direction, reranker: Reranker, sampling: Sampling, draws: int) -> dict[str, Any]:
    """One step against the whole chain."""
    queries, candidates, relevant = split.task(direction)
    prepared, cosine = reranker.prepare(direction, candidates), cosine_similarity(queries, candidates)
    chain = len(reranker.schedule)
    sampled: dict[int, list[Tensor]] = {1: [], chain: []}
    for steps, found in sampled.items():
        for seed in range(draws):
            settings = replace(sampling, steps=steps, draws=1, shortlist=None, seed=seed)
            found.append(diffusion_scores(queries, prepared, reranker.schedule, settings))
    by_cosine = retrieval_metrics(cosine, relevant)["r1"]
    document: dict[str, Any] = {"weight": reranker.fusion_weights.get(direction), "r1_cosine": by_cosine}

    def recalls(x0_hat: Tensor) -> tuple[float, float]:
        scores = (reranker.final_score(direction, cosine, x0_hat), x0_hat)
        one, other = (retrieval_metrics(each, relevant)["r1"] for each in scores)
        return one, other

    truth = torch.tensor([int(each[0]) for each in relevant])
    for steps, found in sampled.items():
        final, alone = zip(*(recalls(each) for each in [*found, torch.stack(found).mean(0)]), strict=True)
        deviation = torch.stack(found).std(0)
        best = torch.stack(found).mean(0).argmax(1, keepdim=True)
        document[f"{steps} steps" if steps > 1 else "1 step"] = {
            "r1_final": spread(final[:-1]),
            "r1_x0_hat": spread(alone[:-1]),
            "mean_of_draws": {"r1_final": final[-1], "r1_x0_hat": alone[-1]},
            "deviation_over_draws": {
                "all": float(deviation.mean()),
                "true": float(deviation.gather(1, truth[:, None]).mean()),
                "best": float(deviation.gather(1, best).mean()),
            },
        }
    none = replace(sampling, steps=1, draws=1, eta=0.0, shortlist=None, noise=False)
    still = diffusion_scores(queries, prepared, reranker.schedule, none)
    final_still, alone_still = recalls(still)
    document["x_K = 0, one pass"] = {"r1_final": final_still, "r1_x0_hat": alone_still}
    chains, ones = sampled[chain], sampled[1]
    document["same_first"] = {
        "one step and the chain, the same noise": float(np.mean([same_first(*pair) for pair in zip(ones, chains, strict=True)])),
        "the chain and itself, other noise": float(np.mean([same_first(a, b) for a, b in pairwise(chains)])),
        "one step and itself, other noise": float(np.mean([same_first(a, b) for a, b in pairwise(ones)])),
        "the mean of the chains and the mean of the steps": same_first(torch.stack(ones).mean(0), torch.stack(chains).mean(0)),
        "the mean of the chains and x_K = 0": same_first(still, torch.stack(chains).mean(0)),
    }
    return document


def attention_of(split: EmbeddedSplit, direction: Direction, reranker: Reranker) -> dict[str, float]:
    """How far Q K^T spreads over a query's candidates, and x_K."""
    queries, candidates, _ = split.task(direction)
    factors = reranker.prepare(direction, candidates).factors
    logits = factors.attend(queries) @ candidates.T
    ordered = logits.sort(dim=1, descending=True).values
    return {
        "deviation_of_logits": float(logits.std(1).mean()),
        "largest_less_mean": float((ordered[:, 0] - logits.mean(1)).mean()),
        "largest_less_smallest": float((ordered[:, 0] - ordered[:, -1]).mean()),
        "deviation_of_x_K": 1.0,
    }


def rank_against(row: np.ndarray, true: np.ndarray) -> int:
    """The rank of the best true candidate when all that tie with it stand before it."""
    best = row[true].max()
    return 1 + int((row > best).sum()) + int((row == best).sum()) - int((row[true] == best).sum())


def rank_for(row: np.ndarray, true: np.ndarray) -> int:
    """The rank of the best true candidate when it stands before all that tie with it."""
    return 1 + int((row > row[true].max()).sum())


def rank_in_order(row: np.ndarray, true: np.ndarray) -> int:
    """The rank of the best true candidate by a stable sort."""
    return 1 + int(np.isin(np.argsort(-row, kind="stable"), true).argmax())


def ties_of(split: EmbeddedSplit, direction: Direction, draws: int) -> dict[str, Any]:
    """What noise does to the figures of the cosine, by rule for ties."""
    queries, candidates, relevant = split.task(direction)
    # Equal candidates have equal cosines: taken once, so that no rounding of a matrix product parts them.
    distinct, place = torch.unique(candidates, dim=0, return_inverse=True)
    cosine = cosine_similarity(queries, distinct)[:, place].double().numpy()
    rng = np.random.default_rng(0)
    noisy = [cosine + NOISE * rng.standard_normal(cosine.shape) for _ in range(draws)]
    sizes = torch.bincount(place)[place].numpy()

    def naive(rank: Callable[[np.ndarray, np.ndarray], int], scores: np.ndarray) -> dict[str, float]:
        ranks = np.array([rank(row, true) for row, true in zip(scores, relevant, strict=True)])
        return {f"r{k}": 100 * float((ranks <= k).mean()) for k in CUTOFFS}

    def expected(scores: np.ndarray) -> dict[str, float]:
        found = retrieval_metrics(scores, relevant)
        return {f"r{k}": found[f"r{k}"] for k in CUTOFFS}

    rules: dict[str, Callable[[np.ndarray], dict[str, float]]] = {
        "expectation": expected,
        "against": lambda scores: naive(rank_against, scores),
        "for": lambda scores: naive(rank_for, scores),
        "order": lambda scores: naive(rank_in_order, scores),
    }
    document: dict[str, Any] = {
        "candidates": len(candidates),
        "distinct_candidates": len(distinct),
        "share_with_a_double": float((sizes > 1).mean()),
    }
    for name, rule in rules.items():
        with_noise = [rule(scores) for scores in noisy]
        document[name] = {
            "cosine": rule(cosine),
            "cosine_and_noise": {key: float(np.mean([each[key] for each in with_noise])) for key in with_noise[0]},
        }
    return document


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of prepared data sets")
    parser.add_argument("--target", required=True, help="the data set")
    parser.add_argument("--run", type=Path, help="a seed folder; the model that ships if left out")
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=8, help="noise draws")
    options = parser.parse_args()
    model = load_retriever(options.run or shipped_model(), "cpu")
    if model.reranker is None:
        parser.error(f"{options.run}: has no diffusion phase")
    if model.reranker.conditioners:
        parser.error(f"{options.run}: its candidates depend on the query (diffusion.conditioning), which is not measured here")
    split = embed_split(model, load_dataset(options.data, options.target), options.split)
    sampling = sampling_of(model)
    document = {
        direction: {
            "steps": steps_of(split, direction, model.reranker, sampling, options.draws),
            "attention": attention_of(split, direction, model.reranker),
            "ties": ties_of(split, direction, options.draws),
        }
        for direction in DIRECTIONS
    }
    print(json.dumps({"clips": len(split.audio), "captions": len(split.text), "draws": options.draws} | document, indent=2))


if __name__ == "__main__":
    main()
