"""`python -m diffatr_cli` is `diffatr`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from .errors import INTERRUPTED


def main() -> None:
    """Run the command line, with one line for Ctrl-C from here on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable
    from .cli.main import main as run

    try:
        run()
    except KeyboardInterrupt:  # pressed again while the first one was told
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and told; the interpreter only clears away


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: an exception, but within an import the end at once: modules that are interrupted there tell it in many ways."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An exception where Python goes on: while it clears something away. Ctrl-C is tried again, once this function has ended."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, signal.raise_signal, (signal.SIGINT,)).start()
    else:
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()
