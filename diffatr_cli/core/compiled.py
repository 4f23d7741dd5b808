"""Functions compiled by numba for this processor, on their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], *, fastmath: bool = False) -> Any:
    """Compile for this processor on the first call, without the GIL, and remember it on disk.

    numba keeps the compiled code beside the function's file, or in the user's cache folder if that place is read-only; where
    neither can be written it compiles anew in each process.

    Args:
        fastmath: whether sums of floats may be taken in any order.
    """
    try:
        return numba.njit(function, fastmath=fastmath, nogil=True, cache=True)
    except RuntimeError:
        return numba.njit(function, fastmath=fastmath, nogil=True)
