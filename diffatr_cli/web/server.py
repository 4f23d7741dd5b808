"""Listening on a port, and serving an app there until Ctrl-C."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from ..errors import DiffATRError
from .connection import Limits, limited

PORT = 8765
"""Where the page is if nobody says otherwise and the place is free."""
LIMITS = Limits()
_BACKLOG = 128  # connections that wait to be taken


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens. `port` None is `PORT`, or any that is free where that is taken; 0 is any that is free.

    Raises:
        DiffATRError: the port is taken, or there is no such host on this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, PORT if port is None else port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise DiffATRError(f"--host {host}: no address of this machine ({error.strerror}).") from None
    for place in (address, (address[0], 0, *address[2:])) if port is None else (address,):
        # With the protocol named, asyncio lets no answer wait for an acknowledgement of its head, which takes 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name != "nt":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            trouble = error
    raise DiffATRError(
        f"{host}, port {PORT if port is None else port}: cannot be listened on ({trouble.strerror}). Name another: --port 0"
    )


class _Server(uvicorn.Server):
    """A server that shares its port fairly."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)


def make_server(app: ASGIApp, limits: Limits = LIMITS, refused: Callable[[int], None] = lambda status: None) -> uvicorn.Server:
    """A server that holds clients to limits.

    Args:
        refused: called with the status of each refusal that the app has not seen.
    """
    config = uvicorn.Config(
        app,
        http=limited(limits, refused),
        # asyncio takes as many connections at a time as may wait. Of several processes on one port the first to wake would
        # take all of them; one at a time they take turns.
        backlog=1,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds) + 1,
        log_level="critical",  # what strangers send is no news, and faults are told by the app
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
    )
    return _Server(config)


def run(app: ASGIApp, listener: socket.socket, refused: Callable[[int], None] = lambda status: None) -> None:
    """Serve until Ctrl-C or SIGTERM, which comes out as KeyboardInterrupt once what was asked is answered."""
    make_server(app, LIMITS, refused).run(sockets=[listener])
