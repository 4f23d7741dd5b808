"""Writing files so that a kill or a full disk leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import DiffATRError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Raises:
        DiffATRError: the disk is full, or the folder cannot be written; the temporary file is gone, `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # torch and safetensors report a full disk as their own errors, with the system's words in them.
        if full or "No space left" in str(error) or "file write failed" in str(error):
            raise DiffATRError(
                f"{path}: the disk is full. Free some space and run the command again; nothing else is lost."
            ) from error
        if isinstance(error, PermissionError):
            raise DiffATRError(f"{path}: no permission to write there.") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
