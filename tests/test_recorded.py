"""Recordings of a GPU's work, without a GPU: one is stood in for by doing the work again on the same memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffatr_cli.core import recorded, sampler
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.recorded import Recordings, Work
from diffatr_cli.core.sampler import fast_ddim_sample
from diffatr_cli.core.schedule import NoiseSchedule


class Graphs:
    """What records, and counts what it is asked."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Tensor]:
        self.made += 1
        result = work(*inputs)

        def replay() -> None:
            self.replayed += 1
            result.copy_(work(*inputs))

        return replay, result


def test_work_is_recorded_from_the_second_time_on_and_gives_the_same() -> None:
    graphs = Graphs()
    recordings = Recordings(graphs)
    results = [recordings.run("sum", torch.add, torch.full((2, 3), float(i)), torch.ones(2, 3)) for i in range(5)]
    assert [float(result[0, 0]) for result in results] == [1, 2, 3, 4, 5]  # none is overwritten by a later one
    assert (graphs.made, graphs.replayed) == (1, 4)


def test_other_shapes_types_and_kinds_are_other_work() -> None:
    graphs = Graphs()
    recordings = Recordings(graphs)
    for _ in range(2):
        for shape, dtype in (((2, 3), torch.float32), ((3, 2), torch.float32), ((2, 3), torch.float64)):
            for kind, work in (("double", lambda x: 2 * x), ("square", lambda x: x * x)):
                x = torch.full(shape, 3, dtype=dtype)
                assert torch.equal(recordings.run(kind, work, x), work(x))
    assert graphs.made == 6


def test_the_one_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "KEPT", 2)
    graphs = Graphs()
    recordings = Recordings(graphs)
    for size in (1, 1, 2, 2, 1, 3, 3, 1, 2):  # 2 goes for 3, and is made again
        recordings.run("", torch.neg, torch.ones(size))
    assert graphs.made == 4


def test_what_cannot_be_recorded_is_done_as_it_is_and_told(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def fails(work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Tensor]:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    recordings = Recordings(fails)
    with caplog.at_level(logging.DEBUG, "diffatr_cli.core.recorded"):
        for i in range(4):
            assert torch.equal(recordings.run("", torch.neg, torch.full((2,), float(i))), torch.full((2,), -float(i)))
    assert len(tried) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU's work cannot be recorded, and is launched operation by operation "
        "(operation not permitted when stream is capturing)"
    ]


@pytest.mark.parametrize("own", [False, True])
def test_a_sampler_that_replays_gives_what_the_plain_one_gives(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one shape are recorded once and replayed, over shared candidates and over own ones with a shift."""

    def unit(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, generator=generator), dim=-1)

    generator = torch.Generator().manual_seed(0)
    denoiser = AttentionDenoiser(8, 12, self_conditioning=True, generator=generator).requires_grad_(False)
    factors, schedule = FactoredDenoiser(denoiser), NoiseSchedule.cosine(10)
    graphs = Graphs()
    for name in ("BLOCK_ENTRIES", "BLOCK_QUERIES", "OWN_ENTRIES"):
        monkeypatch.setattr(sampler, name, 1)
    fixed = unit(7, 8)
    prepared = factors.prepare(fixed)
    holder = factors if own else prepared
    holder.__dict__["recordings"] = Recordings(graphs)
    for _ in range(2):
        query, noise = unit(5, 8), torch.randn(5, 7, generator=generator)
        candidates, shift = (unit(5, 7, 8), torch.randn(5, 7, generator=generator)) if own else (fixed, None)
        expected = fast_ddim_sample(factors, query, candidates, schedule, 4, noise=noise, shift=shift)
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "replays_on", lambda device: True)
            asked = candidates if own else prepared
            got = fast_ddim_sample(factors, query, asked, schedule, 4, noise=noise, shift=shift)
            random = fast_ddim_sample(factors, query, asked, schedule, 4, eta=1.0, generator=generator, shift=shift)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(random, expected)  # and with noise on the way nothing is replayed
    assert (graphs.made, graphs.replayed) == (1, 9)


class WhatIsRead(TorchDispatchMode):
    """Follows which memory operations take, and which of it they made themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, StorageWeakRef] = {}
        self.made: list[torch.UntypedStorage] = []  # held, so that no later storage has the address of one of these

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {storage.data_ptr() for storage in self.made}
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in own:
                self.read[each.untyped_storage().data_ptr()] = StorageWeakRef(each.untyped_storage())
        done = operation(*args, **(kwargs or {}))
        self.made += [each.untyped_storage() for each in tree_leaves(done) if isinstance(each, Tensor)]
        return done


@pytest.mark.parametrize("own", [False, True])
def test_what_a_recorded_sampler_reads_lives_as_long_as_the_recording(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU reads it again at every replay, where it was: in memory given back, other things would be by then."""
    followed = WhatIsRead()

    def record(work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Tensor]:
        with followed:
            result = work(*inputs)
        followed.made.clear()
        return (lambda: None), result

    generator = torch.Generator().manual_seed(0)
    factors = FactoredDenoiser(AttentionDenoiser(8, 12, generator=generator).requires_grad_(False))
    query, noise, fixed = torch.randn(5, 8), torch.randn(5, 7), torch.randn(7, 8)
    prepared, candidates = factors.prepare(fixed), torch.randn(5, 7, 8)
    (factors if own else prepared).__dict__["recordings"] = Recordings(record)
    monkeypatch.setattr(sampler, "replays_on", lambda device: True)
    for _ in range(recorded.FROM):
        fast_ddim_sample(factors, query, candidates if own else prepared, NoiseSchedule.cosine(10), 4, noise=noise)
    assert len(followed.read) > 5
    assert not any(each.expired() for each in followed.read.values())
