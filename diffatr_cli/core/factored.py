"""An `AttentionDenoiser` multiplied out, which makes sampling over a whole corpus cheap. The algebra is `algebra.Factors`'."""

from __future__ import annotations

from copy import deepcopy

import torch

from .algebra import Factors, PreparedCandidates
from .denoiser import AttentionDenoiser

__all__ = ["FactoredDenoiser", "PreparedCandidates"]


class FactoredDenoiser(Factors):
    """The factors of an `AttentionDenoiser`, copied and multiplied out; later changes to the denoiser do not reach them.

    Equal to the denoiser up to rounding, in its type or float32, whichever is wider. No gradients.
    """

    @torch.no_grad()
    def __init__(self, denoiser: AttentionDenoiser) -> None:
        layers = denoiser.factors()
        gain = layers.neighbour_feedback
        dtype = torch.promote_types(layers.dtype, torch.float32)
        super().__init__(
            attend=layers.attend.multiplied_out(dtype),
            tabulate=layers.tabulate.multiplied_out(dtype),
            context=layers.context.multiplied_out(dtype),
            weight=layers.weight.to(dtype, copy=True),
            bias=layers.bias.to(dtype, copy=True),
            level_embedding=deepcopy(layers.level_embedding).requires_grad_(False),
            input_scale=layers.input_scale,
            output=layers.output,
            feedback=layers.feedback,
            neighbour_feedback=None if gain is None or not gain else gain.to(dtype, copy=True),
        )
