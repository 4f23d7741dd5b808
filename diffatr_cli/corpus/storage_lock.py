"""The right to write an index in object storage, for one process at a time: a row in a table beside the others.

The row says who may write, and until when. It is taken and prolonged by conditional updates, of which LanceDB lets one of two at
the same time win. Whoever writes prolongs it while that goes on, so that a writer that was killed, or lost its network, blocks
the others for `LIFE` seconds at most.

The time is that of each machine's own clock: clocks may differ by less than `LIFE - RENEWAL` seconds. Where they differ by more,
two may write at once. Each commit is whole then too; contents that both have added show as damage, which the next update mends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from .troubles import is_missing

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

LIFE = 120.0
"""Seconds for which the lock is taken, and prolonged."""
RENEWAL = 20.0
"""Seconds after which it is prolonged."""
_MARGIN = 15.0  # seconds before its end in which nothing is begun any more: a commit takes its time
_NAME = "lock"
_KEEP_VERSIONS = timedelta(minutes=10)
_SCHEMA = pa.schema([("owner", pa.string()), ("who", pa.string()), ("expires", pa.float64())])


class Holder(NamedTuple):
    """Who may write: `owner`, a number of each holder's own; `who`, for people; `expires`, until when, by `time.time`."""

    owner: str
    who: str
    expires: float


class StorageLock:
    """The lock of the tables of a connection, for one holder.

    All methods raise what LanceDB raises.
    """

    def __init__(self, connection: DBConnection) -> None:
        self._connection, self._me = connection, uuid.uuid4().hex
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._keep, name="lock", daemon=True)
        self._lost = False
        self._ends = 0.0, 0.0

    def take(self) -> Holder | None:
        """Take the lock, and hold it until `release`; gives who holds it where it could not be taken."""
        self._table = self._open()
        now = self._holder()
        for last in (False, False, True):
            if now.owner == self._me or now.expires >= time.time():
                break
            try:
                self._set(f"owner = '{now.owner}' AND expires < {time.time()!r}")
            except RuntimeError:  # where two write at once, LanceDB may refuse one, and say no more than this
                if last:
                    raise
            now = self._holder()  # by what is there it is known, whatever became of the answer
        if now.owner != self._me:
            return now
        self._thread.start()
        return None

    def is_held(self) -> bool:
        """Whether there is time to begin something."""
        # Both clocks: one stops while a machine sleeps, the other may be set.
        steady, clock = self._ends
        return not self._lost and time.monotonic() < steady - _MARGIN and time.time() < clock - _MARGIN

    def release(self) -> None:
        """Let others write."""
        self._stop.set()
        self._thread.join()
        self._table.update(where=f"owner = '{self._me}'", values=Holder("", "", 0.0)._asdict())
        self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def _keep(self) -> None:
        while not self._stop.wait(RENEWAL):
            with contextlib.suppress(Exception):  # the next time it may do, and if not, its end comes
                self._set(f"owner = '{self._me}'")
                if self._holder().owner != self._me:
                    self._lost = True
                    return

    def _set(self, where: str) -> None:
        steady, clock = time.monotonic() + LIFE, time.time() + LIFE
        mine = Holder(self._me, f"{socket.gethostname()}, process {os.getpid()}", clock)
        if self._table.update(where=where, values=mine._asdict()).rows_updated:
            self._ends = steady, clock

    def _holder(self) -> Holder:
        table: Any = self._table  # its types are not all told
        table.checkout_latest()
        [row] = self._table.to_arrow().to_pylist()
        return Holder(**row)

    def _open(self) -> Table:
        nobody = pa.Table.from_pylist([Holder("", "", 0.0)._asdict()], schema=_SCHEMA)
        try:
            return self._connection.open_table(_NAME)
        except ValueError as error:
            if not is_missing(error):
                raise
        try:
            return self._connection.create_table(_NAME, nobody)
        except Exception:  # another process was quicker
            return self._connection.open_table(_NAME)
