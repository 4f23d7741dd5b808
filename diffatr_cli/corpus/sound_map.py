"""A map of a folder's sounds, kept beside its index: made once for each version of it.

C contents, n of them on the map, D embedding size.
"""

from __future__ import annotations

import contextlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.layout import lay_out
from ..errors import DiffATRError
from ..files import replacing
from .snapshot import Recordings
from .some_contents import fair_sample, in_blocks

MOST = 5000
"""Contents on a map at most."""


@dataclass(frozen=True)
class SoundMap:
    """Where sounds lie.

    Attributes:
        contents: (n,) by number, ascending.
        rows: (n,) of each the window nearest to the mean of all its windows.
        places: (n, 2) float32, -1 to 1.
    """

    contents: np.ndarray
    rows: np.ndarray
    places: np.ndarray


def make_map(recordings: Recordings) -> SoundMap:
    """The map of recordings, or of a fair sample of their contents. Raises Damaged."""
    contents = fair_sample(len(recordings.offsets) - 1, MOST)
    directions, rows = [np.zeros((0, recordings.vectors.shape[1]), np.float32)], [np.zeros(0, np.int64)]
    for block in in_blocks(recordings, contents):
        starts, lengths = block.offsets[:-1], np.diff(block.offsets)
        means = np.add.reduceat(block.vectors, starts) / lengths[:, None]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        nearness = (block.vectors * np.repeat(means, lengths, axis=0)).sum(1)
        order = np.lexsort((-nearness, np.repeat(np.arange(len(lengths)), lengths)))  # stable: of equal ones the first
        directions.append(means.astype(np.float32))
        rows.append(block.rows[order[starts]])
    return SoundMap(contents, np.concatenate(rows), lay_out(np.concatenate(directions)))


def kept_map(path: Path, key: str, recordings: Recordings) -> SoundMap:
    """The map that is kept at `path` for this version of the recordings, `key`; else a new one, kept there if that folder is
    there and takes it.

    Raises:
        Damaged: as `make_map`.
    """
    there = _read(path, key)
    if there is None:
        there = make_map(recordings)
        if not path.parent.is_dir():  # gone with the drive that it is on, and not to be made in its mount point
            return there
        with contextlib.suppress(DiffATRError, OSError), replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), contents=there.contents, rows=there.rows, places=there.places)
    return there


def _read(path: Path, key: str) -> SoundMap | None:
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # np.load may stop before it comes to the checksum
                return None
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            return SoundMap(arrays["contents"], arrays["rows"], arrays["places"])
    except Exception:  # none there, or damaged in one of many ways; it can be made again
        return None
