"""Ctrl-C while processes or threads are at work: it waits for a place where they can be ended."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], None]]:
    """Have Ctrl-C, and other signals that end the program, wait for a call of the function that this gives, or for the end of
    the block.

    An exception in the midst of starting or stopping processes leaves some of them behind, and in the midst of a lock, this one
    waiting for ever. Outside the main thread, which alone gets such exceptions, nothing changes.
    """
    handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[int] = []

    def raise_interrupt() -> None:
        if arrived:
            number = arrived.pop()
            handlers[number](number, sys._getframe())  # from here, where an exception does no harm

    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield raise_interrupt
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise_interrupt()
