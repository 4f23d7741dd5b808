"""Test results: the cosine baseline and the diffusion model on a test split, in domain or out of it, over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from ..data.manifest import load_dataset
from ..errors import UsageError
from ..model import load_retriever, sampling_of
from ..progress import Progress, silent
from ..recipe import differing_fields
from ..recipe_schema import Recipe
from ..runs import find_runs, recipe_of, run_folder, seeds_of
from ..types import DIRECTIONS, Direction, System
from .embedded_split import Captions, cached_split, check_fit
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
        UsageError: no such run, a seed that was not trained, more steps than the chain has, or the data set is of vectors and
            the runs are not, or of other ones.
        DiffATRError: the data set is not prepared, or a checkpoint does not fit.
    """
    notes: list[str] = []
    folder = find_runs(runs, source, model, recipe, notes)
    trained = seeds_of(folder)
    chosen = tuple(seeds) if seeds is not None else tuple(trained)
    if missing := sorted(set(chosen) - set(trained)):
        raise UsageError(f"{folder}: seeds {missing} were not trained, only {trained}. Train them with pretrain --seed N.")
    if not chosen:
        raise UsageError(f"{folder}: no seed has finished an epoch of phase one yet. Run pretrain again; it continues.")
    learnt = _common_recipe([run_folder(runs, folder.name, seed) for seed in chosen])
    dataset = load_dataset(data, target)
    captions = Captions.of(dataset.split(split))
    metrics: dict[tuple[System, Direction], list[dict[str, float]]] = {}
    weights: dict[Direction, list[float]] = {}
    for seed in chosen:
        run = run_folder(runs, folder.name, seed)
        retriever = load_retriever(run, device)
        check_fit(retriever, dataset)
        sampling = sampling_of(retriever, steps=steps, shortlist=shortlist, seed=noise_seed)
        embedded = cached_split(retriever, run, dataset, split, progress=progress)
        for direction in DIRECTIONS:
            results = rank(embedded, direction, retriever.reranker, sampling, progress)
            for system, result in results.items():
                metrics.setdefault((system, direction), []).append(result)
            if retriever.reranker and retriever.reranker.fuses:
                weights.setdefault(direction, []).append(retriever.reranker.fusion_weights[direction])
    return EvaluationResult(
        source=source,
        target=target,
        split=split,
        recipe=folder.name,
        model=learnt.audio.encoder,
        seeds=chosen,
        clips=len(embedded.audio),
        captions=len(captions.texts),
        systems=tuple(SystemResult(system, direction, tuple(each)) for (system, direction), each in metrics.items()),
        strategy=learnt.model.strategy,
        batch_size=learnt.pretrain.batch_size,
        chain=learnt.diffusion.steps,
        steps=sampling.steps or learnt.diffusion.steps,
        shortlist=sampling.shortlist,
        fusion_weights={direction: tuple(each) for direction, each in weights.items()},
        notes=tuple(notes),
    )


def _common_recipe(seed_folders: Sequence[Path]) -> Recipe:
    """What all these models were trained with. Raises UsageError where they differ: their mean would be of no model."""
    first, *others = (recipe_of(run) for run in seed_folders)
    for run, other in zip(seed_folders[1:], others, strict=True):
        if fields := differing_fields(first, other):
            raise UsageError(
                f"{run}: differs from {seed_folders[0]} in {', '.join(fields)}. Evaluate them one by one with --seeds, or keep "
                "runs of other settings under another --name."
            )
    return first


def cross_domain(
    names: tuple[str, str],
    models: Sequence[str | None] = (None,),
    recipes: tuple[str, str] | None = None,
    **options: Any,
) -> list[EvaluationResult]:
    """Both out-of-domain directions between two data sets, for each audio encoder: what Tables 3 and 4 hold.

    Args:
        recipes: of the runs that learnt from the first data set and from the second, where several did.

    Takes `evaluate`'s other arguments and raises what it raises.
    """
    recipe_of_source = dict(zip(names, recipes or (None, None), strict=True))
    return [
        evaluate(source, target, model=model, recipe=recipe_of_source[source], **options)
        for source, target in permutations(names)
        for model in models
    ]
