"""x0_hat of one query over very many candidates before the last step, from a table of half the bytes.

It differs from x0_hat of the table itself by less than the rounding of the attention that it is added to: candidates that have
so much of it that their logits must be exact, a few hundred at most, get them from the table itself.

N candidates, D embedding size, H hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .algebra import PreparedCandidates
from .coarse import CoarseTable
from .fused import decode
from .threads import parallel_for

MANY = 2**16  # candidates from which on this is done
COARSE = 2**24  # entries of a table that is too large for the caches: a coarse one is faster to read
COARSE_STEPS = 16  # after which a coarse table that has yet to be made has paid off
FEW = 16  # one candidate in so many may need an exact logit
CERTAIN = math.sqrt(math.log(2 / 1e-12) / 2)  # the t of `CoarseTable.spread` that is passed once in 10^12 times


def coarse_of(part: PreparedCandidates, steps: int) -> CoarseTable | None:
    """The coarse table of candidates, where reading it for so many steps takes less time than without, its making included."""
    table = part.candidate_hidden
    if table.numel() < COARSE or table.dtype != torch.float32 or ("coarse" not in part.__dict__ and steps < COARSE_STEPS):
        return None
    return part.coarse if part.coarse.step.isfinite().all() else None


def tolerance(attention: Tensor) -> float:
    """By how much what is added to an attention may be wrong: by a quarter of what its largest entry is rounded by, at most."""
    return torch.finfo(attention.dtype).eps / 8 * max(1.0, float(attention.abs().max()))


class RoughX0:
    """x0_hat by softmax of one query over all candidates of a part (G = 1) that has a coarse table."""

    def __init__(self, part: PreparedCandidates, coarse: CoarseTable) -> None:
        self.part, self.coarse = part, coarse
        self.spread = CERTAIN * coarse.spread(part.factors.weight)
        self.room = torch.empty(len(coarse.values), dtype=part.factors.dtype)
        parts = 8 * torch.get_num_threads()
        self.ends = [len(self.room) * i // parts for i in range(parts + 1)]

    def __call__(self, hidden: Tensor, attention: Tensor, dropped: Tensor, gain: float) -> Tensor | None:
        """x0_hat, (1, 1, N), of `PreparedCandidates.hidden`; None where it cannot be as exact as it has to be.

        Args:
            attention, dropped: as of `PreparedCandidates.logits`.
            gain: by what x0_hat is multiplied before it is added to the attention.
        """
        factors = self.part.factors
        logits = self._decode(hidden[0, 0])
        x0_hat = self.part.completed(logits[None, None], attention, dropped).softmax(2)
        wrong = tolerance(attention) / gain
        places = (x0_hat[0, 0] > wrong / self.spread).nonzero()[:, 0]
        if not len(places):
            return x0_hat
        if len(places) * FEW > len(logits):
            return None
        logits[places] = decode(self.part.candidate_hidden[:, places], hidden, factors.weight, factors.bias)[0, 0]
        x0_hat = self.part.completed(logits[None, None], attention, dropped).softmax(2)
        others = torch.linalg.vector_norm(x0_hat[0, 0].index_fill(0, places, 0))
        # What the others' sum is wrong by is what the softmax's denominator is.
        return x0_hat if self.spread * float(others * x0_hat.max()) <= wrong else None

    def _decode(self, hidden: Tensor) -> Tensor:
        """`fused.decode` of the coarse table, (H,) -> (N,)."""
        from .kernels import maxima_of_one

        factors = self.part.factors
        negative, weight, more = self.coarse.for_maxima(-hidden, factors.weight)
        constant = more + hidden @ factors.weight + factors.bias

        def work(i: int) -> None:
            some = slice(self.ends[i], self.ends[i + 1])
            maxima_of_one(self.coarse.values[some], negative, weight, self.room[some])
            self.room[some] += constant

        parallel_for(work, range(len(self.ends) - 1))
        return self.room
