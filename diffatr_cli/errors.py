"""The ways in which a command ends badly; messages are written for the person at the keyboard."""

from __future__ import annotations

INTERRUPTED = "diffatr: interrupted. The same command continues where this one stopped."
"""What Ctrl-C is answered with."""


class DiffATRError(Exception):
    """A job could not be done. The message says what went wrong, in which file or field, and what to do next."""

    exit_code = 1


class UsageError(DiffATRError):
    """The command or a recipe asks for something impossible; nothing was started."""

    exit_code = 2
