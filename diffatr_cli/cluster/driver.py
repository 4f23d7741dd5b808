"""The process that has Ray, for `engine.RayEngine`: it starts or joins a cluster, has it work, and hands on what comes.

It is a process of its own since Ray ends the one that it is loaded in, without a word, where its part on this machine is gone;
and since Ray tells things on stdout, takes signals for itself, and brings libraries that take long to load.

It reads pickled questions on stdin, and answers on stdout:

- `Connect`: once; the answer is `Workers`, or a `Gone` where Ray does not start.
- `Round`: any number of lists of pickled rows, each list a block of Ray; then None, or a `Gone` where workers were lost in such a
  way that what is not finished has to be begun anew.

An answer may be a `Failed` as well. Where stdin ends it leaves Ray, and ends; it was given up if that is in the midst of a round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any, BinaryIO, NamedTuple

from .. import __version__
from ..errors import DiffATRError, UsageError
from .worker import Notes, Packed, Worker, packed

_AHEAD = 4  # blocks that came and wait for whoever uses them
_BLOCK = 8 << 20  # bytes of a block
_MOST_THREADS = 8  # of a worker with a GPU: these read and decode
_PATIENCE = 0.2  # seconds between two looks whether more is wanted
_LOOK = 1.0  # seconds between two looks whether all machines are there
_LEAVE = 60.0  # seconds in which Ray has to let go
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # asks the network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or threads of a round that is given up start a Ray of their own
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""What Ray goes by; whoever has set something of it knows better."""


class Connect(NamedTuple):
    """Start or join Ray.

    Attributes:
        address: of a running cluster; None starts one here.
        wanted: workers; None takes one a GPU, or a core of the cluster.
        device: of a worker: auto, cpu, cuda.
        store: bytes of shared memory for blocks on this machine, where none is running,
        folder: and where Ray's files are kept.
    """

    address: str | None
    wanted: int | None
    device: str
    store: int
    folder: str


class Workers(NamedTuple):
    """How many there are (`number`), and what each has."""

    number: int
    device: str
    threads: int


class Round(NamedTuple):
    """Have workers do work.

    Attributes:
        work: pickled, and pickled items in batches, each with the number of its first one.
    """

    work: bytes
    batches: Sequence[tuple[int, bytes]]


class Gone(NamedTuple):
    """Workers were lost."""

    why: str


class Failed(NamedTuple):
    """What `worker.failure` makes an error of."""

    error: Packed


class _Lost(Exception):
    """As Gone."""


class _GivenUp(BaseException):
    """Nobody wants more."""


class _Driver:
    """What is asked for, done.

    Args:
        given_up: set where nobody wants more.
    """

    def __init__(self, given_up: threading.Event) -> None:
        self._given_up = given_up
        self._folder: str | None = None
        self._workers: Workers | None = None

    def connect(self, asked: Connect) -> Workers:
        """Start or join Ray. Raises _Lost where it does not start, and DiffATRError where there is none to join."""
        import ray

        options: dict[str, Any] = {"address": asked.address}
        if asked.address is None:
            self._folder = asked.folder
            options = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": asked.store,
                "_temp_dir": asked.folder,
            }
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            if asked.address is None:
                raise _Lost(_told(error)) from error
            raise DiffATRError(f"--address: {asked.address}: no cluster answers there: {_told(error)}") from error
        import ray.data

        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._workers = _chosen(ray.cluster_resources(), asked)
        return self._workers

    def blocks(self, asked: Round) -> Generator[list[bytes]]:
        """What comes of some items, as pickled rows. Raises _Lost, and _GivenUp."""
        there = _nodes()
        blocks: queue.Queue[list[bytes] | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()
        threading.Thread(target=_pull, args=(self._dataset(asked), blocks, stop), name="ray-results", daemon=True).start()
        try:
            looked = time.monotonic()
            while True:
                if self._given_up.is_set():
                    raise _GivenUp
                try:
                    block = blocks.get(timeout=_PATIENCE)
                except queue.Empty:
                    block = []
                if block is None:
                    return
                if isinstance(block, BaseException):
                    raise _Lost(_told(block)) from block
                if block:
                    yield block
                if time.monotonic() - looked > _LOOK:
                    if lost := there - _nodes():
                        raise _Lost(f"{len(lost)} of {len(there)} machines are gone")
                    looked = time.monotonic()
        finally:
            stop.set()

    def _dataset(self, asked: Round) -> Any:
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
        workers = self._workers
        assert workers is not None
        batches = [{"first": first, "items": items} for first, items in asked.batches]
        return ray.data.from_items(batches, override_num_blocks=len(batches)).map_batches(
            Worker,
            fn_constructor_args=(ray.put(asked.work), notes, __version__),
            batch_size=1,  # of our batches; Ray wants a number where workers have GPUs
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers.number, len(batches)), max_tasks_in_flight_per_actor=2),
            num_cpus=workers.threads,
            num_gpus=1 if workers.device == "cuda" else 0,
        )

    def leave(self) -> None:
        """Leave Ray, or end it where it was started here."""
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if self._folder is not None:  # whoever asks may be gone
            shutil.rmtree(self._folder, ignore_errors=True)


def _chosen(resources: dict[str, float], asked: Connect) -> Workers:
    """What a worker has, and how many there are."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if asked.device == "cuda" and not gpus:
        raise UsageError("--device: no machine of the cluster has a CUDA GPU. Use cpu or auto.")
    if not cores:
        raise DiffATRError("the cluster has no cores for workers. Start its machines with --num-cpus of one at least.")
    if asked.device != "cpu" and gpus:
        return Workers(min(gpus, asked.wanted or gpus), "cuda", max(1, min(_MOST_THREADS, cores // gpus)))
    return Workers(min(cores, asked.wanted or cores), "cpu", 1)


def _nodes() -> set[str]:
    """The machines that are there. Raises _Lost where nobody can tell."""
    import ray

    try:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    except Exception as error:
        raise _Lost(_told(error)) from error


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


def _told(error: BaseException) -> str:
    """An error of Ray in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:300]}"


def serve() -> None:
    """What the process does."""
    for name in ("SIGINT", "SIGHUP"):  # they go to all processes of a terminal, and whoever asks ends this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Neither is for Ray's own processes, which may outlive this one.
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for number in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    asked: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()
    threading.Thread(target=_listen, args=(questions, asked, given_up), daemon=True).start()
    driver = _Driver(given_up)
    try:
        with contextlib.suppress(_GivenUp, BrokenPipeError):
            while (question := asked.get()) is not None:
                _answer(driver, question, answers)
    finally:
        driver.leave()
    os._exit(0)  # threads of a round that was given up may wait for ever


def _listen(questions: BinaryIO, asked: queue.Queue[Any], given_up: threading.Event) -> None:
    """Take questions in until nobody asks any more."""
    try:
        while True:
            asked.put(pickle.load(questions))
    except (EOFError, OSError, pickle.UnpicklingError):  # whoever asks may end in the midst of a question
        given_up.set()
        asked.put(None)
    time.sleep(_LEAVE)
    os._exit(1)


def _answer(driver: _Driver, question: Connect | Round, answers: BinaryIO) -> None:
    def say(answer: Workers | list[bytes] | Gone | Failed | None) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    try:
        if isinstance(question, Connect):
            say(driver.connect(question))
            return
        for block in driver.blocks(question):
            say(block)
        say(None)
    except _Lost as lost:
        say(Gone(str(lost)))
    except BrokenPipeError:
        raise
    except Exception as error:
        say(Failed(packed(error, "Ray")))
