"""Processes that look into files for this one: what reads for a GPU.

A thread that reads a clip needs Python's lock for a part of that time, so that threads read a bounded number of clips a second
on however many cores. An encoder on the processor takes longer than that by far; a GPU does not.

Asker and process speak over a socket, about a group of files at a time, since each message costs the lock. The process says that
it has begun. It gets a group, sends the hashes of the contents, and is told of which files more is wanted. Then it sends what
is found, file by file and in parcels, each a `_Told` and the samples of its windows. After each parcel but the last it is told
whether more is wanted of the file with which the parcel ended; it reads on before it knows.
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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.windows import Windowing
from ..errors import DiffATRError
from ..worker_process import ONE_THREAD, keep_memory, started, wait_for_end
from .examine import Content, Failure, Finding, Left, examine, note_of
from .scan import Stamp
from .windows import Window

_POSSIBLE = hasattr(signal, "pthread_sigmask") and hasattr(socket, "AF_UNIX") and hasattr(socket, "MSG_WAITALL")  # not Windows
_FILES, _BYTES = 256, 256 << 20  # with less to read the start of processes is not worth it,
_CORES = 4  # nor here, where threads do as well
MOST = 32
"""Processes that read for one GPU at the most."""
PARCEL = 8 << 20
"""Bytes of samples that travel together, and a window more."""
_GROUP, _GROUP_BYTES = 16, 16 << 20  # files, and bytes of them, of which the process is told together
_AT_ONCE = 1000  # places into which the system receives with one call
_BUFFER = 4 << 20  # bytes of a socket, so that a window or two fit
_TRIES = 2  # of a file over which a process dies
_PATIENCE = 5  # seconds for a process to end that has nobody to talk to
_LENGTH = struct.Struct("<Q")

File = tuple[bytes, Stamp]
"""A path below the folder, and what is known of the file there."""
Parcel = list[tuple[bytes, Finding | None]]
"""Findings in files, by path, in their order; None at the end of a file."""
Settled = Callable[[bytes, str], bool]
"""Whether a file, by its path, need not be decoded with a content, by hash."""


def pay(workers: int, stamps: Iterable[Stamp] | None = None) -> bool:
    """Whether so many processes feed a GPU faster than as many threads do.

    Args:
        stamps: of the files, where these are all that is to be read.
    """
    if not (_POSSIBLE and sys.executable and workers >= _CORES):  # embedded, Python may have none
        return False
    sizes = None if stamps is None else [stamp.size for stamp in stamps]
    return sizes is None or len(sizes) >= _FILES or sum(sizes) >= _BYTES


def in_groups(files: Mapping[bytes, Stamp], workers: int) -> Iterator[list[File]]:
    """Files in groups for processes: small ones together, but so that there are a few groups for each of `workers`."""
    most = max(1, min(_GROUP, len(files) // (4 * workers)))
    group, size = list[File](), 0
    for path, stamp in files.items():
        if group and (len(group) == most or size + stamp.size > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((path, stamp))
        size += stamp.size
    if group:
        yield group


class _Cut(NamedTuple):
    """A window, from sample `start` to `end`, whose samples, so many, come after the parcel."""

    start: int
    end: int
    number: int


class _Told(NamedTuple):
    """What a parcel holds: findings, each with the place of its file in the group, and whether parcels follow."""

    findings: Sequence[tuple[int, Finding | _Cut | None]]
    more: bool


class _Died(Exception):
    """The other side is gone."""


class _Given:
    """How much of some files whoever asked was given: `files` to their ends, and of the next one so many findings, of `content`
    where its hash was among them."""

    def __init__(self) -> None:
        self.files = self.findings = 0
        self.content = ""

    def count(self, parcel: Parcel) -> None:
        for _, finding in parcel:
            self.findings += 1
            if isinstance(finding, Content):
                self.content = finding.hash
            if finding is None:
                self.files, self.findings, self.content = self.files + 1, 0, ""


class Readers:
    """Processes that examine files: as many as are asked at a time, from the first file until the end of the context, or of this
    process.

    Args:
        corpus: the folder of the files.
        windowing: how they are cut.

    Raises:
        DiffATRError: out of `examine`: no process can be started.
    """

    def __init__(self, corpus: Path, windowing: Windowing) -> None:
        self._manner = corpus.absolute(), windowing
        self._all: list[_Reader] = []
        self._idle: list[_Reader] = []
        keep_memory()  # here too: windows are of one size

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._all:
            reader.hang_up()
        for reader in self._all:
            reader.wait()

    def examine(self, files: Sequence[File], is_settled: Settled) -> Iterator[Parcel]:
        """What `examine.examine` finds in each file, the Note of one that is decoded, and its end.

        A file over which processes die costs itself alone.

        Args:
            files: some, of which a process is told together.
            is_settled: whether a file, by its path, need not be decoded with a content, by hash; asked again while it is.
        """
        given, tries = _Given(), _TRIES
        try:
            for parcel in self._parcels(files, is_settled):
                given.count(parcel)
                yield parcel
            return
        except _Died:
            tries -= len(files) == 1  # of several, any may be the one
        for path, stamp in files[given.files :]:
            yield from self._alone(path, stamp, is_settled, given, tries)

    def _alone(self, path: bytes, stamp: Stamp, is_settled: Settled, given: _Given, tries: int) -> Iterator[Parcel]:
        """What was not given of a file."""
        for _ in range(tries):
            try:
                for finding in self._not_given(path, stamp, is_settled, given):
                    parcel: Parcel = [(path, finding)]
                    given.count(parcel)
                    yield parcel
                return
            except _Died:
                continue
        lost: Parcel = [
            (path, Failure("cannot be decoded (the process that worked on it died twice)", lasting=False)),
            (path, None),
        ]
        given.count(lost)
        yield lost

    def _not_given(self, path: bytes, stamp: Stamp, is_settled: Settled, given: _Given) -> Iterator[Finding | None]:
        first, content = given.findings, given.content
        with contextlib.closing(self._parcels([(path, stamp)], is_settled)) as parcels:
            for place, (_, finding) in enumerate(chain.from_iterable(parcels)):
                if isinstance(finding, Content) and content not in ("", finding.hash):
                    finding = Failure("changed while it was read", lasting=False)
                if isinstance(finding, Failure):  # something else may be wrong now, and what was given is not all then
                    yield finding
                    yield None
                    return
                if place >= first or finding is None:
                    yield finding

    def _parcels(self, files: Sequence[File], is_settled: Settled) -> Generator[Parcel]:
        """As `_Reader.examine`, by a process that is not asked again unless it told all."""
        try:
            reader = self._idle.pop()
        except IndexError:  # asked in many threads
            reader = _Reader(*self._manner)
            self._all.append(reader)
        try:
            yield from reader.examine(files, is_settled)
        except BaseException as error:
            reader.hang_up()
            if isinstance(error, _Died):
                reader.wait()
                self._all.remove(reader)
            raise
        self._idle.append(reader)


class _Reader:
    """One process, and the line to it."""

    def __init__(self, corpus: Path, windowing: Windowing) -> None:
        try:
            self._line, other = (_roomy(each) for each in socket.socketpair())
        except OSError as error:
            raise _not_started(error.strerror) from error
        try:
            self._process = started(__name__, other.fileno(), subprocess.DEVNULL, os.environ | ONE_THREAD)
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

    def examine(self, files: Sequence[File], is_settled: Settled) -> Iterator[Parcel]:
        """What is found in files, as `Readers.examine`. Raises _Died where the process does."""
        _send(self._line, files)
        hashes: list[str | None] = _receive(self._line)

        def wanted(place: int) -> bool:
            content = hashes[place]
            return content is not None and not is_settled(files[place][0], content)

        _send(self._line, [wanted(place) for place in range(len(files))])
        more = True
        while more:
            told, more = _receive(self._line)
            windows = [
                Window(each.start, each.end, np.empty(each.number, np.float32)) for _, each in told if isinstance(each, _Cut)
            ]
            _fill(self._line, [window.samples.data.cast("B") for window in windows])
            rest = iter(windows)
            yield [(files[place][0], next(rest) if isinstance(each, _Cut) else each) for place, each in told]
            if more:
                _send(self._line, wanted(told[-1][0]))

    def hang_up(self) -> None:
        """Let the process end, also where a child of this one has the line too."""
        with contextlib.suppress(OSError):  # it has ended
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()

    def wait(self) -> None:
        """Wait for its end."""
        wait_for_end(self._process, _PATIENCE)


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
    _fill(line, [memoryview(head)])
    packed = bytearray(_LENGTH.unpack(head)[0])
    _fill(line, [memoryview(packed)])
    return pickle.loads(packed)


def _fill(line: socket.socket, into: list[memoryview]) -> None:
    while into:  # it waits for all, but where a signal comes, or Ctrl-Z
        try:
            came = line.recvmsg_into(into[:_AT_ONCE], 0, socket.MSG_WAITALL)[0]
        except OSError as error:
            raise _Died from error
        if not came:
            raise _Died
        while into and came >= len(into[0]):
            came -= len(into.pop(0))
        if came:
            into[0] = into[0][came:]


# --- the process -----------------------------------------------------------------------------------------------------


def _tell(line: socket.socket, files: Sequence[Iterator[Finding]]) -> None:
    """Send what is found in each file, as far as it is wanted."""
    firsts = [next(each) for each in files]  # there is one in each
    _send(line, [first.hash if isinstance(first, Content) else None for first in firsts])
    parcel, sent = list[tuple[int, Finding | None]](), None  # and the place of the file with which the one before ended
    size = 0
    for place, (first, rest, is_wanted) in enumerate(zip(firsts, files, _receive(line), strict=True)):
        for finding in chain([first], rest if is_wanted else ()):
            parcel.append((place, finding))
            size += finding.samples.nbytes if isinstance(finding, Window) else 0
            if size >= PARCEL:
                if sent is not None and not _receive(line) and sent == place:
                    parcel, size, sent = [(place, Left())], 0, None
                    break
                _send_parcel(line, parcel, more=True)
                parcel, size, sent = [], 0, place
        parcel.append((place, None))
    if sent is not None:
        _receive(line)
    _send_parcel(line, parcel, more=False)


def _send_parcel(line: socket.socket, parcel: Sequence[tuple[int, Finding | None]], *, more: bool) -> None:
    told = [
        (place, _Cut(each.start, each.end, len(each.samples)) if isinstance(each, Window) else each) for place, each in parcel
    ]
    _send(line, _Told(told, more))
    for _, each in parcel:
        if isinstance(each, Window):
            _send_bytes(line, np.ascontiguousarray(each.samples, np.float32).data.cast("B"))


def _found_in(path: Path, stamp: Stamp, windowing: Windowing) -> Iterator[Finding]:
    for finding in examine(path, stamp, windowing, _not_settled):
        yield finding
        if isinstance(finding, Content):  # before it is seen whether the file has changed
            yield note_of(path, stamp)


def _not_settled(content: str) -> bool:
    return False


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
            files = _receive(line)
            _tell(line, [_found_in(corpus / os.fsdecode(path), stamp, windowing) for path, stamp in files])
