"""How long work tells the one who waits: a callable that jobs call and the console implements."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is going on); must return quickly."""


def silent(done: int, total: int, note: str) -> None:
    """The progress of work that nobody watches."""


class ProgressLog:
    """Progress as lines for a log: `update` is a `Progress`, `line` is asked for now and then.

    Args:
        clock: seconds that have passed since some moment.
        window: the rate is that of the time since so many lines ago, because work does not go at one speed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 10) -> None:
        self._clock, self._window = clock, window
        # One tuple, because `update` and `line` are called by two threads: done, total, note, and when how much was done.
        self._state: tuple[int, int, str, deque[tuple[float, int]]] | None = None

    def update(self, done: int, total: int, note: str) -> None:
        """Note how far the work is."""
        if self._state is None or done < self._state[0] or total != self._state[1]:  # another stage of the same job begins
            marks = deque([(self._clock(), done)], self._window)
        else:
            marks = self._state[3]
        self._state = done, total, note, marks

    def line(self) -> str | None:
        """Where the work stands: step, of how many, rate, time left; None before the first update."""
        if self._state is None:
            return None
        done, total, note, marks = self._state
        now = self._clock()
        since, before = marks[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        marks.append((now, done))
        parts = [f"{done:,} of {total:,} ({done / total:.0%})" if total else f"{done:,}"]
        if rate:
            parts.append(f"{rate:.3g}/s" if rate < 100 else f"{rate:,.0f}/s")
            if total > done:
                parts.append(f"{duration((total - done) / rate)} left")
        return f"{note}: " + ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people read them: `2 h 05 min`, `3 min 20 s`, `9 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def ago(seconds: float) -> str:
    """How long ago something was, in one unit: `just now`, `3 minutes ago`, `1 day ago`."""
    for length, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
