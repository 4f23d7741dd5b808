"""Work on several of the CPU's cores at once, each part on one thread from beginning to end.

Torch shares out every single operation instead, and its idle threads spin for a while after each: where small operations and
compiled loops take turns, they keep the cores from the loops.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive it


def parallel_for(work: Callable[[Part], object], parts: Sequence[Part]) -> None:
    """Do `work` on every part, on as many threads as torch uses here; inside of them torch uses one. Raises what `work` does.

    Autograd is on or off in `work` as it is here. Parts must not depend on one another.
    """
    threads = torch.get_num_threads()
    if min(threads, len(parts)) <= 1:
        for part in parts:
            work(part)
        return
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def do(part: Part) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            work(part)

    list(_pool(threads).map(do, parts))


def _pool(threads: int) -> ThreadPoolExecutor:
    with _making:
        if threads not in _pools:
            pool = ThreadPoolExecutor(threads, "diffatr", _start)
            started = threading.Barrier(threads)
            list(pool.map(lambda _: started.wait(), range(threads)))
            torch.set_num_threads(threads)  # the last word on what threads that torch has not seen yet begin with
            _pools[threads] = pool
        return _pools[threads]


def _start() -> None:
    torch.get_num_threads()  # only then does torch look up with how many a new thread begins, and would forget what it was told
    torch.set_num_threads(1)
