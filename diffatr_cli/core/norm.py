"""Batch norm and ReLU behind a convolution, and the halving behind them, in the way that suits the device."""

from __future__ import annotations

import logging
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from .trying import Trying

_fusing = Trying("batch norms are done in steps", logging.getLogger(__name__))


def _fused(x: Tensor, norm: nn.BatchNorm2d, halve: bool) -> Tensor:
    from .norm_triton import norm_rectified_triton

    return norm_rectified_triton(x, norm, halve)


def norm_rectified(x: Tensor, norm: nn.Module, halve: bool = False) -> Tensor:
    """relu(norm(x)); with `halve` the mean of each two by two of it. `x` may be written over.

    While training on a GPU a kernel in Triton takes half of the passes over memory that torch's operations take; where it
    cannot be had, these do it from then on.
    """
    if x.device.type == "cuda" and _fusing.works and isinstance(norm, nn.BatchNorm2d) and norm.training and _is_plain(norm):
        out = _fusing(partial(_fused, x, norm, halve))
        if out is not None:
            return out
    x = functional.relu_(norm(x))
    return functional.avg_pool2d(x, 2) if halve else x


def _is_plain(norm: nn.BatchNorm2d) -> bool:
    """Whether statistics are of this process's batch alone, and kept as the kernel keeps them."""
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None
