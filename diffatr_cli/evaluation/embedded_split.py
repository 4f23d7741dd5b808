"""A split as embeddings: what both phases validate on and what evaluation ranks.

n clips, m captions, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_weights, save_weights
from ..core.losses import cosine_similarity
from ..core.metrics import retrieval_metrics
from ..core.text import normalise_caption
from ..core.towers import TwoTowers
from ..data.logmels import LogMels
from ..data.manifest import Clip, Dataset, read_piece
from ..model import Retriever
from ..progress import Progress, silent
from ..types import DIRECTIONS, Direction

CLIPS_AT_ONCE = 64  # whose audio is in memory together while a test split is embedded
MAX_FRAMES = 64_000  # log-mel frames of one batch while embedding: bounds memory for clips of any length


@dataclass(frozen=True)
class Captions:
    """The captions of a split, flat, and which clip each belongs to."""

    texts: list[str]
    clip_index: np.ndarray
    """(m,) index of the caption's clip."""
    first: np.ndarray
    """(n + 1,): captions first[i]..first[i + 1] are clip i's."""

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> Captions:
        """The captions of these clips in their order."""
        counts = [len(clip.captions) for clip in clips]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        return cls([caption for clip in clips for caption in clip.captions], np.repeat(np.arange(len(clips)), counts), first)

    def positive_groups(self, same_captions: str) -> np.ndarray:
        """(n,) a number for each clip, equal for clips that are not negatives of one another.

        With `negatives` every clip has its own. With `positives` clips that share a caption have one, and so have those that
        are linked through others: the smallest index among them.
        """
        group = np.arange(len(self.first) - 1)
        if same_captions == "negatives":
            return group

        def root(clip: int) -> int:
            while group[clip] != clip:
                group[clip] = group[group[clip]]
                clip = int(group[clip])
            return clip

        first_with: dict[str, int] = {}
        for text, clip in zip(self.texts, self.clip_index.tolist(), strict=True):
            a, b = root(clip), root(first_with.setdefault(normalise_caption(text), clip))
            group[max(a, b)] = min(a, b)
        return np.array([root(clip) for clip in range(len(group))], dtype=int)


@dataclass(frozen=True)
class EmbeddedSplit:
    """Unit vectors of a split: audio (n, D), text (m, D), and clip_index (m,), the clip of each caption.

    `positive_group` (n,) is equal for clips of one sound (`Captions.positive_groups`); None is a group of its own for each.
    """

    audio: Tensor
    text: Tensor
    clip_index: np.ndarray
    positive_group: np.ndarray | None = None

    def task(self, direction: Direction) -> tuple[Tensor, Tensor, list[np.ndarray]]:
        """Queries, candidates, and for each query the indices of its relevant candidates.

        Every caption is a query for its clip, every clip one for all of its captions; where clips are one sound, for those of
        all of them.
        """
        group = np.arange(len(self.audio)) if self.positive_group is None else self.positive_group
        of_caption = group[self.clip_index]
        if direction == "t2a":
            clips = _members(group, len(group))
            return self.text, self.audio, [clips[each] for each in of_caption]
        captions = _members(of_caption, len(group))
        return self.audio, self.text, [captions[each] for each in group]


def _members(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """For each number below `count` the places that have it, ascending."""
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(count + 1))
    return [order[a:b] for a, b in pairwise(bounds)]


def recall_sum(metrics: dict[str, float]) -> float:
    """R@1 + R@5 + R@10, the figure by which validation chooses (Mei et al. 2022)."""
    return metrics["r1"] + metrics["r5"] + metrics["r10"]


def cosine_metrics(gallery: EmbeddedSplit) -> dict[Direction, dict[str, float]]:
    """Metrics of ranking a small gallery by cosine, by direction."""
    result: dict[Direction, dict[str, float]] = {}
    for direction in DIRECTIONS:
        queries, candidates, relevant = gallery.task(direction)
        result[direction] = retrieval_metrics(cosine_similarity(queries, candidates), relevant)
    return result


@torch.inference_mode()
def embed_logmels(towers: TwoTowers, logmels: LogMels, device: torch.device, bf16: bool = False) -> Tensor:
    """Every clip of a split, whole, in evaluation mode -> unit vectors (n, D) on the CPU.

    Clips are batched with others of exactly their length, so that no vector depends on padding or on its batch. Those too short
    for a feature frame are padded with silence up to one.
    """
    towers.eval()
    out: list[Tensor | None] = [None] * len(logmels)
    by_length = sorted(range(len(logmels)), key=logmels.frames)
    for frames, group in groupby(by_length, key=logmels.frames):
        members, size = list(group), max(1, MAX_FRAMES // frames)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                pooled = towers.audio.pooled(logmels.whole(part, towers.audio.reduction).to(device))
            for index, vector in zip(part, towers.embed_pooled_audio(pooled.float()).cpu(), strict=True):
                out[index] = vector
    return torch.stack([vector for vector in out if vector is not None])


def embedded_split_of(
    retriever: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent
) -> EmbeddedSplit:
    """A split's embeddings by a run's encoders, from the cache in its folder or computed into it.

    Clips are embedded whole, a few at a time.
    """
    clips = dataset.split(split)
    captions = Captions.of(clips)
    path = run / "pretrain" / f"embeddings-{dataset.name}-{split}.safetensors"
    source = {"encoders": retriever.model_id, "data": dataset.fingerprint}
    if path.is_file():
        tensors, facts = load_weights(path)
        if facts == source:
            return EmbeddedSplit(tensors["audio"], tensors["text"], captions.clip_index)
    parts = []
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        part = clips[start : start + CLIPS_AT_ONCE]
        parts.append(retriever.embed_audio([read_piece(dataset.root / clip.path) for clip in part]))
        progress(start + len(part), len(clips), f"embedding {dataset.name} {split}")
    tensors = {"audio": torch.from_numpy(np.concatenate(parts)), "text": torch.from_numpy(retriever.embed_text(captions.texts))}
    save_weights(path, tensors, source)
    return EmbeddedSplit(tensors["audio"], tensors["text"], captions.clip_index)
