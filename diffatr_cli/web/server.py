"""Listening on a port, and serving an app there until Ctrl-C."""

from __future__ import annotations

import os
import socket

import uvicorn
from fastapi import FastAPI

from ..errors import DiffATRError

PORT = 8765
"""Where the page is if nobody says otherwise and the place is free."""


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
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            trouble = error
    raise DiffATRError(
        f"{host}, port {PORT if port is None else port}: cannot be listened on ({trouble.strerror}). Name another: --port 0"
    )


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C, which comes out as KeyboardInterrupt once open answers are ended."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])
