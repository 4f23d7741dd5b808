"""A table of candidates in 16-bit integers: half the bytes of float32, for sums in which a single candidate counts for little.

N candidates, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .threads import parallel_for

ROWS = 2**13  # that are rounded at a time
LARGEST = 2**15 - 1
SMALLEST = 1e-30  # step that can be divided by; smaller columns are as good as constant


@dataclass(frozen=True, eq=False)
class CoarseTable:
    """A table (N, H) as middle + step * values.

    values: (N, H) int16. step, middle: (H,), of each column.
    """

    values: Tensor
    step: Tensor
    middle: Tensor

    @classmethod
    def of(cls, table: Tensor) -> CoarseTable:
        """Rounded to the nearest of 2^16 - 1 values, evenly spaced over what each column has."""
        parts = range(0, len(table), ROWS)
        low, high = (torch.empty(len(parts), table.shape[1], dtype=table.dtype) for _ in range(2))

        def look(first: int) -> None:
            torch.aminmax(table[first : first + ROWS], dim=0, out=(low[first // ROWS], high[first // ROWS]))

        parallel_for(look, parts)
        least, most = low.amin(0), high.amax(0)
        step = (most - least) / (2 * LARGEST)
        step = torch.where(step < SMALLEST, 1, step)
        middle, values = (least + most) / 2, torch.empty(table.shape, dtype=torch.int16)

        def write(first: int) -> None:
            rounded = (table[first : first + ROWS] - middle).div_(step).round_().clamp_(-LARGEST, LARGEST)
            values[first : first + ROWS] = rounded

        parallel_for(write, parts)
        return cls(values, step, middle)

    def for_maxima(self, negative_hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What takes the places of b and w in sum_h w[h] max(table[i, h], b[h]) where `values` takes the table's, and what is to
        be added then: (H,), (H,) and a scalar. Maxima pass through positive steps."""
        return (negative_hidden - self.middle) / self.step, weight * self.step, weight @ self.middle

    def spread(self, weight: Tensor) -> float:
        """sqrt(sum_h (w[h] step[h])^2): by Hoeffding's inequality sum_i p[i] times a sum over h differs by more than t times this
        times sqrt(sum_i p[i]^2) from the table's own with a probability of 2 exp(-2 t^2) at most, if the roundings are
        independent."""
        return float((weight * self.step).norm())
