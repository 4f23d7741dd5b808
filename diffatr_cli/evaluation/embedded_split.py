"""A split as embeddings: what both phases validate on, what calibration is fitted on and what evaluation ranks.

n clips, m captions, W windows, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_weights, save_weights
from ..core.text import normalise_caption
from ..core.windows import spans
from ..data.manifest import Clip, Dataset, read_piece
from ..model import Retriever
from ..progress import Progress, silent
from ..types import Direction

CLIPS_AT_ONCE = 64  # whose audio is in memory together


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


EmbedAudio = Callable[[Sequence[np.ndarray]], np.ndarray]
"""32 kHz mono float32 waveforms -> (n, D) unit vectors."""
EmbedText = Callable[[Sequence[str]], np.ndarray]
"""Captions -> (m, D) unit vectors."""


def embed_split(
    embed_audio: EmbedAudio,
    embed_text: EmbedText,
    dataset: Dataset,
    split: str,
    same_captions: str = "negatives",
    progress: Progress = silent,
) -> EmbeddedSplit:
    """A split by some encoders. Clips are embedded whole, a few at a time.

    `same_captions` is as in `Captions.positive_groups`.
    """
    clips = dataset.split(split)
    audio = _embed_clips(embed_audio, dataset, clips, f"embedding {dataset.name} {split}", progress, lambda wave: [wave])
    captions = Captions.of(clips)
    text = torch.from_numpy(embed_text(captions.texts))
    return EmbeddedSplit(
        torch.from_numpy(np.concatenate(audio)), text, captions.clip_index, captions.positive_groups(same_captions)
    )


def cached_split(
    model: Retriever, run: Path, dataset: Dataset, split: str, same_captions: str = "negatives", progress: Progress = silent
) -> EmbeddedSplit:
    """`embed_split` by the encoders of a run, from the cache in its folder or computed into it."""
    path = run / "pretrain" / f"embeddings-{dataset.name}-{split}.safetensors"
    source = {"encoders": model.model_id, "data": dataset.fingerprint}
    if (cached := _cached(path, source)) is None:
        embedded = embed_split(model.embed_audio, model.embed_text, dataset, split, progress=progress)
        cached = {"audio": embedded.audio, "text": embedded.text}
        save_weights(path, cached, source)
    captions = Captions.of(dataset.split(split))
    return EmbeddedSplit(cached["audio"], cached["text"], captions.clip_index, captions.positive_groups(same_captions))


@dataclass(frozen=True)
class EmbeddedWindows:
    """The clips of a split as an index holds recordings: vectors (W, D); the windows of clip i are offsets[i]..offsets[i + 1]."""

    vectors: np.ndarray
    offsets: np.ndarray


def cached_windows(model: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent) -> EmbeddedWindows:
    """The windows of a split's clips by the encoders of a run, from the cache in its folder or computed into it."""
    path = run / "pretrain" / f"windows-{dataset.name}-{split}.safetensors"
    source = {"encoders": model.model_id, "data": dataset.fingerprint}
    if (cached := _cached(path, source)) is None:
        parts = _embed_clips(
            model.embed_audio,
            dataset,
            dataset.split(split),
            f"embedding windows of {dataset.name} {split}",
            progress,
            lambda wave: [wave[start:end] for start, end in spans(len(wave))],
        )
        offsets = np.cumsum([0, *map(len, parts)])
        cached = {"vectors": torch.from_numpy(np.concatenate(parts)), "offsets": torch.from_numpy(offsets)}
        save_weights(path, cached, source)
    return EmbeddedWindows(cached["vectors"].numpy(), cached["offsets"].numpy())


def _cached(path: Path, source: dict[str, str]) -> dict[str, Tensor] | None:
    """The tensors of a cache file if it was made from this source."""
    if not path.is_file():
        return None
    tensors, facts = load_weights(path)
    return tensors if facts == source else None


def _embed_clips(
    embed: EmbedAudio,
    dataset: Dataset,
    clips: Sequence[Clip],
    note: str,
    progress: Progress,
    cut: Callable[[np.ndarray], list[np.ndarray]],
) -> list[np.ndarray]:
    """The vectors of each clip's pieces."""
    parts: list[np.ndarray] = []
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        pieces = [cut(read_piece(dataset.root / clip.path)) for clip in clips[start : start + CLIPS_AT_ONCE]]
        vectors = embed([piece for some in pieces for piece in some])
        parts += np.split(vectors, np.cumsum([len(some) for some in pieces])[:-1])
        progress(min(start + CLIPS_AT_ONCE, len(clips)), len(clips), note)
    return parts
