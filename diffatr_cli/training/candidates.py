"""Phase two's batches: queries with the candidates that stand beside them.

B batch, N candidates, m captions, n clips, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.query_conditioned import Padded
from ..recipe_schema import DiffusionSection
from ..types import Direction
from .streams import numpy_stream
from .views import TrainingViews

NEIGHBOUR_BLOCK = 1024  # queries whose nearest others are sought at once
NEAREST = 24  # of a query, from which shared candidates are drawn


class Task(NamedTuple):
    """What a batch asks in one direction.

    query: (B, D).
    candidates: (N, D), shared by all queries, or (B, N, D).
    x_0: (B, N) distributions.
    of_query, of_candidates: their token states or frames, where candidates depend on the query; the candidates are shared then.
    """

    direction: Direction
    query: Tensor
    candidates: Tensor
    x_0: Tensor
    of_query: Padded | None = None
    of_candidates: Padded | None = None


@dataclass(frozen=True)
class _Side:
    """Vectors of some captions, or of some clips under the augmentations `view`, and their places in the split."""

    vectors: Tensor
    places: Tensor
    view: Tensor | None

    def with_more(self, other: _Side) -> _Side:
        view = None if self.view is None or other.view is None else torch.cat([self.view, other.view])
        return _Side(torch.cat([self.vectors, other.vectors]), torch.cat([self.places, other.places]), view)

    def clips(self, clip_index: Tensor) -> Tensor:
        """The clip that each belongs to."""
        return clip_index[self.places] if self.view is None else self.places


class CandidateBatches:
    """Phase two's batches: which captions, which views of their clips, and which candidates stand beside them.

    Args:
        views: the training split.
        section: `candidates`, `negatives`, `batch_size` and `jitter` of the recipe.
        seed: of the order, the views, the drawn candidates and the jitter.
        device: that seeks the nearest others; the batches are on the CPU.
    """

    def __init__(
        self, views: TrainingViews, section: DiffusionSection, seed: int, device: torch.device = torch.device("cpu")
    ) -> None:
        self.views = views
        self.section = section
        self.seed = seed
        self.nearest: dict[Direction, Tensor] = {}
        self._order = -1, torch.empty(0)  # the epoch that was asked for last, and its captions in order
        if section.candidates != "batch" and section.negatives != "bank":
            audio = functional.normalize(views.audio.mean(0), dim=1)
            of_text = views.positive_group[views.clip_index]
            others = section.candidates - 1 if section.negatives == "nearest" else NEAREST
            texts, clips, of_text, of_clip = (each.to(device) for each in (views.text, audio, of_text, views.positive_group))
            self.nearest["t2a"] = nearest_others(texts, clips, of_text, of_clip, others).cpu()
            self.nearest["a2t"] = nearest_others(clips, texts, of_clip, of_text, others).cpu()

    def __len__(self) -> int:
        """Batches an epoch."""
        return max(1, len(self.views.text) // self.section.batch_size)

    def __call__(self, epoch: int, inside: int) -> Iterator[Task]:
        """What the batch asks, in each direction."""
        rng = numpy_stream(self.seed, "candidates", epoch, inside)
        size = self.section.batch_size
        if self._order[0] != epoch:
            order = numpy_stream(self.seed, "pair order", epoch).permutation(len(self.views.text))
            self._order = epoch, torch.from_numpy(order)
        rows = self._order[1][inside * size : (inside + 1) * size]
        clips = self.views.clip_index[rows]
        audio, text = self._audio(clips, rng), self._text(rows, rng)
        if self.nearest and self.section.negatives == "nearest":
            sides: tuple[tuple[Direction, _Side, _Side], ...] = (("t2a", text, audio), ("a2t", audio, text))
            for direction, query, true in sides:
                near = self.nearest[direction][query.places]
                pool = self._audio(near, rng) if direction == "t2a" else self._text(near, rng)
                candidates = torch.cat([true.vectors[:, None], pool.vectors], 1)
                x_0 = torch.zeros(candidates.shape[:2])
                x_0[:, 0] = 1
                yield Task(direction, query.vectors, candidates, x_0)
            return
        more_clips, more_text = self._shared(rows, clips, rng)
        all_audio, all_text = audio, text
        if len(more_clips):
            all_audio = audio.with_more(self._audio(more_clips, rng))
        if len(more_text):
            all_text = text.with_more(self._text(more_text, rng))
        group = self.views.positive_group
        beside: tuple[tuple[Direction, _Side, _Side], ...] = (("t2a", text, all_audio), ("a2t", audio, all_text))
        for direction, query, true in beside:
            of_query, of_true = (group[each.clips(self.views.clip_index)] for each in (query, true))
            x_0 = (of_query[:, None] == of_true[None]).float()
            x_0 = x_0 / x_0.sum(1, keepdim=True)
            yield Task(direction, query.vectors, true.vectors, x_0, self._states(query), self._states(true))

    def _shared(self, rows: Tensor, clips: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The clips, and the captions, that stand beside the batch's own for all of its queries."""
        if self.section.candidates == "batch":
            return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        extra = max(0, self.section.candidates - len(rows))
        if not self.nearest:
            drawn = torch.from_numpy(rng.choice(len(self.views.text), min(extra, len(self.views.text)), replace=False))
            return self.views.clip_index[drawn], drawn
        each = -(-extra // len(rows))
        found = []
        keyed: tuple[tuple[Direction, Tensor, Tensor], ...] = (("t2a", rows, clips), ("a2t", clips, rows))
        for direction, keys, own in keyed:
            near = self.nearest[direction][keys].numpy()
            order = rng.random(near.shape).argsort(1)[:, :each]
            chosen = np.take_along_axis(near, order, 1).T.reshape(-1)[:extra]  # as many of each query, up to one
            found.append(torch.from_numpy(np.setdiff1d(chosen, own.numpy())))
        return found[0], found[1]

    def _audio(self, clips: Tensor, rng: np.random.Generator) -> _Side:
        view = torch.from_numpy(rng.integers(0, len(self.views.audio), clips.shape))
        return _Side(self._jittered(self.views.audio[view, clips], rng), clips, view)

    def _text(self, captions: Tensor, rng: np.random.Generator) -> _Side:
        return _Side(self._jittered(self.views.text[captions], rng), captions, None)

    def _states(self, side: _Side) -> Padded | None:
        """Token states of captions, frames of clips; None where they are not needed."""
        if self.views.states is None:
            return None
        if side.view is None:
            return self.views.states.tokens.padded(side.places)
        return self.views.states.frames.padded(side.view * len(self.views.positive_group) + side.places)

    def _jittered(self, vectors: Tensor, rng: np.random.Generator) -> Tensor:
        if self.section.jitter == 0:
            return vectors
        noise = torch.from_numpy(rng.standard_normal(vectors.shape, np.float32))
        return functional.normalize(vectors + noise * (self.section.jitter / vectors.shape[-1] ** 0.5), dim=-1)


def nearest_others(queries: Tensor, candidates: Tensor, query_group: Tensor, candidate_group: Tensor, count: int) -> Tensor:
    """For each query (Q, D) the `count` candidates (N, D) nearest by dot product that are another sound -> (Q, count).

    Fewer where there are not that many others.
    """
    parts = []
    largest_family = int(torch.bincount(candidate_group).max())
    for start in range(0, len(queries), NEIGHBOUR_BLOCK):
        block = slice(start, start + NEIGHBOUR_BLOCK)
        scores = queries[block] @ candidates.T
        scores.masked_fill_(query_group[block][:, None] == candidate_group[None], -torch.inf)
        parts.append(scores.topk(min(count, len(candidates) - largest_family)).indices)
    return torch.cat(parts)
