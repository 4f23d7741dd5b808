"""Ctrl-C and `kill`: one line, the exit code that shells expect, no traceback, and nothing that hangs.

Where nothing is at stake a signal ends the process at once, without an exception: one that is raised in the middle of an import
comes out as a traceback, as another error or as the abort of a C++ library. Within `unwinding` it raises KeyboardInterrupt, so
that temporary files go and the terminal is put right; what does not unwind in time is ended.

The program loads this module before anything else, so it imports little.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

GRACE = 5.0
"""Seconds that unwinding may take. It waits for threads and processes, which may be busy with one long file."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_REMIND = 0.05  # seconds between two looks at an interruption that has to wait
_PUT_RIGHT = "\r\x1b[2K\x1b[?25h"  # a progress bar that nobody removes any more: its line, and the cursor, which it hides


class _Arrival:
    """A signal that came while something is at stake.

    Attributes:
        postponed: no exception could be raised for it yet.
        reminder: the next call of the handler is not another signal, but this one again.
        patient: what it ends may take as long as it needs.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.postponed = False
        self.reminder = False
        self.patient = False


_arrival: _Arrival | None = None
_unwinding: list[None] = []  # an entry for each `unwinding` at work, in whatever thread
_told = False
_speaks = True  # of several processes that are all ended the first one tells
_main_thread = _thread.get_ident()
_exit_code: int | None = None  # once the command has come to its end


def install() -> None:
    """Handle the signals that ask a program to end, but for those that it was started to ignore, as `nohup` does."""
    global _speaks
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    sys.unraisablehook = _unraisable
    # The first one registered is the last one called. From there on Python takes its handlers away while it tears modules down.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from .. import launched  # not before signals are handled

    _speaks = launched.rank() == 0


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """While the block runs, a signal raises KeyboardInterrupt in the main thread."""
    _unwinding.append(None)
    try:
        yield
    finally:
        _unwinding.pop()


def dealt_with(number: int = signal.SIGINT) -> bool:
    """Whether a KeyboardInterrupt just caught was this signal, which then counts no more; otherwise it has to be raised again.

    One that no signal brought is Ctrl-C.
    """
    global _arrival
    if (signal.SIGINT if _arrival is None else _arrival.number) != number:
        return False
    _arrival = None
    return True


def take_time() -> None:
    """Let what a signal ends take as long as it needs from here on. A second signal still ends the process at once."""
    if _arrival is not None:
        _arrival.patient = True


def end_at_once(code: int) -> NoReturn:
    """End the process where threads may still be in native code, which crashes when Python is taken apart around it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def arrived() -> bool:
    """Whether a signal ends this process. Whatever exception comes out of the work then, the signal is the reason."""
    return _arrival is not None


def exit_code() -> int:
    """What shells show for a program that the signal ended; that of Ctrl-C where none came."""
    return 128 + (signal.SIGINT if _arrival is None else _arrival.number)


def farewell() -> str | None:
    """The one line that tells of the signal; None once it was asked for."""
    global _told
    if _told:
        return None
    _told = True
    number = signal.SIGINT if _arrival is None else _arrival.number
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"diffatr: {how}. The same command continues where this one stopped."


def finished(code: int) -> None:
    """The command has come to its end, with this exit code: a signal can only speed it up now."""
    global _exit_code
    _exit_code = code


def _handle(number: int, frame: FrameType | None) -> None:
    global _arrival
    if _exit_code is not None:
        os._exit(_exit_code)
    if _arrival is None:
        _arrival = _Arrival(number)
        if not _unwinding:
            _end()
        _thread.start_new_thread(_insist, (_arrival,))  # takes no lock, unlike `threading`, whose locks may be held here
    elif _arrival.reminder:
        _arrival.reminder = False
    else:  # asked for twice
        _end()
    _arrival.postponed = _must_wait(frame)
    if not _arrival.postponed:
        raise KeyboardInterrupt


def _must_wait(frame: FrameType | None) -> bool:
    """Whether an exception would come out of the middle of an import, or of a process that is being started."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if frame.f_globals.get("__name__", "").startswith("multiprocessing."):
            return True
        frame = frame.f_back
    return False


def _insist(arrival: _Arrival) -> None:
    """Remind the main thread of a signal that had to wait, and end the process when it takes too long."""
    deadline = time.monotonic() + GRACE
    while _arrival is arrival:
        if time.monotonic() > deadline and not arrival.patient:
            _end()
        if arrival.postponed:
            arrival.reminder = True
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(_main_thread, arrival.number)  # a real one, which ends its waiting too
            else:
                _thread.interrupt_main(signal.Signals(arrival.number))
        time.sleep(_REMIND)


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Where an exception can go nowhere, as in a destructor, the interruption is raised once more instead."""
    if _arrival is not None and lost.exc_type is KeyboardInterrupt:
        _arrival.postponed = True
    else:
        sys.__unraisablehook__(lost)


def _end() -> NoReturn:
    """End the process here and now. Nothing of ours is left half-written: files are replaced whole."""
    code, line = exit_code(), farewell()
    with contextlib.suppress(OSError):
        right = _PUT_RIGHT if _unwinding and os.isatty(2) else ""
        os.write(2, (right + (f"{line}\n" if line and _speaks else "")).encode())
    os._exit(code)
