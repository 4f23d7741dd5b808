"""The command line as a person or a script starts it: in this process with streams of any kind, or as a process in a terminal."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[1]
DIFFATR = [sys.executable, "-m", "diffatr_cli"]
_OURS = re.compile(r"\x1b\[[0-9;]*[mAK]|\x1b\[\?25[hl]|\r")  # styles, and what a progress bar moves about with


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Stream(io.TextIOWrapper):
    """A stream in memory that may pass for a terminal."""

    def __init__(self, encoding: str, terminal: bool, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content), encoding, newline="", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def fileno(self) -> int:
        raise io.UnsupportedOperation

    def written(self, encoding: str) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(encoding, "surrogateescape")


def typed(arguments: Sequence[str | Path], encoding: str = "utf-8", terminal: bool = False, stdin: bytes = b"") -> Result:
    """`diffatr ARGUMENTS` in this process."""
    from diffatr_cli.cli.main import main

    streams = {name: Stream(encoding, terminal) for name in ("stdout", "stderr")}
    with (
        mock.patch.multiple(sys, argv=["diffatr", *map(str, arguments)], stdin=Stream(encoding, False, stdin), **streams),
        mock.patch.dict(os.environ, {"TERM": "dumb"}),  # so that nothing of ours is a control character either
    ):
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Result(code, *(streams[name].written(encoding) for name in ("stdout", "stderr")))


def start(command: Sequence[str | Path], **options: object) -> subprocess.Popen[str]:
    """Start a process in a session of its own, with its streams as pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*map(str, command)],
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
            "env": environment,
            **options,
        },
    )


class Terminal:
    """A process in a terminal of its own, 100 columns wide, where all its streams meet."""

    def __init__(self, command: Sequence[str | Path], **options: object) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        streams = {"stdin": slave, "stdout": slave, "stderr": slave, "text": False}
        self.process = start(command, **({"env": environment, "preexec_fn": _take_terminal} | streams | options))
        os.close(slave)

    def output(self) -> Iterator[bytes]:
        """What is shown, as it comes, until the process has ended."""
        try:
            while block := os.read(self._master, 1 << 16):
                yield block
        except OSError as error:
            if error.errno != errno.EIO:  # so it ends on Linux
                raise
        finally:
            os.close(self._master)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def read(self) -> str:
        """All that is shown."""
        return b"".join(self.output()).decode("utf-8", "surrogateescape")


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C, as a key, reaches the process


def shown(text: str) -> str:
    """What a terminal got without what is ours to send: styles, and the moves of a progress bar."""
    return _OURS.sub("", text)


def controls(text: str) -> set[str]:
    """All that a terminal would obey or cannot show, but newlines."""
    return {character for character in text if character != "\n" and not character.isprintable()}
