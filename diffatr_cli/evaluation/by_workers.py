"""The clips of a data set embedded by an engine's workers, who read them themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.manifest import Clip, Dataset, read_piece
from ..engines import Engine, ItemLost
from ..errors import DiffATRError, UsageError
from ..model import Retriever, load_the_same
from ..progress import Progress
from .pooled import pooled_files

Wanted = Literal["clips", "frames"]
"""What is wanted of each clip: its pooled features (1, F), or its frames (T, F) float16."""


class Workers(NamedTuple):
    """Who embeds clips, if not this process.

    Attributes:
        engine: whose workers they are.
        load: gives a worker the model, by the name of a device.
        model_id: of that model.
    """

    engine: Engine
    load: Callable[[str], Retriever]
    model_id: str

    def embed(self, dataset: Dataset, clips: Sequence[Clip], wanted: Wanted, note: str, progress: Progress) -> Iterator[Tensor]:
        """What is wanted of each of some clips of a data set, in their order.

        Raises:
            DiffATRError: a clip cannot be read, or ends the process that embeds it; or there are no workers.
        """
        root = dataset.root.absolute()
        work = EmbedClips(root, self.load, self.model_id, self.engine.device, wanted)
        with contextlib.closing(self.engine.map(work, [clip.path for clip in clips])) as lanes:
            for number, (clip, lane) in enumerate(zip(clips, lanes, strict=True), 1):
                try:
                    (found,) = lane
                except ItemLost as lost:
                    raise DiffATRError(f"{dataset.root / clip.path}: cannot be embedded ({lost}).") from lost
                yield torch.from_numpy(found)
                progress(number, len(clips), note)


@dataclass(frozen=True)
class EmbedClips:
    """The work on the clips of a data set, by their paths below it.

    Attributes:
        root: the data set's folder, by its whole path, which has to be the same on all machines.
        load, device: give the model, which has to be `model_id`.
        wanted: of each clip.
    """

    root: Path
    load: Callable[[str], Retriever]
    model_id: str
    device: str
    wanted: Wanted
    batch: int = 16

    def open(self) -> Callable[[Sequence[str]], Iterator[tuple[int, np.ndarray]]]:
        """As `engines.Work`. Raises where the clips or the model are not there."""
        if not self.root.is_dir():
            raise UsageError(
                f"{self.root} is not to be seen there. The workers read the clips themselves: put the data set where every "
                "machine of the cluster has it under this same path, such as a network drive."
            )
        return partial(self._embedded, load_the_same(self.load, self.device, self.model_id))

    def _embedded(self, model: Retriever, paths: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        files = [self.root / path for path in paths]
        if self.wanted == "frames":
            yield from enumerate(each.numpy() for each in model.frames([read_piece(file) for file in files]))
        else:
            yield from enumerate(each.numpy() for each in pooled_files(model, files))
