"""Shortlisted candidates as each query sees them: `QueryConditioner` over the states of a corpus, read a block at a time.

Q queries, N candidates, S of a shortlist, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import Direction
from .query_conditioned import Frames, Padded, QueryConditioner, Tokens, each_of
from .ragged import Ragged

PROJECTED_AT_ONCE = 64  # sequences
KEPT_ENTRIES = 2**26  # of all candidates' projections, up to which they are made once and kept: 256 MB in float32


class States(NamedTuple):
    """The token states of captions and the frames of clips."""

    tokens: Ragged
    frames: Ragged


@dataclass(frozen=True, eq=False)
class Sight:
    """What the queries of one direction see in their candidates.

    Attributes:
        queries: states that `rows` point into, token states for text-to-audio and frames for audio-to-text.
        candidates: of the N candidates, the other kind.
        rows: (Q,) the place of each query among `queries`.
        input_scale: of the denoiser.
        kept: the projections of all candidates, by the device that they are on, once they are made; `of` shares them.
    """

    conditioner: QueryConditioner
    direction: Direction
    queries: Ragged
    candidates: Ragged
    rows: NDArray[np.int64]
    input_scale: float
    kept: dict[torch.device, Tokens | Frames] = field(default_factory=dict, repr=False)

    def of(self, part: slice | Sequence[int] | NDArray[np.integer]) -> Sight:
        """The same of some of the queries."""
        return replace(self, rows=self.rows[part])

    def entries(self, shortlist: int) -> int:
        """How many numbers the largest array of one query over so many candidates has, at most."""
        longest = [int(each.lengths.max(initial=1)) for each in (self.queries, self.candidates)]
        width, times = self.conditioner.w_q.out_features, longest[self.direction == "t2a"]
        tokens = longest[self.direction == "a2t"]
        return shortlist * max(2 * width * max(longest), tokens * max(width, times))

    @torch.no_grad()
    def __call__(self, part: slice, listed: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates as some of the queries see them.

        Args:
            part: which queries.
            listed: their candidates, (q, S) places among the N.
            vectors: unit embeddings of those, (q, S, D), on the device of the work.

        Returns:
            As `QueryConditioner.see`: (q, S, D) for the denoiser, and (q, S) to add to its logits.
        """
        query = self._projected(self.queries, self.rows[part], self.direction == "t2a", vectors)
        own = self._candidates_of(listed, vectors)
        seen, shift = self.conditioner.see(self.direction, query, own, vectors, self.input_scale)
        return seen.to(vectors.dtype), shift.to(vectors.dtype)

    @torch.no_grad()
    def whole(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates as all queries see them, without a shortlist, from their unit embeddings (N, D)."""
        query = self._projected(self.queries, self.rows, self.direction == "t2a", vectors)
        candidates = self._projected(self.candidates, np.arange(len(self.candidates)), self.direction == "a2t", vectors)
        seen, shift = self.conditioner.see(self.direction, query, candidates, vectors, self.input_scale)
        return seen.to(vectors.dtype), shift.to(vectors.dtype)

    def _candidates_of(self, listed: Tensor, like: Tensor) -> Tokens | Frames:
        """The projections of listed candidates (q, S): of all made once where they have room, else of those that are listed."""
        tokens, longest = self.direction == "a2t", int(self.candidates.lengths.max(initial=1))
        if len(self.candidates) * longest * 2 * self.conditioner.w_q.out_features > KEPT_ENTRIES:
            places, inverse = np.unique(listed.cpu().numpy(), return_inverse=True)
            found = self._projected(self.candidates, places, tokens, like)
            listed = torch.from_numpy(inverse.reshape(listed.shape)).to(like.device)
        else:
            if like.device not in self.kept:
                self.kept[like.device] = self._projected(self.candidates, np.arange(len(self.candidates)), tokens, like)
            found = self.kept[like.device]
        return each_of(found, lambda each: each[listed])

    def _projected(self, states: Ragged, places: NDArray[np.int64], tokens: bool, like: Tensor) -> Tokens | Frames:
        """Some sequences, a few at a time, padded to the longest of them."""
        parts, weight = [], self.conditioner.w_q.weight
        for start in range(0, len(places), PROJECTED_AT_ONCE):
            padded = states.padded(places[start : start + PROJECTED_AT_ONCE])
            padded = Padded(padded.states.to(like.device, weight.dtype), padded.mask.to(like.device))
            parts.append(self.conditioner.project_tokens(padded) if tokens else self.conditioner.project_frames(padded))
        length = max(part[-1].shape[1] for part in parts)
        if len(parts) == 1:
            return parts[0]
        columns = [torch.cat([_to_length(each, length) for each in column]) for column in zip(*parts, strict=True)]
        return type(parts[0])(*columns)


def _to_length(values: Tensor, length: int) -> Tensor:
    """(m, L, ...) with zeros behind, up to a length."""
    missing = length - values.shape[1]
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], 1) if missing else values
