"""What phase two trains: the denoisers of both directions, their loss (Eq. 6) and one step of it.

B batch, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..core.denoiser import AttentionDenoiser
from ..core.losses import generation_loss
from ..core.sampling import Objective
from ..core.schedule import NoiseSchedule
from ..device import wants_bf16
from ..phase_two import build_denoiser, build_schedule
from ..processes import count, mean_gradients, share, summed
from ..recipe_schema import DiffusionSection, ModelSection
from ..types import DIRECTIONS, Direction

Batch = Iterable[tuple[Direction, Tensor, Tensor, Tensor]]
"""For each direction: its name, query (B, D), candidates (N, D) or (B, N, D), and x_0 (B, N)."""


def denoising_loss(
    denoiser: AttentionDenoiser,
    schedule: NoiseSchedule,
    query: Tensor,
    candidates: Tensor,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    objective: Objective = "diffusion",
    rows: slice = slice(None),
) -> Tensor:
    """One Monte Carlo term of Eq. 6: a noise level and a noise a row, x_k by Eq. 5, and the divergence of x0_hat from x_0.

    Args:
        query: (B, D).
        candidates: (N, D) shared, or (B, N, D).
        x_0: (B, N) distributions: all mass on the true candidate, shared evenly where several are true.
        generator: of levels and noise; None is torch's global one.
        objective: `discriminative` has neither: x_k is zero at the level where sampling starts, and the loss is the
            cross-entropy of a classifier over the candidates.
        rows: the queries that count; what is drawn for them does not depend on which these are.

    Returns:
        A scalar in nats.
    """
    number, shape = len(query), x_0.shape
    query, candidates, x_0 = query[rows], candidates[rows] if candidates.ndim == 3 else candidates, x_0[rows]
    if objective == "discriminative":
        last = torch.full((len(query),), len(schedule) - 1, device=query.device)
        return generation_loss(denoiser.factored_forward(torch.zeros_like(x_0), last, query, candidates), x_0)
    level = torch.randint(len(schedule), (number,), generator=generator)[rows].to(query.device)
    noise = torch.randn(shape, generator=generator)[rows].to(query.device)
    logits = denoiser.factored_forward(schedule.q_sample(x_0, level, noise), level, query, candidates)
    return generation_loss(logits, x_0)


class DenoiserPair(nn.Module):
    """The denoisers of both directions with their noise schedule."""

    def __init__(self, model: ModelSection, section: DiffusionSection) -> None:
        super().__init__()
        self.precision, self.objective = section.precision, section.objective
        self.schedule = build_schedule(section)
        self.t2a = build_denoiser(model, section)
        self.a2t = build_denoiser(model, section)

    def of(self, direction: Direction) -> AttentionDenoiser:
        """The denoiser of a direction."""
        return self.t2a if direction == "t2a" else self.a2t

    def by_direction(self) -> dict[Direction, AttentionDenoiser]:
        """Both."""
        return {direction: self.of(direction) for direction in DIRECTIONS}

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """L_G of a batch, mean over what it holds.

        Of several processes each takes a share of the queries; the mean over the processes is the loss.
        """
        device = next(self.parameters()).device

        def weight(queries: int) -> float:
            own = share(queries)
            return float((own.stop - own.start) * count() / queries)

        with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(self.precision, device)):
            losses = [
                weight(len(query))
                * denoising_loss(
                    self.of(direction),
                    self.schedule,
                    query.to(device),
                    candidates.to(device),
                    x_0.to(device),
                    generator,
                    self.objective,
                    share(len(query)),
                )
                for direction, query, candidates, x_0 in batch
            ]
        return torch.stack(losses).mean()

    def loss_of_pairs(self, audio: Tensor, text: Tensor, clip_ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """L_G of a batch of pairs (B, D), whose items are each other's candidates; equal `clip_ids` (B,) are true together."""
        same = (clip_ids[:, None] == clip_ids[None]).to(audio)
        x_0 = same / same.sum(1, keepdim=True)
        return self.loss([("t2a", text, audio, x_0), ("a2t", audio, text, x_0)], generator)


def denoiser_optimizer(pair: DenoiserPair, section: DiffusionSection) -> torch.optim.Optimizer:
    """Phase two's optimizer, as the recipe says."""
    return torch.optim.AdamW(pair.parameters(), lr=section.lr, weight_decay=section.weight_decay, fused=True)


def denoising_step(
    pair: DenoiserPair, optimizer: torch.optim.Optimizer, batch: Batch, generator: torch.Generator, clip_norm: float
) -> float:
    """One optimizer step of phase two; its loss."""
    loss = pair.loss(batch, generator)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    mean_gradients(pair.parameters())
    clip_grad_norm_(pair.parameters(), clip_norm)
    optimizer.step()
    return float(summed(loss.detach())) / count()
