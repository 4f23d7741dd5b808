"""Which of many fingerprints have sound in common, and where: candidates by a table of their bits, then a comparison in line.

Two frames of one sound differ in few of their 32 bits. `candidates` sorts all frames by 24 of these, four times over, a byte of
the 32 left out each time, and looks around two frames that agree. A value that many frames share (a loop, a hum) is compared with
the next few in the order alone, so that time and memory grow with the number of frames. `align` follows two fingerprints at an
offset and finds the stretch that they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .fingerprint import HOP, RATE, Fingerprint

LIKELY = 0.28
"""Share of different bits up to which two frames count for one sound (Haitsma and Kalker's threshold); by chance it is 0.5."""
SURE = 110.0
"""What a stretch must score: the sum over its frames of how many bits fewer than LIKELY * 32 differ."""

_BITS = 32
_NEXT = 32  # frames of equal bits that one is compared with
_AROUND = 8  # frames to either side that are looked at
_ROWS = 1 << 20  # of candidates that are held before they are counted
_OFFSETS = 12  # alignments of two fingerprints that are followed
_NEAR = 3  # frames: alignments closer than that are one


class Stretch(NamedTuple):
    """What two recordings have in common at one offset.

    Attributes:
        start, end: seconds in the first recording.
        other_start, other_end: in the second.
        errors: share of different bits, of the frames that both have, 0 for equal.
        frames: so many frames.
        score: as SURE.
        level: dB of the second above the first.
    """

    start: float
    end: float
    other_start: float
    other_end: float
    errors: float
    frames: int
    score: float
    level: float


class Candidates(NamedTuple):
    """Pairs of fingerprints that may have sound in common: `first` < `second`, both (K,), and the offsets (in frames; of the
    first's frame less the second's) that speak for it, most often found first."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    offsets: list[NDArray[np.int64]]


def candidates(fingerprints: Sequence[Fingerprint]) -> Candidates:
    """The pairs that are worth an `align`, in order."""
    heard = [each.heard for each in fingerprints]
    bits = np.concatenate([np.zeros(0, np.uint32), *(each.bits for each in fingerprints)])
    lengths = np.array([len(each) for each in fingerprints], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    usable = np.concatenate([np.zeros(0, bool), *heard])
    rows = np.zeros((0, 4), np.int64)
    for masked in (0xFFFFFF00, 0xFFFF00FF, 0xFF00FFFF, 0x00FFFFFF):
        keys = bits & np.uint32(masked)
        places = np.flatnonzero(usable)
        # A value that stays for some frames stands for them once.
        again = (keys[places[1:]] == keys[places[:-1]]) & (owners[places[1:]] == owners[places[:-1]]) & (np.diff(places) == 1)
        places = places[np.concatenate([[True], ~again])] if len(places) else places
        places = places[np.argsort(keys[places], kind="stable")]  # of equal ones in the order of recordings
        for found in _found(bits, usable, keys[places], places, owners, starts):
            rows = _counted(np.concatenate([rows, found]))
    return _by_pair(rows)


def _found(
    bits: NDArray[np.uint32],
    usable: NDArray[np.bool_],
    keys: NDArray[np.uint32],
    places: NDArray[np.int64],
    owners: NDArray[np.int32],
    starts: NDArray[np.int64],
) -> Iterator[NDArray[np.int64]]:
    """Rows (first, second, offset, 1) of frames that agree, some at a time."""
    out, at = np.empty((_ROWS, 4), np.int64), 0
    while at < len(places):
        at, count = _agreeing(bits, usable, keys, places, owners, starts, at, out)
        yield out[:count]


def _counted(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that differ, with their counts added up, in order."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    new = np.concatenate([[True], (np.diff(rows[:, :3], axis=0) != 0).any(1)])
    out: NDArray[np.int64] = rows[new]
    out[:, 3] = np.add.reduceat(rows[:, 3], np.flatnonzero(new))
    return out


def _by_pair(rows: NDArray[np.int64]) -> Candidates:
    if not len(rows):
        return Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    new = np.flatnonzero(np.concatenate([[True], (np.diff(rows[:, :2], axis=0) != 0).any(1)]))
    offsets = []
    for each in np.split(rows, new[1:]):
        best: list[int] = []
        for offset in each[np.argsort(-each[:, 3], kind="stable"), 2].tolist():
            if len(best) < _OFFSETS and all(abs(offset - other) > _NEAR for other in best):
                best.append(offset)
        offsets.append(np.array(best, np.int64))
    return Candidates(rows[new, 0], rows[new, 1], offsets)


def align(first: Fingerprint, second: Fingerprint, offsets: Sequence[int] | NDArray[np.int64]) -> list[Stretch]:
    """What two recordings have in common, at any of some offsets: the stretches that are SURE, in the order of the second.

    The best is taken first, and each frame of the second counts for one stretch. Where a piece was cut out of the middle, two
    stretches are left.

    Args:
        offsets: of a frame of the first less that of the second, in frames; those beside them are tried too.
    """
    heard, left = first.heard, second.heard
    tried = sorted({int(offset) + near for offset in offsets for near in range(-_NEAR, _NEAR + 1)})
    found: list[Stretch] = []
    while True:
        best = (0.0, 0, 0, 0)
        for offset in tried:
            score, start, end = _best_stretch(first.bits, heard, second.bits, left, offset, LIKELY * _BITS)
            best = max(best, (score, start, end, offset), key=lambda each: each[0])
        score, start, end, offset = best
        if score < SURE:
            return sorted(found, key=lambda each: each.other_start)
        here, there = slice(start, end), slice(start - offset, end - offset)
        both = heard[here] & left[there]
        different = np.bitwise_count(first.bits[here] ^ second.bits[there])[both]
        above = (second.levels[there].astype(np.float32) - first.levels[here].astype(np.float32))[both]
        seconds = HOP / RATE
        found.append(
            Stretch(
                start * seconds,
                min(first.seconds, (end - 1) * seconds),
                (start - offset) * seconds,
                min(second.seconds, (end - offset - 1) * seconds),
                float(different.mean()) / _BITS,
                len(different),
                score,
                float(np.median(above)),
            )
        )
        left = left.copy()
        left[there] = False


@compiled
def _count(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The ones of an uint32."""
    x = x - ((x >> np.uint32(1)) & np.uint32(0x55555555))
    x = (x & np.uint32(0x33333333)) + ((x >> np.uint32(2)) & np.uint32(0x33333333))
    x = (x + (x >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.uint32(x * np.uint32(0x01010101)) >> np.uint32(24)


@compiled
def _agreeing(bits, usable, keys, places, owners, starts, at, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Fill `out` with pairs of frames of equal keys from number `at` on; how far it came, and how many rows there are."""
    count = 0
    while at < len(places):
        if count + _NEXT > len(out):
            break
        a = places[at]
        for other in range(at + 1, min(at + 1 + _NEXT, len(places))):
            if keys[other] != keys[at]:
                break
            b = places[other]
            i, j = owners[a], owners[b]
            if i == j:
                continue
            near, different = 0, 0.0
            for step in range(-_AROUND, _AROUND + 1):
                p, q = a + step, b + step
                if starts[i] <= p < starts[i + 1] and starts[j] <= q < starts[j + 1] and usable[p] and usable[q]:
                    near += 1
                    different += _count(bits[p] ^ bits[q])
            if different <= LIKELY * _BITS * near:
                out[count, 0], out[count, 1] = i, j
                out[count, 2], out[count, 3] = (a - starts[i]) - (b - starts[j]), 1
                count += 1
        at += 1
    return at, count


@compiled
def _best_stretch(first, heard, second, left, offset, likely):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The stretch at an offset whose frames have the largest sum of `likely` less their different bits: the sum, and its first
    frame and the one behind it, in the first (Kadane's algorithm). Frames that are silent in either count nothing."""
    best, best_start, best_end = 0.0, 0, 0
    score, start = 0.0, max(0, offset)
    for i in range(max(0, offset), min(len(first), len(second) + offset)):
        if not (heard[i] and left[i - offset]):
            continue
        if score <= 0.0:
            score, start = 0.0, i
        score += likely - _count(first[i] ^ second[i - offset])
        if score > best:
            best, best_start, best_end = score, start, i + 1
    return best, best_start, best_end
