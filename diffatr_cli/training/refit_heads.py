"""Phase one's last step: the projection heads, fitted again on frozen encoders with more negatives than a batch of sounds holds.

V views, n clips, m captions, B clips of a batch, F features of an encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..core.losses import nt_xent
from ..core.towers import TwoTowers
from ..evaluation.embedded_split import Captions
from ..progress import Progress, silent
from ..recipe_schema import Recipe


@dataclass(frozen=True)
class PooledViews:
    """What frozen encoders make of the training split: audio (V, n, F), each clip under several augmentations; text (m, F)."""

    audio: Tensor
    text: Tensor
    captions: Captions
    positive_group: np.ndarray
    """(n,), equal for clips that are not negatives of one another (`Captions.positive_groups`)."""


def refit_heads(
    towers: TwoTowers, views: PooledViews, recipe: Recipe, seed: int, device: torch.device, progress: Progress = silent
) -> float:
    """Train both heads of `towers`, in place, under Eq. 8; the mean loss of the last tenth of the steps, in nats.

    A batch is `pretrain.head_batch` clips, each in a random view and with `pretrain.captions_per_clip` of its captions. To
    caption vectors noise is added, `pretrain.head_jitter` times as long as they are: the head then sends the neighbourhood of
    a caption where it sends the caption, and so words that no training caption had. The rate falls from `pretrain.head_lr` to
    nothing by a cosine.
    """
    section = recipe.pretrain
    heads = nn.ModuleList([towers.audio_head, towers.text_head]).to(device).train()
    parameters = list(heads.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=section.head_lr, weight_decay=section.head_weight_decay)
    first, clips_in_batch = views.captions.first, min(section.head_batch, len(views.positive_group))
    losses = []
    for step in range(section.head_steps):
        rng = np.random.default_rng([seed, step, 6])
        torch.manual_seed(seed * 1_000_003 + step)  # dropout
        clips = rng.choice(len(views.positive_group), clips_in_batch, replace=False)
        rows = np.concatenate([rng.permutation(np.arange(first[c], first[c + 1]))[: section.captions_per_clip] for c in clips])
        clips = views.captions.clip_index[rows]
        audio = views.audio[torch.from_numpy(rng.integers(0, len(views.audio), len(clips))), torch.from_numpy(clips)]
        text = views.text[torch.from_numpy(rows)]
        noise = torch.from_numpy(rng.standard_normal(text.shape, np.float32)) / math.sqrt(text.shape[1])
        text = text + section.head_jitter * text.norm(dim=1, keepdim=True) * noise
        loss = nt_xent(
            towers.embed_pooled_audio(audio.to(device)),
            towers.embed_pooled_text(text.to(device)),
            recipe.model.temperature,
            torch.from_numpy(views.positive_group[clips]),
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, section.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = section.head_lr * (1 + math.cos(math.pi * step / section.head_steps)) / 2
        optimizer.step()
        losses.append(float(loss.detach()))
        progress(step + 1, section.head_steps, f"refitting the heads, loss {losses[-1]:.3f}")
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
