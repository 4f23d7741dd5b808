"""A server that answers as the hub does, for the real library to ask: models in folders, and a record of requests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Request(NamedTuple):
    """`start` is the first byte that was asked for."""

    method: str
    path: str
    start: int


class Hub:
    """What the server gives out, what it does wrong on purpose, and what it was asked.

    Attributes:
        models: folders by the models' names.
        statuses: answers of a status instead, by a part of the path; with the hub's code of the error.
        cut: files by name, after so many bytes of which the connection breaks, each time that they are asked for.
        stall: as `cut`, but the connection stays and brings nothing more until `go_on` is set.
    """

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.statuses: dict[str, tuple[int, str]] = {}
        self.cut: dict[str, int] = {}
        self.stall: dict[str, int] = {}
        self.go_on = threading.Event()
        self.requests: list[Request] = []
        self.address = ""

    def fetched(self) -> list[str]:
        """The names of the files that were sent, sorted."""
        return sorted(
            each.path.partition(f"{COMMIT}/")[2] for each in self.requests if each.method == "GET" and COMMIT + "/" in each.path
        )


@contextmanager
def serving_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            hub.requests.append(Request(self.command, path, start))
            for part, (status, code) in hub.statuses.items():
                if part in path:
                    self.reply(status, b"", {"X-Error-Code": code} if code else {})
                    return
            for name, folder in hub.models.items():
                if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main", f"/api/models/{name}/revision/{COMMIT}"):
                    self.reply_json(
                        {"id": name, "modelId": name, "sha": COMMIT, "siblings": [_sibling(f, folder) for f in _files(folder)]}
                    )
                elif path == f"/api/models/{name}/tree/{COMMIT}":
                    self.reply_json([_entry(f, folder) for f in _files(folder)])
                elif path.startswith((f"/{name}/resolve/{COMMIT}/", f"/{name}/resolve/main/")):
                    self.reply_file(folder / path.split("/resolve/", 1)[1].partition("/")[2], start)
                else:
                    continue
                return
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound"})  # so the hub answers whoever is not logged in

        def reply_json(self, document: Any) -> None:
            self.reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def reply_file(self, file: Path, start: int) -> None:
            if not file.is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content = file.read_bytes()
            hashes = {"ETag": f'"{_blob(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if _is_large(file):
                hashes |= {"X-Linked-Etag": f'"{_sha256(file)}"', "X-Linked-Size": str(len(content))}
            if start:
                hashes["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206 if start else 200, content[start:], hashes, file.name)

        def reply(self, status: int, content: bytes, headers: dict[str, str], file: str = "") -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            end = min(hub.cut.get(file, len(content)), hub.stall.get(file, len(content)))
            self.wfile.write(content[:end])
            if end < len(content):
                self.wfile.flush()
                if file in hub.stall:
                    hub.go_on.wait(60)
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_large(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".h5", ".msgpack")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _blob(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(file: Path, folder: Path) -> dict[str, Any]:
    size = file.stat().st_size
    lfs = {"lfs": {"sha256": _sha256(file), "size": size, "pointerSize": 130}} if _is_large(file) else {}
    return {"rfilename": file.relative_to(folder).as_posix(), "size": size, "blobId": _blob(file)} | lfs


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    size = file.stat().st_size
    lfs = {"lfs": {"oid": _sha256(file), "size": size, "pointerSize": 130}} if _is_large(file) else {}
    return {"type": "file", "path": file.relative_to(folder).as_posix(), "size": size, "oid": _blob(file)} | lfs
