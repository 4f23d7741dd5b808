"""Sounds on their way out of the page: a file, a part of it as WAV, a ZIP of several, and lists of them for other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse

from ..corpus.edit_lists import edit_lists, playlist, table
from ..corpus.export import Piece, in_place, name_of
from ..corpus.export_zip import zip_of
from ..corpus.names import legal
from ..corpus.session import NotServed, SearchSession
from ..data.cut import cut_wav
from ..errors import UsageError
from .answers import json_response, media_type
from .ranges import send_bytes, send_file
from .reveal import reveal

Kind = Literal["zip", "csv", "m3u8", "edl"]
MOST = 200
"""Sounds of one selection: the address that names them has to fit into a request's head."""
LONGEST = 600.0
"""Seconds of a part that is cut for a page."""

_TYPES = {"csv": "text/csv; charset=utf-8", "m3u8": "audio/x-mpegurl", "edl": "text/plain; charset=utf-8"}
_WANTED = re.compile(r"([0-9a-f]{16})-(\d{1,9}(?:\.\d{1,3})?)-(\d{1,9}(?:\.\d{1,3})?)", re.ASCII)
_Second = Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)]
_Title = Annotated[str, Query(max_length=200)]


def add_taking(app: FastAPI, session: SearchSession, *, local: bool) -> None:
    """Add the addresses by which sounds are taken out.

    Args:
        local: the page is for whoever sits at this machine, who may have its file manager opened.
    """

    @app.get("/take/{key}")
    def take(key: str, request: Request, start: _Second = None, end: _Second = None) -> Response:
        clip = session.clip(key)
        path = str(clip.path.relative_to(session.corpus))
        if start is None or end is None:
            response = send_file(clip.real, request.headers, media_type(clip.path) or "application/octet-stream")
            name = name_of(Piece(path, clip.real), cut=False)
        else:
            response = send_bytes(cut_wav(clip.real, start, _bounded(start, end)), request.headers, "audio/wav")
            name = name_of(Piece(path, clip.real, start, end), cut=True)
        response.headers["Content-Disposition"] = attachment(name)
        return response

    @app.get("/export.{kind}")
    def export(
        kind: Kind, sound: Annotated[list[str], Query()], cut: bool = False, title: _Title = "sounds", query: _Title = ""
    ) -> Response:
        pieces = [replace(piece_of(session, *each, cut=cut), query=query) for each in wanted(sound)]
        return send_export(pieces, kind, cut=cut, title=title)

    @app.post("/api/reveal/{key}")
    def show_in_folder(key: str) -> Response:
        if not local:
            raise NotServed("Only a page for this machine alone, without a key, opens its folders.", gone=False)
        reveal(session.clip(key).path)
        return json_response({})


def wanted(sounds: Sequence[str]) -> list[tuple[str, float, float]]:
    """Key, start and end, in seconds, of the sounds that a page names as `KEY-START-END`. Raises UsageError."""
    if not 0 < len(sounds) <= MOST:
        raise UsageError(f"Choose 1 to {MOST} sounds at a time; for more, put them into a collection.")
    found = [_WANTED.fullmatch(each) for each in sounds]
    if any(each is None for each in found):
        raise UsageError("A sound is named by its key, the start and the end of the part, in seconds.")
    parts = [(each[1], float(each[2]), float(each[3])) for each in found if each]
    if any(start >= end for _, start, end in parts):
        raise UsageError("A part of a sound ends after its start.")
    return parts


def piece_of(session: SearchSession, key: str, start: float, end: float | None, *, cut: bool) -> Piece:
    """A part of a clip as a piece, which is read from where it was found to be, behind all links. One that is not given out tells
    why, so that the others come all the same. Of a part that is too long to be cut the whole file is taken.

    Raises:
        NotServed: there is no such clip in the index.
    """
    path = session.path(key)
    if cut and end is not None and end - start > LONGEST:
        start, end = 0.0, None
    try:
        file, why_not = session.clip(key).real, None
    except NotServed as error:
        file, why_not = session.corpus / path, str(error).removeprefix(f"{path}: ")
    return Piece(path, file, start, end, why_not=why_not)


def send_export(pieces: Sequence[Piece], kind: Kind, *, cut: bool, title: str) -> Response:
    """Several pieces as a ZIP, made while it is sent, or a list of them where they lie."""
    headers = {"Content-Disposition": attachment(f"{legal(title)[:80]}.{kind}")}
    if kind == "zip":
        return StreamingResponse(zip_of(pieces, cut=cut, title=title), 200, headers, "application/zip")
    listed = [in_place(piece) for piece in pieces if piece.why_not is None]
    if kind == "edl":
        content, *more = edit_lists(listed, title)
        if more:
            raise UsageError("One EDL cannot hold so many sounds. Take the ZIP, which has several.")
    else:
        content = table(listed) if kind == "csv" else playlist(listed)
    return Response(content, 200, headers, _TYPES[kind])


def attachment(name: str) -> str:
    """The header that has a browser keep an answer under this name, after RFC 6266."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _bounded(start: float, end: float) -> float:
    if not 0 < end - start <= LONGEST:
        raise UsageError(f"A part is cut that ends after its start, and has up to {LONGEST:.0f} seconds. Take the whole file.")
    return end
