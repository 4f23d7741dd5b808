"""Phase two: the attention denoisers of both directions under the generation loss of Eq. 6, on frozen, cached embeddings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.sight import States
from ..data.manifest import Dataset, load_dataset
from ..device import resolve_device, wants_bf16
from ..errors import DiffATRError, UsageError
from ..evaluation.embedded_split import (
    Captions,
    check_fit,
    embed_captions,
)
from ..evaluation.states import (
    Sequences,
    cached_frames,
    cached_sequences,
    cached_tokens,
)
from ..evaluation.validation import validation_sets
from ..model import Retriever, load_encoders
from ..progress import Progress, silent
from ..recipe import differing_fields, load_recipe
from ..recipe_schema import DiffusionSection, Recipe
from ..runs import (
    BEST,
    FIRST_PHASE,
    RECIPE,
    RECORD,
    SECOND_PHASE,
    Encoders,
    borrowed_encoders,
    encoders_of,
    read_record,
    run_folder,
)
from ..types import DIRECTIONS
from .calibrate_phase import calibrate_phase
from .candidates import CandidateBatches
from .choose_again import choose_again, denoisers_of
from .choosing import Choosing, best_of, row_of
from .clips import LogMelCrops, training_clips
from .denoisers import DenoiserPair, denoiser_optimizer, denoising_step
from .folds import Batches, folded_batches
from .phase_folder import PhaseFolder, TrainingResult, open_phase, resume_command
from .streams import torch_seed, torch_stream
from .views import TrainingViews, augmented_frames, augmented_views, embed_views, load_towers, load_views, save_views, views_place


def train_diffusion(
    name: str,
    recipe: Recipe,
    *,
    data: Path,
    runs: Path,
    seed: int = 0,
    device: str = "auto",
    encoders: Path | None = None,
    denoisers: Path | None = None,
    stated: Sequence[str] = (),
    resume: Sequence[str] = (),
    progress: Progress = silent,
) -> TrainingResult:
    """Train the denoisers of a recipe on the encoders that phase one left, resuming where an earlier call was cut off.

    The encoders bring the sections that they were trained by, `data`, `audio`, `text`, `model` and `pretrain`; of the recipe,
    `diffusion` and `evaluation` are taken. Where its other sections differ from the encoders', the result's notes say so.

    Args:
        encoders: the seed folder of the run whose phase one is taken, where it is not this run's own. It is recorded with the
            hash of its checkpoint; a run that was begun so is continued with or without it.
        denoisers: the seed folder of a trained run whose denoisers, and encoders, are taken as they are: only what validation
            chooses and fits is done anew, by the recipe's `evaluation` section. Recorded and continued in the same way.
        stated: fields (`section.field`) that the caller asks for beyond the recipe's file. They may not contradict the encoders.
        resume: the arguments of the command that does this job, for the record of how to resume it.

    Raises:
        UsageError: the strategy has no phase two, a stated field contradicts the encoders, the denoisers were trained by another
            `diffusion` section, the run folder holds another recipe's run, or another process is training there.
        DiffATRError: phase one is missing or another than this run was begun on, or the loss is no longer a number.
    """
    if recipe.model.strategy != "gen-dis":
        raise UsageError(f"model.strategy: `{recipe.model.strategy}` has no phase two. Evaluate the run of pretrain as it is.")
    began = time.monotonic()
    run = run_folder(runs, name, seed)
    trained = denoisers_of(run, denoisers)
    if trained is not None:
        encoders = encoders or encoders_of(trained.run).run
    first = _phase_one(run, encoders, resume_command("pretrain", resume or [name], seed=seed))
    checkpoint = first.check()
    recipe, notes = _on_encoders(first, recipe, stated)
    datasets = validation_sets(load_dataset(data, recipe.data.name), recipe)
    dataset = datasets[0]
    on_device = resolve_device(device)
    command = resume_command("train-diffusion", resume or [name], data=data, runs=runs, seed=seed)
    fingerprint = " ".join([dataset.fingerprint, checkpoint, *(each.fingerprint for each in datasets[1:])])
    if trained is not None:
        fingerprint += f" {trained.check(first, recipe)}"
    with open_phase(run, "diffusion", recipe, SECOND_PHASE, seed, command, fingerprint) as folder:
        if first.run != run:
            folder.add_fact("encoders", first.record(run))
        if trained is not None:
            folder.add_fact("denoisers", trained.record(run))
            best = choose_again(trained, first, recipe, datasets, seed, on_device, folder, progress)
        else:
            best = _train(first, recipe, datasets, seed, on_device, folder, progress)
        calibrate_phase(run, first, recipe, dataset, seed, on_device, folder, progress)
    chosen = {f"{d}_{key}": value for d in DIRECTIONS for key, value in best[d].items()}
    return TrainingResult(folder.path, chosen, time.monotonic() - began, notes)


def _phase_one(run: Path, named: Path | None, pretrain: str) -> Encoders:
    """The encoders that a run's phase two stands on: those named, those that it was begun on, or its own.

    `pretrain` is the command that trains its own. Raises as `train_diffusion`.
    """
    own, begun = (run / "pretrain" / BEST).is_file(), borrowed_encoders(run)
    if named is None:
        if own or begun:
            return encoders_of(run)
        raise DiffATRError(
            f"{run}: phase one has not been trained. Run first: {pretrain} (or take another run's, with --encoders RUN)"
        )
    if not named.is_dir():
        raise DiffATRError(f"{named}: there is no such run. Name a seed folder, such as runs/RECIPE/seed-0.")
    first = encoders_of(named)
    if first.run.resolve() == run.resolve():
        return Encoders(run)
    if own:
        raise UsageError(f"{run}: has encoders of its own. Keep a run on others' under another --name.")
    if begun and begun.checkpoint != first.check() and (run / "diffusion" / BEST).is_file():
        raise UsageError(f"{run}: was trained on other encoders, those of {begun.run}. Choose another --name.")
    return first


def _on_encoders(encoders: Encoders, recipe: Recipe, stated: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the sections that some encoders were trained by, and a note where it said otherwise."""
    first = load_recipe(encoders.folder / RECIPE)
    differing = [name for name in differing_fields(first, recipe) if name.partition(".")[0] in FIRST_PHASE]
    if contradicting := [name for name in differing if name in stated]:
        raise UsageError(
            f"{', '.join(contradicting)}: the encoders in {encoders.folder} were trained with another value. Leave it out, or "
            "train encoders of their own first, under another --name."
        )
    if first.model.strategy != "gen-dis":
        raise UsageError(f"model.strategy: the run of pretrain is of `{first.model.strategy}`, which has no phase two.")
    notes = f"the encoders were trained with other values of {', '.join(differing)}, which stand" if differing else ""
    return first.model_copy(update={name: getattr(recipe, name) for name in SECOND_PHASE}), (notes,) if notes else ()


def _train(
    first: Encoders,
    recipe: Recipe,
    datasets: Sequence[Dataset],
    seed: int,
    device: torch.device,
    folder: PhaseFolder,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """All epochs that are left; by direction the epoch that validation chose. `datasets` as in `Choosing`."""
    section, dataset = recipe.diffusion, datasets[0]
    retriever = load_encoders(first.run, str(device))
    check_fit(retriever, dataset)
    if section.conditioning != "none":
        retriever.check_states(recipe.audio)
    torch.manual_seed(torch_seed(seed, "weights"))
    pair = DenoiserPair(recipe.model, section, retriever.feature_sizes).to(device)
    optimizer = denoiser_optimizer(pair, section)
    state: dict[str, Any] = {"epoch": 0, "best": {}} | folder.resume(pair, optimizer)
    best: dict[str, dict[str, Any]] = state["best"]
    if state["epoch"] == section.epochs:
        return best
    batches: Batches
    if section.folds:
        batches = folded_batches(first, retriever, section, dataset, seed, device, folder, state["epoch"], progress)
    else:
        batches = CandidateBatches(_training_views(first, recipe, dataset, retriever, device, progress), section, seed, device)
    choosing = Choosing(first, retriever, recipe, datasets, seed, progress)
    folder.record_start(device, "bf16" if wants_bf16(section.precision, device) else "fp32", state["epoch"])
    kept = dict(folder.load_best()[0]) if best else {}
    log = folder.log(state["epoch"])
    total = section.epochs * len(batches)
    for epoch in range(state["epoch"], section.epochs):
        losses = []
        pair.train()
        for inside in range(len(batches)):
            step = epoch * len(batches) + inside
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(section, step, total)
            generator = torch_stream(seed, "diffusion", step)
            losses.append(denoising_step(pair, optimizer, batches(epoch, inside), generator, section.clip_norm))
            progress(step + 1, total, f"epoch {epoch + 1} of {section.epochs}, loss {np.mean(losses):.3f}")
        if not math.isfinite(np.mean(losses)):
            raise DiffATRError(
                f"{folder.path}: the loss is {np.mean(losses)} in epoch {epoch + 1}. Lower diffusion.lr and start with a new "
                "--name."
            )
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": float(np.mean(losses))}
        fusions = choosing(pair)
        for direction, fusion in fusions.items():
            if direction not in best or fusion.worth > best[direction].get("worth", -1):
                best[direction] = best_of(fusion, epoch + 1)
                kept |= {name: tensor.detach().clone() for name, tensor in pair.kept(direction).items()}
        log.append(row | row_of(fusions))
        choosing.keep(folder, kept, best)
        folder.save(pair.state_dict(), optimizer, {"epoch": epoch + 1, "best": best})
    return best


def learning_rate(section: DiffusionSection, step: int, total: int) -> float:
    """Of a step, from 0 on, of so many: `warmup` steps of rising, and a cosine down to nothing over all of them."""
    rising = min(1.0, (step + 1) / section.warmup) if section.warmup else 1.0
    return rising * section.lr * (1 + math.cos(math.pi * step / total)) / 2


def _training_views(
    first: Encoders, recipe: Recipe, dataset: Dataset, retriever: Retriever, device: torch.device, progress: Progress
) -> TrainingViews:
    """The training split under augmentation, from the cache in the encoders' folder or computed into it.

    The augmentation follows the encoders' seed: whoever stands on them sees the same views.
    """
    count, same = recipe.diffusion.views, recipe.data.same_captions
    path, source = views_place(first, retriever, dataset, count)
    captions = Captions.of(dataset.split("train"))
    frames = recipe.diffusion.conditioning != "none"
    if (cached := load_views(path, source, captions, same)) is not None and not frames:
        return cached
    encoders, seed = first.folder / BEST, int(read_record(first.folder / RECORD)["seed"])
    towers = load_towers(encoders, recipe, dataset.given_sizes, device)
    clips = training_clips(dataset, towers.audio, recipe.audio, recipe.data.seconds, retriever, progress)
    bf16 = wants_bf16(recipe.pretrain.precision, device)
    if cached is None:
        audio = embed_views(towers, augmented_views(towers.audio, clips, count, seed, bf16, device, progress), device)
        text = embed_captions(retriever, captions.texts, dataset.given("train"))
        cached = save_views(path, source, audio, text, captions, same)
    if not frames:
        return cached
    tokens = cached_tokens(retriever, first.run, dataset, "train", progress)
    if not isinstance(clips, LogMelCrops):  # a frozen encoder: one view, as the clips are
        return replace(cached, states=States(tokens, cached_frames(retriever, first.run, dataset, "train", progress)))

    def augmented() -> Sequences:
        return augmented_frames(towers.audio, clips, count, seed, bf16, device, progress)

    path = first.folder / f"frames-views{count}.f16"
    return replace(cached, states=States(tokens, cached_sequences(path, source, count * len(clips), augmented)))
