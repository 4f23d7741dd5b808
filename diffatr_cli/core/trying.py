"""Work by a kernel that may fail where there is another way: tried until it has failed once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor


class Trying:
    """Whether a kernel has worked so far.

    Args:
        otherwise: what is done without it, for the log.
        log: that is told of the failure.
    """

    def __init__(self, otherwise: str, log: logging.Logger) -> None:
        self.works = True
        self._otherwise, self._log = otherwise, log

    def __call__(self, kernel: Callable[[], Tensor]) -> Tensor | None:
        """What the kernel makes; None where it failed, after which it is not to be tried again.

        Raises torch.OutOfMemoryError where there is no room, which is no fault of the kernel's.
        """
        try:
            return kernel()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton, its C compiler and its driver fail in many ways
            self.works = False
            self._log.debug("%s: Triton failed (%s)", self._otherwise, error)
            return None
