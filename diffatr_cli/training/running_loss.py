"""The mean loss of an epoch while it goes on, for which a GPU is not waited for at every step."""

from __future__ import annotations

import torch
from torch import Tensor

EVERY = 25  # steps that are fetched from a GPU together


class RunningLoss:
    """The losses of an epoch's steps, summed in their order, so that the sum is the same however many are fetched at a time.

    Args:
        total: the sum so far.
        steps: of how many.
        divisor: that each loss is divided by: where it is the sum over several processes, their number.
    """

    def __init__(self, total: float = 0.0, steps: int = 0, divisor: int = 1) -> None:
        self._total, self._steps, self._divisor = total, steps, divisor
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """One more step's loss, a scalar."""
        self._waiting.append(loss)
        if loss.device.type == "cpu" or len(self._waiting) >= EVERY:
            self._fetch()

    @property
    def mean(self) -> float:
        """Of the steps that are known here; nan before the first."""
        return self._total / self._steps if self._steps else float("nan")

    @property
    def total(self) -> float:
        """The sum over all steps so far; waits for a GPU."""
        self._fetch()
        return self._total

    def _fetch(self) -> None:
        if self._waiting:
            for loss in torch.stack(self._waiting).tolist():
                self._total += loss / self._divisor
            self._steps += len(self._waiting)
            self._waiting.clear()
