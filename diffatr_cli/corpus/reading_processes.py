"""Processes that look into files for this one: what reads for a GPU.

A thread that reads a clip needs Python's lock for a part of that time, so that threads read a bounded number of clips a second
on however many cores. An encoder on the processor takes longer than that by far; a GPU does not.

Asker and process speak over a socket, one file at a time. The process says that it has begun. It sends `_Ask` once it has a
file's hash and is told whether its samples are wanted; then each finding, and before the next one it is told whether more are
wanted; then None. The samples of a window follow its `_Samples`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.windows import Windowing
from ..data.worker_process import ONE_THREAD, interrupts_blocked, keep_memory
from ..errors import DiffATRError
from .examine import Content, Failure, Finding, examine
from .scan import Stamp
from .windows import Window

_POSSIBLE = hasattr(signal, "pthread_sigmask") and hasattr(socket, "AF_UNIX") and hasattr(socket, "MSG_WAITALL")  # not Windows
_FILES = 256  # with fewer the start of processes is not worth it,
_CORES = 4  # nor here, where threads do as well
MOST = 32
"""Processes that read for one GPU at the most."""
_BUFFER = 4 << 20  # bytes of a socket, so that a window or two fit
_TRIES = 2  # of a file over which a process dies
_PATIENCE = 5  # seconds for a process to end that has nobody to talk to
_LENGTH = struct.Struct("<Q")
_START = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"


def pay(files: int, workers: int) -> bool:
    """Whether processes feed a GPU faster than as many threads do, where there are so many files to read."""
    return _POSSIBLE and bool(sys.executable) and files >= _FILES and workers >= _CORES  # embedded, Python may have none


class _Ask(NamedTuple):
    """Are the samples of this content wanted?"""

    content: str


class _Samples(NamedTuple):
    """A window, from sample `start` to `end`, whose samples, so many, follow."""

    start: int
    end: int
    number: int


class _Died(Exception):
    """The other side is gone."""


class Readers:
    """Processes that examine files: one for each thread that asks, from its first file until the end of the context.

    Args:
        corpus: the folder of the files.
        windowing: how they are cut.

    Raises:
        DiffATRError: out of `examine`: no process can be started.
    """

    def __init__(self, corpus: Path, windowing: Windowing) -> None:
        self._manner = corpus.absolute(), windowing
        self._of_thread = threading.local()
        self._all: list[_Reader] = []

    def __enter__(self) -> Readers:
        keep_memory()  # here too: windows are of one size
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._all:
            reader.hang_up()
        for reader in self._all:
            reader.wait()

    def examine(self, path: bytes, stamp: Stamp, is_settled: Callable[[str], bool]) -> Iterator[Finding]:
        """As `examine.examine`, of a file by its path below the folder. One over which processes die costs itself alone."""
        given, contents = 0, set[Content]()
        for _ in range(_TRIES):
            try:
                with contextlib.closing(self._own().examine(path, stamp, is_settled)) as findings:
                    for place, finding in enumerate(findings):
                        if isinstance(finding, Content):
                            contents.add(finding)
                        if len(contents) > 1:
                            finding = Failure("changed while it was read", lasting=False)
                        # The second time something else may be wrong, and what was given is not all then.
                        if place >= given or isinstance(finding, Failure):
                            given += 1
                            yield finding
                        if isinstance(finding, Failure):
                            return
                return
            except _Died:
                self._of_thread.reader.hang_up()
                self._of_thread.reader.wait()
                del self._of_thread.reader
        yield Failure("cannot be decoded (the process that worked on it died twice)", lasting=False)

    def _own(self) -> _Reader:
        if not hasattr(self._of_thread, "reader"):
            self._of_thread.reader = _Reader(*self._manner)
            self._all.append(self._of_thread.reader)
        reader: _Reader = self._of_thread.reader
        return reader


class _Reader:
    """One process, and the line to it."""

    def __init__(self, corpus: Path, windowing: Windowing) -> None:
        try:
            self._line, other = (_roomy(each) for each in socket.socketpair())
        except OSError as error:
            raise _not_started(error.strerror) from error
        # Not by PYTHONPATH: what lies beside a script would come before Python's own modules, already as Python starts.
        path = [each for each in sys.path if isinstance(each, str)]
        try:
            with interrupts_blocked():
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, *path],
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | ONE_THREAD,
                )
        except OSError as error:
            self._line.close()
            raise _not_started(error.strerror) from error
        finally:
            other.close()
        try:
            _send(self._line, (corpus, windowing))
            _receive(self._line)
        except _Died:  # before it had seen a file, so that no file is to blame
            self.hang_up()
            self.wait()
            raise _not_started(f"{sys.executable} ended with {self._process.returncode}") from None

    def examine(self, path: bytes, stamp: Stamp, is_settled: Callable[[str], bool]) -> Generator[Finding, None, None]:
        """As `examine.examine`. Raises _Died where the process does."""
        _send(self._line, (path, *stamp))
        while (said := _receive(self._line)) is not None:
            match said:
                case _Ask():
                    _send(self._line, is_settled(said.content))
                    continue
                case _Samples():
                    samples = np.empty(said.number, np.float32)
                    _fill(self._line, samples.data.cast("B"))
                    said = Window(said.start, said.end, samples)
            try:
                yield said
            except GeneratorExit:
                with contextlib.suppress(_Died):  # which whoever asks next finds
                    _send(self._line, False)
                    _receive(self._line)  # the end, and nothing before it
                raise
            _send(self._line, True)

    def hang_up(self) -> None:
        """Let the process end, also where a child of this one has the line too."""
        with contextlib.suppress(OSError):  # it has ended
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()

    def wait(self) -> None:
        """Wait for its end."""
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _not_started(why: str | None) -> DiffATRError:
    return DiffATRError(f"a process that reads recordings cannot be started ({why}): try fewer, with --workers.")


def _roomy(line: socket.socket) -> socket.socket:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):  # more than the system allows
            line.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    return line


def _send(line: socket.socket, said: Any) -> None:
    packed = pickle.dumps(said)
    _send_bytes(line, _LENGTH.pack(len(packed)) + packed)


def _send_bytes(line: socket.socket, values: bytes | memoryview) -> None:
    try:
        line.sendall(values)
    except OSError as error:
        raise _Died from error


def _receive(line: socket.socket) -> Any:
    head = bytearray(_LENGTH.size)
    _fill(line, memoryview(head))
    packed = bytearray(_LENGTH.unpack(head)[0])
    _fill(line, memoryview(packed))
    return pickle.loads(packed)


def _fill(line: socket.socket, into: memoryview) -> None:
    while len(into):  # it waits for all, but where a signal comes, or Ctrl-Z
        try:
            came = line.recv_into(into, len(into), socket.MSG_WAITALL)
        except OSError as error:
            raise _Died from error
        if not came:
            raise _Died
        into = into[came:]


# --- the process -----------------------------------------------------------------------------------------------------


def _asked(line: socket.socket, content: str) -> bool:
    _send(line, _Ask(content))
    return bool(_receive(line))


def _tell(line: socket.socket, findings: Iterator[Finding]) -> None:
    """Send what is found while it is wanted. The next thing is found before it is known whether it is."""
    for place, finding in enumerate(findings):
        if place and not _receive(line):
            return
        if isinstance(finding, Window):
            _send(line, _Samples(finding.start, finding.end, len(finding.samples)))
            _send_bytes(line, np.ascontiguousarray(finding.samples, np.float32).data.cast("B"))
        else:
            _send(line, finding)
    _receive(line)


def serve() -> None:
    """What the process does: examine files until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory()
    line = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what is said there is not for whoever reads its standard input
    with contextlib.suppress(_Died):
        corpus, windowing = _receive(line)
        _send(line, None)
        while True:
            path, *stamp = _receive(line)
            _tell(line, examine(corpus / os.fsdecode(path), Stamp(*stamp), windowing, partial(_asked, line)))
            _send(line, None)
