"""Values on their way to a GPU, for which the processor does not wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def pinned(values: Any) -> Any:
    """A tensor in memory that the system does not move, which a GPU reads while other work goes on; anything else as it is.

    Needs a CUDA GPU. The memory is kept for later tensors, since asking for it takes long.
    """
    return values.pin_memory() if isinstance(values, Tensor) and values.device.type == "cpu" else values


def send(values: Any, device: torch.device) -> Any:
    """A tensor, or inputs with a `to`, on a device; to a GPU without waiting for it."""
    if device.type != "cuda" or not isinstance(values, Tensor):
        return values.to(device)
    return pinned(values).to(device, non_blocking=True)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each after the next one has been begun: what a GPU makes is fetched while it makes the next."""
    iterator = iter(items)
    for held in iterator:
        for following in iterator:
            yield held
            held = following
        yield held
