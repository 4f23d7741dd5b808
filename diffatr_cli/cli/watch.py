"""Following a folder for a command: what an update did, or why it could not, in one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import DiffATRError
from .console import say
from .corpus import tell_update

if TYPE_CHECKING:
    from ..corpus.index import IndexReport
    from ..corpus.library import Searched
    from ..corpus.watching import Watcher


def watcher_of(folder: Searched, update: Callable[[], IndexReport | None]) -> Watcher:
    """What follows a folder.

    Args:
        update: brings its index up to date; None where that cannot be now.
    """
    from ..corpus.watching import Watcher

    told = ""

    def tried() -> bool:
        nonlocal told
        try:
            report = update()
        except DiffATRError as error:
            if told != str(error):  # which is tried again and again
                told = str(error)
                say(f"diffatr: {told}")
            return False
        if report is None:
            return False
        told = ""
        tell_update(report)
        return True

    return Watcher(folder.watched(), tried, say)


@contextlib.contextmanager
def following(folder: Searched, update: Callable[[], IndexReport | None]) -> Iterator[None]:
    """While the block runs, a thread follows a folder. The arguments are those of `watcher_of`."""
    watcher = watcher_of(folder, update)
    watcher.start()
    try:
        yield
    finally:
        watcher.stop()
