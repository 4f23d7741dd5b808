"""Turning sources into prepared WAV files on all cores. Light to import, because every worker process does."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from ..engines import Engine, ItemLost
from ..errors import DiffATRError, UsageError
from ..files import reason, replacing
from ..interrupts import interrupts_wait
from ..types import SAMPLE_RATE
from ..worker_process import ONE_THREAD, interrupts_blocked, keep_memory
from . import audio
from .write_wav import MOST_FRAMES, PcmCounter, stream_wav

SHORTEST = 0.1
"""Seconds; anything shorter is no sound to describe."""

_HELD = 4  # blocks of at most 2^20 samples: two minutes
_PATIENCE = 0.2
"""Seconds from Ctrl-C to the end of the processes, at most."""
_FEW = 8  # clips a process; fewer are done sooner than it starts

Produce = Callable[[str], audio.Samples]
"""Makes the samples of a source: decodes a file, or generates. Runs in worker processes, so it is a module's function."""


@dataclass(frozen=True)
class Outcome:
    """What became of one source."""

    frames: int = 0
    """Samples at 32 kHz."""
    md5: str | None = None
    """Of the prepared samples."""
    skipped: str | None = None
    """Why nothing was prepared."""
    clipped: int = 0
    """Samples that were louder than 16 bits hold."""
    partial: str | None = None
    """Why only a part of the recording was there; None where all of it was."""
    notes: tuple[str, ...] = ()
    """What was put right or left out while decoding."""


@dataclass(frozen=True)
class Converter:
    """Writes what a source sounds like to a 32 kHz mono 16-bit WAV file."""

    produce: Produce | None = None
    """None decodes and resamples a file."""
    resampler: audio.Resampler = "soxr"
    partial: audio.Partial = "skip"
    """Whether recordings of which a part is missing are used as far as they go."""

    def __call__(self, source: str, target: Path) -> Outcome:
        """Prepare one source, unless it is bad, too short or silent. Raises DiffATRError when the disk is full.

        However long it is, only some blocks of it are in memory at a time.
        """
        try:
            if self.produce is not None:
                return self._write(iter([self.produce(source)]), target, None)
            with audio.open_sound(source, self.resampler) as sound:
                return self._write(sound.blocks(), target, sound)
        except audio.AudioError as error:
            return Outcome(skipped=error.reason)
        except MemoryError:
            return Outcome(skipped=audio.NO_MEMORY)

    def _write(self, blocks: Iterator[audio.Samples], target: Path, sound: audio.Sound | None) -> Outcome:
        counter = PcmCounter()
        # Of nearly all clips this is the whole, so that nothing is written of those that are skipped.
        held = [counter(block) for block in itertools.islice(blocks, _HELD)]
        more = next(blocks, None)
        if more is None and (reason := self._unfit(counter, sound)):
            return Outcome(skipped=reason)
        rest = () if more is None else map(counter, itertools.chain([more], blocks))
        try:
            with replacing(target) as temporary, temporary.open("wb") as stream:
                stream_wav(stream, itertools.chain(held, itertools.takewhile(lambda _: counter.frames <= MOST_FRAMES, rest)))
                if reason := self._unfit(counter, sound):
                    raise _Unfit(reason)
        except _Unfit as unfit:
            return Outcome(skipped=str(unfit))
        partial, notes = (sound.partial, tuple(sound.notes)) if sound else (None, ())
        return Outcome(counter.frames, counter.md5, None, counter.clipped, partial, notes)

    def _unfit(self, counter: PcmCounter, sound: audio.Sound | None) -> str | None:
        """Why what was decoded is not used."""
        if sound is not None and sound.partial and self.partial == "skip":
            return sound.partial
        if counter.frames < SHORTEST * SAMPLE_RATE:
            return f"shorter than {SHORTEST} s"
        if counter.frames > MOST_FRAMES:
            return f"longer than {MOST_FRAMES // SAMPLE_RATE // 3600} hours, more than a WAV file holds"
        return "silent" if counter.silent else None


class _Unfit(Exception):
    """A source that turned out, while it was written, not to be used."""


@dataclass(frozen=True)
class Conversion:
    """The work of converting (source, target) pairs, for an engine: one piece a pair, its outcome.

    Attributes:
        root: below which the targets are; the workers have to see it under this same path.
        mark: a file in it, by which a worker sees that it is the same folder.
    """

    converter: Converter
    root: Path
    mark: str
    batch: int = 8

    def open(self) -> Callable[[Sequence[tuple[str, Path]]], Iterator[tuple[int, Outcome]]]:
        """As `engines.Work`. Raises UsageError where the folder is not there."""
        if not (self.root / self.mark).is_file():
            raise UsageError(
                f"{self.root} is not to be seen there. The workers read the recordings and write the clips themselves: put both "
                "where every machine of the cluster has them under the same paths, such as a network drive."
            )
        keep_memory()
        return self._outcomes

    def _outcomes(self, pairs: Sequence[tuple[str, Path]]) -> Iterator[tuple[int, Outcome]]:
        for place, (source, target) in enumerate(pairs):
            yield place, _convert(self.converter, source, target)


def convert_elsewhere(
    engine: Engine, converter: Converter, work: Sequence[tuple[str, Path]], root: Path
) -> Generator[tuple[int, Outcome]]:
    """As `convert_all`, by the workers of an engine; all targets are below `root`."""
    mark = f".seen-{uuid.uuid4().hex}"
    pairs = [(source and os.path.abspath(source), target.absolute()) for source, target in work]
    (root / mark).touch()
    try:
        with contextlib.closing(engine.map(Conversion(converter, root.absolute(), mark), pairs)) as lanes:
            for index, lane in enumerate(lanes):
                try:
                    (outcome,) = lane
                except ItemLost as lost:
                    outcome = Outcome(skipped=f"cannot be decoded ({lost})")
                yield index, outcome
    finally:
        (root / mark).unlink(missing_ok=True)


def convert_all(
    converter: Converter, work: list[tuple[str, Path]], workers: int | None = None
) -> Generator[tuple[int, Outcome], None, None]:
    """Convert (source, target) pairs, in this process when they are few, else in `workers` (default: cores) of them.

    Yields the index of each pair with its outcome, as they are ready. Every target is written whole or not at all.

    Raises:
        DiffATRError: the disk is full, or a worker process died.
    """
    workers = min(workers or os.cpu_count() or 1, len(work) // _FEW)
    if workers <= 1:
        for index, (source, target) in enumerate(work):
            yield index, _convert(converter, source, target)
        return
    rest = iter(enumerate(work))
    others = set(multiprocessing.active_children())
    running: dict[Future[Outcome], tuple[int, tuple[str, Path]]] = {}
    with interrupts_wait() as raise_interrupt:
        # Spawned, because forking a process that has threads (Parquet's, the progress bar's) can hang.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
        try:
            while True:
                with _inherited():
                    while len(running) < 4 * workers and (entry := next(rest, None)):
                        running[pool.submit(_convert, converter, *entry[1])] = entry
                if not running:
                    break
                for future in wait(running, timeout=_PATIENCE, return_when=FIRST_COMPLETED).done:
                    yield running[future][0], future.result()
                    del running[future]
                raise_interrupt()
        except BrokenProcessPool:
            suspects = ", ".join(source for _, (source, _) in running.values())
            raise DiffATRError(
                f"A worker process died, out of memory or on a damaged file, near: {suspects}. Finished clips are kept; "
                "run the command again, with --workers 1 to see which file it is."
            ) from None
        finally:
            if running:  # nobody waits for what they are at; files are written whole or not at all
                for child in set(multiprocessing.active_children()) - others:
                    child.kill()
            pool.shutdown(cancel_futures=True)


_OF_ONE_FILE = frozenset(
    (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
)
"""Errors about a file's name or place. Others, such as a full disk, will meet the next file too."""


def _convert(converter: Converter, source: str, target: Path) -> Outcome:
    """Convert one source. A target that cannot have its name costs its clip."""
    try:
        return converter(source, target)
    except (OSError, DiffATRError) as error:
        refusal = error if isinstance(error, OSError) else error.__cause__
        if isinstance(refusal, OSError) and refusal.errno in _OF_ONE_FILE:
            return Outcome(skipped=f"cannot be written under its name ({refusal.strerror})")
        if isinstance(error, OSError):
            raise DiffATRError(f"{target}: {reason(error)}") from error
        raise


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What processes started inside find: one thread for products of matrices, and no Ctrl-C."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        with interrupts_blocked():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent tells what is wrong with a file; the MP3 decoder's own remarks would only garble the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    keep_memory()
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
