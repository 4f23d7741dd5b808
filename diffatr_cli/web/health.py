"""Whether a service is well, for whatever watches over it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi.responses import Response

from .. import __version__
from ..corpus.session import SearchSession
from .answers import json_response


@dataclass(frozen=True)
class Place:
    """Which process of a service this is: `worker` of `workers`, from 0, and when the service `began`, by `time.time`."""

    worker: int = 0
    workers: int = 1
    began: float = field(default_factory=time.time)


def health_response(session: SearchSession, place: Place, *, briefly: bool) -> Response:
    """200 where searches are answered or will be in a moment, else 503; `briefly` without saying more than that."""
    status, (version, since), now = session.status, session.version, time.time()
    ok = status.files > 0 or status.indexing is not None
    document: dict[str, object] = {"ok": ok}
    if not briefly:
        document |= {
            "version": __version__,
            "model": {"name": session.model.name, "id": session.model.model_id},
            "files": status.files,
            "windows": status.windows,
            "skipped": status.skipped,
            "indexing": status.indexing,
            "problem": status.problem,
            "index": {"version": version, "age_seconds": round(max(0.0, now - since), 1)},
            "worker": place.worker,
            "workers": place.workers,
            "uptime_seconds": round(max(0.0, now - place.began), 1),
        }
    return json_response(document, 200 if ok else 503)
