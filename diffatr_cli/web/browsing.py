"""What the page shows before anything is asked: the kinds of sound in the folder, and a map of it."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from ..corpus.overview import Drawn, Overview
from ..corpus.session import SearchSession, key_of
from .answers import json_response, media_type

_PENDING = {"ready": False}


def add_browsing(app: FastAPI, session: SearchSession) -> None:
    """Add the addresses of the overview. Each answers at once: what there is, or that it is being made."""
    overview = Overview(session)

    @app.get("/api/kinds")
    def kinds() -> Response:
        told = overview.kinds()
        if told is None:
            return json_response(_PENDING)
        found = told.kinds
        document: dict[str, Any] = {"ready": True, "version": told.state.version, "kinds": None}
        if found is not None:
            named = [{"label": label.name, "caption": label.caption, "files": files} for label, files in found.in_order()]
            document |= {"kinds": named, "looked": found.looked, "total": found.total}
        return json_response(document)

    @app.get("/api/map")
    def sound_map() -> Response:
        drawn = overview.map()
        return json_response(_PENDING if drawn is None else _document(drawn))


def _document(drawn: Drawn) -> dict[str, Any]:
    """A map as the page draws it. `dots`: key, path, start and end of the part to hear, media type, x, y, and the number of the
    kind in `kinds`, -1 where none fits."""
    state, sounds, found = drawn
    recordings = state.recordings
    numbers: dict[int, int] = {}
    dots = []
    for content, row, (x, y) in zip(sounds.contents.tolist(), sounds.rows.tolist(), sounds.places.tolist(), strict=True):
        path = recordings.paths[int(recordings.files_of(content)[0])]
        start, end = recordings.spans[row].tolist()
        best = -1 if found is None else int(found.best[content])
        kind = numbers.setdefault(best, len(numbers)) if best >= 0 else -1
        dots.append([key_of(path), path, round(start, 3), round(end, 3), media_type(path), round(x, 4), round(y, 4), kind])
    return {
        "ready": True,
        "version": state.version,
        "dots": dots,
        "contents": len(recordings.offsets) - 1,
        "kinds": [found.labels[best].name for best in numbers] if found is not None else [],
        "separator": os.sep,
    }
