"""What phase one sends to a GPU and keeps there, as far as it can be seen without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.data.logmels import LogMels
from diffatr_cli.evaluation.embedded_split import Captions
from diffatr_cli.recipe_schema import PretrainSection
from diffatr_cli.training import clips, crops_on_gpu
from diffatr_cli.training.batches import TrainSplit, overlapped_batches
from diffatr_cli.training.clips import LogMelCrops, SomeClips
from diffatr_cli.training.crops_on_gpu import PlacedCrops, SteppedCrops, copied
from diffatr_cli.training.running_loss import RunningLoss

CPU = torch.device("cpu")


def logmels(lengths: list[int], seed: int = 0) -> LogMels:
    values = np.random.default_rng(seed).integers(-20000, 4000, (sum(lengths), 64)).astype(np.int16)
    return LogMels(values, np.cumsum([0, *lengths]))


@pytest.mark.parametrize("fits", [True, False])
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    longest=st.integers(1, 100),
    rows=st.integers(1, 50),
    seed=st.integers(0, 2**31),
)
def test_crops_are_those_of_the_processor(fits: bool, lengths: list[int], longest: int, rows: int, seed: int) -> None:
    """Gathered from a table, or sent in steps: the same stretches, silence behind short ones, bit by bit."""
    source = logmels(lengths, seed)
    rng = np.random.default_rng(seed)
    chosen, part = rng.integers(0, len(lengths), 5), slice(1, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops_on_gpu, "ROWS", rows)
        patch.setattr(clips, "table_on", lambda values, device: copied(values, device) if fits else None)
        there = LogMelCrops(source, longest, 640, CPU)
    for place in (slice(None), part):
        plain, other = np.random.default_rng(seed), np.random.default_rng(seed)
        expected = LogMelCrops(source, longest, 640).crop(chosen, plain, place)
        got = there.crop(chosen, other, place)
        assert isinstance(got, PlacedCrops if fits else SteppedCrops)
        assert torch.equal(got.to(CPU), expected)
        assert plain.integers(1 << 40) == other.integers(1 << 40)  # as many numbers were drawn
    assert torch.equal(
        SomeClips(there, np.array([0])).crop([0], np.random.default_rng(1)).to(CPU),
        LogMelCrops(source, longest, 640).crop([0], np.random.default_rng(1)),
    )


def test_log_mels_stay_where_they_are_if_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((100, 64), np.int16)
    for free, there in ((values.nbytes * 4 - 1, False), (values.nbytes * 4, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert (crops_on_gpu.table_on(values, CPU) is not None) == there
    crops = LogMelCrops(logmels([3]), 2, 640)
    assert crops.on(CPU) is crops


def test_batches_cut_out_by_several_threads_are_the_same() -> None:
    source, captions = logmels([40] * 24), Captions([f"sound {i}" for i in range(24)], np.arange(24), np.arange(25))
    split = TrainSplit(LogMelCrops(source, 32, 640), captions, None, np.arange(24))
    for section in (PretrainSection(batch_size=4, epochs=2), PretrainSection(batch_size=4, epochs=2, compose=0.5)):
        one, three = (list(overlapped_batches(split, section, 0, 6, 3, ahead=ahead)) for ahead in (1, 3))
        assert [step for step, _, _ in one] == list(range(3, 12))
        for (step, batch, crops), (other_step, other_batch, other_crops) in zip(one, three, strict=True):
            assert step == other_step
            assert batch.texts == other_batch.texts
            assert torch.equal(crops, other_crops)


class OnGpu(torch.Tensor):
    device = torch.device("cuda")  # type: ignore[assignment]


@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=80), st.integers(1, 3))
def test_losses_are_summed_as_one_by_one(losses: list[float], processes: int) -> None:
    expected = 7.5
    here, there = RunningLoss(7.5, 3, processes), RunningLoss(7.5, 3, processes)
    for number, loss in enumerate(losses, 1):
        expected += loss / processes
        here.add(torch.tensor(loss))
        there.add(torch.tensor(loss).as_subclass(OnGpu))
        assert here.mean == expected / (3 + number)
    assert here.total == there.total == expected
    assert there.mean == here.mean


def test_before_the_first_loss_there_is_no_mean() -> None:
    assert np.isnan(RunningLoss().mean)
    assert RunningLoss().total == 0
