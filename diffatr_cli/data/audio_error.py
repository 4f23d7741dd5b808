"""What every reader of sound files raises when a file cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DiffATRError

NEEDS_PYAV = "needs the extra `audio`: pip install 'diffatr[audio]'"
NO_MEMORY = "not enough memory to read it"
TRUNCATED = "truncated"
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz


class AudioError(DiffATRError):
    """A sound file cannot be used. `reason` is a few words without the path, for counting."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.path, self.reason)


@contextlib.contextmanager
def as_audio_error(path: Path | str) -> Iterator[None]:
    """Turn what the system refuses while one file is read, memory too, into that file's AudioError."""
    try:
        yield
    except MemoryError:
        raise AudioError(path, NO_MEMORY) from None
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(path, "missing") from None
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror or error})") from None


def check_rate(path: Path | str, rate: float) -> int:
    """The rate in whole Hz. Raises AudioError where no recorder works: resampling it would take memory without bound."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(path, f"a sample rate of {rate:.0f} Hz; 1 kHz to 768 kHz can be read")
    return round(rate)
