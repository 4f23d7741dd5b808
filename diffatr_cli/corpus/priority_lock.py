"""A lock for what works for one at a time, where some can wait longer than others."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from .stopwatch import stage


class PriorityLock:
    """A priority lock: one holder at a time, in the order of asking; those who take it patiently wait until nobody else waits."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        # Of those who wait, by their patience: each is locked until its turn has come.
        self._turns: dict[bool, deque[threading.Lock]] = {False: deque(), True: deque()}

    @property
    def waiting(self) -> int:
        """How many wait that are not patient."""
        return len(self._turns[False])

    @contextlib.contextmanager
    def take(self, *, patient: bool = False) -> Iterator[None]:
        """Hold the lock while the block runs."""
        with stage("wait"):
            self._wait(patient)
        try:
            yield
        finally:
            self._hand_on()

    def _wait(self, patient: bool) -> None:
        turn = threading.Lock()
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            turn.acquire()
            self._turns[patient].append(turn)
        try:
            turn.acquire()
        except BaseException:  # a signal
            with self._guard:
                had_come = turn not in self._turns[patient]
                if not had_come:
                    self._turns[patient].remove(turn)
            if had_come:
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        """To whoever is next, by name: woken all together, dozens would fight for it each time, and some would never win."""
        with self._guard:
            turns = self._turns[False] or self._turns[True]
            if turns:
                turns.popleft().release()
            else:
                self._taken = False
