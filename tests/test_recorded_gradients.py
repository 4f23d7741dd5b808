"""Recordings of losses and gradients, without a GPU: one is stood in for by doing the work again on the same memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from conftest import Workshop
from torch import Tensor, nn

from diffatr_cli.core import recorded_gradients
from diffatr_cli.core.recorded_gradients import FROM, RecordedGradients, Results, Work
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.progress import silent
from diffatr_cli.training.batches import overlapped_batches
from diffatr_cli.training.pretrain import PhaseOne


class Graphs:
    """What records, and counts what it is asked. As with a CUDA graph, recording does nothing to a module nor takes numbers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.made = self.replayed = 0

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Results]:
        self.made += 1
        before, numbers = copy.deepcopy(self.module.state_dict()), torch.get_rng_state()
        results = work(*inputs)
        self.module.load_state_dict(before)
        torch.set_rng_state(numbers)

        def replay() -> None:
            self.replayed += 1
            for place, result in zip(results, work(*inputs), strict=True):
                assert place is None or result is not None
                if place is not None and result is not None:
                    place.copy_(result)

        return replay, results


def squares(model: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).square().mean()


def test_losses_and_gradients_are_those_of_backward() -> None:
    model, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))
    graphs = Graphs(model)
    recorded = RecordedGradients(squares(model), [*model.parameters(), unused], graphs)
    losses = []
    for number in range(6):
        x = torch.full((4, 3), float(number))
        model.zero_grad()
        expected = squares(model)(x)
        expected.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        losses.append((recorded.run(x), expected.detach()))
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None)
        assert unused.grad is None
    assert all(torch.equal(*pair) for pair in losses)  # none is overwritten by a later one
    assert (graphs.made, graphs.replayed) == (1, 6 - FROM + 1)


def test_gradients_lie_as_their_parameters_do() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    recorded = RecordedGradients(lambda x: (x * weight.contiguous()).sum(), [weight], Graphs(nn.Module()))
    x = torch.randn(4, 3, 3, 3)
    for _ in range(FROM + 1):
        recorded.run(x)
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
        assert torch.equal(weight.grad, x)


def test_too_many_shapes_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_gradients, "KEPT", 2)
    model = nn.Linear(3, 2)
    graphs = Graphs(model)
    recorded = RecordedGradients(squares(model), list(model.parameters()), graphs)
    for _ in range(FROM + 1):
        for size in (1, 2, 3):
            assert torch.equal(recorded.run(torch.ones(size, 3)), squares(model)(torch.ones(size, 3)).detach())
    assert (graphs.made, graphs.replayed) == (2, 4)


def test_what_cannot_be_recorded_is_done_as_it_is_and_told(caplog: pytest.LogCaptureFixture) -> None:
    def fails(work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Results]:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = nn.Linear(3, 2)
    recorded = RecordedGradients(squares(model), list(model.parameters()), fails)
    with caplog.at_level(logging.DEBUG, "diffatr_cli.core.recorded_gradients"):
        for number in range(FROM + 2):
            x = torch.full((4, 3), float(number))
            assert torch.equal(recorded.run(x), squares(model)(x).detach())
    assert [record.getMessage() for record in caplog.records] == [
        "the GPU's step cannot be recorded, and is launched operation by operation "
        "(operation not permitted when stream is capturing)"
    ]


@pytest.mark.parametrize("overrides", [(), ("pretrain.compose=0.5", "audio.perturb=true"), ("pretrain.items=clips",)])
def test_a_phase_one_that_replays_ends_where_the_plain_one_does(workshop: Workshop, overrides: tuple[str, ...]) -> None:
    """Weights, statistics and moments, bit by bit, with all that is drawn on the way."""
    ends, made = [], 0
    for replays in (False, True):
        phase = PhaseOne(workshop.recipe("text.finetune=false", "pretrain.epochs=4", *overrides), 0, torch.device("cpu"))
        graphs = Graphs(phase)
        if replays:
            phase._recorded = RecordedGradients(phase._contrast, phase.trained, graphs)
        train = phase.read(load_dataset(workshop.data, "tones"), silent)
        losses = []
        for step, batch, crops in overlapped_batches(train, phase.section, 0, 3, 0):
            torch.manual_seed(step)
            losses.append(phase.step(train, batch, crops, 1e-3, step))
        ends.append([*losses, *phase.state_dict().values(), *(v for s in phase.optimizer.state.values() for v in s.values())])
        made += graphs.replayed
    assert made > 0
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
