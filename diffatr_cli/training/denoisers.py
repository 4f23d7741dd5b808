"""What phase two trains: the denoisers of both directions, their loss (Eq. 6) and one step of it.

B batch, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..core.chain import predicted_x0
from ..core.denoiser import AttentionDenoiser
from ..core.losses import generation_loss
from ..core.query_conditioned import QueryConditioner, each_of
from ..core.sampling import X0, Objective
from ..core.schedule import NoiseSchedule
from ..device import wants_bf16
from ..phase_two import CONDITIONERS, build_conditioners, build_denoiser, build_schedule
from ..processes import count, mean_gradients, share, summed
from ..recipe_schema import DiffusionSection, ModelSection
from ..types import DIRECTIONS, Direction
from .candidates import Task

TOLD = 0.5  # of self-conditioned queries, the share that is told an answer before (Chen et al. 2022)

See = Callable[[slice], tuple[Tensor, Tensor]]
"""From some queries to the candidates as each sees them, (rows, N, D), and what is added to their logits, (rows, N)."""


@dataclass(frozen=True)
class Noising:
    """How x_k is made of x_0 in training: the fields of the same names in the recipe's `diffusion` section.

    Attributes:
        objective: `discriminative` has no noise: x_k is zero at the level where sampling starts, and the loss is the
            cross-entropy of a classifier over the candidates.
        levels: `uniform` draws noise levels evenly; `high` takes the highest of three draws.
        rollout: share of the queries whose x_k stands for the denoiser's own answer to noise in the place of x_0, as in sampling.
        x0: how logits become x0_hat.
    """

    objective: Objective = "diffusion"
    levels: Literal["uniform", "high"] = "uniform"
    rollout: float = 0.0
    x0: X0 = "softmax"

    @classmethod
    def of(cls, section: DiffusionSection) -> Noising:
        """A recipe's."""
        return cls(section.objective, section.levels, section.rollout, section.x0)


AS_PRINTED = Noising()


def denoising_loss(
    denoiser: AttentionDenoiser,
    schedule: NoiseSchedule,
    query: Tensor,
    candidates: Tensor,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    noising: Noising = AS_PRINTED,
    rows: slice = slice(None),
    see: See | None = None,
) -> Tensor:
    """One Monte Carlo term of Eq. 6: a noise level and a noise a row, x_k by Eq. 5, and the divergence of x0_hat from x_0.

    Args:
        query: (B, D).
        candidates: (N, D) shared, or (B, N, D).
        x_0: (B, N) distributions: all mass on the true candidate, shared evenly where several are true.
        generator: of levels and noise; None is torch's global one.
        noising: how x_k is made.
        rows: the queries that count; what is drawn for them does not depend on which these are.
        see: takes the place of `candidates` where they depend on the query.

    Returns:
        A scalar in nats.
    """
    number, shape, device = len(query), x_0.shape, query.device
    shift: Tensor | None = None
    if see is not None:
        candidates, shift = see(rows)
    elif candidates.ndim == 3:
        candidates = candidates[rows]
    query, x_0 = query[rows], x_0[rows]

    def logits(x_k: Tensor, level: Tensor) -> Tensor:
        return denoiser.factored_forward(x_k, level, query, candidates, shift)

    @torch.no_grad()
    def answer(x_k: Tensor, level: Tensor) -> Tensor:
        return predicted_x0(logits(x_k, level), noising.x0).to(x_0)

    last = torch.full((len(query),), len(schedule) - 1, device=device)
    if noising.objective == "discriminative":
        return generation_loss(logits(torch.zeros_like(x_0), last), x_0)
    draws = (number,) if noising.levels == "uniform" else (3, number)
    level = torch.randint(len(schedule), draws, generator=generator).view(-1, number).amax(0)[rows].to(device)
    noise = torch.randn(shape, generator=generator)[rows].to(device)

    def some(share: float) -> Tensor:
        return (torch.rand(number, generator=generator)[rows] < share).to(device)[:, None]

    x_k = schedule.q_sample(x_0, level, noise)
    if noising.rollout:
        own = answer(noise, last)
        x_k = torch.where(some(noising.rollout), schedule.q_sample(own, level, schedule.noise_in(noise, own, last)), x_k)
    if denoiser.feedback is not None:
        x_k = x_k + denoiser.feedback * (some(TOLD) * answer(x_k, level))
    return generation_loss(logits(x_k, level), x_0)


class DenoiserPair(nn.Module):
    """The denoisers of both directions with their noise schedule, and what makes their candidates depend on the query.

    Args:
        feature_sizes: as in `build_conditioners`.
    """

    def __init__(self, model: ModelSection, section: DiffusionSection, feature_sizes: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.precision, self.noising = section.precision, Noising.of(section)
        self.schedule = build_schedule(section)
        self.t2a = build_denoiser(model, section)
        self.a2t = build_denoiser(model, section)
        self.conditioners = nn.ModuleDict()
        for direction, conditioner in build_conditioners(model, section, feature_sizes).items():
            self.conditioners[direction] = conditioner

    def of(self, direction: Direction) -> AttentionDenoiser:
        """The denoiser of a direction."""
        return self.t2a if direction == "t2a" else self.a2t

    def by_direction(self) -> dict[Direction, AttentionDenoiser]:
        """Both."""
        return {direction: self.of(direction) for direction in DIRECTIONS}

    def conditioners_by_direction(self) -> dict[Direction, QueryConditioner]:
        """Those of both, or none."""
        return {direction: cast(QueryConditioner, self.conditioners[direction]) for direction in DIRECTIONS if self.conditioners}

    def kept(self, direction: Direction) -> dict[str, Tensor]:
        """The tensors of a direction under the names that phase two's checkpoint has for them."""
        found = {f"{direction}.{name}": tensor for name, tensor in self.of(direction).state_dict().items()}
        if self.conditioners:
            of_conditioner = self.conditioners[direction].state_dict()
            found |= {f"{CONDITIONERS}{direction}.{name}": tensor for name, tensor in of_conditioner.items()}
        return found

    def loss(self, batch: Iterable[Task], generator: torch.Generator | None = None) -> Tensor:
        """L_G of a batch, mean over what it holds.

        Of several processes each takes a share of the queries; the mean over the processes is the loss.
        """
        device = next(self.parameters()).device

        def weight(queries: int) -> float:
            own = share(queries)
            return float((own.stop - own.start) * count() / queries)

        with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(self.precision, device)):
            losses = [
                weight(len(task.query))
                * denoising_loss(
                    self.of(task.direction),
                    self.schedule,
                    task.query.to(device),
                    task.candidates.to(device),
                    task.x_0.to(device),
                    generator,
                    self.noising,
                    share(len(task.query)),
                    self._see(task, device),
                )
                for task in batch
            ]
        return torch.stack(losses).mean()

    def _see(self, task: Task, device: torch.device) -> See | None:
        """Candidates as the queries of a task see them; None where they do not depend on the query."""
        if not self.conditioners:
            return None
        assert task.of_query is not None
        assert task.of_candidates is not None
        conditioner = cast(QueryConditioner, self.conditioners[task.direction])
        of_query, of_candidates = task.of_query, task.of_candidates

        def see(rows: slice) -> tuple[Tensor, Tensor]:
            query = each_of(of_query, lambda part: part[rows].to(device))
            candidates = each_of(of_candidates, lambda part: part.to(device))
            projected = conditioner.project(task.direction, query, candidates)
            scale = self.of(task.direction).input_scale
            return conditioner.see(task.direction, *projected, task.candidates.to(device), scale)

        return see

    def loss_of_pairs(self, audio: Tensor, text: Tensor, clip_ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """L_G of a batch of pairs (B, D), whose items are each other's candidates; equal `clip_ids` (B,) are true together."""
        same = (clip_ids[:, None] == clip_ids[None]).to(audio)
        x_0 = same / same.sum(1, keepdim=True)
        return self.loss([Task("t2a", text, audio, x_0), Task("a2t", audio, text, x_0)], generator)


def denoiser_optimizer(pair: DenoiserPair, section: DiffusionSection) -> torch.optim.Optimizer:
    """Phase two's optimizer, as the recipe says."""
    return torch.optim.AdamW(pair.parameters(), lr=section.lr, weight_decay=section.weight_decay, fused=True)


def denoising_step(
    pair: DenoiserPair, optimizer: torch.optim.Optimizer, batch: Iterable[Task], generator: torch.Generator, clip_norm: float
) -> float:
    """One optimizer step of phase two; its loss."""
    loss = pair.loss(batch, generator)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    mean_gradients(pair.parameters())
    clip_grad_norm_(pair.parameters(), clip_norm)
    optimizer.step()
    return float(summed(loss.detach())) / count()
