"""A page to listen and look: the app behind `diffatr serve`, and what keeps it to itself.

One page, written by hand, with nothing from outside; a dozen addresses that answer it in JSON, PNG and sound.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..corpus.search import Found, Hit
from ..corpus.session import Clip, NotServed, SearchSession, key_of
from ..data.audio import AUDIO_SUFFIXES, AudioError, load_audio
from ..data.excerpt import duration, read_excerpt
from ..data.write_wav import stream_wav, to_pcm16
from ..errors import DiffATRError
from .gate import Gate, json_response
from .page import read_page
from .spectrogram import Theme, levels, outline, png

PORT = 8765
"""Where the page is if nobody says otherwise and the place is free."""
TOP = 10
"""Hits shown at first."""
UPLOAD = 64 << 20
"""Bytes of a dropped sound file at most,"""
LONGEST = 600.0
"""and seconds of it: a small file may hold days of silence."""
VIEW = 60.0
"""Seconds of a recording that a picture shows at most; longer recordings are shown around the hit."""

_COLUMNS = 720  # of a picture
_PICTURES = 256  # kept in memory, about 100 kB each
_FRAMES = 60  # of an animation at most
_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".m4b": "audio/mp4",
    ".mp4": "audio/mp4",
    ".aac": "audio/aac",
    ".webm": "audio/webm",
}
"""What browsers may play as it is; they are asked, and of all else they get a WAV of the part in view."""

_Top = Annotated[int, Query(ge=1, le=100)]
_Second = Annotated[float, Query(ge=0, le=1e9, allow_inf_nan=False)]


class TooLarge(DiffATRError):
    """More was sent than is taken."""


def make_app(
    session: SearchSession,
    *,
    hosts: frozenset[str] | None = None,
    token: str | None = None,
    upload: int = UPLOAD,
    refresh: Callable[[], None] | None = None,
) -> FastAPI:
    """The page of a search session and all that it asks for.

    Args:
        hosts: names by which this server may be called (`Host` headers without the port), against pages elsewhere that let
            their own name point here; None allows all, which only a token makes safe.
        token: what a browser must bring, once in the address as `?token=`, then in the cookie that it gets for that.
        upload: bytes of a dropped file at most.
        refresh: begins to bring the index up to date; `session.start` if None.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page, policy = read_page()
    pictures = _Pictures()
    begin = session.start if refresh is None else refresh

    @app.get("/")
    def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/api/state")
    def state() -> Response:
        return json_response(
            {"folder": str(session.corpus), "diffuses": session.diffuses, "upload": upload} | session.status._asdict()
        )

    @app.post("/api/refresh")
    def update() -> Response:
        begin()
        return state()

    @app.get("/api/search")
    def by_text(q: Annotated[str, Query(max_length=1000)], top: _Top = TOP) -> Response:
        began = time.perf_counter()
        return _found(session, session.by_text(q, top), began)

    @app.get("/api/like/{key}")
    def like(key: str, start: _Second = 0.0, top: _Top = TOP) -> Response:
        began = time.perf_counter()
        return _found(session, session.like(key, start, top), began)

    @app.post("/api/sound")
    async def by_sound(request: Request, name: str = "sound", top: _Top = TOP) -> Response:
        began = time.perf_counter()
        name = _shown(name)
        suffix = os.path.splitext(name)[1].lower()
        with tempfile.TemporaryDirectory(prefix="diffatr-") as scratch:
            # PyAV is chosen by the suffix; all else is recognised by its content.
            path = Path(scratch, "sound" + (suffix if suffix in AUDIO_SUFFIXES else ""))
            await _receive(request, path, name, upload)
            found = await run_in_threadpool(_by_file, session, path, name, top)
        return _found(session, found, began)

    @app.get("/api/trajectory")
    def trajectory(q: Annotated[str, Query(max_length=1000)]) -> Response:
        way = session.trajectory(q)
        count = len(way.levels)
        shown = np.unique(np.linspace(0, count - 1, min(count, _FRAMES)).round().astype(int)) if count else np.zeros(0, int)
        return json_response(
            {
                "levels": [way.levels[i] for i in shown],
                "x": [_rounded(way.x[i]) for i in shown],
                "x0_hat": [_rounded(way.x0_hat[i]) for i in shown],
                "clips": [{"key": key_of(path), "name": os.path.basename(path)} for path in way.paths],
            }
        )

    @app.get("/spectrogram/{key}")
    def spectrogram(key: str, start: _Second, end: _Second, theme: Theme = "light") -> Response:
        clip = session.clip(key)
        return Response(png(pictures.of(clip, *_view_asked(start, end)).levels, theme), media_type="image/png")

    @app.get("/api/outline/{key}")
    def waveform(key: str, start: _Second, end: _Second) -> Response:
        picture = pictures.of(session.clip(key), *_view_asked(start, end))
        return json_response({"outline": np.rint(picture.outline * 1000).astype(int).tolist()})

    @app.get("/clip/{key}")
    def clip(key: str) -> Response:
        # The file behind all links, which is what was looked at: a link that changes now makes no difference.
        file = session.clip(key)
        kind = _TYPES.get(file.path.suffix.lower(), "application/octet-stream")
        return FileResponse(file.real, media_type=kind)

    @app.get("/wav/{key}")
    def transcoded(key: str, request: Request, start: _Second, end: _Second) -> Response:
        return _ranged(_wav(session.clip(key), *_view_asked(start, end)), request.headers.get("range"), "audio/wav")

    @app.exception_handler(DiffATRError)
    def failed(request: Request, error: DiffATRError) -> Response:
        status = 400
        if isinstance(error, NotServed):
            status = 404 if error.gone else 403
        elif isinstance(error, TooLarge):
            status = 413
        elif isinstance(error, AudioError):
            status = 422
        return json_response({"error": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return json_response({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        text = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
        return json_response({"error": text}, error.status_code)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        return json_response(
            {"error": f"Unexpected {type(error).__name__}; the terminal shows the place. Please report it."}, 500
        )

    app.add_middleware(Gate, hosts=hosts, token=token, policy=policy)
    return app


def _found(session: SearchSession, found: Found, began: float) -> Response:
    return json_response(
        {
            "hits": [_hit(session, hit) for hit in found.hits],
            "present": found.present,
            "calibrated": found.calibrated,
            "files": session.status.files,
            "seconds": round(time.perf_counter() - began, 4),
        }
    )


def _hit(session: SearchSession, hit: Hit) -> dict[str, Any]:
    seconds = max(session.seconds(hit.path), hit.end)
    return {
        "key": key_of(hit.path),
        "rank": hit.rank,
        "name": os.path.basename(hit.path),
        "folder": os.path.dirname(hit.path),
        "path": str(session.corpus / hit.path),
        "start": round(hit.start, 3),
        "end": round(hit.end, 3),
        "seconds": round(seconds, 3),
        "view": [round(second, 3) for second in view(hit.start, hit.end, seconds)],
        "score": round(hit.score, 4),
        "type": _TYPES.get(os.path.splitext(hit.path)[1].lower()),
    }


def view(start: float, end: float, seconds: float) -> tuple[float, float]:
    """The part of a recording that is shown for a hit in it: all of it up to `VIEW`, else so much around the hit."""
    if seconds <= VIEW:
        return 0.0, seconds
    first = min(max(0.0, (start + end - VIEW) / 2), seconds - VIEW)
    return first, first + VIEW


def _view_asked(start: float, end: float) -> tuple[float, float]:
    """Bounds that are no more than the page asks for: nobody makes the server decode hours."""
    return start, min(end, start + VIEW + 1)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _shown(name: str) -> str:
    """A file's name as messages show it."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return (name if len(name) <= 80 else "…" + name[-79:]) or "sound"


async def _receive(request: Request, path: Path, name: str, limit: int) -> None:
    """Write the body of a request to a file. Raises TooLarge as soon as it is."""
    error = TooLarge(f"{name}: larger than {limit / (1 << 20):.4g} MB. Drop a shorter piece of it.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise error
    size = 0
    try:
        with path.open("wb") as out:
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise error
                out.write(part)
    except ClientDisconnect:
        raise DiffATRError(f"{name}: only a part of it came.") from None
    except OSError as trouble:
        raise DiffATRError(f"{name}: could not be kept for a moment ({trouble.strerror}).") from trouble


def _by_file(session: SearchSession, path: Path, name: str, top: int) -> Found:
    try:
        if (seconds := duration(path) if path.stat().st_size else 0) and seconds > LONGEST:
            raise TooLarge(f"{name}: {seconds / 60:.0f} minutes long. Drop a piece of at most {LONGEST / 60:.0f} minutes.")
        waveform = load_audio(path)
    except AudioError as error:
        raise AudioError(name, error.reason) from None  # the path is that of a temporary file
    if not len(waveform):
        raise AudioError(name, "no samples")
    return session.by_sound(waveform, top)


class _Picture(NamedTuple):
    levels: np.ndarray
    outline: np.ndarray


class _Pictures:
    """The pictures shown last, each made once, for its PNG and its outline and in both themes."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Any, ...], _Picture] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, clip: Clip, start: float, end: float) -> _Picture:
        stat = clip.real.stat()
        key = (clip.real, stat.st_size, stat.st_mtime_ns, start, end)
        with self._lock:  # one at a time: a page asks for ten at once, and each of them twice
            picture = self._made.pop(key, None)
            if picture is None:
                samples = read_excerpt(clip.path, start, end)
                picture = _Picture(levels(samples, _COLUMNS), outline(samples, _COLUMNS))
            self._made[key] = picture
            if len(self._made) > _PICTURES:
                self._made.popitem(last=False)
        return picture


def _wav(clip: Clip, start: float, end: float) -> bytes:
    out = io.BytesIO()
    stream_wav(out, [to_pcm16(read_excerpt(clip.path, start, end))])
    return out.getvalue()


def _ranged(content: bytes, asked: str | None, media_type: str) -> Response:
    """The content, or the one range of it that is asked for; without ranges browsers cannot go to a place in a sound."""
    headers = {"Accept-Ranges": "bytes"}
    size = len(content)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if found is None or found[0] == "bytes=-":  # several ranges may be answered by everything
        return Response(content, headers=headers, media_type=media_type)
    if found[1]:
        first, last = int(found[1]), min(int(found[2] or size), size - 1)
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if first > last:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Response(content[first : last + 1], 206, headers, media_type)
