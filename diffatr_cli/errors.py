"""The ways in which a command ends badly; messages are written for the person at the keyboard."""

from __future__ import annotations

INTERRUPTED = "diffatr: interrupted. The same command continues where this one stopped."
"""What Ctrl-C is answered with."""


class DiffATRError(Exception):
    """A job could not be done. The message says what went wrong, in which file or field, and what to do next.

    A message of several lines is given as several arguments: a newline inside one came in with a name, and is not shown as one.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class UsageError(DiffATRError):
    """The command or a recipe asks for something impossible; nothing was started."""

    exit_code = 2
