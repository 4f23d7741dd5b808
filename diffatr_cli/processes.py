"""The processes that do one job together (`torchrun -m diffatr_cli ...`), through Accelerate: who is who, and what they exchange.

Each holds the whole model and computes a part of every batch. All of them call the functions here in the same order. For a job
that is one process alone, which most are, they cost nothing and load nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import launched
from .errors import DiffATRError, UsageError

_LONGEST_WAIT = timedelta(hours=6)
"""For what one process does alone, such as filling a cache. A process that died is noticed at once."""

T = TypeVar("T")


# --- who is who ------------------------------------------------------------------------------------------------------


def join(device: str = "auto") -> None:
    """Meet the other processes of this job. Nothing happens in a process that was started alone.

    Args:
        device: as of `--device`; processes that compute on CPUs talk by gloo, those on GPUs by NCCL.

    Raises:
        DiffATRError: the others do not come.
    """
    if not launched.several() or count() > 1:
        return
    from accelerate import PartialState

    try:
        PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise DiffATRError(f"the processes of this job cannot meet: {str(error).splitlines()[0]}") from None


def leave() -> None:
    """Part from the others at the end of the job."""
    if count() > 1:
        torch.distributed.destroy_process_group()


def count() -> int:
    """How many processes do this job; 1 for a process that joined no others."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the one that writes, and speaks for all."""
    return rank() == 0


def share(number: int) -> slice:
    """The part of `number` things in a row that is this process's. Raises UsageError where there are not enough for all."""
    if number < count():
        raise UsageError(f"{number} of a batch cannot be shared by {count()} processes. Start fewer, or raise batch_size.")
    bounds = [number * each // count() for each in (rank(), rank() + 1)]
    return slice(*bounds)


# --- what they exchange ----------------------------------------------------------------------------------------------


def gathered(rows: Tensor) -> Tensor:
    """The rows (n_i, ...) of all processes, in their order, each on the device of its own.

    Gradients flow back: each process gets the sum over all processes for its rows, so that the mean over processes of the
    parameters' gradients (`mean_gradients`) is that of one process with all rows.
    """
    return rows if count() == 1 else _Gathered.apply(rows)  # type: ignore[no-untyped-call]


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes. Gradients are summed too."""
    return values if count() == 1 else _Summed.apply(values)  # type: ignore[no-untyped-call]


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients."""
    if count() == 1:
        return
    trained = list(parameters)
    for parameter in trained:
        if parameter.grad is None:  # in this process, but perhaps not in others
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    mean = _exchange(lambda: _all_sum(flat)) / count()
    for gradient, part in zip(gradients, torch.split(mean, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(value: T) -> T:
    """What the first process has of a value; the others' is ignored."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return _exchange(lambda: broadcast_object_list([value], from_process=0))[0]  # type: ignore[no-any-return]


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if count() > 1:
        _exchange(torch.distributed.barrier)


def first_alone(make: Callable[[], T]) -> T:
    """`make()`, which fills a cache: the first process calls it while the others wait, and then they do, and find the cache."""
    if count() == 1:
        return make()
    made = [make()] if is_first() else []
    wait_for_all()
    return made[0] if made else make()


def shared_rows(function: Callable[[Sequence[Any]], Tensor], items: Sequence[Any]) -> Tensor:
    """`function(items)`, a row an item, computed by all processes together."""
    if count() == 1 or len(items) < count():
        return function(items)
    return gathered(function(items[share(len(items))]))


def _exchange(exchange: Callable[[], T]) -> T:
    """What comes of an exchange. Raises DiffATRError where another process is there no more."""
    try:
        return exchange()
    except RuntimeError as error:
        raise LostProcess(count()) from error


def _all_sum(values: Tensor) -> Tensor:
    values = values.contiguous()
    torch.distributed.all_reduce(values)
    return values


class LostProcess(DiffATRError):
    """Another process of the job has ended, or cannot be reached."""

    def __init__(self, of: int) -> None:
        super().__init__(f"one of the {of} processes of this job has ended. The same command continues from the last checkpoint.")


def tells(message: str) -> bool:
    """Whether this process is the one that tells of a failure, which others may meet too: the first that asks.

    Before the processes have met, the first one of each machine tells.
    """
    if not launched.several():
        return True
    if count() == 1:
        return launched.local_rank() == 0
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return bool(store.add(f"diffatr/{message}", 1) == 1)
    except RuntimeError:  # it is gone, with the process that had it: better twice than never
        return True


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        device = _exchange_device(rows)
        own = rows.detach().to(device).contiguous()
        sizes = _exchange(lambda: _sizes(len(own), device))
        most = max(sizes)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        _exchange(lambda: torch.distributed.all_gather(parts, padded))
        ctx.start, ctx.length = sum(sizes[: rank()]), len(own)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(rows.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = _exchange(lambda: _all_sum(gradients[0].to(_exchange_device(gradients[0]))))
        return total[ctx.start : ctx.start + ctx.length].to(gradients[0].device)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _exchange(lambda: _all_sum(values.detach().clone()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _exchange(lambda: _all_sum(gradients[0].clone()))


def _sizes(own: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(count())]
    torch.distributed.all_gather(sizes, torch.tensor([own], device=device))
    return [int(size) for size in sizes]


def _exchange_device(tensor: Tensor) -> torch.device:
    """Where tensors must lie to be exchanged: NCCL takes those of the GPU alone."""
    if torch.distributed.get_backend() == "nccl" and not tensor.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device


# --- batch norm ------------------------------------------------------------------------------------------------------


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, of which each process holds a part."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or count() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        wide = x.float()
        number = summed(x.new_tensor([x.numel() // x.shape[1]], dtype=torch.float32))
        mean = summed(wide.sum((0, 2, 3))) / number
        centred = wide - mean[:, None, None]
        variance = summed((centred * centred).sum((0, 2, 3))) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * number / (number - 1), rate)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def join_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch norms over the whole batch, where several processes train it; names and parameters stay.

    On a GPU these are torch's own, which it has for GPUs alone.
    """
    if count() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                joint = JointBatchNorm2d(child.num_features, child.eps, child.momentum)
                joint.weight, joint.bias = child.weight, child.bias
                joint.running_mean, joint.running_var = child.running_mean, child.running_var
                joint.num_batches_tracked = child.num_batches_tracked
                setattr(parent, name, joint)
    return module
