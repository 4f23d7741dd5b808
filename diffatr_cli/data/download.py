"""Downloads that take up where they were cut off, and unpacking archives that may not write outside their folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import DiffATRError, UsageError
from ..files import reason
from ..network import offline
from ..progress import Progress, silent

if TYPE_CHECKING:
    import httpx

_BLOCK = 1 << 20  # bytes
_WORTH = 1 << 15
"""Bytes that a connection must bring so that the next failure counts as the first: a byte each would go on for years."""
_MINUTE, _SLOWEST = 60.0, 1 << 13
"""A connection that brings fewer bytes in so many seconds is dead."""


def download(
    url: str,
    target: Path,
    md5: str | None = None,
    size: int | None = None,
    retries: int = 5,
    progress: Progress = silent,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fetch `url` to `target`, unless it is there with the right md5. What arrived so far is in `target` + `.part`.

    A connection that breaks, or brings next to nothing for a minute, is taken up again after 1, 2, 4, ... seconds, `retries`
    times in a row without progress worth the name; a server that ignores the range sends the file again from its start.
    Nothing is written beyond the size that is expected or announced. Progress is in bytes.

    Raises:
        UsageError: the network may not be asked.
        DiffATRError: the server refuses, cannot be reached, or sends something of another md5 or size; or the disk is full.
    """
    if _is_there(target, md5, progress):
        return
    if offline():
        raise UsageError(
            f"{target.name} would be downloaded, and --offline was asked for. Leave that out, or name a folder that has it."
        )
    try:
        import httpx
    except ImportError:
        raise DiffATRError("Downloading needs the extra `data`: pip install 'diffatr[data]'") from None
    part = target.with_name(target.name + ".part")
    attempt = _Attempt(url, part, size, f"downloading {target.name}", progress, clock)
    failures, most = 0, attempt.have()
    started_over = False
    # An address may take a while to answer, but a transfer that stands still for half a minute is dead.
    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0)) as client:
        while True:
            before = attempt.have()
            try:
                attempt.fetch(client)
            except (httpx.RequestError, httpx.HTTPStatusError, httpx.InvalidURL) as error:
                _refuse(error, url)
                failures = 0 if attempt.have() >= most + _WORTH else failures + 1
                most = max(most, attempt.have())
                if failures > retries:
                    raise DiffATRError(
                        f"{url}: {_reason(error)}, {failures} times in a row. Run the command again to take up where it stopped."
                    ) from None
                pause(2.0 ** max(failures - 1, 0))
                continue
            except _Unexpected as unexpected:
                what = str(unexpected)
            else:
                arrived = attempt.have()
                found = file_md5(part, progress) if md5 else None
                if found == md5 and (size is None or arrived == size):
                    _replace(part, target)
                    return
                what = f"md5 {found} instead of {md5}" if found != md5 else f"{arrived} bytes instead of {size}"
            part.unlink(missing_ok=True)
            # Once from the start: what an earlier run left may have been damaged. Twice wrong is the server's doing.
            if before == 0 or started_over:
                raise DiffATRError(f"{url}: not the file that was expected ({what}).")
            started_over, most = True, 0


def _is_there(target: Path, md5: str | None, progress: Progress) -> bool:
    """Whether the whole file is there; one of another md5 is deleted, and the folder is made."""
    try:
        if target.exists():
            if md5 is None or file_md5(target, progress) == md5:
                return True
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffATRError(f"{error.filename or target}: {reason(error)}") from None
    return False


def _replace(part: Path, target: Path) -> None:
    try:
        os.replace(part, target)
    except OSError as error:
        raise DiffATRError(f"{target}: {reason(error)}") from None


class _Unexpected(Exception):
    """What the server sends cannot be the file."""


@dataclass
class _Attempt:
    """A download, one connection after another."""

    url: str
    part: Path
    size: int | None
    note: str
    progress: Progress
    clock: Callable[[], float]

    def have(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0

    def fetch(self, client: httpx.Client) -> None:
        """One connection: append what is missing, or write the file anew when the server does not do ranges.

        Raises:
            httpx.RequestError, httpx.HTTPStatusError: to be tried again, perhaps.
            _Unexpected: more or less is announced or sent than the file has.
            DiffATRError: the disk is full.
        """
        have = self.have()
        if self.size is not None and have >= self.size:
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 416 and have:  # nothing is left to send
                if self.size is not None:
                    raise _Unexpected(f"{have} bytes instead of {self.size}")
                return
            response.raise_for_status()
            resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if not resumed:
                have = 0
            length = response.headers.get("Content-Length", "")
            announced = have + int(length) if length.isascii() and length.isdecimal() else None
            if self.size is not None and announced not in (None, self.size):
                raise _Unexpected(f"{announced} bytes instead of {self.size}")
            self._store(response, resumed, have, self.size or announced)

    def _store(self, response: httpx.Response, resumed: bool, have: int, total: int | None) -> None:
        import httpx

        try:
            out = self.part.open("ab" if resumed else "wb")
        except OSError as error:
            raise self._no_room(error) from error
        with out:
            since, then = self.clock(), have
            for block in response.iter_raw():  # as it comes in: blocks of a set size would lose their beginning to a cut
                have += len(block)
                if total is not None and have > total:
                    raise _Unexpected(f"more than the {total} bytes that it has")
                try:
                    out.write(block)
                    out.flush()
                except OSError as error:
                    raise self._no_room(error) from error
                self.progress(have, max(total or have, have), self.note)
                if self.clock() - since > _MINUTE:
                    if have - then < _SLOWEST:
                        raise httpx.ReadTimeout(f"{have - then} bytes in a minute")
                    since, then = self.clock(), have

    def _no_room(self, error: OSError) -> DiffATRError:
        return DiffATRError(f"{self.part}: {reason(error)}")


def _refuse(error: Exception, url: str) -> None:
    """Raise for an answer that trying again will not change."""
    import httpx

    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        raise DiffATRError(f"{url}: not an address that can be downloaded.") from None
    if isinstance(error, httpx.TooManyRedirects):
        raise DiffATRError(f"{url}: the server sends from one address to another without end.") from None
    passing = (408, 429)  # timeout, too many requests
    if isinstance(error, httpx.HTTPStatusError) and 400 <= (code := error.response.status_code) < 500 and code not in passing:
        raise DiffATRError(f"{url}: the server answers {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}".strip()
    return f"the connection failed ({str(error) or type(error).__name__})"


def file_md5(path: Path, progress: Progress = silent) -> str:
    """The md5 of a file, read in blocks."""
    digest, done, size = hashlib.md5(), 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(done, size, f"checking {path.name}")
    return digest.hexdigest()


def unpack_7z(archive: Path, target: Path, progress: Progress = silent) -> None:
    """Unpack an archive so that `target` holds everything in it, or does not exist. Progress is in bytes.

    Raises:
        DiffATRError: the archive is damaged or encrypted, or names a file that would lie outside `target` or nowhere, or the disk
            is full.
    """
    try:
        import py7zr
        import py7zr.callbacks
        import py7zr.exceptions
    except ImportError:
        raise DiffATRError("Unpacking .7z needs the extra `data`: pip install 'diffatr[data]'") from None

    note = f"unpacking {archive.name}"
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with py7zr.SevenZipFile(archive) as file:
            entries = file.list()
            for entry in entries:
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                if not path.parts:
                    if entry.is_directory:  # `.`, the folder itself
                        continue
                    raise DiffATRError(f"{archive}: a file without a name in it; nothing was unpacked.")
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or entry.is_symlink:
                    raise DiffATRError(f"{archive}: {entry.filename!r} would lie outside the folder; nothing was unpacked.")
            total = sum(entry.uncompressed for entry in entries if not entry.is_directory)
            _room_for(archive, total, target)

            class Report(py7zr.callbacks.ExtractCallback):
                done = 0

                def report_start_preparation(self) -> None: ...
                def report_start(self, processing_file_path: str, processing_bytes: str) -> None: ...
                def report_update(self, decompressed_bytes: str) -> None: ...
                def report_warning(self, message: str) -> None: ...
                def report_postprocess(self) -> None: ...

                def report_end(self, processing_file_path: str, wrote_bytes: str) -> None:
                    self.done += int(wrote_bytes)
                    progress(self.done, total, note)

            progress(0, total, note)
            file.extractall(part, callback=Report())
        os.replace(part, target)
    except DiffATRError:
        raise
    except py7zr.exceptions.PasswordRequired:
        shutil.rmtree(part, ignore_errors=True)
        raise DiffATRError(
            f"{archive}: an encrypted archive. Unpack it with its password, and name the folder instead."
        ) from None
    except py7zr.exceptions.UnsupportedCompressionMethodError:
        shutil.rmtree(part, ignore_errors=True)
        raise DiffATRError(
            f"{archive}: packed by a method that is not known here. Unpack it, and name the folder instead."
        ) from None
    except Exception as error:  # there are many ways in which py7zr stumbles over damage
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise DiffATRError(f"{archive}: cannot be unpacked to {target} ({error.strerror}).") from error
        reason = (
            type(error).__name__ if isinstance(error, py7zr.exceptions.CrcError) else str(error)[:200] or type(error).__name__
        )
        raise DiffATRError(f"{archive}: a damaged archive ({reason}). Fetch it again.") from None


def _room_for(archive: Path, need: int, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise DiffATRError(
            f"{target}: {archive.name} unpacks to {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left. Free some."
        )
