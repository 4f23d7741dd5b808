"""How long each stage of a search takes, for whoever asks: nothing is measured elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

Stage = Literal["wait", "embed", "cosine", "diffusion"]
"""`wait`: for the model, which works for one at a time. `embed`: texts or sounds. `cosine`: stage one, over every window.
`diffusion`: stage two, over the shortlist."""

_taken: ContextVar[dict[Stage, float] | None] = ContextVar("stages", default=None)


@contextlib.contextmanager
def measured() -> Iterator[dict[Stage, float]]:
    """While the block runs, the stages of the searches that this thread makes add up their seconds in what this gives."""
    seconds: dict[Stage, float] = {}
    token = _taken.set(seconds)
    try:
        yield seconds
    finally:
        _taken.reset(token)


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """The block, or the function that this decorates, is a stage."""
    seconds = _taken.get()
    if seconds is None:
        yield
        return
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
