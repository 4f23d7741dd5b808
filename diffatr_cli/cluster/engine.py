"""An engine whose workers are actors of Ray Data, on this machine or on those of a cluster (extra `cluster`).

Items go out in batches, each the block of one task; Ray holds the actors, keeps a bounded number of tasks at them and the order
of what comes back, and gives the task of a process that died to another. What it cannot do alone is done here:

- A task waits for the actor that it was given to, even if that was on a machine that is gone and there is no room to start it
  elsewhere. So the driver looks for lost machines, and begins anew with the first item that is not finished.
- A task whose input ends its process would be tried for ever. So each batch is noted at the driver's machine when it begins;
  one that begins again goes item by item, and an item over which another process dies is given up.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar, cast

from .. import __version__
from ..engines import ItemLost, Work, by_item
from ..errors import DiffATRError, UsageError
from ..interrupts import interrupts_wait
from .worker import Notes, Row, Worker, failure

Item = TypeVar("Item")
Piece = TypeVar("Piece")

_ROUND = 4096  # batches that Ray is told of at a time
_AHEAD = 4  # blocks that came and wait for whoever uses them
_BLOCK = 8 << 20  # bytes of a block
_STORE = 256 << 20  # bytes of shared memory for blocks on this machine, where no cluster is running
_MOST_THREADS = 8  # of a worker with a GPU: these read and decode
_PATIENCE = 0.2  # seconds between two looks whether Ctrl-C came
_LOOK = 1.0  # seconds between two looks whether all machines are there
_TRIES = 3  # rounds in a row of which nothing comes, before it is given up
_SOCKETS = 70  # letters that Ray adds to the folder of its sockets, whose names may have 107


class _Workers(NamedTuple):
    """How many there are (`number`), and what each has."""

    number: int
    device: str
    threads: int


class _Gone(Exception):
    """Workers were lost in such a way that what is not finished has to be begun anew."""


class RayEngine:
    """As `engines.Engine`. A context manager: Ray is started or joined when the first work comes, and left at the end.

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
        self._address, self._wanted, self._asked = address, workers, device
        self._folder: Path | None = None
        self._quiet = contextlib.ExitStack()
        self._workers: _Workers | None = None

    def __enter__(self) -> RayEngine:
        # Ray tells on stdout of workers that died, from a thread of its own.
        self._quiet.enter_context(contextlib.redirect_stdout(cast(TextIO, _OfOneThread(sys.stdout))))
        return self

    def __exit__(self, *_: object) -> None:
        with interrupts_wait():
            self._disconnect()
        self._quiet.close()

    @property
    def device(self) -> str:
        """As `Engine.device`."""
        return self._with_workers().device

    @property
    def threads(self) -> int:
        """As `Engine.threads`."""
        return self._with_workers().threads

    def _with_workers(self) -> _Workers:
        """Start or join Ray when the first work comes."""
        if self._workers is None:
            with interrupts_wait():
                self._workers = self._connect()
        return self._workers

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
                self._reconnect()

    def _round(self, work: Work[Any, Any], items: Sequence[Any], start: int, end: int) -> Generator[Row]:
        """What comes of some items. Raises _Gone where workers were lost."""
        self._with_workers()
        there = self._nodes()
        blocks: queue.Queue[list[bytes] | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()
        with interrupts_wait() as raise_interrupt:
            dataset = self._dataset(work, items, start, end)
            threading.Thread(target=_pull, args=(dataset, blocks, stop), name="ray-results", daemon=True).start()
            try:
                looked = time.monotonic()
                while True:
                    raise_interrupt()
                    try:
                        block = blocks.get(timeout=_PATIENCE)
                    except queue.Empty:
                        block = []
                    if block is None:
                        return
                    if isinstance(block, BaseException):
                        raise _Gone(_told(block)) from block
                    for packed in block:
                        yield from pickle.loads(packed)
                    if time.monotonic() - looked > _LOOK:
                        if lost := there - self._nodes():
                            raise _Gone(f"{len(lost)} of {len(there)} machines are gone")
                        looked = time.monotonic()
            finally:
                stop.set()

    def _dataset(self, work: Work[Any, Any], items: Sequence[Any], start: int, end: int) -> Any:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = _BLOCK
        context.wait_for_min_actors_s = -1
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        notes = ray.remote(Notes).options(num_cpus=0, scheduling_strategy=here).remote()
        batches = [
            {"first": first, "items": pickle.dumps(items[first : min(end, first + work.batch)])}
            for first in range(start, end, work.batch)
        ]
        workers = self._with_workers()
        return ray.data.from_items(batches, override_num_blocks=len(batches)).map_batches(
            Worker,
            fn_constructor_args=(ray.put(work), notes, __version__),
            batch_size=1,  # of our batches; Ray wants a number where workers have GPUs
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers.number, len(batches)), max_tasks_in_flight_per_actor=2),
            num_cpus=workers.threads,
            num_gpus=1 if workers.device == "cuda" else 0,
        )

    # --- Ray itself --------------------------------------------------------------------------------------------------

    def _connect(self) -> _Workers:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            self._folder = _short_folder()
            options = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
            options["_temp_dir"] = str(self._folder)
        try:
            with _no_stderr():
                ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            where = "Ray cannot be started" if self._address is None else f"--address: {self._address}: no cluster answers there"
            raise DiffATRError(f"{where}: {_told(error)}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():  # Ray puts its own in their place
                    signal.signal(number, handler)
        import ray.data

        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return self._choose(ray.cluster_resources())

    def _choose(self, resources: dict[str, float]) -> _Workers:
        """What a worker has, and how many there are."""
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if self._asked.startswith("cuda") and not gpus:
            raise UsageError("--device: no machine of the cluster has a CUDA GPU. Use cpu or auto.")
        if not cores:
            raise DiffATRError("the cluster has no cores for workers. Start its machines with --num-cpus of one at least.")
        if self._asked != "cpu" and gpus:
            return _Workers(min(gpus, self._wanted or gpus), "cuda", max(1, min(_MOST_THREADS, cores // gpus)))
        return _Workers(min(cores, self._wanted or cores), "cpu", 1)

    def _disconnect(self) -> None:
        if "ray" in sys.modules:
            with contextlib.redirect_stdout(io.StringIO()):  # the repeated ones of its messages, which it kept back
                sys.modules["ray"].shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _reconnect(self) -> None:
        """Rid of all workers and of what they are at, get new ones."""
        with interrupts_wait():
            self._disconnect()
            self._workers = self._connect()

    def _nodes(self) -> set[str]:
        """The machines that are there. Raises _Gone where nobody can tell."""
        import ray

        try:
            return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        except Exception as error:
            raise _Gone(_told(error)) from error


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # asks the network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or threads of a round that is given up start a Ray of their own
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what else it says goes to stderr
}
_REMEDY = "The same command continues where this one stopped; `ray status` and the logs of the cluster tell more."


def _pull(dataset: Any, blocks: queue.Queue[Any], stop: threading.Event) -> None:
    """Have Ray do the work, and hand on its blocks: a thread of its own, which may wait for it without end."""

    def put(block: object) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                blocks.put(block, timeout=_PATIENCE)
                return

    try:
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            put(block["rows"].to_pylist())
            if stop.is_set():
                return
        put(None)
    except BaseException as error:
        put(error)


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


class _OfOneThread:
    """A stream that takes what the thread that made it writes, and drops what others do; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Let nothing reach stderr: where Ray begins, its libraries tell from C++ how much they are going to tell."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _told(error: BaseException) -> str:
    """An error of Ray in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:300]}"
