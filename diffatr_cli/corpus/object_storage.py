"""An index in object storage: tables of LanceDB at an address such as s3://bucket/prefix, and nothing else.

Credentials, the region and the endpoint are read by LanceDB, from where the tools of each storage look for them; nothing here
sees them. What a search reads is kept on this machine too, in the cache, with a mark of the tables that it was read from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffATRError
from .place import TABLE_ID, Place, no_place
from .report import CannotUpdate
from .troubles import is_missing, troubles

if TYPE_CHECKING:
    from lancedb.db import DBConnection

    from .storage_lock import StorageLock
    from .stored_frames import StoredFrameTable

_RETRIES = {"client_max_retries": "6", "client_retry_timeout": "60"}  # of each request; LanceDB repeats some of them besides
_POLL = 2.0  # seconds between two looks whether another process is done
_DAMAGE = (
    r"Not found: .*\.(lance|manifest|idx)|not appear to be a Lance file|corrupt|Invalid range|file size is too small"
    r"|sufficient data|failed to decode"
)
_OF_REQUESTS = r"RetryError|Error performing|HTTP error"
_MISSING = r"NoSuchBucket|NoSuchContainer|bucket does not exist|status: 404"
_REFUSED = (
    r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|PermissionDenied|Unauthenticated|[Cc]redentials"
    r"|AuthenticationFailed|status: 40[13]|40[13] (Forbidden|Unauthorized)"
)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CAUSES = (
    (r"BadScheme", "the endpoint is an http:// address, which AWS_ALLOW_HTTP=true permits"),
    (r"dns error|lookup address", "the name of its server is not known"),
    (r"Connection refused", "its server refuses connections"),
    (r"timed? ?out", "its server does not answer in time"),
    (r"status: 5\d\d|50\d ", "its server reports an error of its own"),
)
_ADVICE = (
    "What is indexed is kept. Check the network and the address of the storage (AWS_ENDPOINT_URL), then run the command again."
)


class ObjectStorage(Place):
    """A prefix in object storage.

    Args:
        address: with its scheme, without a slash at the end.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.address = address
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        self.local = cache / "diffatr" / "indexes" / hashlib.blake2b(address.encode(), digest_size=12).hexdigest()
        self._connection: DBConnection | None = None
        self._lock: StorageLock | None = None

    def __str__(self) -> str:
        return self.address

    def check(self) -> None:
        """As `Place`. Raises UsageError for a kind of storage that LanceDB does not know."""
        self.connect()

    def is_used(self) -> bool:
        """As `Place`."""
        return bool(self.tables("files-"))

    def connect(self) -> DBConnection:
        """As `Place`. Raises DiffATRError where that fails."""
        import lancedb

        if self._connection is None:
            try:
                self._connection = lancedb.connect(self.address, storage_options=_RETRIES)
            except Exception as error:
                raise self.told(error) or self._unusable(error) from error
        return self._connection

    def has(self, table: str) -> bool:
        """As `Place`. One that is damaged is there."""
        return self._version(table) is not None

    def tables(self, prefix: str) -> list[str]:
        """As `Place`."""
        names, token = list[str](), None
        with troubles(self):
            while True:
                page = self.connect().list_tables(page_token=token)
                names += page.tables
                token = page.page_token
                if not token:
                    return [name for name in names if name.startswith(prefix)]

    def remove(self, table: str) -> None:
        """As `Place`."""
        with troubles(self):
            connection: Any = self.connect()  # its types do not tell all
            connection.drop_table(table, ignore_missing=True)

    def frames(self, name: str) -> StoredFrameTable:
        """As `Place`."""
        from .stored_frames import StoredFrameTable

        return StoredFrameTable(self, name)

    def mark(self, tables: Sequence[str], frames: Sequence[str] = ()) -> str | None:
        """As `Place`."""
        versions = list(map(self._version, (*tables, *frames)))
        return None if None in versions else " ".join(map(str, versions))

    @contextlib.contextmanager
    def locked(self, wait: Callable[[str], None] | None) -> Iterator[bool]:
        """As `Place`. A writer that was killed is waited for too, until its lock ends."""
        from .storage_lock import LIFE, StorageLock

        lock, waited = StorageLock(self.connect()), False
        with troubles(self):
            while holder := lock.take():
                text = f"{self}: another process writes this index now ({holder.who})."
                if wait is None:
                    raise CannotUpdate(f"{text} Wait for it, then run the command again.")
                if not waited:
                    end = f"{LIFE / 60:.0f} minutes after it was killed, if it was"
                    wait(f"{text} Waiting until it is done, or its lock ends: {end}.")
                waited = True
                time.sleep(_POLL)
        self._lock = lock
        try:
            yield waited
        finally:
            self._lock = None
            with contextlib.suppress(Exception):  # it ends by itself
                lock.release()

    def may_write(self) -> None:
        """As `Place`."""
        if self._lock is not None and not self._lock.is_held():
            raise CannotUpdate(
                f"{self}: the lock on this index was lost: the storage could not be reached in time to prolong it, or another "
                "process has taken it. What is indexed is kept. Run the command again."
            )

    def told(self, error: Exception) -> DiffATRError | None:
        """As `Place`. Of LanceDB's words nothing is passed on: they may hold parts of a request."""
        text = str(error)
        if re.search("No object store provider", text):
            return no_place(self.address)
        if re.search(_DAMAGE, text) and not re.search(_OF_REQUESTS, text):
            return None
        return self._unusable(error)

    def _unusable(self, error: Exception) -> CannotUpdate:
        text = str(error)
        code = _CODE.search(text)
        named = f" ({code[1]})" if code else ""
        if re.search(_REFUSED, text) and not re.search(r"status: 5\d\d", text):
            return CannotUpdate(
                f"{self}: the storage does not let this be read and written{named}. Check the credentials that it is given, such "
                "as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what they permit."
            )
        if re.search(_MISSING, text):
            return CannotUpdate(f"{self}: there is no such bucket{named}. Make it, or name another place: --index DIR|URI")
        known = next((words for pattern, words in _CAUSES if re.search(pattern, text)), None)
        if known is None and not re.search(_OF_REQUESTS, text):
            return CannotUpdate(
                f"{self}: the index cannot be read and written, for a reason that LanceDB alone knows{named}. Run the command "
                f"again. If this repeats, remove {self}, and the next command makes the index anew."
            )
        cause = known or "the connection failed"
        return CannotUpdate(f"{self}: the index cannot be read and written now: {cause}{named}. {_ADVICE}")

    def misfits(self, table: str, without: str | None = None) -> Iterator[str]:
        """As `Place`. The storage sees to it that files stay as they are; rows have checksums all the same."""
        return iter(())

    def seal(self, table: str) -> None:
        """As `Place`: there is nothing to do."""

    def prune(self, table: str) -> None:
        """As `Place`: there is nothing to do."""

    def remove_below(self, table: str, folder: str) -> None:
        """As `Place`: there is nothing to do."""

    def size(self, table: str) -> int:
        """As `Place`: it is not known."""
        return 0

    def _version(self, table: str) -> str | None:
        """What any commit to a table changes; None where there is no such table."""
        with troubles(self):
            try:
                opened = self.connect().open_table(table)
                return f"{(opened.schema.metadata or {}).get(TABLE_ID, b'').decode()}-{opened.version}"
            except DiffATRError:
                raise
            except Exception as error:
                if is_missing(error):
                    return None
                if self.told(error) is None:
                    return "damaged"
                raise
