"""Downloads that take up where they were cut off, and unpacking archives that may not write outside their folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import DiffATRError
from ..progress import Progress, silent

if TYPE_CHECKING:
    import httpx

_BLOCK = 1 << 20  # bytes


def download(
    url: str,
    target: Path,
    md5: str | None = None,
    size: int | None = None,
    retries: int = 5,
    progress: Progress = silent,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` to `target`, unless it is there with the right md5. What arrived so far is in `target` + `.part`.

    A connection that breaks is taken up again after 1, 2, 4, ... seconds, `retries` times in a row without a byte of
    progress; a server that ignores the range sends the file again from its start. Progress is in bytes.

    Raises:
        DiffATRError: the server refuses, cannot be reached, or sends something of another md5 or size; or the disk is full.
    """
    try:
        import httpx
    except ImportError:
        raise DiffATRError("Downloading needs the extra `data`: pip install 'diffatr[data]'") from None
    note = f"downloading {target.name}"
    if target.exists():
        if md5 is None or file_md5(target, progress) == md5:
            return
        target.unlink()
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    started_over = False
    # An address may take a while to answer, but a transfer that stands still for half a minute is dead.
    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0)) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _fetch(client, url, part, size, note, progress)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                _refuse(error, url)
                failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
                if failures > retries:
                    raise DiffATRError(
                        f"{url}: {_reason(error)}, {failures} times in a row. Run the command again to take up where it stopped."
                    ) from None
                pause(2.0 ** max(failures - 1, 0))
                continue
            except OSError as error:
                raise DiffATRError(f"{part}: {error.strerror}. Free some space and run the command again.") from error
            arrived = part.stat().st_size
            found = file_md5(part, progress) if md5 else None
            if found == md5 and (size is None or arrived == size):
                os.replace(part, target)
                return
            part.unlink()
            # Once from the start: what an earlier run left may have been damaged. Twice wrong is the server's doing.
            if before == 0 or started_over:
                what = f"md5 {found} instead of {md5}" if found != md5 else f"{arrived} bytes instead of {size}"
                raise DiffATRError(f"{url}: not the file that was expected ({what}).")
            started_over = True


def _fetch(client: httpx.Client, url: str, part: Path, size: int | None, note: str, progress: Progress) -> None:
    """One attempt: append to `part` what is missing, or write it anew when the server does not do ranges."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # nothing is left to send
            return
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        total = size or have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as out:
            for block in response.iter_raw():  # as it comes in: blocks of a set size would lose their beginning to a cut
                out.write(block)
                have += len(block)
                progress(have, max(total, have), note)


def _refuse(error: Exception, url: str) -> None:
    """Raise for an answer that trying again will not change."""
    import httpx

    if isinstance(error, httpx.UnsupportedProtocol):
        raise DiffATRError(f"{url}: not an address that can be downloaded.") from None
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
        DiffATRError: the archive is damaged, or names a file that would lie outside `target`, or the disk is full.
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
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or entry.is_symlink:
                    raise DiffATRError(f"{archive}: {entry.filename!r} would lie outside the folder; nothing was unpacked.")
            total = sum(entry.uncompressed for entry in entries if not entry.is_directory)

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
    except (py7zr.exceptions.ArchiveError, EOFError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DiffATRError(f"{archive}: a damaged archive ({error or type(error).__name__}). Fetch it again.") from None
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DiffATRError(f"{archive}: cannot be unpacked to {target} ({error.strerror or error}).") from error
