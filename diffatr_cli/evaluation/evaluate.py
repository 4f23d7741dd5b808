"""Test results: the cosine baseline and the diffusion model on a test split, in domain or out of it, over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from ..data.manifest import load_dataset
from ..errors import UsageError
from ..model import load_retriever
from ..progress import Progress, silent
from ..runs import find_runs, run_folder, seeds_of
from ..types import DIRECTIONS, Direction, System
from .embedded_split import Captions, embedded_split_of
from .ranking import rank
from .results import EvaluationResult, SystemResult


def evaluate(
    source: str,
    target: str,
    *,
    data: Path,
    runs: Path,
    model: str | None = None,
    recipe: str | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    shortlist: int | None = None,
    split: str = "test",
    noise_seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> EvaluationResult:
    """Rank `target`'s split by models that learnt from `source`: by cosine, and with x0_hat.

    Args:
        model, recipe: which runs, where several learnt from `source`.
        seeds: training seeds; None takes all that were trained.
        steps, shortlist: override the recipe's `evaluation` section.
        noise_seed: of the diffusion noise; the same for every training seed.
    Raises:
        UsageError: no such run, a seed that was not trained, or more steps than the chain has.
        DiffATRError: the data set is not prepared, or a checkpoint does not fit.
    """
    folder = find_runs(runs, source, model, recipe)
    trained = seeds_of(folder)
    chosen = tuple(seeds) if seeds is not None else tuple(trained)
    if missing := sorted(set(chosen) - set(trained)):
        raise UsageError(f"{folder}: seeds {missing} were not trained, only {trained}. Train them with pretrain --seed N.")
    if not chosen:
        raise UsageError(f"{folder}: no seed has finished an epoch of phase one yet. Run pretrain again; it continues.")
    dataset = load_dataset(data, target)
    captions = Captions.of(dataset.split(split))
    metrics: dict[tuple[System, Direction], list[dict[str, float]]] = {}
    weights: dict[Direction, list[float]] = {}
    for seed in chosen:
        run = run_folder(runs, folder.name, seed)
        retriever = load_retriever(run, device)
        if steps is not None and steps > len(retriever.schedule):
            raise UsageError(f"--steps: {steps} do not fit in this model's chain of {len(retriever.schedule)}")
        gallery = embedded_split_of(retriever, run, dataset, split, progress)
        for direction in DIRECTIONS:
            results = rank(retriever, gallery, direction, steps, shortlist, noise_seed, progress)
            for system, result in results.items():
                metrics.setdefault((system, direction), []).append(result)
            if "diff" in results and retriever.recipe.model.strategy == "gen-dis":
                weights.setdefault(direction, []).append(retriever.fusion_weights[direction])
    learnt = retriever.recipe
    return EvaluationResult(
        source=source,
        target=target,
        split=split,
        recipe=folder.name,
        model=learnt.audio.encoder,
        seeds=chosen,
        clips=len(gallery.audio),
        captions=len(captions.texts),
        systems=tuple(SystemResult(system, direction, tuple(each)) for (system, direction), each in metrics.items()),
        strategy=learnt.model.strategy,
        batch_size=learnt.pretrain.batch_size,
        chain=learnt.diffusion.steps,
        steps=steps or learnt.evaluation.steps or learnt.diffusion.steps,
        shortlist=shortlist or learnt.evaluation.shortlist,
        fusion_weights={direction: tuple(each) for direction, each in weights.items()},
    )


def cross_domain(names: tuple[str, str], models: Sequence[str | None] = (None,), **options: Any) -> list[EvaluationResult]:
    """Both out-of-domain directions between two data sets, for each audio encoder: what Tables 3 and 4 hold.

    Takes `evaluate`'s other arguments and raises what it raises.
    """
    return [evaluate(source, target, model=model, **options) for source, target in permutations(names) for model in models]
