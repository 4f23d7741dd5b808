"""Following folders: changes are noticed by themselves, and one update follows when files have come to rest.

The system's events only say that it is time to look: what changed is found by the index's own scan, so that a flood of events,
one that is lost, or a system that gives none, makes no difference but in time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from ..data.audio import AUDIO_SUFFIXES, UNREADABLE_SUFFIXES
from .index import Watched
from .scan import Stamp, identity_of, scan

_SOUNDS = {*AUDIO_SUFFIXES, *UNREADABLE_SUFFIXES}
_SHARE = 0.1  # of the time that looks may take
_EVENTS_STEP = 100  # milliseconds between two questions of `watchfiles`
_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs", "davfs"),
    *("drvfs", "vboxsf", "virtiofs", "prl_fs", "vmhgfs"),
}
"""File systems that others write to, of which Linux tells nothing; those of FUSE but for local disks are counted with them."""


class Pace(NamedTuple):
    """Seconds.

    Attributes:
        quiet: a file has come to rest when its size and times have stayed for so long.
        patience: for so long those at rest wait for others that are still being written.
        poll: between two looks where the system gives no events.
        net: between two looks where it does, for what it does not tell.
        retry: after an update that failed, at first; then twice as long each time, up to `net`.
    """

    quiet: float = 2.0
    patience: float = 10.0
    poll: float = 10.0
    net: float = 60.0
    retry: float = 5.0


class _Followed:
    """One folder.

    Attributes:
        since: when each change was first seen as it is now, by path; changes are against what the last update saw.
        away: the folder is not there.
    """

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.since: dict[bytes, float] = {}
        self.away = False
        self._last: Mapping[bytes, Stamp | None] = {}
        self._identity = identity_of(watched.corpus)

    def look(self, now: float) -> None:
        """See what is in the folder, and what of it changed."""
        identity = identity_of(self.watched.corpus)
        # A drive that is gone leaves no folder, or the empty one that it was mounted on: nobody removed its recordings.
        self.away = identity is None or (
            self._identity is not None and identity != self._identity and _is_empty(self.watched.corpus)
        )
        seen = self.watched.seen()
        if self.away or seen is None:
            self.since = {}
            return
        self._identity = identity
        files = scan(self.watched.corpus, self.watched.exclude).files
        changes: dict[bytes, Stamp | None] = {path: stamp for path, stamp in files.items() if seen.get(path) != stamp}
        changes |= dict.fromkeys(seen.keys() - files.keys())
        missing = object()
        self.since = {
            path: self.since[path] if path in self.since and self._last.get(path, missing) == stamp else now
            for path, stamp in changes.items()
        }
        self._last = changes

    def moving(self, now: float, quiet: float) -> Set[bytes]:
        """The paths that changed a moment ago."""
        return {path for path, since in self.since.items() if now - since < quiet}


class Watcher:
    """Follows folders until it is stopped.

    Args:
        watched: the folders (`FolderIndex.watched`).
        update: brings the index up to date and tells of it; whether that was done, else it is tried again later.
        tell: told a sentence where the system gives no events, or where a folder is gone or back.
        events: ask the system for events; None does so where it gives some.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        update: Callable[[], bool],
        tell: Callable[[str], None] = lambda text: None,
        pace: Pace = Pace(),
        events: bool | None = None,
    ) -> None:
        self._followed = [_Followed(each) for each in watched]
        self._update, self._tell, self._pace, self._wants_events = update, tell, pace, events
        self._stopping, self._stirred = threading.Event(), threading.Event()
        self._listening: threading.Thread | None = None
        self._ends_listening = threading.Event()
        self._thread: threading.Thread | None = None
        self._told_of_polling = False
        self._took = 0.0  # the last look

    def start(self) -> None:
        """Follow in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="watch", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End `run`, once an update that is under way is done."""
        self._stopping.set()
        self._stirred.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Follow until `stop`, or until an exception such as KeyboardInterrupt comes up."""
        self._listen()
        retry, again = self._pace.retry, 0.0
        try:
            while not self._stopping.is_set():
                self._wait(again)
                if self._stopping.is_set():
                    return
                began = time.monotonic()
                self._look(began)
                self._took = time.monotonic() - began
                if began < again or not (again or self._is_time(began)):
                    continue
                moving = [each.moving(began, self._pace.quiet) for each in self._followed]
                for each, paths in zip(self._followed, moving, strict=True):
                    each.watched.leave(paths)
                if self._update():
                    retry, again = self._pace.retry, 0.0
                else:
                    again, retry = time.monotonic() + retry, min(2 * retry, max(self._pace.net, self._pace.retry))
        finally:
            self._end_listening()

    def _wait(self, again: float) -> None:
        """Until the next look."""
        hears = self._listening is not None and self._listening.is_alive()
        if not hears:
            self._tell_of_polling()
        seconds = self._pace.net if hears else self._pace.poll
        if any(each.since for each in self._followed):
            seconds = min(seconds, self._pace.quiet)
        if again:
            seconds = min(seconds, max(0.0, again - time.monotonic()))
        rest = self._took * (1 / _SHARE - 1)
        if self._stopping.wait(min(rest, self._pace.net)):
            return
        self._stirred.wait(max(0.0, seconds - rest))
        self._stirred.clear()

    def _look(self, now: float) -> None:
        for each in self._followed:
            was_away = each.away
            each.look(now)
            if each.away and not was_away:
                self._tell(f"{each.watched.corpus}: the folder is gone. What is indexed of it stays, until it is back.")
            if was_away and not each.away:
                self._tell(f"{each.watched.corpus}: the folder is back.")
                self._end_listening()
                self._listen()

    def _is_time(self, now: float) -> bool:
        """Whether something changed and has come to rest, and nothing else is worth waiting for."""
        since = [time for each in self._followed for time in each.since.values()]
        at_rest = [each for each in since if now - each >= self._pace.quiet]
        return bool(at_rest) and (len(at_rest) == len(since) or now - min(at_rest) >= self._pace.quiet + self._pace.patience)

    def _listen(self) -> None:
        """Ask for events where there are some."""
        roots = [each.watched.corpus for each in self._followed]
        if self._wants_events is False or (self._wants_events is None and any(map(is_remote, roots))):
            return
        self._ends_listening = threading.Event()
        arguments = roots, self._ends_listening
        self._listening = threading.Thread(target=self._hear, args=arguments, name="events", daemon=True)
        self._listening.start()

    def _end_listening(self) -> None:
        self._ends_listening.set()
        if self._listening is not None:
            self._listening.join(2.0)

    def _hear(self, roots: Sequence[Path], ends: threading.Event) -> None:
        from watchfiles import Change, watch

        hidden = f"{os.sep}."
        tops = [os.path.join(os.path.realpath(root), "") for root in roots] + [
            os.path.join(os.path.abspath(root), "") for root in roots
        ]
        own = [os.path.join(os.path.realpath(each.watched.exclude), "") for each in self._followed]

        def matters(change: Change, path: str) -> bool:
            if path.startswith(tuple(own)):
                return False
            below = next((path[len(top) - 1 :] for top in tops if path.startswith(top)), os.sep + os.path.basename(path))
            if hidden in below:
                return False
            suffix = os.path.splitext(path)[1].lower()
            return suffix in _SOUNDS or change == Change.deleted or (change == Change.added and os.path.isdir(path))

        try:
            step = max(1, min(_EVENTS_STEP, int(self._pace.quiet * 250)))
            for _ in watch(
                *roots,
                watch_filter=matters,
                step=step,
                debounce=10 * step,
                stop_event=ends,
                raise_interrupt=False,
                force_polling=False,
                ignore_permission_denied=True,
            ):
                self._stirred.set()
        except (OSError, RuntimeError):  # no more folders can be watched, or one is not there
            pass
        finally:
            self._stirred.set()

    def _tell_of_polling(self) -> None:
        if not self._told_of_polling and not any(each.away for each in self._followed):
            self._told_of_polling = True
            self._tell(f"The system gives no events of changes here; looking every {self._pace.poll:g} seconds.")


def is_remote(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether a folder is on a file system that others write to, such as a network drive, as far as the system says so."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return False
    here = os.path.join(os.path.realpath(folder), "")
    kinds: list[tuple[int, str]] = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")[0]
        if len(fields) > 4 and here.startswith(os.path.join(_unescaped(fields[4]), "")):
            kinds.append((len(fields[4]), kind))
    kind = max(reversed(kinds), key=lambda each: each[0])[1] if kinds else ""  # of mounts on one place the last one shows
    return kind in _REMOTE or kind == "fuse" or kind.startswith("fuse.")


def _unescaped(field: str) -> str:
    """A path of mountinfo, in which blanks and some others are written as octal numbers."""
    for sign in " \t\n\\":
        field = field.replace(f"\\{ord(sign):03o}", sign)
    return field


def _is_empty(folder: Path) -> bool:
    try:
        return not any(True for _ in os.scandir(folder))
    except OSError:
        return True
