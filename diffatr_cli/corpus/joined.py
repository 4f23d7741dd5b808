"""The recordings of several folders as one, so that one search ranks and judges all of them together.

F files, C different contents, W windows, D embedding size, P folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.ragged import Ragged
from ..core.windows import best_windows
from .nearest import Fetching, Windows, part_of
from .notes import Notes
from .snapshot import Part, Recordings


class _Origin(NamedTuple):
    """Where windows come from: the number of the folder and the row there, of each window (W,)."""

    part: np.ndarray
    row: np.ndarray


def named(folder: Path, path: str) -> str:
    """A path below a folder, with the folder as it was named."""
    return path if folder == Path() else os.path.join(folder, path)


def join(parts: Sequence[tuple[Path, Recordings]]) -> Recordings:
    """The recordings of folders, each file once, by its path with the folder as it is named before it.

    A file is the same where its folder is, whatever links lead there; then the first name counts. Copies share one content, as
    in one folder: the windows of the first.

    Args:
        parts: each folder, and its recordings with their `hashes`.
    """
    parts = [each for each in parts if len(each[1])]
    if not parts:
        return Recordings.none()
    files = _files(parts)
    owners: dict[bytes, tuple[int, int]] = {}  # of each content, by hash, in the order of the first files: folder, number there
    names = [recordings.hashes.tolist() for _, recordings in parts]
    contents = [recordings.content.tolist() for _, recordings in parts]
    hashes = []
    for _, part, file in files:
        content = contents[part][file]
        hashes.append(names[part][content])
        owners.setdefault(hashes[-1], (part, content))
    number = {name: i for i, name in enumerate(owners)}
    bounds = np.array([parts[part][1].offsets[content : content + 2] for part, content in owners.values()], np.int64)
    starts, lengths = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    origin = _Origin(
        np.repeat([part for part, _ in owners.values()], lengths),
        np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths),
    )
    places = [np.full(len(recordings), -1) for _, recordings in parts]
    for place, (_, part, file) in enumerate(files):
        places[part][file] = place
    stays = any(recordings.store for _, recordings in parts)  # in the tables
    seen = [recordings for _, recordings in parts]
    times = [recordings.updated for recordings in seen]
    return Recordings(
        [os.fsdecode(path) for path, _, _ in files],
        np.array([number[name] for name in hashes], np.int64),
        offsets,
        _gathered([each.spans for each in seen], origin),
        np.zeros((0, seen[0].vectors.shape[1]), np.float32) if stays else _gathered([each.vectors for each in seen], origin),
        _frames(seen, origin) if all(each.frames for each in seen) else None,
        hashes=np.array(list(owners), "S32"),
        sums=_gathered([each.sums for each in seen], origin) if all(len(each.sums) for each in seen) else np.zeros(0, np.uint32),
        store=_JoinedStore(seen, origin) if stays else None,
        notes=Notes.gathered([(each.known, where) for each, where in zip(seen, places, strict=True)], len(files)),
        updated=min(time for time in times if time is not None) if all(times) else None,
    )


def _files(parts: Sequence[tuple[Path, Recordings]]) -> list[tuple[bytes, int, int]]:
    """All files, each once, in the order of their paths: path, number of the folder, number there."""
    seen = set[tuple[str, str]]()
    files = []
    for number, (folder, recordings) in enumerate(parts):
        places: dict[str, str] = {}
        prefix = named(folder, "")
        for file, path in enumerate(recordings.paths):
            below, name = os.path.split(path)
            if (place := places.get(below)) is None:
                place = places[below] = os.path.realpath(prefix + below)
            if (place, name) not in seen:
                seen.add((place, name))
                files.append((os.fsencode(prefix + path), number, file))
    return sorted(files)


def _gathered(arrays: Sequence[np.ndarray], origin: _Origin) -> np.ndarray:
    """The rows of several arrays, in the order of the whole."""
    out = np.empty((len(origin.row), *arrays[0].shape[1:]), arrays[0].dtype)
    for part, array in enumerate(arrays):
        own = origin.part == part
        out[own] = array[origin.row[own]]
    return out


def _frames(parts: Sequence[Recordings], origin: _Origin) -> Callable[[np.ndarray], Ragged]:
    def frames(rows: np.ndarray) -> Ragged:
        return dispatched([each.frames for each in parts], origin.part[rows], origin.row[rows])

    return frames


def dispatched(of_parts: Sequence[Callable[[np.ndarray], Ragged] | None], part: np.ndarray, row: np.ndarray) -> Ragged:
    """The frames of some windows (n,), each by the folder that it is of and its row there. Raises Damaged."""
    found: list[np.ndarray] = [np.zeros((0, 0), np.float16)] * len(row)
    for number, frames in enumerate(of_parts):
        own = np.flatnonzero(part == number)
        if frames is None or not len(own):
            continue
        some = frames(row[own])
        for place, start, length in zip(own.tolist(), some.starts.tolist(), some.lengths.tolist(), strict=True):
            found[place] = some.values[start : start + length]
    return Ragged.of_halves(found)


class _JoinedStore(Fetching):
    """`Recordings.store` of several folders, of which some may have their vectors in memory."""

    def __init__(self, parts: Sequence[Recordings], origin: _Origin) -> None:
        super().__init__()
        self._parts, self._origin = parts, origin

    def at(self, recordings: Recordings, rows: np.ndarray) -> np.ndarray:
        """As `Recordings.vectors_at`."""
        out = np.empty((len(rows), recordings.vectors.shape[1]), np.float32)
        for number, part in enumerate(self._parts):
            own = self._origin.part[rows] == number
            if own.any():
                out[own] = part.vectors_at(self._origin.row[rows][own])
        return out

    def near(
        self,
        recordings: Recordings,
        query: np.ndarray,
        depth: int,
        unwanted: np.ndarray | None = None,
        *,
        allowed: np.ndarray | None = None,
        besides: np.ndarray | None = None,
    ) -> Part:
        """As `VectorStore.near`: the nearest of each folder, together."""
        rows, vectors = [np.zeros(0, np.int64)], [np.zeros((0, len(query)), np.float32)]
        for number, part in enumerate(self._parts):
            place = np.full(len(part.spans), -1, np.int64)  # of its windows in the whole; copies of another's have none
            own = np.flatnonzero(self._origin.part == number)
            place[self._origin.row[own]] = own
            first = place[part.offsets[:-1]]
            looked_at = first >= 0
            if allowed is not None:
                looked_at &= allowed[recordings.contents_at(first)]
            if not looked_at.any():
                continue
            only = None if looked_at.all() else looked_at
            if part.store:
                near = part.store.near(part, query, depth, unwanted, allowed=only)
                found = Windows(near.rows, near.recordings.vectors)
            else:
                found = _in_memory(part, query, depth, unwanted, only)
            rows.append(place[found.rows])
            vectors.append(found.vectors)
        if besides is not None and len(besides):
            more = self.whole(recordings, besides, len(query))
            rows.append(more.rows)
            vectors.append(more.vectors)
        return part_of(recordings, Windows(np.concatenate(rows), np.concatenate(vectors)))


def _in_memory(
    part: Recordings, query: np.ndarray, depth: int, unwanted: np.ndarray | None, allowed: np.ndarray | None
) -> Windows:
    """The best window of each of the `depth` nearest contents, of those that are `allowed`, (C,) bool; None for all."""
    scores = part.vectors @ query.astype(np.float32)
    if unwanted is not None:
        scores = scores - np.maximum(0, part.vectors @ unwanted.astype(np.float32))
    rows = np.sort(best_windows(scores, part.offsets, depth, allowed)[1])
    return Windows(rows, part.vectors[rows])
