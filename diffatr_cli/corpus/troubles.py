"""What the system or LanceDB refuse, as errors for people."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffATRError
from .report import CannotUpdate, Damaged

if TYPE_CHECKING:
    from .place import Place

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


def told_of_system(folder: Path, error: Exception) -> CannotUpdate | None:
    """The error where the system refuses something, which may come as any kind of error with its words in it; None for others."""
    number = _system_error(error)
    return None if number is None else refused(folder, number)


@contextlib.contextmanager
def troubles(place: Place) -> Iterator[None]:
    """Tell a person about the troubles of LanceDB.

    Raises:
        DiffATRError: the place refuses, or cannot be reached; the index may be whole.
        Damaged: anything else.
    """
    try:
        yield
    except DiffATRError:
        raise
    except Exception as error:
        raise (place.told(error) or Damaged(place)) from error


@contextlib.contextmanager
def changing(place: Place) -> Iterator[None]:
    """As `troubles`, where something is written. Raises CannotUpdate where the lock of the place was lost meanwhile."""
    place.may_write()
    with troubles(place):
        yield


def is_missing(error: Exception) -> bool:
    """Whether LanceDB says that there is no such table."""
    return str(error).rstrip(".").endswith("was not found")


def _system_error(error: Exception) -> int | None:
    """Which refusal of the system an error is about, if any."""
    text = str(error)
    told = re.search(r"os error (\d+)", text)
    number = error.errno if isinstance(error, OSError) and error.errno else int(told[1]) if told else None
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    known = (*_FULL, *_FORBIDDEN, *_PASSING)
    return next((each for each in known if number == each or (number is None and os.strerror(each) in text)), None)
