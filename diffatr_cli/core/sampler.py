"""DDIM sampling of x_0 from noise: Eq. 3, the denoiser in a loop.

B batch, N candidates, D embedding size, K chain length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .schedule import NoiseSchedule

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x_k, level, query, candidates) -> logits
Noise = Tensor | Callable[[int], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]
X0 = Literal["softmax", "clip"]


def ddim_levels(chain: int, steps: int | None) -> list[int]:
    """The noise level indices that a sampler of `steps` steps visits: evenly spaced from chain - 1 down to 0.

    One step visits only the last level.

    Raises:
        ValueError: not 1 <= steps <= chain.
    """
    steps = chain if steps is None else steps
    if not 1 <= steps <= chain:
        raise ValueError(f"steps must lie between 1 and the chain's length, {chain}; got {steps}")
    return [chain - 1 - i * (chain - 1) // max(steps - 1, 1) for i in range(steps)]


def predicted_x0(logits: Tensor, x0: X0) -> Tensor:
    """x0_hat from logits (B, N): their softmax, a distribution as x_0 is, or the logits clipped to [-1, 1]."""
    return logits.softmax(1) if x0 == "softmax" else logits.clamp(-1, 1)


def ddim_coefficients(schedule: NoiseSchedule, level: int, following: int, eta: float) -> tuple[float, float, float]:
    """One DDIM step (Song et al. 2020, Eq. 12) from `level` to `following`: x <- a x0_hat + b x + c noise; returns a, b, c.

    The noise that x_k holds, (x_k - sqrt(acp_k) x0_hat) / sqrt(1 - acp_k), is put in, which leaves three coefficients.
    """
    acp, acp_next = schedule.alphas_cumprod[level].item(), schedule.alphas_cumprod[following].item()
    sigma = eta * ((1 - acp_next) / (1 - acp) * (1 - acp / acp_next)) ** 0.5
    kept = ((1 - acp_next - sigma**2) / (1 - acp)) ** 0.5
    return acp_next**0.5 - kept * acp**0.5, kept, sigma


def _noise_source(
    noise: Noise | None, generator: torch.Generator | None, like: Tensor, candidates: Tensor
) -> Callable[[int], Tensor]:
    """The noise of step i, (B, N) in the type and on the device of the queries `like`."""
    shape = (len(like), candidates.shape[-2])

    def draw(i: int) -> Tensor:
        if callable(noise):
            drawn = noise(i)
        elif noise is not None and i == 0:
            drawn = noise
        else:
            device = like.device if generator is None else generator.device
            drawn = torch.randn(shape, generator=generator, device=device, dtype=like.dtype)
        if drawn.shape != shape:
            raise ValueError(f"the noise of {shape[0]} queries and {shape[1]} candidates is {shape}, got {tuple(drawn.shape)}")
        return drawn.to(like)

    return draw


@torch.no_grad()
def ddim_sample(
    denoiser: Denoise,
    query: Tensor,
    candidates: Tensor,
    schedule: NoiseSchedule,
    steps: int | None = None,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
    x0: X0 = "softmax",
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 3: x = f_phi(a, t, N(0, I)), by DDIM (Song et al. 2020). The plain loop, which `fast_ddim_sample` must equal.

    Args:
        denoiser: any callable (x_k, level, query, candidates) -> logits of x0_hat, (B, N).
        query: (B, D).
        candidates: (N, D), or (B, N, D), one set a query.
        schedule: of K levels.
        steps: levels visited, evenly spaced; None visits all K.
        eta: 0 is deterministic, 1 ancestral sampling.
        noise: the start noise (B, N), or a function of i that gives it for i = 0 and, with eta > 0, the noise to add after
            step i for i >= 1.
        generator: source of the noise that `noise` does not give; None is torch's global one.
        x0: how logits become x0_hat.
        on_step: called at every level with (level index, x_k, x0_hat).

    Returns:
        x0_hat of the last step, (B, N).

    Raises:
        ValueError: steps or eta out of range, or noise of another shape.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    levels = ddim_levels(len(schedule), steps)
    draw = _noise_source(noise, generator, query, candidates)
    x = draw(0)
    for i, level in enumerate(levels):
        x0_hat = predicted_x0(denoiser(x, torch.full((len(query),), level, device=query.device), query, candidates), x0)
        if on_step is not None:
            on_step(level, x, x0_hat)
        if i + 1 < len(levels):
            a, b, c = ddim_coefficients(schedule, level, levels[i + 1], eta)
            x = a * x0_hat + b * x
            if c > 0:
                x = x + c * draw(i + 1)
    return x0_hat
