"""One worker of `diffatr serve --workers N`: `python -m diffatr_cli.cli.serve_worker`, as `web.workers` starts it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from ..errors import DiffATRError
from . import signals
from .answering import Settings, answering
from .console import hear_package, prepare_streams


class _Parent:
    """The process that started this one, as it shows on stdin: when that ends, it is gone, and this one has to go."""

    def __init__(self, place: str) -> None:
        self.gone, self._place = False, place
        self._then: Callable[[], None] = self._end
        threading.Thread(target=self._watch, name="parent", daemon=True).start()

    def then(self, what: Callable[[], None]) -> None:
        """From here on, do this when it is gone, in place of ending at once."""
        self._then = what
        if self.gone:
            what()

    def _watch(self) -> None:
        while os.read(0, 1 << 10):
            pass
        self.gone = True
        self._then()

    def _end(self) -> None:
        _remove(self._place)
        os._exit(0)


def main() -> None:
    """Serve until SIGTERM, or until whoever started this process is gone."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library may print is no report
    prepare_streams()
    hear_package()
    settings = Settings(**json.loads(_first_line()))
    parent = _Parent(settings.place)
    try:
        _serve(settings, parent, lambda: _write(report, {"ready": True}))
    except DiffATRError as error:
        _write(report, {"failed": str(error), "code": error.exit_code})
        sys.exit(error.exit_code)
    if parent.gone:  # and there is nobody else to do it
        _remove(settings.place)
    signals.end_at_once(0)


def _remove(place: str) -> None:
    """Remove the folder that the workers share."""
    shutil.rmtree(place, ignore_errors=True)


def _first_line() -> bytes:
    """Of stdin, and nothing behind it."""
    line = b""
    while not line.endswith(b"\n") and (character := os.read(0, 1)):
        line += character
    return line


def _write(report: TextIO, document: object) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more, which stdin tells too
        report.write(f"{json.dumps(document)}\n")
        report.flush()


def _serve(settings: Settings, parent: _Parent, ready: Callable[[], None]) -> None:
    with answering(settings) as (app, metrics):
        from ..web import server

        serving = server.make_server(app, refused=metrics.refused)

        def stop(*_: object) -> None:
            serving.should_exit = True

        signal.signal(signal.SIGTERM, stop)
        parent.then(stop)
        ready()
        serving.run(sockets=[socket.socket(fileno=settings.listener)])


if __name__ == "__main__":
    main()
