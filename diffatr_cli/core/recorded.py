"""Work on a GPU recorded once and replayed: many small operations without the processor launching each (CUDA graphs).

A recording reads and writes the same memory every time, so what it works on is copied into it, and what it gives is copied out.
What else the work reads must stay where it is as long as the recording lives: memory that is given back is soon another's.
The work must be of one shape, without a look at values from the processor's side, and equal in all but its inputs.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

FROM = 2  # a recording pays from the second time on: making it costs about as much as doing the work twice
KEPT = 8  # recordings, each of which holds the memory of its work; the one longest unused goes first

Work = Callable[..., Tensor]
Record = Callable[[Work, "tuple[Tensor, ...]"], "tuple[Callable[[], object], Tensor]"]
"""From work and its inputs, which stay where they are, to what does it again and where it puts the result."""

log = logging.getLogger(__name__)


def record_cuda(work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Tensor]:
    """A CUDA graph of the work. Raises RuntimeError where it cannot be recorded."""
    with torch.cuda.device(inputs[0].device):
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # once as it is: what is compiled or set up at a first call cannot be recorded
            work(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work(*inputs)
    return graph.replay, result


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[Tensor, ...]
    reads: tuple[Tensor, ...]
    replay: Callable[[], object]
    result: Tensor


class Recordings:
    """Recordings of the work that one thing, such as prepared candidates, is asked for. Threads may share it.

    Args:
        record: makes one.
    """

    def __init__(self, record: Record = record_cuda) -> None:
        self._record = record
        self._times: Counter[Hashable] = Counter()
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._works = True
        self._lock = threading.Lock()

    def run(self, kind: Hashable, work: Work, *inputs: Tensor, reads: tuple[Tensor, ...] = ()) -> Tensor:
        """work(*inputs), replayed where such work was done before; where it cannot be recorded, done as it is, ever after.

        Args:
            kind: equal for work that differs in nothing but the values of its inputs.
            reads: what the work reads beside its inputs and that its caller would let go; a recording keeps those it was made
                with. What belongs to the thing that these recordings are of need not be named.
        """
        key = kind, tuple((tuple(each.shape), each.dtype) for each in inputs)
        with self._lock:
            recording = self._kept.get(key) or self._made(key, work, inputs, reads)
            if recording is not None:
                self._kept.move_to_end(key)
                for own, given in zip(recording.inputs, inputs, strict=True):
                    own.copy_(given)
                recording.replay()
                return recording.result.clone()
        return work(*inputs)

    def _made(self, key: Hashable, work: Work, inputs: tuple[Tensor, ...], reads: tuple[Tensor, ...]) -> _Recording | None:
        """A new recording where it is worth it and can be made."""
        if not self._works:
            return None
        self._times[key] += 1
        if self._times[key] < FROM:
            return None
        own = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
        try:
            recording = _Recording(own, reads, *self._record(work, own))
        except RuntimeError as error:
            self._works = False
            log.debug("the GPU's work cannot be recorded, and is launched operation by operation (%s)", error)
            return None
        self._kept[key] = recording
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return recording
