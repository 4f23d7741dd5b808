"""`diffatr serve`: a page in the browser to search a folder by ear and eye."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DiffATRError, UsageError
from ..files import reason
from . import signals
from .answering import Settings, answering
from .console import Device, Seed, say, show_line
from .corpus import Approximate, Corpora, IndexPlace, Model, NewestOf, Run, Shortlist, Steps, Watch, Weight, open_folders

_WORKER = f"{__package__}.serve_worker"
_UNWINDING = 6.0  # seconds that a worker may take to end, once all is answered: an update ends after the file that it is at


def serve(
    corpora: Corpora = None,
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
    index_place: IndexPlace = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Processes that answer, each with the model; they share one copy of the index. The bounds on connections and "
            "uploads hold for each.",
        ),
    ] = 1,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            metavar="FILE",
            help="Holds the key, in place of a new one at each start. It is asked for on this machine too then.",
        ),
    ] = None,
    watch: Watch = True,
    approximate: Approximate = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Listen and look: a page in the browser that searches a folder by words or by a dropped sound.

    The folder is indexed while the page is there already, and followed: what changes in it is indexed by itself. Only this
    machine reaches the page, unless --host says otherwise; then its address holds a key, without which it shows nothing.

    Example: diffatr serve --corpus ./clips
    """
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise UsageError("serve needs the extra `serve`: pip install 'diffatr[serve]'")
    if workers > 1 and os.name == "nt":
        raise UsageError("--workers: several processes cannot share a port on Windows. Leave it out.")
    import ipaddress
    import secrets
    import webbrowser

    from ..web import server

    if workers > 1 and approximate:
        raise UsageError("--workers: several processes share all vectors in memory, and search exactly. Leave --approximate out.")
    opened = open_folders(corpora, index_place)  # here, or what is wrong with a folder would be told after the model is there
    named = ", ".join(map(str, opened.roots))
    given = None if key_file is None else _read_key(key_file)
    listener = server.listen(host, port)
    address, number = listener.getsockname()[:2]
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    token = given or (None if loopback else secrets.token_urlsafe(24))
    hosts = [_bracketed(host).lower(), "localhost", "127.0.0.1", "[::1]"] if loopback else None
    url = f"http://{_bracketed(_reachable(host))}:{number}/"
    whole = f"{url}?token={token}" if token else url
    settings = Settings(
        corpora=[str(corpus) for corpus in corpora or [Path()]],
        index_place=index_place,
        run=_text(run),
        runs=_text(runs),
        model_name=model_name,
        device=device,
        weight=weight,
        steps=steps,
        shortlist=shortlist,
        seed=seed,
        hosts=hosts,
        token=token,
        approximate=approximate if workers == 1 else False,  # several share the vectors in memory
        began=time.time(),
        watch=watch,
        workers=workers,
    )

    def ready() -> None:
        show_line(url if given else whole)  # a key that lasts stands in no log
        say(f"{named}: open the address above in a browser. Ctrl-C ends this.")
        if given:
            say(f"Add ?token= to it, and what {key_file} holds.")
        if token:
            say("Whoever has the whole address can search and hear this folder, and the connection is not encrypted.")
        if _can_open() if open_browser is None else open_browser:
            webbrowser.open(whole)

    serving = _serve_alone if workers == 1 else _serve_by_workers
    try:
        with signals.unwinding():
            serving(settings, listener, ready)
    except KeyboardInterrupt:
        if not signals.dealt_with(signal.SIGTERM):
            raise
        say("diffatr: stopped.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("serve")(serve)


def _serve_alone(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve in this process until a signal."""
    from ..web import server

    with answering(settings) as (app, metrics):
        ready()
        try:
            server.run(app, listener, metrics.refused)
        finally:
            signals.take_time()


def _serve_by_workers(settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve by processes of their own until a signal. They share the cores, and a folder."""
    from ..corpus.board import Board
    from ..web.metrics import FOLDER
    from ..web.server import LIMITS
    from ..web.workers import Workers

    with tempfile.TemporaryDirectory(prefix="diffatr-", ignore_cleanup_errors=True) as place:
        counts = Path(place, "counts")
        counts.mkdir()
        threads = max(1, (os.cpu_count() or 1) // settings.workers)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), FOLDER: str(counts)}

        def died(worker: int) -> None:
            if worker == 0:
                Board(Path(place)).forget_status()

        told = asdict(settings) | {"place": place}
        crew = Workers(_WORKER, settings.workers, listener, told, environment, say, died)
        try:
            crew.run(ready)
        finally:
            signals.take_time()
            crew.stop(LIMITS.stop_seconds + _UNWINDING)


def _read_key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise DiffATRError(f"{file}: {reason(error)}") from None
    except UnicodeDecodeError:
        key = ""
    if not re.fullmatch(r"[\w.~-]{16,200}", key, re.ASCII):
        raise UsageError(f"{file}: a key has 16 to 200 letters, digits and signs of -._~, and stands alone in its file.")
    return key


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reachable(host: str) -> str:
    """A name for the address bar: where any address is listened on, this machine's."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


def _can_open() -> bool:
    """Whether a person sits here, with a screen: without one a browser in the terminal would take it over."""
    screen = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen
