"""Batch norm and ReLU behind a convolution, and the halving behind them, in the way that suits the device."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)


class _Fusing:
    """Whether the kernel has worked so far."""

    works = True


def norm_rectified(x: Tensor, norm: nn.Module, halve: bool = False) -> Tensor:
    """relu(norm(x)); with `halve` the mean of each two by two of it. `x` may be written over.

    While training on a GPU a kernel in Triton takes half of the passes over memory that torch's operations take; where it
    cannot be had, these do it from then on.
    """
    if x.device.type == "cuda" and _Fusing.works and isinstance(norm, nn.BatchNorm2d) and norm.training and _is_plain(norm):
        try:
            from .norm_triton import norm_rectified_triton

            return norm_rectified_triton(x, norm, halve)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton, its C compiler and its driver fail in many ways
            _Fusing.works = False
            log.debug("batch norms are done in steps: Triton failed (%s)", error)
    x = functional.relu_(norm(x))
    return functional.avg_pool2d(x, 2) if halve else x


def _is_plain(norm: nn.BatchNorm2d) -> bool:
    """Whether statistics are of this process's batch alone, and kept as the kernel keeps them."""
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None
