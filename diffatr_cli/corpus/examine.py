"""Looking into one file of a folder: its content's hash, its windows where they are needed, and what it says of itself."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from .. import __version__
from ..core.windows import Windowing
from ..data.audio import AudioError
from ..data.metadata import read_metadata
from .notes import Note, day_of
from .scan import Stamp
from .windows import Missing, Window, windows_of

_MOST_LETTERS = 16_000  # of all that is written in a file


class Content(NamedTuple):
    """The content of a file, by its hash."""

    hash: str


class Failure(NamedTuple):
    """Why a file cannot be used; `lasting` where it cannot before it changes, or is read by another reader."""

    reason: str
    lasting: bool


class Vector(NamedTuple):
    """A window that was embedded where it was read, from sample `start` to `end`: its vector (D,) float32, and its frames (T, F)
    float16 where they are wanted."""

    start: int
    end: int
    vector: np.ndarray
    frames: np.ndarray | None


class Left(NamedTuple):
    """Reading was left off in the midst of a file, since nothing more of it was wanted by then."""


T = TypeVar("T")
Finding = Content | Window | Vector | Note | Missing | Failure | Left


def reader() -> str:
    """Which reader this is. Reasons why a file cannot be used hold for it alone: others read what it could not."""
    return __version__ + (" with PyAV" if importlib.util.find_spec("av") else "")


def examine(path: Path, stamp: Stamp, windowing: Windowing, is_settled: Callable[[str], bool]) -> Iterator[Finding]:
    """Look into a file, of which `stamp` is known: its Content first, then its windows and what is Missing.

    A Failure may come at any place, and ends it.

    Args:
        windowing: how it is cut.
        is_settled: whether a content, by hash, need not be decoded; asked when its Content was taken.
    """
    return look_into(path, stamp, is_settled, lambda: windows_of(path, windowing))


def look_into(
    path: Path, stamp: Stamp, is_settled: Callable[[str], bool], listen: Callable[[], Iterator[T | Missing]]
) -> Iterator[T | Content | Missing | Failure]:
    """As `examine`, with what `listen` finds in a file that is not settled in the place of windows."""
    failure, heard = None, False
    try:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        yield Content(content)
        if is_settled(content):
            return
        for finding in listen():
            heard = heard or not isinstance(finding, Missing)
            yield finding
        if not heard:
            failure = Failure("no samples", lasting=True)
        if Stamp.of(path.stat()) != stamp:  # hash and samples may be of different contents
            failure = Failure("changed while it was read", lasting=False)
    except AudioError as error:
        failure = Failure(error.reason, lasting=_is_as_it_was(path, stamp))
    except OSError as error:
        failure = Failure(f"cannot be read ({error.strerror or type(error).__name__})", lasting=False)
    except MemoryError:
        failure = Failure("not enough memory to decode it", lasting=False)
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:200]
        failure = Failure(f"cannot be decoded ({type(error).__name__}: {told})", lasting=_is_as_it_was(path, stamp))
    if failure:
        yield failure


def note_of(path: Path, stamp: Stamp) -> Note:
    """What a file says of itself."""
    told = read_metadata(path)
    fields, letters = {}, 0
    for name, text in told.fields.items():
        letters += len(name) + len(text)
        if letters > _MOST_LETTERS:
            break
        fields[name] = text
    return Note(told.channels, told.rate, day_of(told.recorded, stamp.mtime_ns), json.dumps(fields) if fields else "")


def _is_as_it_was(path: Path, stamp: Stamp) -> bool:
    try:
        return Stamp.of(path.stat()) == stamp
    except OSError:
        return False
