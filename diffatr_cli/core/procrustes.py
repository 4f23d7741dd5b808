"""One space of vectors turned onto another: orthogonal Procrustes.

n points, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOWARDS_IDENTITY = 1e-7
"""The weight of staying as one is, as a share of the points': it decides in directions of which the points say nothing."""


def rotation_onto(source: Tensor, target: Tensor) -> Tensor:
    """The orthogonal matrix R (D, D), float64, for which `source @ R` lies nearest to `target` (Schönemann 1966).

        R = argmin |source R - target|^2  =  U V^T,   where  source^T target = U S V^T

    Dot products among the turned points are those that they had before. Points that span fewer than D directions leave R open;
    it is then the one nearest to the identity.

    Args:
        source, target: (n, D), row i of either the same thing in its space. None at all give the identity.

    Raises:
        ValueError: the shapes differ.
    """
    if source.shape != target.shape or source.ndim != 2:
        raise ValueError(f"source and target are (n, D) of one shape, got {tuple(source.shape)} and {tuple(target.shape)}")
    x, y = source.double(), target.double()
    size = float(x.norm() * y.norm()) or 1.0
    identity = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    u, _, vh = torch.linalg.svd(x.T @ y + _TOWARDS_IDENTITY * size * identity)
    rotation: Tensor = u @ vh
    return rotation
