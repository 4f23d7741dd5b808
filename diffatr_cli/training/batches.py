"""Phase one's batches: which captions and clips each holds, and cutting and mixing the clips while the one before trains.

n clips, m captions, I items of an epoch, B captions of a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.sending import pinned
from ..evaluation.embedded_split import Captions
from ..processes import share
from ..recipe_schema import PretrainSection
from .clips import Clips, some_clips
from .composition import Composition, Mixture, compose_epoch, is_composed, join_captions, place
from .streams import numpy_stream


@dataclass(frozen=True)
class TrainSplit:
    """The training split as phase one reads it.

    Attributes:
        clips: n of them, as the audio encoder takes them.
        captions: m of them.
        vectors: (m, F) what the caption encoder makes of the captions, where it is frozen.
        positive_group: (n,), equal for clips that are not negatives of one another (`Captions.positive_groups`).
    """

    clips: Clips
    captions: Captions
    vectors: Tensor | None
    positive_group: np.ndarray

    def only(self, places: NDArray[np.integer]) -> TrainSplit:
        """Some of the clips, with all of their captions."""
        vectors = None if self.vectors is None else self.vectors[torch.from_numpy(self.captions.rows_of(places))]
        return TrainSplit(some_clips(self.clips, places), self.captions.only(places), vectors, self.positive_group[places])


@dataclass(frozen=True)
class Batch:
    """The captions of a batch, in the order of their clips, of all processes.

    Attributes:
        rows: (B,) which captions of the split they are, or are of the clip's own among those that were joined.
        texts: B of them, as the caption encoder takes them.
        composed: (B,) whether a text is joined, and so none of the split's.
        clip_ids: as `core.losses.nt_xent` takes them, (B,), or (B, P) where items may be composed.
    """

    rows: np.ndarray
    texts: list[str]
    composed: np.ndarray
    clip_ids: np.ndarray


POOL = 12  # batches' worth of items that are sorted by length at a time: few enough to leave the order random


def item_clips(captions: Captions, section: PretrainSection) -> np.ndarray:
    """(I,) the clip of each item of an epoch: with items `pairs` an item is a caption, with `clips` a clip."""
    return captions.clip_index if section.items == "pairs" else np.arange(len(captions.first) - 1)


def epoch_batches(
    captions: Captions, section: PretrainSection, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """An epoch's batches as caption indices, grouped by clip; the same for the same seed and epoch.

    With items `pairs` a batch has batch_size captions; with `clips`, batch_size clips and captions_per_clip of each, or
    fewer where a clip has fewer. What does not fill a batch is left out of this epoch; every epoch has another order.

    Args:
        lengths: (I,) of each item, or what orders them likewise, which `by_length` needs.
    """
    rng = numpy_stream(seed, "order", epoch)
    pairs = section.items == "pairs"
    items = len(item_clips(captions, section))
    order = rng.permutation(items)
    starts = np.arange(0, max(items - section.batch_size, 0) + 1, section.batch_size)
    if section.by_length and lengths is not None:
        size = POOL * section.batch_size
        pools = [order[start : start + size] for start in range(0, items, size)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        rng.shuffle(starts)
    batches = []
    for start in starts:
        chosen = np.sort(order[start : start + section.batch_size])
        if not pairs:
            spans = [np.arange(captions.first[clip], captions.first[clip + 1]) for clip in chosen]
            chosen = np.concatenate([rng.permutation(span)[: section.captions_per_clip] for span in spans])
        batches.append(chosen)
    return batches


def overlapped_batches(
    train: TrainSplit,
    section: PretrainSection,
    seed: int,
    steps_per_epoch: int,
    start: int,
    *,
    pin: bool = False,
    ahead: int = 1,
) -> Iterator[tuple[int, Batch, Any]]:
    """(step, captions, crops of this process's share of their clips) from a step on; the next ones are cut out while this one
    trains.

    Args:
        pin: put crops where a GPU reads them while other work goes on (`core.sending.pinned`).
        ahead: how many batches are cut out at a time.
    """
    lengths, owner = np.diff(train.clips.offsets), item_clips(train.captions, section)
    ready = pinned if pin else lambda crops: crops

    def cut(step: int, rows: np.ndarray, composition: Composition | None) -> tuple[int, Batch, Any]:
        clips, first, position = np.unique(train.captions.clip_index[rows], return_index=True, return_inverse=True)
        crop, part = numpy_stream(seed, "crop", step), share(len(clips))
        if composition is None:
            texts = [train.captions.texts[row] for row in rows]
            batch = Batch(rows, texts, np.zeros(len(rows), bool), train.positive_group[clips[position]])
            return step, batch, ready(train.clips.crop(clips, crop, part))
        rng = numpy_stream(seed, "mixture", step)
        items = rows[first] if section.items == "pairs" else clips  # a clip is heard in one way, also by two captions of a batch
        mixtures = [place(composition, item, section, rng, lengths, train.clips.longest) for item in items.tolist()]
        if section.items == "clips":  # one joined caption each: a frozen encoder takes long for new ones
            kept = ~composition.composed[items][position]
            kept[first] = True
            rows, position = rows[kept], position[kept]
        batch = _composed(train, rows, [mixtures[index] for index in position], composition.parts[items][position], rng)
        return step, batch, ready(train.clips.mix(mixtures, crop, part))

    def plan() -> Iterator[tuple[int, np.ndarray, Composition | None]]:
        for epoch in range(start // steps_per_epoch, section.epochs):
            composition = None
            if section.compose:
                rng = numpy_stream(seed, "composition", epoch)
                composition = compose_epoch(section, rng, owner, lengths, train.clips.longest, train.positive_group)
            heard = lengths[owner] if composition is None else composition.order
            for inside, rows in enumerate(epoch_batches(train.captions, section, seed, epoch, heard)):
                if epoch * steps_per_epoch + inside >= start:
                    yield epoch * steps_per_epoch + inside, rows, composition

    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[tuple[int, Batch, Any]]] = deque()
        for step, rows, composition in plan():
            waiting.append(pool.submit(cut, step, rows, composition))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _composed(train: TrainSplit, rows: np.ndarray, mixtures: list[Mixture], parts: np.ndarray, rng: np.random.Generator) -> Batch:
    """The captions of a batch, each joined with one of each other recording that is heard with its clip.

    Args:
        mixtures: that each row's clip is heard in.
        parts: (B, P) their clips, -1 for none.
    """
    captions, texts = train.captions, []
    for row, mixture in zip(rows.tolist(), mixtures, strict=True):
        others = [int(rng.integers(captions.first[clip], captions.first[clip + 1])) for clip in mixture.clips[1:]]
        texts.append(join_captions([captions.texts[caption] for caption in (row, *others)], mixture, rng))
    return Batch(rows, texts, is_composed(parts), np.where(parts < 0, -1, train.positive_group[parts]))
