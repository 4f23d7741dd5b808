"""Keeping the remarks of C libraries off the terminal while they decode.

libmpg123, inside libsndfile, prints its opinion of damaged frames to C's `stderr`, and cannot be told not to. Redirecting file
descriptor 2 would take what Python and all other threads write with it. But `stderr` in C is a variable: for the time of a
call it points to a stream that leads nowhere. Python's own output, crash reports and other processes do not go through it. What
this costs: what another C library says through that variable in the same moment is lost too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache

_lock = threading.Lock()
_inside = 0  # calls at this moment, of all threads
_before: int | None = None


@contextlib.contextmanager
def quiet_c_stderr() -> Iterator[None]:
    """Let C code print nothing to `stderr` inside. Where the C library does not have it as a variable, nothing changes."""
    global _inside, _before
    found = _stderr_and_nowhere()
    if found is None:
        yield
        return
    variable, nowhere = found
    with _lock:
        if _inside == 0:
            _before, variable.value = variable.value, nowhere
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                variable.value = _before


@cache
def _stderr_and_nowhere() -> tuple[ctypes.c_void_p, int] | None:
    """The variable, and an open stream to put into it. None in musl, where it is a constant, and on Windows."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    name = "__stderrp" if sys.platform == "darwin" else "stderr" if hasattr(library, "gnu_get_libc_version") else None
    if name is None:
        return None
    library.fopen.restype = ctypes.c_void_p
    nowhere = library.fopen(os.devnull.encode(), b"w")
    return (ctypes.c_void_p.in_dll(library, name), nowhere) if nowhere else None
