"""Showing a file in the file manager of this machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from ..errors import DiffATRError

_PATIENCE = 3.0  # seconds in which an opener says that it cannot


def opener(path: Path, platform: str = sys.platform) -> list[str] | str:
    """The command that shows a file in its folder; no shell reads it.

    Args:
        path: absolute, so that it cannot be taken for an option.
    """
    if platform == "darwin":
        return ["open", "-R", str(path)]
    if platform == "win32":
        return f'explorer /select,"{path}"'  # it wants the quotes there; names on Windows have none
    return ["xdg-open", str(path.parent)]  # which can only show the folder


def reveal(path: Path) -> None:
    """Show a file in the file manager. Raises DiffATRError where that cannot be opened."""
    command = opener(path)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        name = command if isinstance(command, str) else command[0]
        raise DiffATRError(f"{path.parent}: cannot be opened: there is no {name.split()[0]} here. Copy the path.") from None
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:  # it is the file manager itself
        threading.Thread(target=process.wait, name="reveal", daemon=True).start()
        return
    if code and sys.platform != "win32":  # explorer says 1 whatever it does
        raise DiffATRError(f"{path.parent}: the file manager could not be opened (exit code {code}). Copy the path.")
