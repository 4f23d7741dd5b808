"""How long work tells the one who waits: a callable that jobs call and the console implements."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is going on); must return quickly."""


def silent(done: int, total: int, note: str) -> None:
    """The progress of work that nobody watches."""
