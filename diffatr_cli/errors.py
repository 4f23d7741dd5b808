"""The two ways a command ends badly, as exceptions whose message is written for the person at the keyboard."""

from __future__ import annotations


class DiffATRError(Exception):
    """A job could not be done. The message says what went wrong, in which file or field, and what to do next."""

    exit_code = 1


class UsageError(DiffATRError):
    """The command or a recipe asks for something impossible; nothing was started."""

    exit_code = 2
