"""The noise schedule of the forward process: Eq. 4 and Eq. 5.

B batch, N candidates, K chain length. Noise level k = 1..K of the paper is index k - 1 everywhere here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import pi

import torch
from torch import Tensor

MAX_BETA = 0.999  # keeps the last steps of a schedule from erasing x_k altogether, which DDIM could not divide by


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """beta_1..beta_K with alpha_k = 1 - beta_k and alphas_cumprod_k = alpha_1 ... alpha_k; each (K,) float64 on the CPU.

    Attributes:
        x0_scale: what x_0, a distribution, is multiplied by before noise is added to it. As printed it is 1: then the noise, of
            deviation 1 for each candidate, hides x_0 at nearly every level.

    Raises:
        ValueError: betas are not a non-empty vector within (0, 1), or the scale is not above 0.
    """

    betas: Tensor
    x0_scale: float = 1.0
    alphas: Tensor = field(init=False)
    alphas_cumprod: Tensor = field(init=False)

    def __post_init__(self) -> None:
        betas = self.betas.double()
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("a noise schedule is a non-empty vector of betas, each between 0 and 1")
        if not self.x0_scale > 0:
            raise ValueError(f"x0_scale must be above 0, got {self.x0_scale}")
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas", 1 - betas)
        object.__setattr__(self, "alphas_cumprod", torch.cumprod(1 - betas, 0))

    def __len__(self) -> int:
        """K."""
        return len(self.betas)

    @classmethod
    def linear(cls, steps: int, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
        """Betas that rise evenly. `first` and `last` are those of a chain of 1000 (Ho et al. 2020), scaled by 1000 / steps.

        The scaling keeps the sum of betas, and so alphas_cumprod_K near 0, for a chain of any length.
        """
        _check_steps(steps)
        scale = 1000 / steps
        ends = (first, last) if steps > 1 else (last, last)
        return cls(torch.linspace(ends[0] * scale, ends[1] * scale, steps, dtype=torch.float64).clamp(max=MAX_BETA))

    @classmethod
    def cosine(cls, steps: int, offset: float = 0.008) -> NoiseSchedule:
        """alphas_cumprod_k = f(k) / f(0), f(k) = cos^2(pi/2 (k/K + offset) / (1 + offset)). Source: Nichol and Dhariwal 2021."""
        _check_steps(steps)
        k = torch.arange(steps + 1, dtype=torch.float64)
        f = torch.cos((k / steps + offset) / (1 + offset) * pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=MAX_BETA))

    def q_step(self, x_previous: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Eq. 4: one draw from q(x_k | x_{k-1}), x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) noise.

        Args:
            x_previous: x_{k-1}, (B, N).
            level: (B,) integer indices k - 1 in [0, K).
            noise: (B, N) standard normal.
        """
        kept, added = self._roots(1 - self.betas, level, x_previous), self._roots(self.betas, level, x_previous)
        return kept * x_previous + added * noise

    def q_sample(self, x0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Eq. 5: x_k = sqrt(alphas_cumprod_k) x_0 + sqrt(1 - alphas_cumprod_k) noise, all of q(x_{1..k} | x_0) at once.

        Args:
            x0: true distributions, (B, N), before `x0_scale`.
            level: (B,) integer indices k - 1 in [0, K), one a row.
            noise: (B, N) standard normal.

        Raises:
            IndexError: a level outside the chain.
        """
        signal = self.x0_scale * self._roots(self.alphas_cumprod, level, x0)
        return signal * x0 + self._roots(1 - self.alphas_cumprod, level, x0) * noise

    def noise_in(self, x_k: Tensor, x0: Tensor, level: Tensor) -> Tensor:
        """The noise that `q_sample` would have made x_k of x_0 with, (B, N). Arguments and error as there."""
        signal = self.x0_scale * self._roots(self.alphas_cumprod, level, x0)
        return (x_k - signal * x0) / self._roots(1 - self.alphas_cumprod, level, x0)

    @staticmethod
    def _roots(values: Tensor, level: Tensor, like: Tensor) -> Tensor:
        """sqrt(values[level]) as a column (B, 1) of the type and on the device of `like`.

        They are taken in float64 on the CPU: not every device has that type.
        """
        level = level.cpu()
        if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < len(values):
            raise IndexError(f"noise level indices run from 0 to {len(values) - 1}, got {int(level.min())}..{int(level.max())}")
        return values[level].sqrt().to(like)[:, None]


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a chain has at least one noise level, got steps={steps}")
