"""Windows to vectors: here, batch by batch, or where an engine's workers read the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..engines import Engine, ItemLost
from ..errors import DiffATRError, UsageError
from .examine import Failure, Finding, Vector, examine
from .findings import READ_AHEAD, weight
from .read_ahead import read_ahead
from .scan import Stamp
from .windows import Window

if TYPE_CHECKING:
    from ..model import Retriever

BATCH = 64
"""Windows embedded in one call."""


def embed(model: Retriever, waveforms: Sequence[np.ndarray], *, frames: bool) -> tuple[np.ndarray, Sequence[np.ndarray | None]]:
    """Vectors (W, D) float32 of windows, and of each its frames (T, F) float16 where they are wanted.

    Raises:
        DiffATRError: the vectors are not finite.
    """
    found: Sequence[np.ndarray | None]
    if frames:
        vectors, of_windows = model.embed_with_frames(waveforms)
        found = [each.numpy() for each in of_windows]
    else:
        vectors, found = model.embed_audio(waveforms), [None] * len(waveforms)
    if not np.isfinite(vectors).all():
        raise DiffATRError(
            f"{model.name}: its embeddings are not finite: its training diverged, or its weights are damaged. Use "
            "another --run or --model."
        )
    return vectors, found


class Elsewhere(NamedTuple):
    """Where files are read and embedded, if not in this process.

    Attributes:
        engine: whose workers do it.
        load: gives a worker the model, by the name of a device.
    """

    engine: Engine
    load: Callable[[str], Retriever]

    def findings(
        self,
        corpus: Path,
        todo: Mapping[bytes, Stamp],
        model: Retriever,
        embedded: set[str],
        reason_of: Callable[[bytes], str],
    ) -> Generator[tuple[bytes, Finding | None]]:
        """What is found in each file, as `read_files` gives it, but with vectors in the place of windows.

        Args:
            embedded: contents that need not be decoded.
            reason_of: the content of a file, by its path, for which the reason why it cannot be used is known; or nothing.
        """
        if not todo:
            return
        settled = np.array(sorted(map(bytes.fromhex, embedded)), "S16")
        items = [_File(path, stamp.size, reason_of(path)) for path, stamp in todo.items()]
        work = EmbedFiles(
            corpus.absolute(),
            self.load,
            model.model_id,
            self.engine.device,
            self.engine.threads,
            model.sees_frames,
            settled,
            items[0],
        )
        with contextlib.closing(self.engine.map(work, items)) as lanes:
            for item, lane in zip(items, lanes, strict=True):
                try:
                    for finding in lane:
                        yield item.path, finding
                except ItemLost as lost:
                    yield item.path, Failure(f"cannot be decoded ({lost})", lasting=False)
                yield item.path, None


class _File(NamedTuple):
    """A file for a worker: its path below the corpus, its bytes, and a content of which it is known that it cannot be used."""

    path: bytes
    size: int
    unusable: str


@dataclass(frozen=True)
class EmbedFiles:
    """The work on files: each as `examine` finds it, with vectors in the place of windows.

    Attributes:
        corpus: the folder, by its whole path, which has to be the same on all machines.
        load, device: give the model, which has to be `model_id`.
        threads: that decode while the model embeds.
        frames: whether frames are wanted too.
        settled: hashes (N,) of contents that need not be decoded, ascending.
        first: a file by which a worker sees that it has the folder.
    """

    corpus: Path
    load: Callable[[str], Retriever]
    model_id: str
    device: str
    threads: int
    frames: bool
    settled: np.ndarray
    first: _File
    batch: int = 16

    def open(self) -> Callable[[Sequence[_File]], Iterator[tuple[int, Finding]]]:
        """As `engines.Work`. Raises where the files or the model are not there."""
        if not self._sees_files():
            raise UsageError(
                f"{self.corpus} is not to be seen there. The workers read the recordings themselves: put them where every "
                "machine of the cluster has them under this same path, such as a network drive."
            )
        from ..model import load_the_same

        return partial(self._embedded, load_the_same(self.load, self.device, self.model_id))

    def _sees_files(self) -> bool:
        """Whether this machine has the recordings. A place where a drive is not mounted is an empty folder."""
        try:
            return (self.corpus / os.fsdecode(self.first.path)).exists() or any(True for _ in os.scandir(self.corpus))
        except OSError:
            return False

    def _embedded(self, model: Retriever, files: Sequence[_File]) -> Iterator[tuple[int, Finding]]:
        held: list[tuple[int, Finding]] = []
        windows = 0
        makers = (partial(self._examined, model, file) for file in files)
        with contextlib.closing(read_ahead(makers, weight, READ_AHEAD, self.threads)) as found:
            for place, finding in found:
                if finding is not None:
                    held.append((place, finding))
                windows += isinstance(finding, Window)
                if windows == BATCH:
                    yield from self._with_vectors(model, held)
                    held, windows = [], 0
        yield from self._with_vectors(model, held)

    def _examined(self, model: Retriever, file: _File) -> Iterator[Finding]:
        path = self.corpus / os.fsdecode(file.path)
        try:
            # Numbers of files and times of changes are another machine's own matter: what counts is that they stay.
            stamp = Stamp.of(path.stat())
        except OSError as error:
            yield Failure(f"cannot be read ({error.strerror or type(error).__name__})", lasting=False)
            return
        if stamp.size != file.size:
            yield Failure("changed while it was read", lasting=False)
            return
        yield from examine(path, stamp, model.windowing, lambda content: content == file.unusable or self._is_settled(content))

    def _is_settled(self, content: str) -> bool:
        place = int(np.searchsorted(self.settled, np.array(bytes.fromhex(content), "S16")))
        return place < len(self.settled) and bool(self.settled[place] == np.array(bytes.fromhex(content), "S16"))

    def _with_vectors(self, model: Retriever, held: list[tuple[int, Finding]]) -> Iterator[tuple[int, Finding]]:
        waveforms = [finding.samples for _, finding in held if isinstance(finding, Window)]
        vectors, frames = embed(model, waveforms, frames=self.frames) if waveforms else (np.zeros(0), [])
        made = iter(zip(vectors, frames, strict=True))
        for place, finding in held:
            yield place, Vector(finding.start, finding.end, *next(made)) if isinstance(finding, Window) else finding
