"""Named collections of sounds, kept beside the index as one JSON file that people can read, and that other programs may.

    {"format": "diffatr collections", "version": 1, "collections": [
      {"id": "favourites", "name": "Favourites", "members": [
        {"content": "0123456789abcdef0123456789abcdef", "path": "deep/rain.flac", "start": 30.0, "end": 40.0}]}]}

A member is a part of a content: `content` is the BLAKE2b hash (16 bytes) of the file's bytes, `start` and `end` are seconds, with
`end` null for the whole file. `path` is where the content lay below the corpus when it was last seen, for people and for choosing
among equal files. So members outlive new names, other folders, and an index that is made again.

Every change takes a lock, reads the file, and replaces it as a whole: two writers lose nothing of one another's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from ..errors import DiffATRError, UsageError
from ..files import reason, write_text
from .library import Searched
from .report import folder_gone

FORMAT = "diffatr collections"
VERSION = 1
FAVOURITES = "favourites"
"""The id of the collection that the page's star fills; it is made with the first of its members."""
MOST_MEMBERS, LONGEST_NAME = 10_000, 200

_WAIT = 10.0  # seconds for another writer, who takes some milliseconds

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A part of a content; see above."""

    content: str
    path: str
    start: float = 0.0
    end: float | None = None

    @property
    def identity(self) -> tuple[str, float]:
        """What makes it another member than another one."""
        return self.content, round(self.start, 3)


@dataclass(frozen=True)
class Collection:
    """Members under a name, in the order in which they came."""

    id: str
    name: str
    members: tuple[Member, ...] = field(default=())


class Place(NamedTuple):
    """Where a member is now: `path` below the corpus, or None and the `reason` why it is nowhere."""

    member: Member
    path: str | None
    reason: str | None


class Collections:
    """The collections of what is searched. Every method reads the file; those that change it say what they changed.

    Attributes:
        path: of the file.

    All methods raise DiffATRError where the file cannot be read or written, or is damaged; it is never written over then. Those
    that change it raise FolderGone where the folder is gone.
    """

    def __init__(self, folder: Searched) -> None:
        self.path, self._roots = folder.collections_file, folder.roots
        self._was_there = self.path.parent.is_dir()

    def all(self) -> list[Collection]:
        """All collections, in the order in which they were made."""
        try:
            self._was_there = self._was_there or self.path.parent.is_dir()
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except UnicodeDecodeError:
            raise self._damaged("it is no UTF-8") from None
        except OSError as error:
            raise DiffATRError(f"{self.path}: {reason(error)}") from None
        try:
            return list(_parsed(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from None

    def find(self, wanted: str) -> Collection:
        """The collection of this id, or of this name in any case. Raises UsageError where there is none."""
        return _found(self.all(), wanted)

    def make(self, name: str, members: Iterable[Member] = (), id_: str | None = None) -> Collection:
        """A new collection. Raises UsageError where the name is none, or is taken."""

        def change(collections: list[Collection]) -> Collection:
            made = Collection(id_ or secrets.token_hex(4), _free_name(name, collections), _joined((), members))
            collections.append(made)
            return made

        return self._change(change)

    def add(self, wanted: str, members: Iterable[Member]) -> tuple[Collection, int]:
        """Add those that are not there yet; the favourites are made if they are not there. Gives how many were added."""

        def change(collections: list[Collection]) -> tuple[Collection, int]:
            if wanted == FAVOURITES and not any(each.id == FAVOURITES for each in collections):
                collections.append(Collection(FAVOURITES, _numbered_name("Favourites", collections)))
            before = _found(collections, wanted)
            after = replace(before, members=_joined(before.members, members))
            collections[collections.index(before)] = after
            return after, len(after.members) - len(before.members)

        return self._change(change)

    def remove(self, wanted: str, members: Iterable[tuple[str, float]]) -> tuple[Collection, int]:
        """Take members out, by their identities. Gives how many were taken out."""
        gone = set(members)

        def change(collections: list[Collection]) -> tuple[Collection, int]:
            before = _found(collections, wanted)
            after = replace(before, members=tuple(each for each in before.members if each.identity not in gone))
            collections[collections.index(before)] = after
            return after, len(before.members) - len(after.members)

        return self._change(change)

    def rename(self, wanted: str, name: str) -> Collection:
        """Another name for a collection."""

        def change(collections: list[Collection]) -> Collection:
            before = _found(collections, wanted)
            after = replace(before, name=_free_name(name, [each for each in collections if each is not before]))
            collections[collections.index(before)] = after
            return after

        return self._change(change)

    def delete(self, wanted: str) -> Collection:
        """Delete a collection; the sounds stay where they are. Gives what it was."""

        def change(collections: list[Collection]) -> Collection:
            before = _found(collections, wanted)
            collections.remove(before)
            return before

        return self._change(change)

    def _change(self, change: Callable[[list[Collection]], T]) -> T:
        with self._locked():
            collections = self.all()
            before = list(collections)
            result = change(collections)
            if collections != before:
                document = {"format": FORMAT, "version": VERSION, "collections": [asdict(each) for each in collections]}
                write_text(self.path, json.dumps(document, indent=1) + "\n")  # in ASCII: names need not be valid text
            return result

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import filelock

        if not self.path.parent.is_dir():  # it would be made where the folder was, such as in the mount point of its drive
            missing = next((root for root in self._roots if not root.is_dir()), None)
            if missing is not None or self._was_there:
                raise folder_gone(missing or self._roots[0])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path.with_suffix(".lock"))
            lock.acquire(timeout=_WAIT)
        except filelock.Timeout:
            raise DiffATRError(f"{self.path}: another process is writing it. Try again in a moment.") from None
        except OSError as error:
            raise DiffATRError(f"{self.path}: {reason(error)} Collections are kept there.") from None
        except NotImplementedError:
            raise DiffATRError(f"{self.path}: this file system has no locks, without which nothing is written.") from None
        try:
            yield
        finally:
            lock.release()

    def _damaged(self, what: str) -> DiffATRError:
        return DiffATRError(
            f"{self.path}: is no file of collections ({what[:200]}). Mend it by hand or move it away; nothing is written over it."
        )


def check_part(name: str, start: float, end: float, length: float) -> None:
    """See that a part of a file lies within its `length`; all in seconds. An end may be rounded up to whole ones, as it is shown.

    Raises:
        UsageError: the part lies beyond the file's end.
    """
    if start >= length or end > math.ceil(length):
        raise UsageError(f"{name}: has {length:.1f} s of sound, and the part {start:g}-{end:g} is not in it. Name another part.")


def places_of(members: Sequence[Member], contents: Mapping[str, str]) -> list[Place]:
    """Where members are now.

    Args:
        contents: of `FolderIndex.contents`.
    """
    wanted = {member.content for member in members}
    holders: dict[str, list[str]] = {}
    for path, content in contents.items():
        if content in wanted:
            holders.setdefault(content, []).append(path)
    places = []
    for member in members:
        if contents.get(member.path) == member.content:
            places.append(Place(member, member.path, None))
        elif member.content in holders:
            places.append(Place(member, _nearest(member.path, holders[member.content]), None))
        else:
            changed = member.path in contents
            places.append(Place(member, None, "the file holds another sound now" if changed else "not in the folder any more"))
    return places


def _nearest(path: str, paths: Sequence[str]) -> str:
    """Of several equal files that with the same name, or else the first."""
    name = os.path.basename(path)
    return min(paths, key=lambda each: (os.path.basename(each) != name, each))


def _found(collections: Sequence[Collection], wanted: str) -> Collection:
    for key in (lambda each: each.id == wanted, lambda each: each.name.casefold() == wanted.casefold()):
        if found := next(filter(key, collections), None):
            return found
    names = ", ".join(each.name for each in collections)
    raise UsageError(f"{wanted}: there is no such collection. " + (f"There are: {names}." if names else "There is none yet."))


def _free_name(name: str, collections: Sequence[Collection]) -> str:
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError(f"A collection has a name of 1 to {LONGEST_NAME} characters, in one line.")
    if any(name.casefold() in (each.name.casefold(), each.id) for each in collections):
        raise UsageError(f"{name}: there is a collection of that name already. Choose another one.")
    return name


def _numbered_name(name: str, collections: Sequence[Collection]) -> str:
    taken, number, free = {each.name.casefold() for each in collections}, 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name} {number}"
    return free


def _joined(before: Sequence[Member], more: Iterable[Member]) -> tuple[Member, ...]:
    """Those before as they are, and behind them those that are not there yet."""
    joined = {each.identity: each for each in before}
    for each in more:
        joined.setdefault(each.identity, each)
    if len(joined) > MOST_MEMBERS:
        raise UsageError(f"A collection holds up to {MOST_MEMBERS:,} sounds. Begin another one.")
    return tuple(joined.values())


def _parsed(document: Any) -> Iterator[Collection]:
    """The collections of a document. Raises ValueError."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'there is no "format": "{FORMAT}" in it')
    if document.get("version") != VERSION:
        raise ValueError(f"its version is {document.get('version')!r}, and this program knows version {VERSION}")
    seen = set[str]()
    for each in _typed(document, "collections", list):
        id_, name, members = (_typed(each, key, kind) for key, kind in (("id", str), ("name", str), ("members", list)))
        if id_ in seen:
            raise ValueError(f"two collections have the id {id_!r}")
        seen.add(id_)
        yield Collection(id_, name, tuple(map(_member, members)))


def _member(each: Any) -> Member:
    start, end = float(_typed(each, "start", (int, float))), _typed(each, "end", (int, float, type(None)))
    if not 0 <= start < 1e9 or (end is not None and not start <= end < 1e9):
        raise ValueError(f"from {start} to {end} is no part of a sound")
    return Member(_typed(each, "content", str), _typed(each, "path", str), start, None if end is None else float(end))


def _typed(document: Any, key: str, kind: Any) -> Any:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f'"{key}" is missing or of another kind')
    return value
