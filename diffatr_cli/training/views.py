"""The training split as frozen encoders see it under augmentation: what phase two and the refitting of heads learn from.

V views, n clips, m captions, D embedding size, F features of the audio encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import load_weights, save_weights
from ..core.audio_encoder import AudioEncoder
from ..core.ragged import half
from ..core.sight import States
from ..core.towers import TwoTowers
from ..data.manifest import Dataset
from ..encoders import ClipEncoder
from ..evaluation.embedded_split import Captions
from ..model import Retriever, build_towers, fill_towers
from ..phase_two import below
from ..processes import count, from_first, is_first, rank, summed
from ..progress import Progress, silent
from ..recipe_schema import Recipe
from ..runs import Encoders
from .clips import Clips, LogMelCrops, PooledClips
from .streams import numpy_stream, torch_seed

VIEW_BATCH = 32  # clips that are embedded together under augmentation, as large as phase one's batches


@dataclass(frozen=True)
class TrainingViews:
    """The training split for phase two: audio (V, n, D), text (m, D), all of norm 1; clip_index (m,), each caption's clip.

    positive_group (n,) is equal for clips that are not negatives of one another (`Captions.positive_groups`).
    states: the token states of the captions, and the frames of clip i under augmentation v as sequence v n + i; None where
    candidates do not depend on the query.
    """

    audio: Tensor
    text: Tensor
    clip_index: Tensor
    positive_group: Tensor
    states: States | None = None


def load_towers(encoders: Path, recipe: Recipe, given: tuple[int, int] | None, device: torch.device) -> TwoTowers:
    """The towers of a phase one's checkpoint, as it trains them: with dropout and augmentation.

    Args:
        recipe: that they were trained by.
        given: as of `model.build_towers`.

    Raises:
        DiffATRError: the checkpoint is missing, damaged or of another recipe.
    """
    towers = build_towers(recipe.audio.model_copy(update={"weights": None}), recipe.text, recipe.model, given)
    fill_towers(towers, below("towers.", load_weights(encoders)[0]), recipe.audio, recipe.text, encoders)
    return towers.to(device)


@torch.inference_mode()
def augmented_views(
    encoder: ClipEncoder, clips: Clips, views: int, seed: int, bf16: bool, device: torch.device, progress: Progress = silent
) -> Tensor:
    """Every clip's pooled features under each of several of phase one's augmentations (crops, SpecAugment, dropout).

    Phase one has all but memorised its training clips as they are: embedded plainly, they lie closer to their captions than
    any new clip will. Pooled features (`PooledClips`), which no augmentation touches, are one view.

    Args:
        clips: n, as the encoder takes them.
        views: V.
        bf16: run the encoder under autocast.

    Returns:
        (V, n, F) float32 on the CPU.
    """
    if isinstance(clips, PooledClips):
        return clips.vectors[None]
    out = torch.zeros(views, len(clips), encoder.features)
    for view in range(rank(), views, count()):
        for done, batch, crops in _augmented_crops(encoder, clips, view, seed, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                out[view, batch] = encoder.pooled(crops).float().cpu()
            progress(view * len(clips) + done, views * len(clips), f"training clips under augmentation, view {view + 1}")
    return summed(out)


@torch.inference_mode()
def augmented_frames(
    encoder: AudioEncoder,
    clips: LogMelCrops,
    views: int,
    seed: int,
    bf16: bool,
    device: torch.device,
    progress: Progress = silent,
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    """The frames that `augmented_views`, called alike, pools: the same augmentations.

    Yields:
        Which sequences these are, v n + i of clip i under augmentation v, and their frames (T', F), float16 on the CPU, without
        those of the silence behind a clip that is shorter than its batch.
    """
    lengths = np.diff(clips.offsets)
    for view in range(views):
        for done, batch, crops in _augmented_crops(encoder, clips, view, seed, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                frames = encoder.frames(crops)
                encoder.pool(frames)  # takes its dropout's random numbers, so that the next batch has those of the views
            heard = np.minimum(lengths[batch], crops.shape[1]) // encoder.reduction
            yield view * len(clips) + batch, [half(one[: max(1, own)]) for one, own in zip(frames, heard.tolist(), strict=True)]
            progress(view * len(clips) + done, views * len(clips), f"frames under augmentation, view {view + 1}")


def _augmented_crops(
    encoder: ClipEncoder, clips: Clips, view: int, seed: int, device: torch.device
) -> Iterator[tuple[int, np.ndarray, Any]]:
    """Each batch of a view: how many clips are done with it, which they are, and their crops, for an encoder that augments."""
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            module.eval()  # augmentation yes, statistics of the batch no: they would tie a clip to its neighbours
    by_length = np.argsort(np.diff(clips.offsets), kind="stable")  # or short clips would be padded to the longest
    rng = numpy_stream(seed, "view crop", view)
    torch.manual_seed(torch_seed(seed, "view augmentation", view))
    for start in range(0, len(clips), VIEW_BATCH):
        batch = by_length[start : start + VIEW_BATCH]
        yield start + len(batch), batch, clips.crop(batch, rng).to(device)


@torch.inference_mode()
def embed_views(towers: TwoTowers, pooled: Tensor, device: torch.device) -> Tensor:
    """Pooled views (V, n, F) -> unit vectors (V, n, D) on the CPU. The head's dropout is a part of the augmentation."""
    towers.audio_head.train()
    return torch.stack([towers.embed_pooled_audio(view.to(device)).cpu() for view in pooled])


def views_place(encoders: Encoders, model: Retriever, dataset: Dataset, count: int) -> tuple[Path, dict[str, str]]:
    """Where so many views of a training split are kept, and what they are made from."""
    path = encoders.folder / f"embeddings-views{count}.safetensors"
    return path, {"encoders": model.model_id, "data": dataset.fingerprint}


def load_views(path: Path, source: dict[str, str], captions: Captions, same_captions: str) -> TrainingViews | None:
    """The views that `save_views` kept at `path`, if they were made from this source."""
    if not from_first(path.is_file()):
        return None
    tensors, facts = load_weights(path)
    if facts != source or not {"audio", "text"} <= tensors.keys():
        return None
    return _views(tensors["audio"], tensors["text"], captions, same_captions)


def save_views(
    path: Path, source: dict[str, str], audio: Tensor, text: Tensor, captions: Captions, same_captions: str
) -> TrainingViews:
    """Keep views for `load_views`; `source` says what they were made from."""
    if is_first():
        save_weights(path, {"audio": audio, "text": text}, source)
    return _views(audio, text, captions, same_captions)


def _views(audio: Tensor, text: Tensor, captions: Captions, same_captions: str) -> TrainingViews:
    group = torch.from_numpy(captions.positive_groups(same_captions))
    return TrainingViews(audio, text, torch.from_numpy(captions.clip_index), group)
