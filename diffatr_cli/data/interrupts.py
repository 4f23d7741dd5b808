"""Ctrl-C while processes or threads are at work: it waits for a place where they can be ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], None]]:
    """Have Ctrl-C wait for a call of the function that this gives, or for the end of the block.

    An exception in the midst of starting or stopping processes leaves some of them behind, and in the midst of a lock, this one
    waiting for ever. Outside the main thread, which alone gets such exceptions, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: None
        return
    arrived: list[tuple[int, FrameType | None]] = []

    def raise_interrupt() -> None:
        if arrived:
            before(*arrived.pop())

    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, before)
    raise_interrupt()
