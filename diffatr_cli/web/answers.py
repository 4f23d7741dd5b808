"""What was found, as the JSON that the page reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import PurePath
from typing import Any

import numpy as np
from fastapi.responses import Response

from ..corpus.search import Found, Hit
from ..corpus.session import SearchSession, key_of
from ..corpus.trajectory import Trajectory
from .excerpts import view

_FRAMES = 60  # of an animation at most
_MEDIA_TYPES = {
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


def json_response(document: Any, status: int = 200) -> Response:
    """A JSON answer."""
    # Escaped to ASCII, because names of files need not be valid text.
    return Response(json.dumps(document, allow_nan=False), status, media_type="application/json")


def media_type(path: str | PurePath) -> str | None:
    """The type of a recording that browsers may play as it is; they are asked, and get a WAV of the part in view of all else."""
    return _MEDIA_TYPES.get(PurePath(path).suffix.lower())


def found_response(session: SearchSession, found: Found, began: float, note: str | None = None) -> Response:
    """The answer to a search.

    Args:
        began: when, by `time.perf_counter`.
        note: a remark on what was searched for.
    """
    negation = found.reading and found.reading.negation
    return json_response(
        {
            "hits": [hit_document(session, hit) for hit in found.hits],
            "present": found.present,
            "calibrated": found.calibrated,
            "verdict": found.verdict,
            "certain": found.certain,
            "remark": found.remark,
            "suggestion": found.reading and found.reading.respelt,
            "negation": negation and {"wanted": negation.wanted, "unwanted": negation.unwanted},
            "note": note,
            "filters": list(found.filters),
            "files": session.status.files if found.fitting is None else found.fitting,
            "seconds": round(time.perf_counter() - began, 4),
        }
    )


def hit_document(session: SearchSession, hit: Hit) -> dict[str, Any]:
    """A hit as the page shows it."""
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
        "by": hit.by,
        "facts": hit.facts and hit.facts._asdict(),
        "type": media_type(hit.path),
    }


def trajectory_response(way: Trajectory) -> Response:
    """The way of an answer out of noise, in so many steps as an animation shows."""
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


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
