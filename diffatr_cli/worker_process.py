"""What processes have in common that work for another one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
"""For the environment of such a process, before it loads numpy: there is one a core, and threads of one that wait for work keep
the cores from the others."""


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """A process started inside meets no Ctrl-C from its first moment on: it goes to all processes of a terminal, and whoever
    started this one ends it."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def started(module: str, stdin: int, stdout: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process of Python that calls `serve` of a module, and finds the modules that this one finds. It says nothing on stderr.

    Args:
        stdin, stdout: as of `subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
    """
    if not sys.executable:
        raise FileNotFoundError(errno.ENOENT, "Python is embedded here, without a program of its own")
    # Not by PYTHONPATH: what lies beside a script would come before Python's own modules, already as Python starts.
    path = [each for each in sys.path if isinstance(each, str)]
    code = f"import sys; sys.path[:] = sys.argv[1:]; from {module} import serve; serve()"
    with interrupts_blocked():
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, *path],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            env=environment,
        )


def wait_for_end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for the end of a process that has nobody to work for; one that goes on for `patience` seconds is killed."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def keep_memory() -> None:
    """Have glibc keep freed memory for the next clip; giving it back and faulting it in again took half of the time."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
