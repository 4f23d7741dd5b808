"""What a service counts and times, in the text format of Prometheus; summed over the processes of one service.

With several processes, `prometheus_client` keeps the numbers of each in files of the folder that the environment variable
PROMETHEUS_MULTIPROC_DIR names, which has to be set before this module's classes are made.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..corpus.search import Found
from ..corpus.session import SearchSession
from ..corpus.stopwatch import measured
from .answers import json_response

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_METHODS = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))
_MISSING = "Metrics need the extra `service`: pip install 'diffatr[service]'"


def make_metrics() -> Metrics:
    """The metrics of this process; without the extra `service` those that count nothing."""
    return Metrics() if importlib.util.find_spec("prometheus_client") is None else Counted()


class Metrics:
    """Where events are told. This one forgets them."""

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered: `route` is the pattern of its address."""

    def refused(self, status: int) -> None:
        """A connection was ended with this status before there was a request to answer."""

    def timed(self, search: Callable[[], Found]) -> Found:
        """Make a search, and tell of it."""
        began = time.perf_counter()
        with measured() as stages:
            found = search()
        whole = {"whole": time.perf_counter() - began}
        self.searched(whole | {str(name): seconds for name, seconds in stages.items()})
        return found

    def searched(self, seconds: Mapping[str, float]) -> None:
        """A search was made: seconds of its stages, and of all of it."""

    def failed(self, error: BaseException) -> None:
        """A fault that nobody expected."""

    def page(self, session: SearchSession, began: float) -> Response:
        """All of it, as Prometheus reads it, with the index of a session and since when the service is up (`time.time`)."""
        return json_response({"error": _MISSING}, 501)


class Counted(Metrics):
    """Metrics by `prometheus_client`."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("diffatr_http_requests", "Requests that were answered.", ("method", "route", "status"), **own)
        self._seconds = Histogram(
            "diffatr_http_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            **own,
        )
        self._refused = Counter(
            "diffatr_http_connections_refused", "Connections ended before there was a request to answer.", ("status",), **own
        )
        self._stages = Histogram(
            "diffatr_search_seconds",
            "Searches by stage: wait (for the model), embed, cosine (stage one), diffusion (stage two), whole.",
            ("stage",),
            buckets=_BUCKETS,
            **own,
        )
        self._errors = Counter("diffatr_errors", "Faults that nobody expected.", ("type",), **own)
        self._starts = Counter("diffatr_worker_starts", "Processes of this service that were started.", **own)
        self._starts.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def searched(self, seconds: Mapping[str, float]) -> None:
        for name, value in seconds.items():
            self._stages.labels(name).observe(value)

    def failed(self, error: BaseException) -> None:
        self._errors.labels(type(error).__name__).inc()

    def page(self, session: SearchSession, began: float) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        now = CollectorRegistry()
        now.register(_Now(session, began))
        if FOLDER in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        else:
            counted = self._registry
        return Response(generate_latest(counted) + generate_latest(now), media_type=CONTENT_TYPE_LATEST)


class _Now:
    """How the service stands at the moment, which every process of it says alike."""

    def __init__(self, session: SearchSession, began: float) -> None:
        self._session, self._began = session, began

    def collect(self) -> Iterator[GaugeMetricFamily]:
        from prometheus_client.core import GaugeMetricFamily

        status, (version, since), now = self._session.status, self._session.version, time.time()
        yield GaugeMetricFamily("diffatr_index_files", "Files that are searched.", status.files)
        yield GaugeMetricFamily("diffatr_index_windows", "Windows that are searched.", status.windows)
        yield GaugeMetricFamily("diffatr_index_skipped_files", "Files that cannot be used.", status.skipped)
        yield GaugeMetricFamily("diffatr_index_updating", "1 while the index is brought up to date.", int(bool(status.indexing)))
        yield GaugeMetricFamily("diffatr_index_problem", "1 where it could not be.", int(status.problem is not None))
        yield GaugeMetricFamily("diffatr_index_age_seconds", "Since what is searched was taken up.", max(0.0, now - since))
        yield GaugeMetricFamily("diffatr_uptime_seconds", "Since the service was started.", max(0.0, now - self._began))
        build = GaugeMetricFamily("diffatr_build_info", "What answers.", labels=("version", "model", "index"))
        build.add_metric((__version__, self._session.model.model_id, version), 1)
        yield build


class Measure:
    """Counts and times every answer of an app."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began, counted = 500, time.perf_counter(), False

        def count() -> None:
            nonlocal counted
            if not counted:
                counted = True
                # An address without a route may be anything, and each would be a row of its own for ever.
                route = getattr(scope.get("route"), "path", "none")
                self.metrics.answered(scope["method"], route, status, time.perf_counter() - began)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                count()  # before it is sent: who has the answer finds it counted
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            count()  # where the answer broke off
