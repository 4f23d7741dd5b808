"""Sequences of different lengths: what is padded is what was put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.core.ragged import Ragged


@given(st.lists(st.integers(0, 6), max_size=5), st.data())
def test_some_sequences_padded_to_the_longest_of_them(lengths: list[int], data: st.DataObject) -> None:
    sequences = [torch.arange(4.0 * n).view(n, 4) + 100 * i for i, n in enumerate(lengths)]
    ragged = Ragged.of(sequences, 4)
    assert (len(ragged), ragged.features) == (len(lengths), 4)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)) if lengths else []
    states, mask = ragged.padded(torch.tensor(chosen, dtype=torch.long))
    assert states.shape == (len(chosen), max([1, *(lengths[i] for i in chosen)]), 4)
    assert not states[~mask].any()
    for row, i in enumerate(chosen):
        assert torch.equal(states[row][mask[row]], sequences[i])


def test_what_half_precision_cannot_hold_stays_finite() -> None:
    states, _ = Ragged.of([torch.tensor([[1e9, -1e9]])], 2).padded(np.array([0]))
    assert states.tolist() == [[[65504, -65504]]]


def test_a_mapped_file_is_read_where_it_is_asked(tmp_path: Path) -> None:
    np.arange(12, dtype=np.float16).tofile(tmp_path / "x")
    mapped = Ragged(np.memmap(tmp_path / "x", np.float16, "r").reshape(-1, 2), np.array([0, 1, 4]), np.array([1, 3, 2]))
    assert mapped.padded(np.array([2, 0])).states.tolist() == [[[8, 9], [10, 11]], [[0, 1], [0, 0]]]
