"""Values on their way to a GPU and back, for which the processor does not wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def pinned(values: Any) -> Any:
    """A tensor in memory that the system does not move, which a GPU reads while other work goes on; what has a `pin_memory` of
    its own, by that; anything else as it is.

    Needs a CUDA GPU. The memory is kept for later tensors, since asking for it takes long.
    """
    if isinstance(values, Tensor) and values.device.type != "cpu":
        return values
    return values.pin_memory() if hasattr(values, "pin_memory") else values


def send(values: Any, device: torch.device) -> Any:
    """A tensor, or inputs with a `to`, on a device; to a GPU without waiting for it."""
    if device.type != "cuda" or not isinstance(values, Tensor):
        return values.to(device)
    return pinned(values).to(device, non_blocking=True)


def stacked(rows: Sequence[Tensor], length: int, device: torch.device) -> Tensor:
    """Rows of at most `length` values, with zeros behind them: (n, length) float32 on the CPU, pinned if `device` is a GPU."""
    out = torch.empty(len(rows), length, pin_memory=device.type == "cuda")
    for to, row in zip(out, rows, strict=True):
        to[: len(row)] = row
        to[len(row) :] = 0
    return out


def send_aside(values: Tensor, device: torch.device) -> Tensor:
    """`send`, also while a GPU is at work on what it got before, rather than after that."""
    if device.type != "cuda":
        return values.to(device)
    with torch.cuda.device(device):
        aside, here = _aside(torch.cuda.current_device()), torch.cuda.current_stream()
        with torch.cuda.stream(aside):
            moved: Tensor = pinned(values).to(device, non_blocking=True)
        here.wait_stream(aside)
        moved.record_stream(here)  # or its memory would be given away before the work on it is done
    return moved


@cache
def _aside(number: int) -> torch.cuda.Stream:
    """The stream of copies to a GPU."""
    return torch.cuda.Stream(number)  # type: ignore[no-untyped-call]


class Fetched:
    """Values on their way to the CPU. On a GPU the copy follows the work begun so far, and not what is begun after it."""

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            with torch.cuda.device(values.device):
                self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                self._values.copy_(values, non_blocking=True)
                self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrived.record()

    def values(self) -> Tensor:
        """The values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu()


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each after the next one has been begun: what a GPU makes is fetched while it makes the next."""
    iterator = iter(items)
    for held in iterator:
        for following in iterator:
            yield held
            held = following
        yield held
