"""Several processes that answer on one port: started together, started again when one dies, and stopped together.

A worker is told what to do in one line of JSON on its stdin, and writes one back on its stdout: that it is ready, or why it
cannot be. As long as its stdin is open, whoever started it is there.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..errors import DiffATRError, UsageError

SOON = 10.0
"""Seconds after it was ready within which a worker that dies has died of something that lasts,"""
TRIES = 3
"""if it does so this many times in a row."""


class _Worker:
    """One of them.

    Attributes:
        soon: how many times in a row it died soon.
        once_ready: whether it ever was.
        ready: since when it is, by `time.monotonic`.
    """

    def __init__(self, number: int) -> None:
        self.number, self.soon, self.once_ready = number, 0, False
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: float | None = None


class Workers:
    """The workers of one service.

    Args:
        module: what each of them runs, as `python -m`.
        settings: what each of them is told, beside its number `worker` and the number `listener` of the listening socket.
        environment: variables that each gets, beside those of this process.
        tell: told a line where one dies.
        died: called with the number of one that did.
    """

    def __init__(
        self,
        module: str,
        count: int,
        listener: socket.socket,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        tell: Callable[[str], None],
        died: Callable[[int], None] = lambda worker: None,
    ) -> None:
        self._module, self._listener, self._settings, self._environment = module, listener, settings, environment
        self._tell, self._died = tell, died
        self._workers = [_Worker(number) for number in range(count)]
        self._reports = selectors.DefaultSelector()

    def run(self, ready: Callable[[], None]) -> None:
        """Start them, and keep them alive until an exception such as KeyboardInterrupt comes up; `stop` has to follow.

        Args:
            ready: called once, when all of them answer.

        Raises:
            DiffATRError, UsageError: one of them says that it cannot serve, or keeps dying.
        """
        for worker in self._workers:
            self._start(worker)
        said = False
        while True:
            for key, _ in self._reports.select():
                self._hear(key.data)
            if not said and all(worker.ready for worker in self._workers):
                said = True
                ready()

    def stop(self, seconds: float) -> None:
        """Let them finish what they are answering, for so many seconds, and end them."""
        deadline = time.monotonic() + seconds
        processes = [worker.process for worker in self._workers if worker.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
        self._reports.close()

    def _start(self, worker: _Worker) -> None:
        settings = {**self._settings, "worker": worker.number, "listener": self._listener.fileno()}
        worker.ready = None
        worker.process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._environment},
            pass_fds=(self._listener.fileno(),),
            process_group=0,  # Ctrl-C in a terminal is for the process that started them
        )
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once, which its stdout tells
            worker.process.stdin.write(json.dumps(settings).encode() + b"\n")
            worker.process.stdin.flush()
        self._reports.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker says: that it is ready, why it cannot be, or nothing more because it is dead."""
        process = worker.process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self._reports.unregister(process.stdout)
            self._replace(worker, process.wait())
            return
        report = json.loads(line)
        if "failed" not in report:
            worker.ready, worker.once_ready = time.monotonic(), True
        elif worker.once_ready:  # its end follows, and counts
            self._tell(f"diffatr: {report['failed']}")
        else:
            raise (UsageError if report["code"] == UsageError.exit_code else DiffATRError)(report["failed"])

    def _replace(self, worker: _Worker, code: int) -> None:
        lasted = worker.ready is not None and time.monotonic() - worker.ready >= SOON
        worker.soon = 1 if lasted else worker.soon + 1
        self._died(worker.number)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if worker.soon >= TRIES:
            worker.process = None
            raise DiffATRError(
                f"worker {worker.number} {how}, {TRIES} times in a row within {SOON:.0f} seconds of its start. What it said of "
                "that stands above."
            )
        self._tell(f"diffatr: worker {worker.number} {how}. It is started again.")
        self._start(worker)
