"""The frozen encoders' embeddings that phase two learns from, computed once a run and cached beside its encoders.

V views, n clips, m captions, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import load_weights, save_weights
from ..core.towers import TwoTowers
from ..data.logmels import LogMels, cached_logmels
from ..data.manifest import Dataset
from ..evaluation.embedded_split import Captions, EmbeddedSplit, embed_logmels
from ..model import build_towers, fill_towers, wants_bf16, weights_hash
from ..progress import Progress, silent
from ..recipe_schema import Recipe
from ..runs import BEST
from ..types import SAMPLE_RATE

VIEW_BATCH = 32  # clips that are embedded together under augmentation, as large as phase one's batches


@dataclass(frozen=True)
class TrainingViews:
    """The training split for phase two: audio (V, n, D), text (m, D), all of norm 1; clip_index (m,), each caption's clip.

    positive_group (n,) is equal for clips that are not negatives of one another (`Captions.positive_groups`).
    """

    audio: Tensor
    text: Tensor
    clip_index: Tensor
    positive_group: Tensor


def embedded_splits(
    run: Path, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, progress: Progress = silent
) -> tuple[TrainingViews, EmbeddedSplit]:
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
    group = torch.from_numpy(train.positive_groups(recipe.data.same_captions))
    views = TrainingViews(tensors["train_audio"], tensors["train_text"], torch.from_numpy(train.clip_index), group)
    return views, EmbeddedSplit(
        tensors["val_audio"], tensors["val_text"], val.clip_index, val.positive_groups(recipe.data.same_captions)
    )


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
