"""The page's app behind `diffatr serve`: one page, written by hand, with nothing from outside, and the addresses it asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from ..corpus.selection import By
from ..corpus.session import SearchSession
from .answers import found_response, json_response, media_type, trajectory_response
from .browsing import add_browsing
from .collecting import add_collecting
from .excerpts import Pictures, as_wav
from .failures import answer_failures
from .gate import Gate
from .health import Place, health_response
from .metrics import Measure, Metrics, make_metrics
from .page import read_page
from .ranges import send_bytes, send_file
from .spectrogram import Theme, png
from .taking import add_taking
from .uploads import UPLOAD, Uploads

TOP = 10
"""Hits shown at first."""

_Text = Annotated[str, Query(max_length=1000)]
_Unwanted = Annotated[str | None, Query(max_length=1000, alias="not")]
_Within = Annotated[str, Query(max_length=1000)]  # the search field, for its filters
_Top = Annotated[int, Query(ge=1, le=100)]
_Second = Annotated[float, Query(ge=0, le=1e9, allow_inf_nan=False)]


def make_app(
    session: SearchSession,
    *,
    hosts: frozenset[str] | None = None,
    token: str | None = None,
    upload: int = UPLOAD,
    refresh: Callable[[], None] | None = None,
    place: Place | None = None,
    metrics: Metrics | None = None,
    tell: Callable[[str], None] = logging.getLogger(__name__).error,
) -> FastAPI:
    """The page of a search session and all that it asks for.

    Args:
        hosts: names by which this server may be called (`Host` headers without the port), against pages elsewhere that let
            their own name point here; None allows all, which only a token makes safe.
        token: what a browser must bring, once in the address as `?token=`, then in the cookie that it gets for that.
        upload: bytes of a dropped file at most.
        refresh: begins to bring the index up to date; `session.start` if None.
        place: which process of the service this is; the only one, begun now, if None.
        metrics: what counts and times the answers; that of `make_metrics` if None.
        tell: gets a fault that nobody expected, line by line.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page, policy = read_page()
    place, metrics = place or Place(), metrics or make_metrics()
    pictures, uploads = Pictures(), Uploads(session, upload, metrics.timed)
    begin = session.start if refresh is None else refresh
    local = hosts is not None and token is None  # it answers to this machine's names alone, and to whoever sits there

    @app.get("/")
    def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/health")
    def health(request: Request) -> Response:
        return health_response(session, place, briefly=request.scope["diffatr.keyless"])

    @app.get("/metrics")
    def measured() -> Response:
        return metrics.page(session, place.began)

    @app.get("/api/state")
    def state() -> Response:
        where = {"folder": session.title, "folders": session.roots}
        what = {"diffuses": session.diffuses, "upload": upload, "local": local, "version": session.version[0]}
        return json_response(where | what | session.status._asdict())

    @app.get("/api/skipped")
    def skipped() -> Response:
        return json_response({"skipped": [asdict(each) for each in session.skipped()]})

    @app.post("/api/refresh")
    def update() -> Response:
        begin()
        return state()

    @app.get("/api/search")
    def by_text(q: _Text, top: _Top = TOP, unwanted: _Unwanted = None, by: By = "both") -> Response:
        began = time.perf_counter()
        return found_response(session, metrics.timed(lambda: session.by_text(q, top, unwanted, by)), began)

    @app.get("/api/like/{key}")
    def like(key: str, start: _Second = 0.0, top: _Top = TOP, within: _Within = "") -> Response:
        began = time.perf_counter()
        return found_response(session, metrics.timed(lambda: session.like(key, start, top, within)), began)

    @app.post("/api/sound")
    async def by_sound(request: Request, name: str = "sound", top: _Top = TOP, within: _Within = "") -> Response:
        began = time.perf_counter()
        found, note = await uploads.search(request, name, top, within)
        return found_response(session, found, began, note)

    @app.get("/api/trajectory")
    def trajectory(q: _Text) -> Response:
        return trajectory_response(session.trajectory(q))

    @app.get("/spectrogram/{key}")
    def spectrogram(key: str, start: _Second, end: _Second, theme: Theme = "light") -> Response:
        return Response(png(pictures.of(session.clip(key), start, end).levels, theme), media_type="image/png")

    @app.get("/api/outline/{key}")
    def waveform(key: str, start: _Second, end: _Second) -> Response:
        picture = pictures.of(session.clip(key), start, end)
        return json_response({"outline": np.rint(picture.outline * 1000).astype(int).tolist()})

    @app.get("/clip/{key}")
    def clip(key: str, request: Request) -> Response:
        # The file behind all links, which is what was looked at: a link that changes now makes no difference.
        file = session.clip(key)
        return send_file(file.real, request.headers, media_type(file.path) or "application/octet-stream")

    @app.get("/wav/{key}")
    def transcoded(key: str, request: Request, start: _Second, end: _Second) -> Response:
        return send_bytes(as_wav(session.clip(key), start, end), request.headers, "audio/wav")

    add_browsing(app, session)
    add_taking(app, session, local=local)
    add_collecting(app, session)
    answer_failures(app, tell, metrics.failed)
    app.add_middleware(Gate, hosts=hosts, token=token, policy=policy)
    app.add_middleware(Measure, metrics=metrics)  # the last added is the outermost
    return app
