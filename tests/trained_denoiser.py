"""A denoiser as training leaves it, for tests of sampling."""

from __future__ import annotations

import torch

from diffatr_cli.core.denoiser import AttentionDenoiser


def trained(dim=24, hidden=40, temperature=0.01, gain=8.0, **options):
    """A denoiser as training leaves it: attention, decoder and level embedding far from their start, x0_hat peaked."""
    denoiser = AttentionDenoiser(dim, hidden, temperature=temperature, generator=torch.Generator().manual_seed(3), **options)
    with torch.no_grad():
        denoiser.w_k.weight += 0.1 * denoiser.w_v.weight
        denoiser.level.outer.weight *= 10
        denoiser.decoder[0].weight *= gain**0.5
        denoiser.decoder[2].weight *= gain**0.5
    return denoiser.requires_grad_(False)
