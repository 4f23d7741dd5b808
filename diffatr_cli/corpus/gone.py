"""What was embedded of files that are gone many at once.

A drive that is pulled leaves its mount point, perhaps with a stray file in it, or an empty folder within the corpus. Vectors are
cheap to keep and dear to make, so contents whose files go many at once stay in the table of windows for `DAYS`: when the files
are back they are hashed, and not embedded again. What goes a few files at a time was removed by somebody, and goes at once.

They are held by a table of files of their own, whose rows tell since when. To whatever updates the same windows, also for another
folder or model, that is one more table whose contents are in use.
"""

from __future__ import annotations

import time
from collections.abc import Set
from typing import TYPE_CHECKING

from .scan import Stamp

if TYPE_CHECKING:
    from .store import FileRow, FileTable

GONE = "files-gone-v1"
"""How the names of such tables begin; so they count as tables of files."""
MANY = 20
"""Contents that go at once and are kept."""
DAYS = 30
"""For how long: a drive that is away for longer is worth embedding again, and what was deleted is not to stay for ever."""


class GoneContents:
    """The contents of one corpus that are kept without a file.

    Args:
        table: of its own, in which each row's path is the content's hash and its `mtime_ns` the time at which it went.
    """

    def __init__(self, table: FileTable) -> None:
        self._table = table

    def settle(self, lost: Set[str], there: Set[str], *, sure: bool) -> None:
        """Keep what goes now, if it is much, and let go what is back, or was kept for long enough.

        Args:
            lost: contents, by hash, whose last file goes now.
            there: contents that files have.
            sure: all that is there was seen. If not, `lost` is kept however little it is.

        Raises:
            CannotUpdate: the table cannot be written.
        """
        from .store import FileRow

        now = time.time_ns()
        before = self._table.mend()[0] if self._table.exists else {}
        kept = {path: row for path, row in before.items() if row.content not in there and 0 <= now - _since(row) < DAYS * _DAY}
        if len(lost) >= MANY or not sure:
            kept |= {each.encode(): FileRow(Stamp(0, now, 0, 0), each, "", "", "") for each in lost}
        if kept != before:
            self._table.write(kept)


_DAY = 24 * 3600 * 10**9  # nanoseconds


def _since(row: FileRow) -> int:
    return row.stamp.mtime_ns
