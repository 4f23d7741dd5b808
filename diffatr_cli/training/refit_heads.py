"""Phase one's last step: the projection heads, fitted again on frozen encoders with more negatives than a batch of sounds holds.

V views, n clips, m captions, B clips of a batch, F features of an encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..core.losses import nt_xent
from ..core.towers import TwoTowers
from ..evaluation.embedded_split import Captions
from ..progress import Progress, silent
from ..recipe_schema import PretrainSection
from .streams import numpy_stream, torch_seed


@dataclass(frozen=True)
class PooledViews:
    """What frozen encoders make of the training split: audio (V, n, F), each clip under several augmentations; text (m, F)."""

    audio: Tensor
    text: Tensor
    captions: Captions
    positive_group: np.ndarray
    """(n,), equal for clips that are not negatives of one another (`Captions.positive_groups`)."""


def refit_heads(
    towers: TwoTowers, views: PooledViews, section: PretrainSection, temperature: float, seed: int, progress: Progress = silent
) -> float:
    """Train both heads of `towers`, in place, under Eq. 8; the mean loss of the last tenth of the steps, in nats.

    A batch is `head_batch` clips, each in a random view and with `captions_per_clip` of its captions. To caption vectors noise
    is added, `head_jitter` times as long as they are: the head then sends the neighbourhood of a caption where it sends the
    caption, and so words that no training caption had. The rate falls from `head_lr` to nothing by a cosine.
    """
    heads = nn.ModuleList([towers.audio_head, towers.text_head]).train()
    parameters = list(heads.parameters())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=section.head_lr, weight_decay=section.head_weight_decay, fused=True)
    first, group = views.captions.first, views.positive_group
    losses = []
    for step in range(section.head_steps):
        rng = numpy_stream(seed, "heads", step)
        torch.manual_seed(torch_seed(seed, "heads dropout", step))
        clips = rng.choice(len(group), min(section.head_batch, len(group)), replace=False)
        rows = np.concatenate([rng.permutation(np.arange(first[c], first[c + 1]))[: section.captions_per_clip] for c in clips])
        clips = views.captions.clip_index[rows]
        audio = views.audio[torch.from_numpy(rng.integers(0, len(views.audio), len(clips))), torch.from_numpy(clips)]
        text = views.text[torch.from_numpy(rows)]
        noise = torch.from_numpy(rng.standard_normal(text.shape, np.float32)) / math.sqrt(text.shape[1])
        text = text + section.head_jitter * text.norm(dim=1, keepdim=True) * noise
        loss = nt_xent(
            towers.embed_pooled_audio(audio.to(device)),
            towers.embed_pooled_text(text.to(device)),
            temperature,
            torch.from_numpy(group[clips]),
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(parameters, section.clip_norm)
        for param_group in optimizer.param_groups:
            param_group["lr"] = section.head_lr * (1 + math.cos(math.pi * step / section.head_steps)) / 2
        optimizer.step()
        losses.append(float(loss.detach()))
        progress(step + 1, section.head_steps, f"refitting the heads, loss {losses[-1]:.3f}")
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))
