"""The denoiser's algebra, once for training and sampling: the printed form with far fewer products.

G groups of queries that share candidates, T queries of a group, N candidates of a group, D embedding size, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .coarse import CoarseTable
from .feedback import Neighbours, neighbours_of
from .fused import FEW, attended_mean, decode, laid_out
from .recorded import Recordings

Output = Literal["decoder", "add_weight", "add_logit"]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """v -> W_n ... W_1 (gain v) + bias, for vectors in the last dimension; weights as those of `nn.Linear`, W_1 first."""

    weights: tuple[Tensor, ...]
    gain: float = 1.0
    bias: Tensor | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        if self.gain != 1:
            vectors = self.gain * vectors
        for weight in self.weights[:-1]:
            vectors = functional.linear(vectors, weight)
        return functional.linear(vectors, self.weights[-1], self.bias)

    @torch.no_grad()
    def multiplied_out(self, dtype: torch.dtype) -> LinearMap:
        """The same map with one weight; a copy. The product is taken in float64, so on the CPU: not every device has that."""
        product = reduce(lambda done, weight: weight @ done, [weight.cpu().double() for weight in self.weights])
        bias = None if self.bias is None else self.bias.to(dtype, copy=True)
        return LinearMap(((self.gain * product).to(self.weights[0].device, dtype),), bias=bias)


@dataclass(frozen=True, eq=False)
class Factors:
    """An `AttentionDenoiser` as linear maps, and the algebra over them.

    `AttentionDenoiser.factors` gives the maps as layers to be taken in turn, through which gradients flow: for training, where
    to multiply the weights together would cost more than the step. `FactoredDenoiser` has them multiplied out, for sampling,
    where they are used many times.

    With s the input scale, r the attention scale, w the attention weights, q and c_i the query and its candidates as unit
    vectors, and l = pj(k) / s, the printed form's parts are:

    - r Q K^T_i = r W_Q s (q + l) . W_K s (c_i + l) = A(q + l) . c_i + A(q + l) . l with A = r s^2 W_K^T W_Q (`attend`). The
      last term is the same for every i: the softmax drops it.
    - E = sum_i w_i W_V s (c_i + l) = W_V s (sum_i w_i c_i + l), since w sums to one.
    - W1 [s c_i, E] + b1 = (s W1_c c_i + b1) + W1_e E: the first term is the candidate's (`tabulate`), the second one the
      query's, s W1_e W_V (sum_i w_i c_i + l) (`context`).

    So products with D x D and D x H matrices are taken once a candidate, a query or a level, where the printed form takes
    them for every pair of query and candidate. A step over Q queries and N candidates costs 3QNH for the decoder, at most 2QND
    for the attention's mean, and little else.

    Attributes:
        attend: A, (..., D) -> (..., D).
        tabulate: the candidates' part of the decoder's hidden layer, (..., D) -> (..., H).
        context: the queries' part of it, (..., D) -> (..., H).
        weight: w2 of the decoder, (H,).
        bias: b2, (1,).
        level_embedding: pj, noise level indices (S,) -> (S, D).
        input_scale: s.
        output: as in `DenoiserConfig`.
        feedback, neighbour_feedback: as the attributes of `AttentionDenoiser`.
    """

    attend: LinearMap
    tabulate: LinearMap
    context: LinearMap
    weight: Tensor
    bias: Tensor
    level_embedding: nn.Module
    input_scale: float
    output: Output
    feedback: float = 0.0
    neighbour_feedback: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type in which everything is computed."""
        return self.weight.dtype

    @cached_property
    def recordings(self) -> Recordings:
        """Of sampling on a GPU for queries that have candidates of their own."""
        return Recordings()

    def embed_level(self, level: Tensor) -> Tensor:
        """l of noise level indices, (S,) -> (S, D)."""
        return self.level_embedding(level).to(self.dtype) / self.input_scale  # type: ignore[no-any-return]

    def prepare(self, candidates: Tensor, shift: Tensor | None = None) -> PreparedCandidates:
        """What is needed of unit embeddings (N, D) that all queries share, or of (G, N, D), one set a group.

        `shift`, (G, T, N), is added to the logits of the queries.
        """
        grouped = candidates.to(self.dtype) if candidates.ndim == 3 else candidates.to(self.dtype)[None]
        return PreparedCandidates(self, grouped, self.tabulate(grouped), None if shift is None else shift.to(self.dtype))


@dataclass(frozen=True, eq=False)
class Halves:
    """The tables of `PreparedCandidates` of the same names, in half precision, for `fused` to read in half the time."""

    candidates: Tensor
    candidate_hidden: Tensor


@dataclass(frozen=True, eq=False)
class PreparedCandidates:
    """Candidates and what one denoiser needs of them, computed once for any number of queries.

    candidates: (G, N, D) unit embeddings; G is 1 where all queries share them.
    candidate_hidden: (G, N, H), their part of the decoder's hidden layer.
    shift: (G, T, N), what is added to the logits; None where nothing is.
    """

    factors: Factors
    candidates: Tensor
    candidate_hidden: Tensor
    shift: Tensor | None = None

    @cached_property
    def contexts(self) -> Tensor:
        """`Factors.context` of each candidate, (G, N, H); computed when first asked for."""
        return self.factors.context(self.candidates)

    @cached_property
    def coarse(self) -> CoarseTable:
        """Of `candidate_hidden` where all queries share the candidates; made when first asked for."""
        return CoarseTable.of(self.candidate_hidden[0])

    @cached_property
    def longest(self) -> float:
        """The largest norm of a candidate: 1, but for what is no unit vector."""
        return float(torch.linalg.vector_norm(self.candidates, dim=2).max()) if self.candidates.numel() else 0.0

    @cached_property
    def laid_out_hidden(self) -> Tensor:
        """`candidate_hidden` as it suits many queries; made when first asked for."""
        return laid_out(self.candidate_hidden)

    @cached_property
    def halves(self) -> Halves | None:
        """Both tables in half precision; None where a number is too large for it, or where they would take more than half of the
        room that a GPU has left. Made when first asked for."""
        tables = self.candidates, self.candidate_hidden
        size = sum(2 * table.numel() for table in tables)  # bytes
        if self.candidates.is_cuda and torch.cuda.mem_get_info(self.candidates.device)[0] < 2 * size:
            return None
        highest = torch.finfo(torch.float16).max
        if any(max(-float(low), float(high)) > highest for low, high in map(torch.aminmax, tables)):
            return None
        return Halves(*(table.half() for table in tables))

    @cached_property
    def neighbours(self) -> Neighbours:
        """Of the candidates of each group; found when first asked for."""
        return neighbours_of(self.candidates)

    @cached_property
    def recordings(self) -> Recordings:
        """Of sampling on a GPU over these candidates."""
        return Recordings()

    def fed_back(self, x_k: Tensor) -> Tensor:
        """x_k, (G, T, N), as it joins the attention: with what the candidates' neighbours have of it, where that is wanted."""
        gain = self.factors.neighbour_feedback
        return x_k if gain is None else x_k + gain * self.neighbours.spread(x_k)

    def logits(
        self, attention: Tensor, dropped: Tensor, embedding: Tensor, projected: bool = False, halves: Halves | None = None
    ) -> Tensor:
        """Logits of x0_hat at one step, (G, T, N).

        Args:
            attention: A(q + l) . c_i + x_k, (G, T, N), which is r Q K^T + x_k but for what the softmax drops; x_k by `fed_back`.
            dropped: A(q + l) . l, (G, T).
            embedding: l, (D,) or (G, T, D); if `projected`, `Factors.context` of it, (H,) or (G, T, H).
            projected: whether the candidates and l go through `Factors.context` each before the mean is taken, or their mean
                does afterwards. It is linear: the result is the same.
            halves: what to read the tables from, where nothing but the decoder's output and its softmax is asked for.
        """
        return self.decoded(self.hidden(attention, embedding, projected, halves), attention, dropped, halves)

    def hidden(self, attention: Tensor, embedding: Tensor, projected: bool = False, halves: Halves | None = None) -> Tensor:
        """The queries' part of the decoder's hidden layer, (G, T, H); arguments as of `logits`."""
        if projected:
            return attended_mean(attention, self.contexts).add_(embedding)
        mean = attended_mean(attention, self.candidates, None if halves is None else halves.candidates)
        return self.factors.context(mean.add_(embedding))

    def decoded(self, hidden: Tensor, attention: Tensor, dropped: Tensor, halves: Halves | None = None) -> Tensor:
        """`logits` of their `hidden`."""
        coarse = None if halves is None else halves.candidate_hidden
        table = self.candidate_hidden if hidden.shape[1] <= FEW else self.laid_out_hidden
        logits = decode(table, hidden, self.factors.weight, self.factors.bias, coarse)
        return self.completed(logits, attention, dropped)

    def completed(self, logits: Tensor, attention: Tensor, dropped: Tensor) -> Tensor:
        """The decoder's output, (G, T, N), with what is added to it; arguments as of `logits`."""
        factors = self.factors
        if self.shift is not None:
            logits = logits + self.shift
        if factors.output == "add_weight":
            return logits + attention.softmax(2)
        if factors.output == "add_logit":
            return logits + attention + dropped[..., None]
        return logits
