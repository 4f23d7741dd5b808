"""What an update of an index reports, and the errors where it cannot be made or what is there cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffATRError

if TYPE_CHECKING:
    from .place import Place


class CannotUpdate(DiffATRError):
    """The index cannot be changed now, but what it holds can be searched."""


class Damaged(DiffATRError):
    """The index in `place`, or a part of it, holds something else than was written."""

    def __init__(self, place: Path | Place) -> None:
        super().__init__(
            f"{place}: the index is damaged. Index the folder again, which mends it: diffatr index. If this repeats, remove "
            f"{place} first, but keep its collections*.json: nothing can make them again."
        )


class FolderGone(DiffATRError):
    """The recordings are not there, as those of a drive that is pulled. What is indexed of them stays, and cannot be heard."""


@dataclass(frozen=True)
class Skipped:
    """A file (or folder) that could not be used, or not all of it, and why."""

    path: str
    reason: str


@dataclass
class IndexReport:
    """What an update found and did; all but `windows` count files.

    Attributes:
        files: that can be searched.
        windows: of those files.
        embedded: read and embedded by this update.
        reused: new, renamed or touched files whose content was embedded before.
        unchanged: left alone.
        removed: gone from the folder, and from the index.
        skipped: all that cannot be used, those known from before too.
        newly_skipped: how many of `skipped` were not known before.
        partial: that can be searched, although a part of the recording is missing; those known from before too.
        newly_partial: how many of `partial` were not known before.
        repaired: of which the index held damaged data, which this update made again; most count as embedded or reused too.
    """

    files: int = 0
    windows: int = 0
    embedded: int = 0
    reused: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    newly_skipped: int = 0
    partial: list[Skipped] = field(default_factory=list)
    newly_partial: int = 0
    repaired: int = 0

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> IndexReport:
        """The reverse of `dataclasses.asdict`."""
        lists = {name: [Skipped(**each) for each in document[name]] for name in ("skipped", "partial")}
        return cls(**document | lists)


def folder_gone(corpus: Path, *, while_indexed: bool = False) -> FolderGone:
    """The error for a folder that is not there any more, or for another one in its place."""
    when = " while it was indexed" if while_indexed else ""
    return FolderGone(
        f"{corpus}: the folder is gone{when}. What is indexed of it stays. Once it is back, run the command again, which goes on."
    )


def sounds_gone(corpus: Path, forget: str) -> FolderGone:
    """The error for a folder that holds no sounds any more; `forget` says how to have the index forget them."""
    return FolderGone(
        f"{corpus}: no sound files in it now, but the index has some. Is the drive not there? What is indexed stays. To forget "
        f"it: {forget}"
    )


def no_sounds(corpus: Path, skipped: list[Skipped]) -> DiffATRError:
    """The error for a folder in which nothing can be searched, with the first reasons."""
    if not skipped:
        return DiffATRError(f"{corpus}: no sound files in it (wav, flac, ogg, opus, mp3 ...; hidden ones do not count).")
    shown = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:3]) + ("; ..." if len(skipped) > 3 else "")
    return DiffATRError(f"{corpus}: none of its sound files can be used, {len(skipped)} skipped: {shown}")
