"""What goes to a GPU, as far as it can be seen without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.core.sending import one_ahead, send
from diffatr_cli.evaluation.embedded_split import Captions
from diffatr_cli.recipe_schema import PretrainSection
from diffatr_cli.training import batches
from diffatr_cli.training.clips import PooledClips


@given(st.lists(st.integers(), max_size=6))
def test_one_ahead_gives_all_in_order_and_begins_the_next_first(items: list[int]) -> None:
    begun: list[int] = []

    def source() -> Iterator[int]:
        for item in items:
            begun.append(item)
            yield item

    got = []
    for item in one_ahead(source()):
        got.append(item)
        assert len(begun) == min(len(got) + 1, len(items))
    assert got == items


def test_elsewhere_than_on_a_gpu_values_are_sent_as_ever() -> None:
    values = torch.ones(3)
    assert send(values, torch.device("cpu")) is values
    assert send(values, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("pin", [False, True])
def test_crops_are_pinned_where_a_gpu_reads_them(pin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, by the thread that cuts them out; the batches are the same."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(batches, "pinned", lambda crops: seen.append(crops) or crops)
    captions = Captions([f"sound {i}" for i in range(8)], np.arange(8), np.arange(9))
    split = batches.TrainSplit(PooledClips(torch.arange(16.0).view(8, 2)), captions, None, np.arange(8))
    section = PretrainSection(batch_size=4, epochs=2)
    got = [crops for _, _, crops in batches.overlapped_batches(split, section, 0, 2, 0, pin=pin)]
    plain = [crops for _, _, crops in batches.overlapped_batches(split, section, 0, 2, 0)]
    assert len(got) == 4
    assert all(torch.equal(*pair) for pair in zip(got, plain, strict=True))
    assert [each.data_ptr() for each in seen] == ([each.data_ptr() for each in got] if pin else [])
