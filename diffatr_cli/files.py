"""Writing files so that a kill or a full disk leaves either the old file or the new one, never half of one; and their hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from .errors import DiffATRError

_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space and run the command again; nothing else is lost.",
    errno.EFBIG: "larger than a file may be there.",
    errno.EROFS: "that disk can only be read. Name another place.",
    errno.EACCES: "no permission.",
    errno.ENOTDIR: "a file is where a folder should be.",
    errno.EEXIST: "a file is where a folder should be.",
    errno.EISDIR: "a folder is where a file should be.",
    errno.ENAMETOOLONG: "the name is too long.",
}
_REASONS |= {errno.EDQUOT: _REASONS[errno.ENOSPC], errno.EPERM: _REASONS[errno.EACCES]}
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # reading cannot end so


def reason(error: OSError) -> str:
    """What the system refused, as a sentence to stand behind the name of the place."""
    return _REASONS.get(error.errno or 0, f"{error.strerror or error}.")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Raises:
        DiffATRError: `path` cannot be written: the disk is full, the folder is none or not to be written, ...; the temporary
            file is gone, `path` is as it was.
    """
    # A name may have 255 bytes.
    temporary = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _tell_refusal(error, path, {path, temporary, *path.parents})
        raise


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; when the block ends well it takes the place of `path`, with all that was there.

    Whoever calls makes sure that what is there may go.

    Raises:
        DiffATRError: it cannot be written; `path` is as it was.
    """
    path = path.absolute()
    temporary, aside = (path.with_name(f".{path.name[:100]}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except BaseException:  # a signal, too
            if aside.exists():
                os.replace(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException as error:
        named = getattr(error, "filename", None)
        inside = {Path(os.fsdecode(named))} if named and Path(os.fsdecode(named)).is_relative_to(temporary) else set()
        shutil.rmtree(temporary, ignore_errors=True)
        _tell_refusal(error, path, {path, temporary, *path.parents} | inside)
        raise


def _tell_refusal(error: BaseException, path: Path, places: set[Path]) -> None:
    """Raises DiffATRError in the place of an error that says why these places cannot be written."""
    refusal = _refusal(error)
    if refusal is not None and _is_about(refusal, places):
        raise DiffATRError(f"{path}: {reason(refusal)}") from error


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """A name of a file for libraries that take no other: its own, or, where that is not UTF-8, one of the open file.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        is_text = not re.search("[\ud800-\udfff]", str(path))
        yield str(path) if is_text else f"/dev/fd/{file.fileno()}"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _refusal(error: BaseException) -> OSError | None:
    """What the system said, out of an error that may be a library's own."""
    if isinstance(error, OSError):
        return error
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # as libraries in Rust write it, such as safetensors
        return OSError(int(found[1]), os.strerror(int(found[1])))
    # torch keeps to itself what the system said; a file that ends too early is all that it has noticed.
    if re.search("file write failed|unexpected pos|No space left", str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def _is_about(error: OSError, places: set[Path]) -> bool:
    """Whether an error is of writing in these places: the block may read files too, whose troubles are others'."""
    if error.errno in _OF_WRITING:
        return True
    return error.filename is not None and Path(os.fsdecode(error.filename)) in places


def file_crc32(path: Path) -> int:
    """CRC-32 of a file's content. Raises OSError where it cannot be read."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
