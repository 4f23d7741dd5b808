"""Phase one's batches: which captions and clips each holds, and cutting the clips while the one before trains."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.embedded_split import Captions
from ..processes import share
from ..recipe_schema import PretrainSection
from .clips import Clips, some_clips
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


POOL = 12  # batches' worth of items that are sorted by length at a time: few enough to leave the order random


def epoch_batches(
    captions: Captions, section: PretrainSection, seed: int, epoch: int, offsets: np.ndarray | None = None
) -> list[np.ndarray]:
    """An epoch's batches as caption indices, grouped by clip; the same for the same seed and epoch.

    With items `pairs` a batch has batch_size captions; with `clips`, batch_size clips and captions_per_clip of each, or
    fewer where a clip has fewer. What does not fill a batch is left out of this epoch; every epoch has another order.

    Args:
        offsets: (n + 1,) where each clip's frames begin, which `by_length` needs.
    """
    rng = numpy_stream(seed, "order", epoch)
    pairs = section.items == "pairs"
    items = len(captions.clip_index) if pairs else len(captions.first) - 1
    order = rng.permutation(items)
    starts = np.arange(0, max(items - section.batch_size, 0) + 1, section.batch_size)
    if section.by_length and offsets is not None:
        lengths = np.diff(offsets)[captions.clip_index if pairs else slice(None)]
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
    train: TrainSplit, section: PretrainSection, seed: int, steps_per_epoch: int, start: int
) -> Iterator[tuple[int, np.ndarray, Any]]:
    """(step, caption indices, crops of this process's share of their clips) from a step on; the next batch is cut out while this
    one trains."""

    def cut(step: int, rows: np.ndarray) -> tuple[int, np.ndarray, Any]:
        clips = np.unique(train.captions.clip_index[rows])
        return step, rows, train.clips.crop(clips, numpy_stream(seed, "crop", step), share(len(clips)))

    def plan() -> Iterator[tuple[int, np.ndarray]]:
        for epoch in range(start // steps_per_epoch, section.epochs):
            for inside, rows in enumerate(epoch_batches(train.captions, section, seed, epoch, train.clips.offsets)):
                if epoch * steps_per_epoch + inside >= start:
                    yield epoch * steps_per_epoch + inside, rows

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for step, rows in plan():
            following = pool.submit(cut, step, rows)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
