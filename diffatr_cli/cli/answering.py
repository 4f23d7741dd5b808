"""What answers behind `diffatr serve`, in whichever process: the model, the session of the folder and the page's app."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .console import progress_bar, say
from .corpus import load_model, open_folders, placed, report_update
from .watch import following

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..corpus.session import SearchSession
    from ..web.metrics import Metrics


@dataclass(frozen=True)
class Settings:
    """What a process that answers has to know; a worker is told it as JSON. The options of `serve`, by their names there, and

    Attributes:
        hosts, token: of `web.app.make_app`.
        began: when the service was started, by `time.time`.
        watch: the folder is followed.
        workers: how many processes answer.
        worker: which of them this is. 0 keeps the index up to date.
        place: the folder that several of them share.
        listener: the number of the listening socket in a worker.
    """

    corpora: list[str]
    index_place: str | None
    run: str | None
    runs: str | None
    model_name: str | None
    device: str
    weight: float | None
    steps: int | None
    shortlist: int | None
    seed: int
    hosts: list[str] | None
    token: str | None
    approximate: bool | None
    began: float
    watch: bool = True
    workers: int = 1
    worker: int = 0
    place: str = ""
    listener: int = -1


class Answering(NamedTuple):
    """The page's app, and what counts its answers."""

    app: FastAPI
    metrics: Metrics


@contextlib.contextmanager
def answering(settings: Settings) -> Iterator[Answering]:
    """While the block runs, a session looks after the folder, and its app can be served.

    Raises:
        DiffATRError: there is no such folder or model.
    """
    from ..corpus.board import Board
    from ..corpus.session import SearchSession
    from ..corpus.shared_session import FollowingSession, PublishingSession
    from ..model import sampling_of
    from ..web.app import make_app
    from ..web.health import Place
    from ..web.metrics import make_metrics

    opened = open_folders([Path(corpus) for corpus in settings.corpora], settings.index_place, settings.approximate)
    model = load_model(_path(settings.run), _path(settings.runs), settings.model_name, settings.device, settings.weight)
    folder = placed(opened, model)
    sampling = sampling_of(model, folder=True, shortlist=settings.shortlist, steps=settings.steps, seed=settings.seed)
    metrics = make_metrics()
    session: SearchSession
    if settings.workers == 1:
        session = SearchSession(model, folder, sampling, tell=say)
    elif settings.worker == 0:
        session = PublishingSession(model, folder, sampling, say, Board(Path(settings.place)), report_update)
    else:
        session = FollowingSession(model, folder, sampling, say, Board(Path(settings.place)))
    app = make_app(
        session,
        hosts=None if settings.hosts is None else frozenset(settings.hosts),
        token=settings.token,
        refresh=lambda: session.start(told=report_update),
        place=Place(settings.worker, settings.workers, settings.began),
        metrics=metrics,
        tell=say,
    )
    session.start(progress_bar, report_update)
    follows = settings.watch and settings.worker == 0  # of several processes one updates
    with following(folder, session.update) if follows else contextlib.nullcontext():
        try:
            yield Answering(app, metrics)
        finally:
            session.stop()  # first: it ends an update that the follower may be at, too


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
