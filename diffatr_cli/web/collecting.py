"""The named collections, as the page shows and changes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError

from ..corpus.collections import FAVOURITES, Collection, Collections, Member, check_part, places_of
from ..corpus.export import Piece
from ..corpus.search import Hit
from ..corpus.session import NotServed, SearchSession, key_of
from ..errors import DiffATRError
from .answers import hit_document, json_response
from .taking import MOST, Kind, piece_of, send_export, wanted

_LARGEST = 64 << 10  # bytes of a request's document

_Shown = Annotated[int, Query(ge=1, le=10_000)]
T = TypeVar("T", bound=BaseModel)


class _Sounds(BaseModel):
    """Sounds as the page names them, and members by their identity."""

    sounds: list[Annotated[str, Field(max_length=60)]] = Field(default=[], max_length=MOST)
    members: list[tuple[str, float]] = Field(default=[], max_length=MOST)


class _Named(BaseModel):
    name: str = Field(max_length=1000)


class _New(_Sounds, _Named):
    pass


class _Contents:
    """The hashes of the contents of a session's files, read anew only where its index has changed."""

    def __init__(self, session: SearchSession) -> None:
        self._session, self._lock = session, threading.Lock()
        self._version, self._contents = "", dict[str, str]()

    def now(self) -> Mapping[str, str]:
        version, _ = self._session.version
        with self._lock:
            if version != self._version:
                self._contents, self._version = self._session.folder.contents(), version
            return self._contents


def add_collecting(app: FastAPI, session: SearchSession) -> None:
    """Add the addresses of the collections."""
    kept, contents = Collections(session.folder), _Contents(session)

    def summary(changed: Collection | None = None) -> Response:
        collections = kept.all()
        listed = [{"id": each.id, "name": each.name, "count": len(each.members)} for each in collections]
        favourites = next((each for each in collections if each.id == FAVOURITES), None)
        starred = _marks(favourites, contents.now()) if favourites and favourites.members else []
        return json_response({"collections": listed, "starred": starred, "changed": changed and changed.id})

    def members_of(sounds: Sequence[str], *, new: bool = True) -> list[Member]:
        members = []
        for key, start, end in wanted(sounds) if sounds else ():
            path = session.path(key)
            if (content := contents.now().get(path)) is None:
                raise NotServed(f"{path}: the index knows it no more. Refresh.", gone=True)
            if new and (length := session.seconds(path)) > 0:  # else the index has just forgotten it
                check_part(path, start, end, length)
            members.append(Member(content, path, start, end))
        return members

    @app.get("/api/collections")
    def collections() -> Response:
        return summary()

    @app.post("/api/collections")
    async def make(request: Request) -> Response:
        new = await _document(request, _New)
        return await run_in_threadpool(lambda: summary(kept.make(new.name, members_of(new.sounds))))

    @app.get("/api/collections/{id_}")
    def show(id_: str, top: _Shown = 50) -> Response:
        collection = kept.find(id_)
        hits, missing = list[dict[str, Any]](), list[dict[str, Any]]()
        for place in places_of(collection.members, contents.now()):
            member = place.member
            if place.path is None:
                told = {"name": os.path.basename(member.path), "folder": os.path.dirname(member.path), "reason": place.reason}
                missing.append(told | {"content": member.content, "start": member.start})
            else:
                end = member.end if member.end is not None else session.seconds(place.path)
                hit = Hit(len(hits) + 1, place.path, member.start, max(end, member.start), 0.0)
                hits.append(hit_document(session, hit) | {"content": member.content, "whole": member.end is None})
        head = {"id": collection.id, "name": collection.name, "all": len(hits), "files": session.status.files}
        return json_response(head | {"hits": hits[:top], "missing": missing})

    @app.post("/api/collections/{id_}/add")
    async def add(id_: str, request: Request) -> Response:
        asked = await _document(request, _Sounds)
        return await run_in_threadpool(lambda: summary(kept.add(id_, members_of(asked.sounds))[0]))

    @app.post("/api/collections/{id_}/remove")
    async def remove(id_: str, request: Request) -> Response:
        asked = await _document(request, _Sounds)

        def done() -> Response:
            gone = {(content, round(start, 3)) for content, start in asked.members}
            return summary(kept.remove(id_, gone | {each.identity for each in members_of(asked.sounds, new=False)})[0])

        return await run_in_threadpool(done)

    @app.post("/api/collections/{id_}/rename")
    async def rename(id_: str, request: Request) -> Response:
        named = await _document(request, _Named)
        return await run_in_threadpool(lambda: summary(kept.rename(id_, named.name)))

    @app.post("/api/collections/{id_}/delete")
    def delete(id_: str) -> Response:
        kept.delete(id_)
        return summary()

    @app.get("/api/collections/{id_}/export.{kind}")
    def export(id_: str, kind: Kind, cut: bool = False) -> Response:
        collection = kept.find(id_)
        pieces = []
        for place in places_of(collection.members, contents.now()):
            path, member = place.path or place.member.path, place.member
            if place.reason is None:
                pieces.append(piece_of(session, key_of(path), member.start, member.end, cut=cut))
            else:
                pieces.append(Piece(path, session.corpus / path, member.start, member.end, why_not=place.reason))
        return send_export(pieces, kind, cut=cut, title=collection.name)


def _marks(collection: Collection, contents: Mapping[str, str]) -> list[tuple[str, float]]:
    """Key and start of what a collection holds, for every file of such a content."""
    starts: dict[str, list[float]] = {}
    for member in collection.members:
        starts.setdefault(member.content, []).append(round(member.start, 3))
    return [(key_of(path), start) for path, content in contents.items() for start in starts.get(content, ())]


async def _document(request: Request, model: type[T]) -> T:
    """What a page sends, up to a size. Raises DiffATRError."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST:
            raise DiffATRError("More was sent than is taken.")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors()[0])
        raise DiffATRError(f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}") from None
