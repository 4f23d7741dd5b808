"""Phase two's batches: queries with the candidates that stand beside them.

B batch, N candidates, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..recipe_schema import DiffusionSection
from ..types import Direction
from .streams import numpy_stream
from .views import TrainingViews

NEIGHBOUR_BLOCK = 1024  # queries whose nearest others are sought at once


class CandidateBatches:
    """Phase two's batches: which captions, which views of their clips, and which candidates stand beside them.

    Args:
        views: the training split.
        section: `candidates`, `negatives`, `batch_size` and `jitter` of the recipe.
        seed: of the order, the views, the drawn candidates and the jitter.
    """

    def __init__(self, views: TrainingViews, section: DiffusionSection, seed: int) -> None:
        self.views = views
        self.section = section
        self.seed = seed
        self.nearest: dict[Direction, Tensor] = {}
        self._order = -1, torch.empty(0)  # the epoch that was asked for last, and its captions in order
        if section.candidates != "batch" and section.negatives == "nearest":
            audio = functional.normalize(views.audio.mean(0), dim=1)
            of_text, others = views.positive_group[views.clip_index], section.candidates - 1
            self.nearest["t2a"] = nearest_others(views.text, audio, of_text, views.positive_group, others)
            self.nearest["a2t"] = nearest_others(audio, views.text, views.positive_group, of_text, others)

    def __len__(self) -> int:
        """Batches an epoch."""
        return max(1, len(self.views.text) // self.section.batch_size)

    def __call__(self, epoch: int, inside: int) -> Iterator[tuple[Direction, Tensor, Tensor, Tensor]]:
        """For each direction: its name, query (B, D), candidates (N, D) or (B, N, D), and x_0 (B, N)."""
        rng = numpy_stream(self.seed, "candidates", epoch, inside)
        size = self.section.batch_size
        if self._order[0] != epoch:
            order = numpy_stream(self.seed, "pair order", epoch).permutation(len(self.views.text))
            self._order = epoch, torch.from_numpy(order)
        rows = self._order[1][inside * size : (inside + 1) * size]
        clips = self.views.clip_index[rows]
        audio, text = self._audio(clips, rng), self._jittered(self.views.text[rows], rng)
        if self.nearest:
            sides: tuple[tuple[Direction, Tensor, Tensor, Tensor], ...] = (
                ("t2a", text, audio, rows),
                ("a2t", audio, text, clips),
            )
            for direction, query, true, keys in sides:
                near = self.nearest[direction][keys]
                pool = self._audio(near, rng) if direction == "t2a" else self._jittered(self.views.text[near], rng)
                candidates = torch.cat([true[:, None], pool], 1)
                x_0 = torch.zeros(candidates.shape[:2])
                x_0[:, 0] = 1
                yield direction, query, candidates, x_0
            return
        all_clips, all_audio, all_text = clips, audio, text
        extra = 0 if self.section.candidates == "batch" else min(self.section.candidates - len(rows), len(self.views.text))
        if extra > 0:
            drawn = torch.from_numpy(rng.choice(len(self.views.text), extra, replace=False))
            more = self.views.clip_index[drawn]
            all_clips = torch.cat([clips, more])
            all_audio = torch.cat([audio, self._audio(more, rng)])
            all_text = torch.cat([text, self._jittered(self.views.text[drawn], rng)])
        x_0 = (self.views.positive_group[clips][:, None] == self.views.positive_group[all_clips][None]).float()
        x_0 = x_0 / x_0.sum(1, keepdim=True)
        yield "t2a", text, all_audio, x_0
        yield "a2t", audio, all_text, x_0

    def _audio(self, clips: Tensor, rng: np.random.Generator) -> Tensor:
        view = torch.from_numpy(rng.integers(0, len(self.views.audio), clips.shape))
        return self._jittered(self.views.audio[view, clips], rng)

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
    for start in range(0, len(queries), NEIGHBOUR_BLOCK):
        block = slice(start, start + NEIGHBOUR_BLOCK)
        scores = queries[block] @ candidates.T
        scores[query_group[block][:, None] == candidate_group[None]] = -torch.inf
        largest_family = int(torch.bincount(candidate_group).max())
        parts.append(scores.topk(min(count, len(candidates) - largest_family)).indices)
    return torch.cat(parts)
