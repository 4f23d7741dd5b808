"""What the system or LanceDB refuse, as errors for people."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DiffATRError
from .report import CannotUpdate, Damaged

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG)


def refused(folder: Path, number: int | None) -> CannotUpdate:
    """The error where the system refuses to let an index be read or written, by its error number."""
    why = "it cannot be locked" if number is None else os.strerror(number)
    if number in _FULL:
        text = "the disk is full. Free some space and run the command again; what is indexed is kept."
    elif number in _PASSING:
        text = f"the index cannot be read and written now ({why})."
    else:
        text = f"the index cannot be read and written there ({why}). Name a place for it: --index DIR"
    return CannotUpdate(f"{folder}: {text}")


@contextlib.contextmanager
def troubles(folder: Path) -> Iterator[None]:
    """Tell a person about the troubles of LanceDB, which come as all kinds of errors with the system's words in them.

    Raises:
        CannotUpdate: the system refuses; the index may be whole.
        Damaged: anything else.
    """
    try:
        yield
    except DiffATRError:
        raise
    except Exception as error:
        number = _system_error(error)
        raise (Damaged(folder) if number is None else refused(folder, number)) from error


def _system_error(error: Exception) -> int | None:
    """Which refusal of the system an error is about, if any."""
    text = str(error)
    told = re.search(r"os error (\d+)", text)
    number = error.errno if isinstance(error, OSError) and error.errno else int(told[1]) if told else None
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    known = (*_FULL, *_FORBIDDEN, *_PASSING)
    return next((each for each in known if number == each or (number is None and os.strerror(each) in text)), None)
