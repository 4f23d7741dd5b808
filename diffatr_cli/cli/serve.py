"""`diffatr serve`: a page in the browser to search a folder by ear and eye."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DiffATRError, UsageError
from . import signals
from .console import Device, Seed, progress_bar, say, show_line
from .corpus import (
    Approximate,
    Corpus,
    IndexFolder,
    Model,
    NewestOf,
    Run,
    Shortlist,
    Steps,
    Weight,
    load_model,
    open_folder,
    tell_update,
)

if TYPE_CHECKING:
    from ..corpus.index import IndexReport


def serve(
    corpus: Corpus = Path("."),
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets others in who have the key.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="8765, or a free one if that is taken, if not given; 0: a free one."),
    ] = None,
    open_browser: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the page in the browser; done if this is a terminal, if not given."),
    ] = None,
    steps: Steps = None,
    shortlist: Shortlist = None,
    weight: Weight = None,
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    index_folder: IndexFolder = None,
    approximate: Approximate = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Listen and look: a page in the browser that searches a folder by words or by a dropped sound.

    The folder is indexed while the page is there already. Only this machine reaches it, unless --host says otherwise; then
    its address holds a key, without which it shows nothing.

    Example: diffatr serve --corpus ./clips
    """
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise UsageError("serve needs the extra `serve`: pip install 'diffatr[serve]'")
    import ipaddress
    import secrets
    import webbrowser

    from ..corpus.session import SearchSession
    from ..model import sampling_of
    from ..web import server
    from ..web.app import make_app

    folder = open_folder(corpus, index_folder, approximate)
    listener = server.listen(host, port)
    address, number = listener.getsockname()[:2]
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    model = load_model(run, runs, model_name, device, weight)
    sampling = sampling_of(model, folder=True, shortlist=shortlist, steps=steps, seed=seed)
    session = SearchSession(model, folder, sampling, tell=say)
    token = None if loopback else secrets.token_urlsafe(24)
    hosts = frozenset((_bracketed(host).lower(), "localhost", "127.0.0.1", "[::1]")) if loopback else None
    url = f"http://{_bracketed(_reachable(host))}:{number}/" + (f"?token={token}" if token else "")
    app = make_app(session, hosts=hosts, token=token, refresh=lambda: session.start(told=_report), tell=say)
    session.start(progress_bar, _report)
    show_line(url)
    say(f"{corpus}: open the address above in a browser. Ctrl-C ends this.")
    if token:
        say("Whoever has the whole address can search and hear this folder, and the connection is not encrypted.")
    if _can_open() if open_browser is None else open_browser:
        webbrowser.open(url)
    try:
        with signals.unwinding():
            server.run(app, listener)
    except KeyboardInterrupt:
        if not signals.dealt_with():
            raise
        say("diffatr: stopped.")
    finally:
        session.stop()


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("serve")(serve)


def _report(outcome: IndexReport | DiffATRError) -> None:
    if isinstance(outcome, DiffATRError):
        say(f"diffatr: {outcome}")
    else:
        tell_update(outcome)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reachable(host: str) -> str:
    """A name for the address bar: where any address is listened on, this machine's."""
    import socket

    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


def _can_open() -> bool:
    """Whether a person sits here, with a screen: without one a browser in the terminal would take it over."""
    screen = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen
