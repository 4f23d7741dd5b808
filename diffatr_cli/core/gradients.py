"""Gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale the gradients down, in place, where their norm together exceeds `limit`; nothing is touched where it does not.

    `torch.nn.utils.clip_grad_norm_` multiplies by one then, which is a tenth of a step of phase two.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(sum(torch.linalg.vecdot(flat, flat) for flat in map(torch.flatten, gradients))) ** 0.5
    if not norm <= limit:  # nor where it is no number, which the loss then shows
        for gradient in gradients:
            gradient.mul_(limit / (norm + 1e-6))
