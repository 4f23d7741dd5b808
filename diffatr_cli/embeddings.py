"""The frozen encoders' embeddings that phase two learns from, computed once a run and cached beside its encoders.

V views, n clips, m captions, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint import load_weights, save_weights
from .core.logmel import SAMPLE_RATE
from .core.towers import TwoTowers
from .data.logmels import LogMels, cached_logmels
from .data.manifest import Dataset
from .gallery import Captions, Gallery, embed_logmels
from .model import Direction, build_towers, fill_towers, wants_bf16, weights_hash
from .progress import Progress, silent
from .recipe_schema import DiffusionSection, Recipe
from .runs import BEST

VIEW_BATCH = 32  # clips that are embedded together under augmentation, as large as phase one's batches
NEIGHBOUR_BLOCK = 1024  # queries whose nearest others are sought at once


@dataclass(frozen=True)
class TrainingViews:
    """The training split for phase two: audio (V, n, D), text (m, D), all of norm 1, and owner (m,), each caption's clip.

    sounds (n,) is equal for clips that are not negatives of one another (`Captions.sounds`).
    """

    audio: Tensor
    text: Tensor
    owner: Tensor
    sounds: Tensor


def embedded_splits(
    run: Path, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, progress: Progress = silent
) -> tuple[TrainingViews, Gallery]:
    """Training views and the validation gallery by the encoders of a seed folder, from the cache or computed into it.

    Phase one has all but memorised its training clips as they are: embedded plainly, they lie closer to their captions than
    any new clip will. So they are embedded `diffusion.views` times under phase one's own augmentation (crops, SpecAugment,
    dropout).
    """
    encoders = run / "pretrain" / BEST
    path = run / "pretrain" / f"embeddings-views{recipe.diffusion.views}.safetensors"
    source = {"encoders": weights_hash(encoders), "data": dataset.fingerprint}
    train, val = (Captions.of(dataset.split(split)) for split in ("train", "val"))
    if path.is_file():
        tensors, facts = load_weights(path)
    if not path.is_file() or facts != source:
        towers = build_towers(recipe, pretrained=False)
        weights = {k.removeprefix("towers."): v for k, v in load_weights(encoders)[0].items() if k.startswith("towers.")}
        fill_towers(towers, weights, recipe, encoders)
        towers.to(device)
        logmels = cached_logmels(dataset, "train", recipe.audio.hop, progress)
        tensors = {
            "train_audio": _embed_views(towers, augmented_views(towers, logmels, recipe, seed, device, progress), device),
            "train_text": _embed_captions(towers, train.texts, device),
            "val_audio": embed_logmels(towers, cached_logmels(dataset, "val", recipe.audio.hop, progress), device),
            "val_text": _embed_captions(towers, val.texts, device),
        }
        save_weights(path, tensors, source)
    sounds = torch.from_numpy(train.sounds(recipe.data.same_captions))
    views = TrainingViews(tensors["train_audio"], tensors["train_text"], torch.from_numpy(train.owner), sounds)
    return views, Gallery(tensors["val_audio"], tensors["val_text"], val.owner, val.sounds(recipe.data.same_captions))


@torch.inference_mode()
def _embed_captions(towers: TwoTowers, texts: list[str], device: torch.device) -> Tensor:
    assert towers.text is not None
    towers.eval()
    return towers.embed_pooled_text(towers.text.encode(texts).to(device)).cpu()


@torch.inference_mode()
def _embed_views(towers: TwoTowers, pooled: Tensor, device: torch.device) -> Tensor:
    towers.train()  # the heads' dropout is a part of the augmentation
    return torch.stack([towers.embed_pooled_audio(view.to(device)).cpu() for view in pooled])


@torch.inference_mode()
def augmented_views(
    towers: TwoTowers, logmels: LogMels, recipe: Recipe, seed: int, device: torch.device, progress: Progress = silent
) -> Tensor:
    """Every clip's pooled features under each of `diffusion.views` of phase one's augmentations, (V, n, F) on the CPU."""
    towers.train()
    for module in towers.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # augmentation yes, statistics of the batch no: they would tie a clip to its neighbours
    frames = int(recipe.data.seconds * SAMPLE_RATE) // recipe.audio.hop + 1
    views = recipe.diffusion.views
    by_length = np.argsort(np.diff(logmels.offsets), kind="stable")  # or short clips would be padded to the longest
    out = torch.empty(views, len(logmels), towers.audio.features)
    for view in range(views):
        rng = np.random.default_rng([seed, view, 2])
        torch.manual_seed(seed * 1_000_003 + view)
        for start in range(0, len(logmels), VIEW_BATCH):
            clips = by_length[start : start + VIEW_BATCH]
            with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(recipe.pretrain.precision, device)):
                out[view, clips] = towers.audio.pooled(logmels.crop(clips, frames, rng).to(device)).float().cpu()
            done = view * len(logmels) + start + len(clips)
            progress(done, views * len(logmels), f"training clips under augmentation, view {view + 1}")
    return out


class CandidateBatches:
    """Phase two's batches: which captions, which views of their clips, and which candidates stand beside them.

    Args:
        views: the training split.
        section: `candidates`, `negatives`, `batch_size` and `jitter` of the recipe.
        seed: of the order, the views, the drawn candidates and the jitter.
    """

    def __init__(self, views: TrainingViews, section: DiffusionSection, seed: int) -> None:
        self.views = views
        self.section = section
        self.seed = seed
        self.nearest: dict[Direction, Tensor] = {}
        self._order = -1, torch.empty(0)  # the epoch that was asked for last, and its captions in order
        if section.candidates != "batch" and section.negatives == "nearest":
            audio = functional.normalize(views.audio.mean(0), dim=1)
            of_text, others = views.sounds[views.owner], section.candidates - 1
            self.nearest["t2a"] = nearest_others(views.text, audio, of_text, views.sounds, others)
            self.nearest["a2t"] = nearest_others(audio, views.text, views.sounds, of_text, others)

    def __len__(self) -> int:
        """Batches an epoch."""
        return max(1, len(self.views.text) // self.section.batch_size)

    def __call__(self, epoch: int, inside: int) -> Iterator[tuple[Direction, Tensor, Tensor, Tensor]]:
        """For each direction: its name, query (B, D), candidates (N, D) or (B, N, D), and x_0 (B, N)."""
        rng = np.random.default_rng([self.seed, epoch, inside, 3])
        size = self.section.batch_size
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, 4]).permutation(len(self.views.text))
            self._order = epoch, torch.from_numpy(order)
        rows = self._order[1][inside * size : (inside + 1) * size]
        clips = self.views.owner[rows]
        audio, text = self._audio(clips, rng), self._jittered(self.views.text[rows], rng)
        if self.nearest:
            sides: tuple[tuple[Direction, Tensor, Tensor, Tensor], ...] = (
                ("t2a", text, audio, rows),
                ("a2t", audio, text, clips),
            )
            for direction, query, true, keys in sides:
                near = self.nearest[direction][keys]
                pool = self._audio(near, rng) if direction == "t2a" else self._jittered(self.views.text[near], rng)
                candidates = torch.cat([true[:, None], pool], 1)
                x_0 = torch.zeros(candidates.shape[:2])
                x_0[:, 0] = 1
                yield direction, query, candidates, x_0
            return
        all_clips, all_audio, all_text = clips, audio, text
        extra = 0 if self.section.candidates == "batch" else min(self.section.candidates - len(rows), len(self.views.text))
        if extra > 0:
            drawn = torch.from_numpy(rng.choice(len(self.views.text), extra, replace=False))
            more = self.views.owner[drawn]
            all_clips = torch.cat([clips, more])
            all_audio = torch.cat([audio, self._audio(more, rng)])
            all_text = torch.cat([text, self._jittered(self.views.text[drawn], rng)])
        x_0 = (self.views.sounds[clips][:, None] == self.views.sounds[all_clips][None]).float()
        x_0 = x_0 / x_0.sum(1, keepdim=True)
        yield "t2a", text, all_audio, x_0
        yield "a2t", audio, all_text, x_0

    def _audio(self, clips: Tensor, rng: np.random.Generator) -> Tensor:
        view = torch.from_numpy(rng.integers(0, len(self.views.audio), clips.shape))
        return self._jittered(self.views.audio[view, clips], rng)

    def _jittered(self, vectors: Tensor, rng: np.random.Generator) -> Tensor:
        if self.section.jitter == 0:
            return vectors
        noise = torch.from_numpy(rng.standard_normal(vectors.shape, np.float32))
        return functional.normalize(vectors + noise * (self.section.jitter / vectors.shape[-1] ** 0.5), dim=-1)


def nearest_others(queries: Tensor, candidates: Tensor, query_sounds: Tensor, candidate_sounds: Tensor, count: int) -> Tensor:
    """For each query (Q, D) the `count` candidates (N, D) nearest by dot product that are another sound -> (Q, count).

    Fewer where there are not that many others.
    """
    parts = []
    for start in range(0, len(queries), NEIGHBOUR_BLOCK):
        block = slice(start, start + NEIGHBOUR_BLOCK)
        scores = queries[block] @ candidates.T
        scores[query_sounds[block][:, None] == candidate_sounds[None]] = -torch.inf
        largest_family = int(torch.bincount(candidate_sounds).max())
        parts.append(scores.topk(min(count, len(candidates) - largest_family)).indices)
    return torch.cat(parts)
