"""Phase one: the encoders under the contrastive loss of Eq. 8, or, for Table 5's `gen`, with the denoisers under L_G alone.

Every random choice depends on the seed and the step alone, so a run that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import load_state, load_weights, save_state, save_weights
from ..core.losses import nt_xent
from ..data.logmels import LogMels, cached_logmels
from ..data.manifest import Dataset, load_dataset
from ..errors import DiffATRError
from ..evaluation.embedded_split import Captions, EmbeddedSplit, cosine_metrics, embed_logmels, recall_sum
from ..model import build_towers, resolve_device, trained_state, wants_bf16
from ..progress import Progress, silent
from ..recipe_schema import PretrainSection, Recipe
from ..runs import BEST, LAST, run_folder
from ..types import SAMPLE_RATE
from .phase_folder import MetricsLog, TrainingResult, open_phase, resume_command
from .refit_heads import PooledViews, refit_heads
from .train_diffusion import DenoiserPair, rank_by_diffusion
from .views import augmented_views


@dataclass(frozen=True)
class Split:
    """One split as training reads it: log-mels, captions, and the captions' vectors where the BERT is frozen."""

    logmels: LogMels
    captions: Captions
    vectors: Tensor | None
    positive_group: np.ndarray
    """(n,), equal for clips that are not negatives of one another (`Captions.positive_groups`)."""


def pretrain(
    name: str,
    recipe: Recipe,
    *,
    data: Path,
    runs: Path,
    seed: int = 0,
    device: str = "auto",
    resume: Sequence[str] = (),
    progress: Progress = silent,
) -> TrainingResult:
    """Train a recipe's encoders, resuming where an earlier call was cut off.

    Args:
        name: what the run is kept under, most often the recipe's name.
        resume: the arguments of the command that does this job, for the record of how to resume it.
    Raises:
        DiffATRError: data are missing, or the loss is no longer a number.
        UsageError: the run folder holds another recipe's run.
    """
    began = time.monotonic()
    place = resolve_device(device)
    dataset = load_dataset(data, recipe.data.name)
    command = resume_command("pretrain", resume or [name], data=data, runs=runs, seed=seed)
    folder = open_phase(run_folder(runs, name, seed), "pretrain", recipe, seed, command, dataset.fingerprint)
    torch.manual_seed(seed)
    phase = PhaseOne(recipe, place)
    train, val = (phase.read(dataset, split, progress) for split in ("train", "val"))
    section = recipe.pretrain
    steps_per_epoch = len(epoch_batches(train.captions, section, seed, 0, train.logmels.offsets))
    total = section.epochs * steps_per_epoch

    state = load_state(folder / LAST) or {"step": 0, "best": {}, "loss": 0.0}
    if "model" in state:
        phase.load_state_dict(phase.state_dict() | state["model"])
        phase.optimizer.load_state_dict(state["optimizer"])
    best, loss_sum = state["best"], state["loss"]
    kept = load_weights(folder / BEST)[1]["best"] if best else {}
    if kept.get("epoch", 0) > section.epochs:  # killed after the refitted heads were kept and before that was noted
        best, state["refitted"] = kept, True
    refitted = state.get("refitted", False)
    log = MetricsLog(folder, state["step"] // steps_per_epoch + refitted)

    def keep_if_best(row: dict[str, Any]) -> None:
        nonlocal best
        log.append(row)
        if not best or row["score"] > best["score"]:
            best = row
            facts = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "best": best}
            save_weights(folder / BEST, phase.kept(), facts | {"fusion_weights": {}})

    saved = time.monotonic()
    for step, rows, logmels in _overlapped_batches(train, recipe, seed, steps_per_epoch, state["step"]):
        torch.manual_seed(seed * 1_000_003 + step)  # dropout and SpecAugment
        loss_sum += phase.step(train, rows, logmels, learning_rate(section, step, steps_per_epoch))
        epoch, inside = divmod(step + 1, steps_per_epoch)
        progress(
            step + 1,
            total,
            f"epoch {epoch + (inside > 0)} of {section.epochs}, loss {loss_sum / (inside or steps_per_epoch):.3f}",
        )
        if inside == 0:
            if not math.isfinite(loss_sum):
                raise DiffATRError(
                    f"{folder}: the loss is {loss_sum} in epoch {epoch}. Lower pretrain.lr and start with a new --name."
                )
            keep_if_best({"epoch": epoch, "loss": loss_sum / steps_per_epoch, **phase.validate(val, seed)})
            loss_sum = 0.0
        if inside == 0 or time.monotonic() - saved > 60 * section.checkpoint_minutes:
            saved = time.monotonic()
            done = {"step": step + 1, "best": best, "loss": loss_sum}
            save_state(folder / LAST, done | {"model": phase.kept(), "optimizer": phase.optimizer.state_dict()})
    if section.head_steps and not refitted:
        phase.load_state_dict(phase.state_dict() | load_weights(folder / BEST)[0])
        loss = phase.refit_heads(train, seed, progress)
        keep_if_best({"epoch": section.epochs + 1, "loss": loss, **phase.validate(val, seed)})
        save_state(folder / LAST, (load_state(folder / LAST) or {}) | {"best": best, "refitted": True})
    return TrainingResult(folder, best, time.monotonic() - began)


class PhaseOne(nn.Module):
    """What phase one trains, and one step of it: the towers, and with strategy `gen` the denoisers beside them."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.recipe = recipe
        self.device = device
        self.towers = build_towers(recipe)
        self.denoisers = DenoiserPair(recipe) if recipe.model.strategy == "gen" else None
        self.to(device)
        self.bf16 = wants_bf16(recipe.pretrain.precision, device)
        make = torch.optim.AdamW if recipe.pretrain.optimizer == "adamw" else torch.optim.Adam
        self.trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = make(self.trained, lr=recipe.pretrain.lr, weight_decay=recipe.pretrain.weight_decay, fused=True)

    def read(self, dataset: Dataset, name: str, progress: Progress) -> Split:
        """A split, with everything cached that training does not change. Raises DiffATRError if it has no clips."""
        captions = Captions.of(dataset.split(name))
        vectors = None if self.recipe.text.finetune else self.text.encode(captions.texts)
        logmels = cached_logmels(dataset, name, self.recipe.audio.hop, progress)
        return Split(logmels, captions, vectors, captions.positive_groups(self.recipe.data.same_captions))

    @property
    def text(self) -> Any:
        """The caption encoder, which phase one always has."""
        return self.towers.text

    def step(self, train: Split, rows: np.ndarray, logmels: Tensor, lr: float) -> float:
        """One optimizer step on captions `rows` and the log-mels of their clips; its loss."""
        self.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            audio = self.towers.embed_logmel(logmels.to(self.device))
            text = self.embed_captions(train, rows)
        clips, place = np.unique(train.captions.clip_index[rows], return_inverse=True)
        audio, clip_ids = audio[torch.from_numpy(place)], torch.from_numpy(train.positive_group[clips[place]])
        if self.denoisers is None:
            loss = nt_xent(audio, text, self.recipe.model.temperature, clip_ids)
        else:
            loss = self.denoisers.loss(audio, text, clip_ids)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, self.recipe.pretrain.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return float(loss.detach())

    def refit_heads(self, train: Split, seed: int, progress: Progress) -> float:
        """The heads fitted again on the frozen encoders; the loss. Needs cached caption vectors."""
        assert train.vectors is not None
        audio = augmented_views(self.towers, train.logmels, self.recipe, seed, self.device, progress)
        views = PooledViews(audio, train.vectors, train.captions, train.positive_group)
        return refit_heads(self.towers, views, self.recipe, seed, self.device, progress)

    def embed_captions(self, split: Split, rows: np.ndarray) -> Tensor:
        """Unit vectors of captions, from the BERT or from its cached vectors."""
        if split.vectors is not None:
            return self.towers.embed_pooled_text(split.vectors[torch.from_numpy(rows)].to(self.device))
        ids, mask = self.text.tokenise([split.captions.texts[i] for i in rows])
        return self.towers.embed_tokens(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def validate(self, val: Split, seed: int) -> dict[str, Any]:
        """R@1/5/10 of both directions on a split, and `score`, their sum, which chooses the best epoch."""
        audio = embed_logmels(self.towers, val.logmels, self.device, self.bf16)
        vectors = val.vectors if val.vectors is not None else self.text.encode(val.captions.texts)
        gallery = EmbeddedSplit(
            audio, self.towers.embed_pooled_text(vectors.to(self.device)).cpu(), val.captions.clip_index, val.positive_group
        )
        metrics = cosine_metrics(gallery) if self.denoisers is None else rank_by_diffusion(gallery, self.denoisers, seed)
        row: dict[str, Any] = {f"{d}_{key}": m[key] for d, m in metrics.items() for key in ("r1", "r5", "r10")}
        return row | {"score": sum(map(recall_sum, metrics.values()))}

    def kept(self) -> dict[str, Tensor]:
        """What checkpoints hold."""
        towers = {f"towers.{k}": v for k, v in trained_state(self.towers, self.recipe).items()}
        return towers | ({} if self.denoisers is None else {f"denoisers.{k}": v for k, v in self.denoisers.state_dict().items()})


def learning_rate(section: PretrainSection, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0).

    `onecycle` rises by a cosine from lr / 25 to lr over the first 30 % of the steps and falls by one to lr / 10000
    (Smith and Topin 2018), as torch's OneCycleLR; `step` multiplies by lr_decay every lr_step epochs.
    """
    if section.schedule == "step":
        return section.lr * section.lr_decay ** (step // steps_per_epoch // section.lr_step)
    if section.schedule == "constant":
        return section.lr
    last = section.epochs * steps_per_epoch - 1
    peak = 0.3 * (last + 1) - 1
    low, place = (section.lr / 25, step / peak) if step < peak else (section.lr / 1e4, 1 - (step - peak) / (last - peak))
    return low + (section.lr - low) * (1 - math.cos(math.pi * place)) / 2


POOL = 12  # batches' worth of items that are sorted by length at a time: few enough to leave the order random


def epoch_batches(
    captions: Captions, section: PretrainSection, seed: int, epoch: int, offsets: np.ndarray | None = None
) -> list[np.ndarray]:
    """An epoch's batches as caption indices, grouped by clip; the same for the same seed and epoch.

    With items `pairs` a batch has batch_size captions; with `clips`, batch_size clips and captions_per_clip of each, or
    fewer where a clip has fewer. What does not fill a batch is left out of this epoch; every epoch has another order.

    Args:
        offsets: (n + 1,) where each clip's frames begin, which `by_length` needs.
    """
    rng = np.random.default_rng([seed, epoch])
    pairs = section.items == "pairs"
    items = len(captions.clip_index) if pairs else len(captions.first) - 1
    order = rng.permutation(items)
    starts = np.arange(0, max(items - section.batch_size, 0) + 1, section.batch_size)
    if section.by_length and offsets is not None:
        lengths = np.diff(offsets)[captions.clip_index if pairs else slice(None)]
        size = POOL * section.batch_size
        pools = [order[start : start + size] for start in range(0, items, size)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        rng.shuffle(starts)
    batches = []
    for start in starts:
        chosen = np.sort(order[start : start + section.batch_size])
        if not pairs:
            spans = [np.arange(captions.first[clip], captions.first[clip + 1]) for clip in chosen]
            chosen = np.concatenate([rng.permutation(span)[: section.captions_per_clip] for span in spans])
        batches.append(chosen)
    return batches


def _overlapped_batches(
    train: Split, recipe: Recipe, seed: int, steps_per_epoch: int, start: int
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """(step, caption indices, log-mels of their clips) from a step on; the next batch is cut out while this one trains."""
    frames = int(recipe.data.seconds * SAMPLE_RATE) // recipe.audio.hop + 1

    def cut(step: int, rows: np.ndarray) -> tuple[int, np.ndarray, Tensor]:
        clips = np.unique(train.captions.clip_index[rows])
        return step, rows, train.logmels.crop(clips, frames, np.random.default_rng([seed, step, 1]))

    def plan() -> Iterator[tuple[int, np.ndarray]]:
        for epoch in range(start // steps_per_epoch, recipe.pretrain.epochs):
            for inside, rows in enumerate(epoch_batches(train.captions, recipe.pretrain, seed, epoch, train.logmels.offsets)):
                if epoch * steps_per_epoch + inside >= start:
                    yield epoch * steps_per_epoch + inside, rows

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for step, rows in plan():
            following = pool.submit(cut, step, rows)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
