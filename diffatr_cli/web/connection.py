"""One connection of the page's server: how long a request may take to come, how large its head may be, and how many may be open.

uvicorn itself ends connections that idle between two requests, and bounds a head that is still coming. It has no limit on how
long a head or a body may take, and its limit on the number of connections turns away those that are open already.
"""

from __future__ import annotations

import asyncio
import http
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_PIECE = 1 << 10  # bytes of a head handed on at a time


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server.

    Attributes:
        connections: open at a time.
        head_bytes: of a request's head, up to a kB.
        head_seconds: for a request's head to come, from the connection's beginning or from its own first byte.
        body_seconds: for a request's body to come, and as many more as the bytes that came take at `body_rate`.
        body_rate: bytes a second.
        idle_seconds: between an answer and the next request.
        linger_seconds: that a client has to read why it was turned away.
        stop_seconds: that an answer has to come to its end once the server stops.
    """

    connections: int = 100
    head_bytes: int = 16 << 10
    head_seconds: float = 10.0
    body_seconds: float = 15.0
    body_rate: float = 32 << 10
    idle_seconds: int = 5
    linger_seconds: float = 1.0
    stop_seconds: float = 5.0


class LimitedConnection(H11Protocol):
    """uvicorn's connection with limits. A server has a class of its own, made by `limited`."""

    limits: Limits
    turned_away: set[LimitedConnection]
    """Connections beyond the limit that are being told so."""
    refused: Callable[[int], None]
    """Called with the status of each refusal that no app has seen."""

    _refused = False
    _awaited: Literal["head", "body", "rest"] | None = None
    """What of a request is to come: `rest` is the body of one that was answered already."""
    _timer: asyncio.TimerHandle | None = None
    _body_began = 0.0
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) < self.limits.connections:
            super().connection_made(transport)
            self._watch()
            return
        self.transport = transport
        if len(self.turned_away) >= self.limits.connections:
            transport.abort()
            return
        self.turned_away.add(self)
        self._refuse(503, "Too many connections to this server are open. Try again in a moment.")

    def connection_lost(self, exc: Exception | None) -> None:
        self.turned_away.discard(self)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self._refused and not self.transport.is_closing():
            # A head in pieces, or one that came all at once would be read however large it is.
            size = _PIECE if self.conn.their_state is h11.IDLE else len(data)
            piece, data = data[:size], data[size:]
            if self.conn.their_state is h11.SEND_BODY:
                self._body_bytes += len(piece)
            super().data_received(piece)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Called where h11 refuses what came."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._refuse(431, f"The head of this request is larger than {self.limits.head_bytes / 1024:.4g} kB.")
        else:
            self._refuse(400, "This is no HTTP request.")

    def shutdown(self) -> None:
        """Called when the server stops. What is being answered may come to its end; what takes too long is told so."""
        if self._refused:
            self.transport.close()
            return
        self.loop.call_later(self.limits.stop_seconds, self._stop_waiting)
        super().shutdown()

    def _stop_waiting(self) -> None:
        if not self._refused and not self.transport.is_closing():
            self._refuse(503, "The server is being stopped.")
            self.transport.close()

    def _watch(self) -> None:
        """Start or stop the clock, according to what is to come now."""
        if self._refused or self.transport.is_closing():
            return
        awaited = self._what_is_awaited()
        if awaited == self._awaited:
            return
        self._stop_timer()
        self._awaited = awaited
        if awaited == "head":
            self._timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)
        elif awaited == "body":
            self._body_began, self._body_bytes = self.loop.time(), 0
            self._timer = self.loop.call_later(self.limits.body_seconds, self._check_body)
        elif awaited == "rest":
            self._timer = self.loop.call_later(self.limits.body_seconds, self.transport.close)

    def _what_is_awaited(self) -> Literal["head", "body", "rest"] | None:
        state = self.conn.their_state
        if state is h11.IDLE and (self.scope is None or self.conn.trailing_data[0]):
            return "head"
        if state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        return None  # between two requests uvicorn's own clock runs

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "The head of this request took too long to come.")
        else:
            self.transport.close()  # a connection that a browser opened in advance: it would take a 408 for an answer

    def _check_body(self) -> None:
        now = self.loop.time()
        if self.flow.read_paused:  # the server itself does not read on for now
            self._body_began, self._body_bytes = now, 0
        due = self._body_began + self.limits.body_seconds + self._body_bytes / self.limits.body_rate
        if due > now:
            self._timer = self.loop.call_at(due, self._check_body)
        else:
            self._refuse(408, "The body of this request took too long to come.")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._awaited = None

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer with a sentence, whatever was asked, and end the connection."""
        self._refused = True
        self.refused(status)
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # so that the app ends its work, and sends nothing more
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
            self.flow.resume_writing()
            self.flow.resume_reading()
            if self.cycle.response_started:
                self.transport.abort()  # in the midst of an answer no other can be given
                return
        body = json.dumps({"error": sentence}).encode()
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closed at once, with bytes of the client unread, the connection would be reset and the sentence lost.
        self.loop.call_later(self.limits.linger_seconds, self.transport.abort)


def limited(limits: Limits, refused: Callable[[int], None] = lambda status: None) -> type[LimitedConnection]:
    """The class of connections for one server; `refused` as there."""
    members: dict[str, Any] = {"limits": limits, "turned_away": set(), "refused": staticmethod(refused)}
    return type("Connection", (LimitedConnection,), members)
