"""The factored sampler for one query over very many candidates, where reading the decoder's table from memory is what takes time.

Two things make the steps before the last cheaper. Neither changes the result beyond rounding:

- The attention is peaked. Which candidates it can reach at all, at any step, is known before the first one: the others stay so
  far below its maximum that the softmax leaves less than rounding to all of them together (`reached`). So x_k, the attention and
  its mean are followed at the reached candidates alone.
- There, x0_hat needs the other candidates' logits only as a sum, the softmax's denominator. It is taken from a table of half the
  bytes (`CoarseTable`) where that changes x_k by less than the attention's own rounding, and else from the table itself.

The last step, whose x0_hat is the result, takes every candidate's logit from the table itself.

N candidates, M reached ones, D embedding size, H hidden width, S sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .algebra import PreparedCandidates
from .chain import Chain, Levels, predicted_x0
from .coarse import CoarseTable
from .fused import attended_mean, decode
from .rough import CERTAIN, coarse_of, tolerance
from .threads import parallel_for

DENSE = 8  # the attention is not peaked if it can reach more than one candidate in so many
NEAR = (8.0, 1.0)  # how closely the levels' part of the attention is known in a first look at all candidates, and in a second
LEADERS = 256  # candidates among which the attention's maximum is looked for
SAMPLE = 2**12  # candidates from which it is seen at once if the attention is not peaked at all
COLUMNS = 2**14  # candidates that are looked at together


def sample_focused(part: PreparedCandidates, query: Tensor, start: Tensor, chain: Chain, levels: Levels) -> Tensor | None:
    """`sampler.fast_ddim_sample` for one query (D,) and its start noise (N,) -> x0_hat (N,).

    None where the attention is not peaked, so that nothing was gained, and where it is added to the logits of all candidates.
    """
    factors = part.factors
    if factors.output == "add_logit":
        return None
    of_query = factors.attend(query)
    places = reached(part, of_query, start, chain, levels)
    if places is None:
        return None
    values, table, x = part.candidates[0, places], part.candidate_hidden[:, places], start[places]
    similarity, shifts = values @ of_query, levels.attended @ values.mT
    denominator = _Denominator(part, places, len(chain.levels))
    x0_hat = torch.zeros_like(x)
    for i in range(len(chain.levels)):
        shown = x + factors.feedback * x0_hat if factors.feedback and i else x
        attention = similarity + shown + shifts[i]
        mean = attended_mean(attention[None, None], values[None])[0, 0]
        hidden = factors.context(mean + levels.embeddings[i])
        added = attention.softmax(0) if factors.output == "add_weight" else 0
        if i + 1 == len(chain.levels):
            logits = decode(part.candidate_hidden, hidden[None, None], factors.weight, factors.bias)[0, 0]
            logits[places] += added
            return predicted_x0(logits, chain.x0)
        logits = decode(table, hidden[None, None], factors.weight, factors.bias)[0, 0] + added
        a, b, _ = chain.coefficients[i]
        if chain.x0 == "softmax":
            wrong = tolerance(attention) / max(abs(a), abs(factors.feedback))
            x0_hat = (logits - denominator.log(hidden, logits, wrong)).exp_()
        else:
            x0_hat = predicted_x0(logits, chain.x0)
        x = b * x + a * x0_hat
    raise AssertionError("a chain has a level at least")


def reached(part: PreparedCandidates, of_query: Tensor, start: Tensor, chain: Chain, levels: Levels) -> Tensor | None:
    """Which candidates the attention can reach at any step: places (M,), ascending.

    The attention at step k is A q . c_i + A l_k . c_i + x_k[i]. Of its terms the first is known. The second is what the first
    few principal axes of all A l_k make of it, but for a rest whose size has a bound. The last is a known multiple of the start
    noise plus a sum of earlier x0_hat, and so lies in an interval of known width. Candidates that stay further than log(N / eps)
    below the maximum get less than the attention's rounding together. Those that are left are looked at again, with all axes.

    Returns:
        None if more than one candidate in DENSE is reached, as far as is known.
    """
    if not levels.attended.isfinite().all():
        return None
    candidates, n, exact = part.candidates[0], len(start), start.dtype
    scales, widths = _of_start(chain, part.factors.feedback)
    left, sizes, axes = torch.linalg.svd(levels.attended.double(), full_matrices=False)
    left *= sizes
    beyond = (left**2).flip(1).cumsum(1).flip(1).sqrt() * part.longest  # what the axes from the r-th on make at most
    eps = torch.finfo(exact).eps

    def attention(known: Tensor, noise: Tensor) -> Tensor:
        """(S, M) but for x0_hat and the rest, from M candidates' (M, rank + 1) products with the axes and the query."""
        rank = known.shape[1] - 1
        of_levels = torch.cat([left[:, :rank], torch.ones_like(left[:, :1])], 1).to(exact)
        return torch.addcmul(of_levels @ known.mT, scales[:, None].to(exact), noise[None])

    def needed(maxima: Tensor, rest: Tensor) -> Tensor:
        """The attention (S,) from which on a candidate counts."""
        return maxima - (math.log(n / eps) + 2 * rest + widths).to(exact) - 64 * eps * maxima.abs()

    sample = slice(None, None, max(1, n // SAMPLE))
    known = candidates[sample] @ torch.cat([axes.to(exact), of_query[None]]).mT
    seen = attention(known, start[sample])
    if int((seen >= needed(seen.amax(1), torch.zeros_like(widths))[:, None]).any(0).sum()) * DENSE > 4 * seen.shape[1]:
        return None
    for near in NEAR:
        rank = 1 + int((beyond[:, 1:].amax(0) > near).sum())
        rest = beyond[:, rank] if rank < beyond.shape[1] else torch.zeros_like(widths)
        known = candidates @ torch.cat([axes[:rank].to(exact), of_query[None]]).mT
        leaders = (known @ torch.cat([left[:, :rank].mean(0).to(exact), known.new_ones(1)]) + start).topk(min(LEADERS, n)).indices
        floor = needed(attention(known[leaders], start[leaders]).amax(1), rest)
        if not floor.isfinite().all():
            return None
        keep = torch.empty(n, dtype=torch.bool)

        def look(first: int, known: Tensor = known, floor: Tensor = floor, keep: Tensor = keep) -> None:
            some = slice(first, first + COLUMNS)
            torch.ge((attention(known[some], start[some]) - floor[:, None]).amax(0), 0, out=keep[some])

        parallel_for(look, range(0, n, COLUMNS))
        places = keep.nonzero()[:, 0]
        if len(places) * DENSE <= n:
            values = candidates[places]
            whole = attention(values @ torch.cat([axes.to(exact), of_query[None]]).mT, start[places])
            floor = needed(whole.amax(1), torch.zeros_like(widths))
            return places[(whole >= floor[:, None]).any(0)]
    return None


def _of_start(chain: Chain, feedback: float) -> tuple[Tensor, Tensor]:
    """By what the start noise is multiplied in x_k at each step, and how wide the interval is in which the rest lies: (S,)."""
    size = 1.0 if chain.x0 == "softmax" else 2.0
    scales, widths = [1.0], [0.0]
    for a, b, _ in chain.coefficients:
        scales.append(b * scales[-1])
        widths.append(abs(b) * widths[-1] + abs(a) * size)
    shown = [width + abs(feedback) * size * (i > 0) for i, width in enumerate(widths)]
    return torch.tensor(scales, dtype=torch.float64), torch.tensor(shown, dtype=torch.float64)


@dataclass
class _Denominator:
    """log sum_i exp(logits[i]) over all candidates.

    places: (M,), ascending, of those whose logits are given.
    steps: how often it will be asked for.
    """

    part: PreparedCandidates
    places: Tensor
    steps: int
    coarse: CoarseTable | None = field(init=False)

    def __post_init__(self) -> None:
        table, self.coarse = self.part.candidate_hidden, coarse_of(self.part, self.steps)
        n = table.shape[1]
        parts = min(n, 8 * torch.get_num_threads())
        self.ends = [n * i // parts for i in range(parts + 1)]
        self.splits = torch.searchsorted(self.places, torch.tensor(self.ends)).tolist()
        self.room = torch.empty(n, dtype=table.dtype)

    def log(self, hidden: Tensor, own: Tensor, tolerance: float) -> float:
        """The denominator's logarithm, from the logits `own` (M,) and what (H,) the others' are made of.

        Args:
            tolerance: by how much exp(own - log) may be wrong. A coarse table that cannot keep to it is given up.
        """
        factors, table = self.part.factors, self.part.candidate_hidden[0]
        constant = float(hidden @ factors.weight + factors.bias)
        if self.coarse:
            negative, weight, more = self.coarse.for_maxima(-hidden, factors.weight)
            log, others = self._log(self.coarse.values, negative, weight, constant + float(more), own)
            if CERTAIN * self.coarse.spread(factors.weight) * others * math.exp(float(own.max()) - log) <= tolerance:
                return log
            self.coarse = None
        return self._log(table, -hidden, factors.weight, constant, own)[0]

    def _log(self, table: Tensor, negative: Tensor, weight: Tensor, constant: float, own: Tensor) -> tuple[float, float]:
        """The logarithm, and the root of the sum of the squares of what the others have of the softmax."""
        from .kernels import maxima_of_one

        found = [(-math.inf, 0.0, 0.0)] * (len(self.ends) - 1)

        def work(i: int) -> None:
            first, last = self.ends[i], self.ends[i + 1]
            logits = self.room[first:last]
            maxima_of_one(table[first:last], negative, weight, logits)
            logits[self.places[self.splits[i] : self.splits[i + 1]] - first] = -math.inf
            top = float(logits.max())
            if top != -math.inf:
                logits.sub_(top).exp_()
                found[i] = top + constant, float(logits.sum()), float(logits @ logits)

        parallel_for(work, range(len(found)))
        top = float(own.max())
        found.append((top, float((own - top).exp().sum()), 0.0))
        if any(math.isnan(total) for _, total, _ in found):
            return math.nan, math.nan
        top = max(top for top, *_ in found)
        total = sum(total * math.exp(each - top) for each, total, _ in found)
        squares = sum(square * math.exp(2 * (each - top)) for each, _, square in found)
        return top + math.log(total), math.sqrt(squares) / total
