"""Test results: the cosine baseline and the diffusion model on a test split, in domain or out of it, over training seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.metrics import mean_metrics
from ..core.sampling import Sampling
from ..data.manifest import Dataset, load_dataset
from ..engines import Engine
from ..errors import DiffATRError, UsageError
from ..model import Retriever, load_retriever, sampling_of
from ..processes import from_first, is_first
from ..progress import Progress, silent
from ..recipe import differing_fields
from ..recipe_schema import Recipe
from ..runs import find_runs, model_of, recipe_of, run_folder, seeds_of
from ..types import DIRECTIONS, SYSTEMS, Direction, System
from .by_workers import Workers
from .embedded_split import cached_split, check_fit
from .evaluation_set import EvaluationSet, load_evaluation_set
from .export import Exporter, exporting
from .protocol import PAPER
from .query_results import query_results_file, read_query_results, write_query_results
from .ranking import rank_queries
from .results import ComparisonResult, EvaluationResult, SystemResult
from .rivals import Querybank, querybank_of, rank_rivals
from .states import cached_frames, cached_states
from .walk import Walk, ranks_by_cosine, walk_of

COUNTED = 1
"""Rises when a metric is counted in another way than before, so that results kept from then are not used."""


def evaluate(
    source: str,
    target: str,
    *,
    data: Path,
    runs: Path,
    model: str | None = None,
    recipe: str | None = None,
    seeds: Sequence[int] | None = None,
    split: str = "test",
    protocol: str = PAPER,
    relevance: Path | None = None,
    export: Path | None = None,
    matrices: bool = False,
    **options: Any,
) -> EvaluationResult:
    """Rank `target`'s split by models that learnt from `source`: by cosine, and with x0_hat.

    Args:
        model, recipe: which runs, where several learnt from `source`.
        seeds: training seeds; None takes all that were trained.
        protocol, relevance: what counts as found (`load_evaluation_set`).
        export: a folder for ranks and best candidates of every query, and with `matrices` for all scores (`export.exporting`).
        options: of `evaluate_runs`.

    Raises:
        UsageError: no such run, a seed that was not trained, more steps than the chain has, an export folder in use, or the
            data set is of vectors and the runs are not, or of other ones.
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
    folders = [run_folder(runs, folder.name, seed) for seed in chosen]
    asked = load_evaluation_set(data, target, split, protocol, relevance)
    identity = {"source": source, "target": target, "split": split, "protocol": protocol, "recipe": folder.name}
    # Of several processes the first one writes, and all have the same figures.
    with exporting(export, asked, identity, matrices) if export and is_first() else contextlib.nullcontext() as exporter:
        result = evaluate_runs(folders, chosen, asked, notes=notes, exporter=exporter, **options)
        if exporter is not None:
            exporter.finish(result)
    return result


def evaluate_runs(
    folders: Sequence[Path],
    seeds: Sequence[int],
    asked: EvaluationSet,
    *,
    steps: int | None = None,
    shortlist: int | None = None,
    weight: float | None = None,
    noise_seed: int = 0,
    rivals: bool = False,
    walk: bool | None = None,
    device: str = "auto",
    progress: Progress = silent,
    notes: Sequence[str] = (),
    exporter: Exporter | None = None,
    reuse: bool = False,
    engine: Engine | None = None,
) -> EvaluationResult:
    """Rank a split by the models of some seed folders of one recipe. What each query got is kept in their folders.

    Args:
        seeds: of the folders.
        steps, shortlist: override the recipe's `evaluation` section.
        weight: of x0_hat beside the cosine, in the place of the one that validation chose. Where that is 0, nothing is sampled,
            and `diff` is the cosine.
        noise_seed: of the diffusion noise; the same for every training seed.
        rivals: also rank by `evaluation.rivals`; querybank normalisation needs the training and validation splits of the data
            set that the models learnt from, beside the one that is ranked.
        walk: also rank by a random walk beside the cosine, which needs that validation split too; None does as the recipe says.
        notes: what is worth knowing already.
        reuse: take what an earlier evaluation with the same settings kept, where it is there; QB-Norm's beta and the weight of
            the walk are not kept.
        engine: whose workers embed the clips, where that has not been done; None for this process.

    Raises as `evaluate`.
    """
    learnt, told = _common_recipe(folders), [*notes, *asked.notes]
    walk = learnt.evaluation.feedback == "walk" if walk is None else walk
    found: dict[tuple[System, Direction], list[dict[str, np.ndarray]]] = {}
    weights: dict[Direction, list[float]] = {}
    shapes: dict[Direction, list[str]] = {}
    betas: dict[Direction, list[float]] = {}
    bank_weights: dict[Direction, list[float]] = {}
    walk_weights: dict[Direction, list[float]] = {}
    walk_shapes: dict[Direction, list[str]] = {}
    for run, seed in zip(folders, seeds, strict=True):
        retriever = load_retriever(run, device)
        check_fit(retriever, asked.dataset)
        if weight is not None:
            retriever.reweigh(weight)
        sampling = sampling_of(retriever, steps=steps, shortlist=shortlist, seed=noise_seed)
        kept = from_first(kept_queries(run, retriever, sampling, asked, weight)) if reuse else None
        walks = walk and ranks_by_cosine(retriever)
        there = {system for system, _ in kept or ()}
        complete = bool(kept) and (not rivals or there & {"qbnorm", "one-step"}) and (not walks or "walk" in there)
        bank = walker = None
        if not complete:
            learnt_from = load_dataset(asked.dataset.root.parent, learnt.data.name) if rivals or walks else asked.dataset
            if engine is not None:
                others = [(learnt_from, "train")] * rivals + [(learnt_from, "val")] * (rivals or walks)
                workers = Workers(engine, partial(load_retriever, run.absolute()), retriever.model_id)
                embed_by(workers, retriever, run, [(asked.dataset, asked.split), *others], progress)
            if rivals:
                bank = querybank_of(retriever, run, learnt_from, learnt.data.same_captions, progress)
            if walks:
                walker = walk_of(retriever, run, learnt_from, learnt, progress)
        on_scores = exporter.of_seed(seed) if exporter else None
        of_run = kept or {}
        if not complete:
            what = run, retriever, sampling, asked, progress, on_scores
            of_run = of_run | _rank_run(*what, rivals=rivals, bank=bank, walker=walker)
        unasked = (set() if rivals else {"qbnorm", "one-step"}) | (set() if walks else {"walk"})  # which may be kept all the same
        for key, queries in of_run.items():
            if key[0] in unasked:
                continue
            found.setdefault(key, []).append({name: each for name, each in queries.items() if name not in ("query", "clip")})
        for direction in asked.tasks:
            if bank is not None:
                betas.setdefault(direction, []).append(bank.betas[direction])
            if walker is not None:
                walk_weights.setdefault(direction, []).append(walker.fusions[direction].weight)
                walk_shapes.setdefault(direction, []).append(walker.fusions[direction].shape)
            if retriever.reranker and retriever.reranker.fuses:
                weights.setdefault(direction, []).append(retriever.reranker.fusion_weights[direction])
                shapes.setdefault(direction, []).append(retriever.reranker.fusion_shapes.get(direction, "sum"))
            if retriever.reranker and learnt.evaluation.bank:
                prior = retriever.reranker.priors.get(direction)
                bank_weights.setdefault(direction, []).append(prior.weight if prior else 0.0)
        try:
            if is_first() and not complete:
                _keep(run, retriever, sampling, asked, of_run, weight)
        except DiffATRError as error:
            told.append(f"what each query got is not kept: {error}")
    return EvaluationResult(
        source=learnt.data.name,
        target=asked.dataset.name,
        split=asked.split,
        recipe=folders[0].parent.name,
        model=learnt.audio.encoder,
        seeds=tuple(seeds),
        clips=len(asked.clips),
        captions=len(asked.captions.texts),
        systems=tuple(
            SystemResult(system, direction, tuple(map(mean_metrics, each)), tuple(each))
            for direction in DIRECTIONS
            for system in SYSTEMS
            if (each := found.get((system, direction)))
        ),
        objective=learnt.diffusion.objective,
        querybank_betas={direction: tuple(each) for direction, each in betas.items()},
        walk_weights={direction: tuple(each) for direction, each in walk_weights.items()},
        walk_shapes={direction: tuple(each) for direction, each in walk_shapes.items()},
        strategy=learnt.model.strategy,
        batch_size=learnt.pretrain.batch_size,
        chain=learnt.diffusion.steps,
        steps=sampling.steps or learnt.diffusion.steps,
        shortlist=sampling.shortlist,
        fusion_weights={direction: tuple(each) for direction, each in weights.items()},
        fusion_shapes={direction: tuple(each) for direction, each in shapes.items()},
        bank_weights={direction: tuple(each) for direction, each in bank_weights.items()},
        protocol=asked.protocol.name,
        query_clips=asked.query_clips,
        notes=tuple(told),
    )


def embed_by(
    workers: Workers, retriever: Retriever, run: Path, wanted: Sequence[tuple[Dataset, str]], progress: Progress = silent
) -> None:
    """Have workers embed splits of data sets into the caches of a run, and make their frames where the model re-ranks by them."""
    for dataset, split in wanted:
        cached_split(retriever, run, dataset, split, progress=progress, workers=workers)
        if retriever.sees_frames:
            cached_frames(retriever, run, dataset, split, progress, workers)


def _rank_run(
    run: Path,
    retriever: Retriever,
    sampling: Sampling,
    asked: EvaluationSet,
    progress: Progress,
    on_scores: Callable[[Direction, System, slice, Tensor], None] | None,
    *,
    rivals: bool = False,
    bank: Querybank | None = None,
    walker: Walk | None = None,
) -> dict[tuple[System, Direction], dict[str, np.ndarray]]:
    """What each query got of each system, by the model of one seed folder."""
    embedded = cached_split(retriever, run, asked.dataset, asked.split, progress=progress)
    conditioned = retriever.reranker and retriever.reranker.conditioners
    states = cached_states(retriever, run, asked.dataset, asked.split, progress) if conditioned else None
    found: dict[tuple[System, Direction], dict[str, np.ndarray]] = {}
    for direction, task in asked.tasks.items():
        queries, candidates, _ = embedded.task(direction)
        what = queries[task.queries], candidates, task.relevant, direction
        how: dict[str, Any] = {
            "query_ids": task.queries.tolist(),
            "measure": asked.protocol.measure,
            "on_scores": partial(on_scores, direction) if on_scores else None,
            "sight": retriever.reranker and retriever.reranker.sight(direction, states, task.queries),
        }
        ranked = rank_queries(*what, retriever.reranker, sampling, progress, **how)
        if rivals:
            ranked |= rank_rivals(*what, retriever, bank, sampling, progress, **how)
        if walker is not None:
            shown = {name: how[name] for name in ("measure", "on_scores")}
            ranked["walk"] = walker.rank_queries(*what, **shown)
        found |= {(system, direction): each.queries() for system, each in ranked.items()}
    return found


def query_facts(retriever: Retriever, sampling: Sampling, asked: EvaluationSet, weight: float | None = None) -> dict[str, Any]:
    """What the results of a model's queries depend on: equal facts, equal results. `weight`: where it is not the model's own."""
    return ({} if weight is None else {"weight": weight}) | {
        "counted": COUNTED,
        "model": retriever.calibration_key,
        "data": asked.dataset.fingerprint,
        "split": asked.split,
        "protocol": asked.protocol.name,
        "relevance": asked.relevance_hash,
        "sampling": asdict(sampling),
    }


def _keep(
    run: Path,
    retriever: Retriever,
    sampling: Sampling,
    asked: EvaluationSet,
    of_run: Mapping[tuple[System, Direction], Mapping[str, np.ndarray]],
    weight: float | None,
) -> None:
    places = {direction: task.queries for direction, task in asked.tasks.items()}
    facts = query_facts(retriever, sampling, asked, weight)
    write_query_results(query_results_file(run, asked.dataset.name, facts), of_run, places, asked.query_clips, facts)


def kept_queries(
    run: Path, retriever: Retriever, sampling: Sampling, asked: EvaluationSet, weight: float | None = None
) -> dict[tuple[System, Direction], dict[str, np.ndarray]] | None:
    """What each query got of the systems of a seed folder, as an earlier evaluation with the same settings kept it, with the
    columns `query` and `clip` beside the metrics; None where there was none, or the model or the data have changed since."""
    facts = query_facts(retriever, sampling, asked, weight)
    return read_query_results(query_results_file(run, asked.dataset.name, facts), facts)


def compare(
    first: Path,
    second: Path,
    target: str,
    *,
    data: Path,
    split: str = "test",
    protocol: str = PAPER,
    relevance: Path | None = None,
    **options: Any,
) -> ComparisonResult:
    """Two runs on one split, query by query: each a seed folder (`runs/RECIPE/seed-N`), or a recipe's folder with all its seeds.

    Raises as `evaluate`; UsageError too where a folder is neither.
    """
    folders = [_seed_folders(run) for run in (first, second)]
    asked = load_evaluation_set(data, target, split, protocol, relevance)
    results = [evaluate_runs(each, list(map(_seed_of, each)), asked, **options) for each in folders]
    return ComparisonResult(names=(str(first), str(second)), first=results[0], second=results[1])


def _seed_folders(run: Path) -> list[Path]:
    if model_of(run):
        return [run]
    if found := [run / f"seed-{seed}" for seed in seeds_of(run)]:
        return found
    raise UsageError(f"{run}: neither a run (runs/RECIPE/seed-N) nor a recipe's folder with runs that have finished an epoch.")


def _seed_of(run: Path) -> int:
    name = run.resolve().name.removeprefix("seed-")
    return int(name) if name.isdecimal() else 0


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
