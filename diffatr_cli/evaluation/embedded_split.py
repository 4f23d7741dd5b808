"""A split as embeddings: what both phases validate on, what calibration is fitted on and what evaluation ranks.

n clips, m captions, W windows, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import load_weights, save_weights
from ..core.text import normalise_caption
from ..core.windows import spans
from ..data.manifest import Clip, Dataset, read_piece
from ..data.resample import resample
from ..data.vectors import Vectors
from ..errors import UsageError
from ..model import Retriever
from ..processes import count, from_first, gathered, is_first, share, shared_rows
from ..progress import Progress, silent
from ..runs import encoders_of
from ..types import SAMPLE_RATE, Direction
from .by_workers import Workers
from .pooled import Pooling, pooled_files

CLIPS_AT_ONCE = 64  # whose audio is in memory together
JOINED = 12  # clips of a long recording made of them
JOINED_CLIPS = 600  # of a split, at most
JOINED_QUIET = SAMPLE_RATE // 2, 3 * SAMPLE_RATE  # fewest and most samples of quiet between them


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
        return cls._counted([caption for clip in clips for caption in clip.captions], [len(clip.captions) for clip in clips])

    @classmethod
    def _counted(cls, texts: list[str], counts: Sequence[int] | np.ndarray) -> Captions:
        """Captions of clips in their order, of each as many as `counts` (n,) says."""
        first = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        return cls(texts, np.repeat(np.arange(len(counts)), counts), first)

    def rows_of(self, clips: Sequence[int] | np.ndarray) -> np.ndarray:
        """The places of all captions of some clips, clip by clip."""
        return np.concatenate([np.arange(0), *(np.arange(self.first[clip], self.first[clip + 1]) for clip in clips)])

    def only(self, clips: Sequence[int] | np.ndarray) -> Captions:
        """The captions of some clips, in the order given, as those of a split of these clips alone."""
        return Captions._counted([self.texts[row] for row in self.rows_of(clips)], np.diff(self.first)[np.asarray(clips, int)])

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


class SplitEncoders(Pooling, Protocol):
    """What embeds a split: a loaded model, or phase one's own towers in evaluation mode.

    Attributes:
        audio_key: names a frozen audio encoder's pooled features in caches; None where the encoder is trained.
    """

    @property
    def audio_key(self) -> str | None: ...

    def embed_pooled_audio(self, pooled: Tensor) -> np.ndarray:
        """Pooled features (n, F) -> unit vectors (n, D)."""

    def embed_pooled_text(self, pooled: Tensor) -> np.ndarray:
        """Pooled caption features (m, F) -> unit vectors (m, D)."""

    def embed_text(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> unit vectors (m, D)."""


def embed_split(
    encoders: SplitEncoders,
    dataset: Dataset,
    split: str,
    same_captions: str = "negatives",
    progress: Progress = silent,
    workers: Workers | None = None,
) -> EmbeddedSplit:
    """A split by some encoders. Clips are embedded whole, a few at a time.

    Args:
        same_captions: as in `Captions.positive_groups`.
        workers: who embed the clips, of a loaded model, if not this process.
    """
    clips = dataset.split(split)
    captions = Captions.of(clips)
    given, pooled = dataset.given(split), pooled_clips(encoders, dataset, split, progress, workers)
    if pooled is None:
        parts = _pool(encoders, dataset, clips, f"embedding {dataset.name} {split}", progress, workers=workers)
        audio = np.concatenate([encoders.embed_pooled_audio(part) for part in parts])
    else:
        audio = encoders.embed_pooled_audio(pooled)
    text = embed_captions(encoders, captions.texts, given)
    return EmbeddedSplit(torch.from_numpy(audio), text, captions.clip_index, captions.positive_groups(same_captions))


def embed_captions(encoders: SplitEncoders, texts: Sequence[str], given: Vectors | None) -> Tensor:
    """Unit vectors (m, D) of captions, or of the vectors that the data set holds in their place."""
    if given is not None:
        return torch.from_numpy(encoders.embed_pooled_text(given.text))
    return shared_rows(lambda some: torch.from_numpy(encoders.embed_text(some)), texts)


def pooled_clips(
    encoders: SplitEncoders, dataset: Dataset, split: str, progress: Progress = silent, workers: Workers | None = None
) -> Tensor | None:
    """The pooled features (n, F) of a split's clips that no training changes: those that the data set holds, or those of a
    frozen encoder, from the cache beside the data set or computed into it; None where the encoder is trained."""
    if (given := dataset.given(split)) is not None:
        return given.audio
    if encoders.audio_key is None:
        return None
    path = dataset.root / ".cache" / f"features-{encoders.audio_key}-{split}.safetensors"
    source = {"encoder": encoders.audio_key, "data": dataset.fingerprint}
    note = f"features of {dataset.name} {split}"
    return _cached(
        path,
        source,
        lambda: {"audio": torch.cat(_pool(encoders, dataset, dataset.split(split), note, progress, workers=workers))},
    )["audio"]


def check_fit(model: Retriever, dataset: Dataset) -> None:
    """Raises UsageError where a model cannot embed a data set: one takes audio and the other is of vectors, or sizes differ."""
    takes, holds = model.given_sizes, dataset.given_sizes
    if takes == holds:
        return
    if takes is None:
        raise UsageError(
            f"{dataset.root}: holds vectors of a model run elsewhere, and {model.name} hears sounds. Name a data set with audio."
        )
    if holds is None:
        raise UsageError(
            f"{model.name}: was trained on vectors of a model run elsewhere, and {dataset.root} holds audio. Run that model on "
            "it, and make a data set of its vectors with `diffatr prepare features`."
        )
    raise UsageError(
        f"{dataset.root}: holds vectors of {holds[0]} numbers for clips and {holds[1]} for captions, and {model.name} was "
        f"trained on {takes[0]} and {takes[1]}. Name a data set of the same models."
    )


def cached_split(
    model: Retriever,
    run: Path,
    dataset: Dataset,
    split: str,
    same_captions: str = "negatives",
    progress: Progress = silent,
    workers: Workers | None = None,
) -> EmbeddedSplit:
    """`embed_split` by the encoders of a run, from the cache in their folder or computed into it."""
    path = encoders_of(run).folder / f"embeddings-{dataset.name}-{split}.safetensors"
    source = {"encoders": model.model_id, "data": dataset.fingerprint}

    def embedded() -> dict[str, Tensor]:
        found = embed_split(model, dataset, split, progress=progress, workers=workers)
        return {"audio": found.audio, "text": found.text}

    cached = _cached(path, source, embedded)
    captions = Captions.of(dataset.split(split))
    return EmbeddedSplit(cached["audio"], cached["text"], captions.clip_index, captions.positive_groups(same_captions))


@dataclass(frozen=True)
class EmbeddedWindows:
    """The clips of a split as an index holds recordings: vectors (W, D); the windows of clip i are offsets[i]..offsets[i + 1]."""

    vectors: np.ndarray
    offsets: np.ndarray


def cached_windows(model: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent) -> EmbeddedWindows:
    """The windows of a split's clips by the encoders of a run, from the cache in their folder or computed into it."""
    path = encoders_of(run).folder / f"windows-{dataset.name}-{split}.safetensors"
    source = {"encoders": model.model_id, "data": dataset.fingerprint}

    def embedded() -> dict[str, Tensor]:
        windows = embed_windows(model, dataset, split, progress)
        return {"vectors": torch.from_numpy(windows.vectors), "offsets": torch.from_numpy(windows.offsets)}

    cached = _cached(path, source, embedded)
    return EmbeddedWindows(cached["vectors"].numpy(), cached["offsets"].numpy())


def embed_windows(model: SplitEncoders, dataset: Dataset, split: str, progress: Progress = silent) -> EmbeddedWindows:
    """The windows of a split's clips; of a set that holds vectors in the place of audio, each clip is one."""
    if (given := dataset.given(split)) is not None:
        return EmbeddedWindows(model.embed_pooled_audio(given.audio), np.arange(len(given.audio) + 1))
    parts = _pool(model, dataset, dataset.split(split), f"embedding windows of {dataset.name} {split}", progress, windows=True)
    return EmbeddedWindows(model.embed_pooled_audio(torch.cat(parts)), np.cumsum([0, *map(len, parts)]))


def embed_joined(model: Retriever, dataset: Dataset, split: str, seed: int) -> tuple[EmbeddedWindows, list[np.ndarray]] | None:
    """Long recordings made of a split's clips, one after another with quiet between them, and which clips each holds.

    A window of a long recording holds the end of one sound and the beginning of another, which no clip does. None where a data
    set holds vectors in the place of audio, or fewer clips than two recordings take.
    """
    clips, windowing = dataset.split(split), model.windowing
    if dataset.given(split) is not None or len(clips) < 2 * JOINED:
        return None
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(clips))[:JOINED_CLIPS]
    recordings = [order[start : start + JOINED] for start in range(0, len(order) - JOINED + 1, JOINED)]
    parts = []
    for members in recordings:
        pieces = []
        for clip in members:
            pieces += [read_piece(dataset.root / clips[clip].path), np.zeros(rng.integers(*JOINED_QUIET), np.float32)]
        wave = resample(np.concatenate(pieces), SAMPLE_RATE, to=windowing.rate)
        parts.append(model.embed_audio([wave[a:b] for a, b in spans(len(wave), windowing)]))
    return EmbeddedWindows(np.concatenate(parts), np.cumsum([0, *map(len, parts)])), recordings


def _cached(path: Path, source: dict[str, str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a cache file if they were made from this source, or `make()`, which goes into it.

    Several processes make them together, and the first one writes.
    """
    tensors, facts = load_weights(path) if is_first() and path.is_file() else ({}, None)
    if from_first(facts == source):
        return tensors if is_first() else load_weights(path)[0]
    made = make()
    if is_first():
        save_weights(path, made, source)
    return made


def _pool(
    encoders: SplitEncoders,
    dataset: Dataset,
    clips: Sequence[Clip],
    note: str,
    progress: Progress,
    *,
    windows: bool = False,
    workers: Workers | None = None,
) -> list[Tensor]:
    """The pooled features of each clip, whole or of its windows. Several processes take a share of the clips each."""
    if workers is not None:
        return list(workers.embed(dataset, clips, "clips", note, progress))
    shared = count() > 1 and len(clips) >= count()
    own = clips[share(len(clips))] if shared else clips
    parts: list[Tensor] = []
    for start in range(0, len(own), CLIPS_AT_ONCE):
        paths = [dataset.root / clip.path for clip in own[start : start + CLIPS_AT_ONCE]]
        parts += pooled_files(encoders, paths, windows)
        progress(min(start + CLIPS_AT_ONCE, len(own)), len(own), note)
    if not shared:
        return parts
    lengths = gathered(torch.tensor([len(part) for part in parts]))
    return list(torch.split(gathered(torch.cat(parts)), lengths.tolist()))
