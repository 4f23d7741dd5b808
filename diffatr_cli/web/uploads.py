"""A sound that a browser sends to find its like: received, decoded up to a limit and embedded, as long as the browser waits."""

from __future__ import annotations

import asyncio
import copy
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from ..corpus.filters import filters_of
from ..corpus.search import Found
from ..corpus.session import SearchSession
from ..data.audio import AUDIO_SUFFIXES, AudioError, Samples, open_sound
from ..errors import DiffATRError
from ..types import SAMPLE_RATE

UPLOAD = 64 << 20
"""Bytes of a dropped sound file at most,"""
LONGEST = 600.0
"""and seconds of it: a small file may hold days of silence."""

_AT_ONCE = 2  # sounds decoded at a time, so that many uploads do not fill the memory together
_PIECE = 4  # windows embedded before a look whether anybody waits for them

T = TypeVar("T")


class TooLarge(DiffATRError):
    """More was sent than is taken."""


class Abandoned(DiffATRError):
    """Nobody waits for the answer any more."""


class Upload(NamedTuple):
    """What an uploaded file holds: mono at the model's rate, and a remark where that is not all of it."""

    samples: Samples
    note: str | None


class Uploads:
    """Searches by uploaded sounds.

    Args:
        most: bytes of an upload at most.
        timed: makes the search itself, once the sound was received and decoded.
        longest: seconds of it at most.
    """

    def __init__(
        self,
        session: SearchSession,
        most: int = UPLOAD,
        timed: Callable[[Callable[[], Found]], Found] = lambda search: search(),
        longest: float = LONGEST,
    ) -> None:
        self.session, self.most, self.timed, self.longest = session, most, timed, longest
        self._decoding = asyncio.Semaphore(_AT_ONCE)

    async def search(self, request: Request, name: str, top: int, within: str = "") -> tuple[Found, str | None]:
        """The best files for the sound in a request's body, and a remark on the sound.

        Args:
            name: of the file, for messages, and for its suffix.
            within: as of `SearchSession.by_sound`.

        Raises:
            FilterError: a filter makes no sense.
            TooLarge, AudioError: the sound is too long or no use.
            DiffATRError: it did not come whole.
            Abandoned: the client went away meanwhile; the work has stopped.
        """
        filters_of(within)  # before anything is received
        name = _shown(name)
        suffix = os.path.splitext(name)[1].lower()
        with tempfile.TemporaryDirectory(prefix="diffatr-", ignore_cleanup_errors=True) as scratch:
            path = Path(scratch, "sound" + (suffix if suffix in AUDIO_SUFFIXES else ""))
            await _receive(request, path, name, self.most)
            async with self._decoding:
                return await _while_awaited(request, lambda check: self._search(path, name, top, within, check))

    def _search(self, path: Path, name: str, top: int, within: str, check: Callable[[], None]) -> tuple[Found, str | None]:
        upload = read_upload(path, name, self.longest, check, self.session.model.windowing.rate)
        # A view of the session for this one question: the same index, lock and model, which stops where the check says so.
        asking = copy.copy(self.session)
        asking.model = _CheckedModel(self.session.model, check)  # type: ignore[assignment]
        return self.timed(lambda: asking.by_sound(upload.samples, top, within)), upload.note


class _CheckedModel:
    """A model that embeds a few windows at a time, and before each time runs a check, which may raise."""

    def __init__(self, model: Any, check: Callable[[], None]) -> None:
        self._model, self._check = model, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed_audio(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        parts = []
        for first in range(0, len(waveforms), _PIECE):
            self._check()
            parts.append(self._model.embed_audio(waveforms[first : first + _PIECE]))
        return np.concatenate(parts)


async def _while_awaited(request: Request, work: Callable[[Callable[[], None]], T]) -> T:
    """Do work in a thread. It is given a check to run now and then, which raises Abandoned once the client has gone away.

    The body of the request must have been read.
    """
    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    def check() -> None:
        if gone.is_set():
            raise Abandoned("Nobody waits for this any more.")

    watching = asyncio.create_task(watch())
    try:
        return await run_in_threadpool(work, check)
    finally:
        gone.set()  # where this was cancelled, because the server stops, the thread is still at work
        watching.cancel()


def _shown(name: str) -> str:
    """A file's name as messages show it."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return (name if len(name) <= 80 else "…" + name[-79:]) or "sound"


async def _receive(request: Request, path: Path, name: str, most: int) -> None:
    """Write the body of a request to a file. Raises TooLarge as soon as it is."""
    error = TooLarge(f"{name}: larger than {most / (1 << 20):.4g} MB. Drop a shorter piece of it.")
    announced = request.headers.get("content-length", "").lstrip("0")
    # By its length first: Python reads no number of more than 4300 digits.
    if announced.isdecimal() and (len(announced) > len(str(most)) or int(announced) > most):
        raise error
    size = 0
    try:
        with path.open("wb") as out:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise error
                out.write(part)
    except ClientDisconnect:
        raise Abandoned(f"{name}: only a part of it came.") from None
    except OSError as trouble:
        raise DiffATRError(f"{name}: could not be kept for a moment ({trouble.strerror}).") from trouble


def read_upload(path: Path, name: str, longest: float, check: Callable[[], None], rate: int = SAMPLE_RATE) -> Upload:
    """Decode a sound file as far as it goes, in time and memory that `longest` bounds, whatever its header says.

    Args:
        name: what messages call the file.
        longest: seconds.
        rate: Hz of the samples that it gives.
        check: called between two blocks; what it raises ends the decoding.

    Raises:
        TooLarge: the file holds more than `longest` seconds of samples.
        AudioError: it holds none that can be used, or decoding them takes more memory than there is.
    """
    blocks: list[Samples] = []
    samples = 0
    try:
        with open_sound(path, rate=rate) as sound:
            for block in sound.blocks():
                check()
                samples += len(block)
                if samples > longest * rate:
                    raise TooLarge(f"{name}: longer than {longest / 60:.4g} minutes. Drop a shorter piece of it.")
                blocks.append(block)
    except AudioError as error:
        raise AudioError(name, error.reason) from None  # the path is that of a temporary file
    note = f"{name}: {sound.partial}; what there is of it was searched for." if sound.partial else None
    return Upload(np.concatenate(blocks), note)
