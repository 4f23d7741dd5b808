"""Measure two priors of the candidates on a validation split: a bank of training queries, and the denoiser's own answers to it.

    python tools/prior_facts.py --data DATA --target NAME --runs RUN [RUN ...] [--bank 2048]

The bank's cosines say how near a candidate lies to everything (`core.querybank`). The denoiser says it too: its mean answer to
the bank's queries is the marginal of the joint p(a, t), and x0_hat over that marginal is large where a pair is found together
more often than apart. Prints one JSON document: for each run, direction and setting mean AP and R@1 (percent) on the validation
split of the target:

- `cosine`; `bank`, the cosine less weight times the offsets, by beta and weight;
- `x0_hat` alone, and `joint`, log x0_hat less a share of the log of the marginal;
- `fused`, the cosine plus 0.02 of the logarithm of x0_hat (`scoring.fuse`), and `fused_joint`, less 0.02 of that of the marginal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffatr_cli.core.losses import cosine_similarity
from diffatr_cli.core.metrics import Measure, retrieval_metrics
from diffatr_cli.core.querybank import Prior
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.scoring import diffusion_scores, fuse
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.evaluation.embedded_split import cached_split
from diffatr_cli.model import load_retriever
from diffatr_cli.runs import recipe_of
from diffatr_cli.training.choose_prior import bank_of
from diffatr_cli.types import DIRECTIONS, Direction

SHARES = (0.25, 0.5, 0.75, 1.0)
FUSED = 0.02
"""Smallest weight that recipes offer, of the logarithm of x0_hat."""


def facts(run: Path, data: Path, target: str, size: int, direction: Direction) -> dict[str, Any]:
    """All that is measured of one run in one direction."""
    model, recipe = load_retriever(run, "cpu"), recipe_of(run)
    assert model.reranker is not None
    same = recipe.data.same_captions
    train = cached_split(model, run, load_dataset(data, recipe.data.name), "train", same)
    queries, candidates, relevant = cached_split(model, run, load_dataset(data, target), "val", same).task(direction)
    bank, cosine = bank_of(train, direction, size, seed=0), cosine_similarity(queries, candidates)

    def measured(scores: Tensor) -> dict[str, float]:
        found = retrieval_metrics(scores, relevant, measure=Measure(ap_cutoff=None))
        return {name: round(found[name], 2) for name in ("map", "r1")}

    found: dict[str, Any] = {"cosine": measured(cosine), "bank": {}, "joint": {}}
    for beta in (1.0, 5.0, 10.0, 20.0, 50.0):
        for share in SHARES:
            found["bank"][f"beta {beta:g}, weight {share}"] = measured(cosine - Prior(bank, beta, share).offsets(candidates))
    reranker, sampling = model.reranker, Sampling(steps=1, draws=1)
    prepared = reranker.prepare(direction, candidates)
    x0_hat, of_bank = (diffusion_scores(each, prepared, reranker.schedule, sampling) for each in (queries, bank))
    marginal = of_bank.double().mean(0).to(x0_hat)
    found["x0_hat"] = measured(x0_hat)
    for share in SHARES:
        found["joint"][f"share {share}"] = measured((x0_hat + 1e-9).log() - share * (marginal + 1e-9).log())
    fused, nothing = fuse(cosine, x0_hat, FUSED, "log"), torch.zeros_like(marginal)
    found["fused"] = measured(fused)
    found["fused_joint"] = measured(fused - fuse(nothing, marginal, FUSED, "log"))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="seed folders with both phases")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data sets")
    parser.add_argument("--target", required=True, help="the data set whose validation split is ranked")
    parser.add_argument("--bank", type=int, default=2048, help="training queries in the bank")
    options = parser.parse_args()
    document = {
        str(run): {d: facts(run, options.data, options.target, options.bank, d) for d in DIRECTIONS} for run in options.runs
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
