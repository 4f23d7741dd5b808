"""Test results: the cosine baseline and the diffusion model on a test split, in domain or out of it, over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import load_weights, save_weights
from .core.losses import cosine_similarity
from .core.metrics import MetricAccumulator
from .core.scoring import diffusion_score_blocks, fuse
from .data.manifest import Dataset, load_dataset, read_piece
from .errors import UsageError
from .gallery import Captions, Gallery
from .model import DIRECTIONS, Direction, Retriever, load_retriever
from .progress import Progress, silent
from .report.paper import System
from .report.results import EvaluationResult, SystemResult
from .runs import find_runs, run_folder, seeds_of

CLIPS_AT_ONCE = 64  # whose audio is in memory together while a test split is embedded
QUERIES_AT_ONCE = 1024


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
        gallery = embedded_gallery(retriever, run, dataset, split, progress)
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


def rank(
    retriever: Retriever,
    gallery: Gallery,
    direction: Direction,
    steps: int | None = None,
    shortlist: int | None = None,
    noise_seed: int = 0,
    progress: Progress = silent,
) -> dict[System, dict[str, float]]:
    """Metrics of each system in one direction: `baseline` by cosine, `diff` by cosine + weight * x0_hat.

    With strategy `gen` there is no contrastive space: `diff` ranks by x0_hat alone, and there is no baseline. A model
    without phase two has no `diff`. Blocks of queries pass through, so the full matrix is never held.
    """
    queries, candidates, relevant = gallery.task(direction)
    by_cosine, by_diffusion = MetricAccumulator(), MetricAccumulator()
    if not retriever.denoisers:
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            by_cosine.update(cosine_similarity(queries[rows], candidates), relevant[rows])
        return {"baseline": by_cosine.result()}
    alone = retriever.recipe.model.strategy == "gen"
    section = retriever.recipe.evaluation
    blocks = diffusion_score_blocks(
        retriever.denoisers[direction],
        queries,
        candidates,
        retriever.schedule,
        steps=steps or section.steps,
        eta=section.eta,
        seed=noise_seed,
        shortlist=shortlist or section.shortlist,
        draws=section.draws,
        x0=retriever.x0,
    )
    for rows, x0_hat in blocks:
        cosine = cosine_similarity(queries[rows], candidates)
        by_cosine.update(cosine, relevant[rows])
        by_diffusion.update(x0_hat if alone else fuse(cosine, x0_hat, retriever.fusion_weights[direction]), relevant[rows])
        progress(rows.stop, len(queries), f"diffusion, {direction}")
    return {"diff": by_diffusion.result()} if alone else {"baseline": by_cosine.result(), "diff": by_diffusion.result()}


def embedded_gallery(retriever: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent) -> Gallery:
    """A split's embeddings by a run's encoders, from the cache in its folder or computed into it.

    Clips are embedded whole, a few at a time.
    """
    clips = dataset.split(split)
    captions = Captions.of(clips)
    path = run / "pretrain" / f"embeddings-{dataset.name}-{split}.safetensors"
    source = {"encoders": retriever.model_id, "data": dataset.fingerprint}
    if path.is_file():
        tensors, facts = load_weights(path)
        if facts == source:
            return Gallery(tensors["audio"], tensors["text"], captions.owner)
    parts = []
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        part = clips[start : start + CLIPS_AT_ONCE]
        parts.append(retriever.embed_audio([read_piece(dataset.root / clip.path) for clip in part]))
        progress(start + len(part), len(clips), f"embedding {dataset.name} {split}")
    tensors = {"audio": torch.from_numpy(np.concatenate(parts)), "text": torch.from_numpy(retriever.embed_text(captions.texts))}
    save_weights(path, tensors, source)
    return Gallery(tensors["audio"], tensors["text"], captions.owner)
