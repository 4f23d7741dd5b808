"""Losses and their gradients recorded once on a GPU and replayed, without the processor launching each operation (CUDA graphs).

The work must be of one shape, without a look at values from the processor's side, and equal in all but its inputs and in what
its modules hold, which it may read and change in place: parameters, statistics of batch norms, the GPU's random numbers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FROM = 3  # the first times set up what cannot be set up while recording
KEPT = 16  # recordings; work of further shapes is launched operation by operation

Loss = Callable[..., Tensor]
Results = tuple[Tensor | None, ...]
Work = Callable[..., Results]
Record = Callable[[Work, "tuple[Tensor, ...]"], "tuple[Callable[[], object], Results]"]
"""From work and its inputs, which stay where they are, to what does it and where it puts the results. It is not done once."""

log = logging.getLogger(__name__)


class CudaGraphs:
    """Makes CUDA graphs, whose passing values share their memory: one is replayed at a time, by one thread."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Results]:
        """A graph of the work. Raises RuntimeError where it cannot be recorded."""
        with torch.cuda.device(inputs[0].device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                results = work(*inputs)
        return graph.replay, results


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], object]
    results: Results


class RecordedGradients:
    """Recordings of one loss by the shapes of its inputs.

    Args:
        loss: from tensors to a scalar.
        parameters: that it is differentiated by.
        record: makes a recording.
    """

    def __init__(self, loss: Loss, parameters: Sequence[nn.Parameter], record: Record | None = None) -> None:
        self._loss, self._parameters = loss, list(parameters)
        self._record = record or CudaGraphs()
        self._times: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, _Recording] = {}
        self._works = True

    def run(self, *inputs: Tensor) -> Tensor:
        """The loss of these inputs, detached; its gradients are in `grad` of the parameters until the next call.

        Replayed from the third time on; where it cannot be recorded, done as it is, ever after.
        """
        recording = self._recording(inputs)
        if recording is None:
            results = self._differentiated(*inputs)
        else:
            for own, given in zip(recording.inputs, inputs, strict=True):
                own.copy_(given)
            recording.replay()
            results = recording.results
        loss, *gradients = results
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        assert loss is not None
        return loss.clone()

    def _differentiated(self, *inputs: Tensor) -> Results:
        loss = self._loss(*inputs)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return (loss.detach(), *map(_laid_out, gradients, self._parameters))

    def _recording(self, inputs: tuple[Tensor, ...]) -> _Recording | None:
        """The recording for such inputs, made where it is worth it and can be."""
        key = tuple((tuple(each.shape), each.dtype) for each in inputs)
        if key in self._kept or not self._works or len(self._kept) == KEPT:
            return self._kept.get(key)
        self._times[key] += 1
        if self._times[key] < FROM:
            return None
        own = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
        try:
            self._kept[key] = _Recording(own, *self._record(self._differentiated, own))
        except RuntimeError as error:
            self._works = False
            log.debug("the GPU's step cannot be recorded, and is launched operation by operation (%s)", error)
        return self._kept.get(key)


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """A gradient as `backward` lays it out, as its parameter is: the fused optimizers take no other."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)
