"""An engine whose workers are actors of Ray Data, on this machine or on those of a cluster (extra `cluster`).

Items go out in batches, each the block of one task; Ray holds the actors, keeps a bounded number of tasks at them and the order
of what comes back, and gives the task of a process that died to another. What it cannot do alone is done here:

- A task waits for the actor that it was given to, even if that was on a machine that is gone and there is no room to start it
  elsewhere. So the driver looks for lost machines, and all begins anew with the first item that is not finished; likewise where
  the driver ends, or Ray's part on this machine (`driver` tells how).
- A task whose input ends its process would be tried for ever. So each batch is noted at the driver's machine when it begins;
  one that begins again goes item by item, and an item over which another process dies is given up.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ..engines import ItemLost, Work, by_item
from ..errors import DiffATRError, UsageError
from ..interrupts import interrupts_wait
from ..worker_process import started, wait_for_end
from .driver import ENVIRONMENT, Connect, Failed, Gone, Round, Workers
from .worker import Row, failure

Item = TypeVar("Item")
Piece = TypeVar("Piece")

_ROUND = 4096  # batches that Ray is told of at a time
_STORE = 256 << 20  # bytes of shared memory for blocks on this machine, where no cluster is running
_TRIES = 3  # rounds in a row of which nothing comes, before it is given up
_SOCKETS = 70  # letters that Ray adds to the folder of its sockets, whose names may have 107
_LEAVE = 45  # seconds for the driver to leave Ray, or to give up starting it, which takes 32
_REMEDY = "The same command continues where this one stopped; `ray status` and the logs of the cluster tell more."


class _Gone(Exception):
    """Workers were lost in such a way that what is not finished has to be begun anew."""


class RayEngine:
    """As `engines.Engine`, for one `map` at a time.

    A context manager: Ray is started or joined when the first work comes, and left at the end.

    Args:
        address: of a running cluster, HOST:PORT, or "auto" for the one that this machine is part of; None starts workers here.
        workers: how many; None takes one a GPU, or a core of the cluster.
        device: of a worker: `auto` takes GPUs where the cluster has any, `cpu`, `cuda`.

    Raises:
        UsageError: Ray is not installed, or the arguments ask for what it cannot do.
        DiffATRError: Ray cannot be started, or the cluster not reached.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, device: str = "auto") -> None:
        if find_spec("ray") is None:
            raise UsageError("--engine ray needs the extra `cluster`: pip install 'diffatr[cluster]'")
        if address is not None and "://" in address:
            raise UsageError(
                f"--address: {address}: name HOST:PORT of a cluster that this machine is part of, or auto. A client from outside "
                "(ray://) is not enough."
            )
        if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device: the workers of --engine ray compute on cpu or cuda, not on {device}.")
        self._asked = address, workers, device.partition(":")[0]
        self._driver: _DriverProcess | None = None
        self._workers: Workers | None = None

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._part()

    @property
    def device(self) -> str:
        """As `Engine.device`."""
        return self._with_workers().device

    @property
    def threads(self) -> int:
        """As `Engine.threads`."""
        return self._with_workers().threads

    def _with_workers(self) -> Workers:
        """Start or join Ray when the first work comes."""
        why = ""
        for _ in range(_TRIES):
            if self._workers is not None:
                return self._workers
            with interrupts_wait():
                self._driver = driver = _DriverProcess()
            driver.ask(Connect(*self._asked, _STORE, str(driver.folder)))
            try:
                self._workers = driver.answer()
            except _Gone as gone:
                why = str(gone)
                self._part()
            except BaseException:
                self._part()
                raise
        raise DiffATRError(f"Ray cannot be started: {why}")

    def _part(self) -> None:
        """Rid of all workers and of what they are at."""
        driver, self._driver, self._workers = self._driver, None, None
        if driver is not None:
            with interrupts_wait():
                driver.end()

    def map(self, work: Work[Item, Piece], items: Sequence[Item]) -> Generator[Iterator[Piece]]:
        """As `Engine.map`."""
        with contextlib.closing(self._rows(work, items)) as rows:
            for lane in by_item(((row.item, row) for row in rows), len(items)):
                yield _pieces(lane)

    def _rows(self, work: Work[Any, Any], items: Sequence[Any]) -> Generator[Row]:
        """What comes of all items, each with an end or a loss, in order and once; begun anew where workers were lost."""
        item = number = 0  # what comes next
        without = 0  # rounds of which nothing came
        while item < len(items):
            last = min(len(items), item + _ROUND * work.batch)
            before = item, number
            try:
                for row in self._round(work, items, item, last):
                    if row.kind == "failed":
                        raise failure(row.value)
                    if row.item < item or (row.item == item and row.kind == "piece" and row.number < number):
                        continue  # it came before a worker was lost
                    if row.item > item or row.number > number:
                        raise _Gone("what came of a lost worker does not fit together")
                    item, number = (item, number + 1) if row.kind == "piece" else (item + 1, 0)
                    yield row
                if item < last:
                    raise _Gone("results are missing")
                without = 0
            except _Gone as gone:
                without = 0 if (item, number) > before else without + 1
                if without == _TRIES:
                    raise DiffATRError(f"the workers of Ray do not stay alive: {gone}. {_REMEDY}") from gone
                self._part()

    def _round(self, work: Work[Any, Any], items: Sequence[Any], start: int, end: int) -> Generator[Row]:
        """What comes of some items. Raises _Gone where workers were lost."""
        self._with_workers()
        driver = self._driver
        assert driver is not None
        batches = [(first, pickle.dumps(items[first : min(end, first + work.batch)])) for first in range(start, end, work.batch)]
        done = False
        try:
            driver.ask(Round(pickle.dumps(work), batches))
            while (block := driver.answer()) is not None:
                for packed in block:
                    yield from pickle.loads(packed)
            done = True
        finally:
            if not done:
                self._part()


class _DriverProcess:
    """The process that has Ray.

    Attributes:
        folder: for Ray's files.
    """

    def __init__(self) -> None:
        self.folder = _short_folder()
        try:
            self._process = started(Connect.__module__, subprocess.PIPE, subprocess.PIPE, ENVIRONMENT | os.environ)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise DiffATRError(f"Ray cannot be started: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout

    def ask(self, question: Connect | Round) -> None:
        packed = pickle.dumps(question)
        with contextlib.suppress(BrokenPipeError):  # which shows where the answer is
            self._questions.write(packed)
            self._questions.flush()

    def answer(self) -> Any:
        """The next one. Raises _Gone, also where there comes none, and what failed."""
        try:
            answer = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError, ValueError):  # of a closed stream, where another round was begun meanwhile
            raise _Gone("the process that has Ray ended") from None
        if isinstance(answer, Gone):
            raise _Gone(answer.why)
        if isinstance(answer, Failed):
            raise failure(answer.error)
        return answer

    def end(self) -> None:
        """Have it leave Ray, and wait for its end. It starts Ray to the end first: killed there, it would leave some of it."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        self._answers.close()
        wait_for_end(self._process, _LEAVE)
        shutil.rmtree(self.folder, ignore_errors=True)


def _pieces(rows: Iterator[Row]) -> Iterator[Any]:
    """The pieces of one item. Raises ItemLost."""
    for row in rows:
        if row.kind == "lost":
            raise ItemLost(row.value)
        if row.kind == "piece":
            yield row.value


def _short_folder() -> Path:
    """A new folder for Ray's files, with room in its name for those of sockets."""
    room = 107 - _SOCKETS - len("/diffatr-12345678")
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="diffatr-", dir=base if len(base) <= room else "/tmp"))
