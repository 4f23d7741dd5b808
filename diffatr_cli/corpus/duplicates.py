"""The same sound several times in a folder: by fingerprint, in other formats, levels and cuts; and alike, by embedding.

Recordings are told apart by content; files of equal content are one, and listed together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import PurePath
from typing import Literal

import numpy as np

from ..core.fingerprint import HOP, RATE, Fingerprint
from ..core.fingerprint_match import Stretch, align, candidates
from ..core.sets import connected_sets
from ..progress import Progress, silent
from .fingerprints import Fingerprints
from .snapshot import Recordings

ALIKE = 0.96
"""Cosine from which on recordings are alike; `docs/findings.md` says what it finds by the shipped model, and what by chance."""

Relation = Literal["first", "identical", "same", "cut", "contains", "shares", "alike"]

_LOSSLESS = frozenset([".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".caf", ".flac"])
_SHARE = 0.8  # of the frames of a recording that are to be found in another, for the whole to be there
_EDGE = 25  # frames that may be missing besides: those at the edges of a cut hold what lay beyond
_AT_ONCE = 1 << 24  # cosines in memory


@dataclass(frozen=True)
class Member:
    """A file of a group, and how it relates to another file of it.

    Attributes:
        path: below the folder.
        seconds: its length.
        relation: `first` of the group, which others are compared with; `identical` bytes; `same` sound; `cut` out of the other;
            `contains` the other; `shares` a part with it; `alike` by embedding alone.
        to: the other file, the first of the group wherever the two were found to have anything in common; None of the first.
        spans: of `cut`, `contains` and `shares`: seconds where the common parts begin and end in the longer file, `to` or, where
            it contains that, this one.
        level: dB above the other; None where it is not known.
        errors: share of different bits of the two fingerprints in what they share; None where they were not compared.
        cosine: of `alike`: of the least similar of its windows; None for others.
    """

    path: str
    seconds: float
    relation: Relation
    to: str | None = None
    spans: tuple[tuple[float, float], ...] = ()
    level: float | None = None
    errors: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        same: groups of files that hold the same sound, or parts of it; the first of each is the longest.
        alike: groups of files, of different ones of those groups or of none, that sound alike; None where nobody looked.
        silent: files in which nothing is loud enough to be told apart by; only identical ones are listed as the same.
    """

    same: list[list[Member]]
    alike: list[list[Member]] | None
    silent: list[str] = field(default_factory=list)


def find_duplicates(
    prints: Fingerprints, recordings: Recordings | None = None, threshold: float = ALIKE, progress: Progress = silent
) -> Duplicates:
    """Find the same sounds in a folder.

    Args:
        prints: the folder's fingerprints.
        recordings: with their vectors in memory, to look for those that are alike; None does not look.
        threshold: of cosines, for these.
        progress: told of pairs that are compared.
    """
    hashes = list(prints.files)
    order = sorted(hashes, key=lambda each: _rank(prints.files[each][0], prints.prints[each].seconds))
    number = {each: i for i, each in enumerate(order)}  # the first of two is the one that a group would begin with
    sounds = [prints.prints[each] for each in order]
    files = [prints.files[each] for each in order]
    found = candidates(sounds)
    links: dict[tuple[int, int], list[Stretch]] = {}
    total = len(found.first)
    for done, (a, b, offsets) in enumerate(zip(found.first.tolist(), found.second.tolist(), found.offsets, strict=True)):
        if done % 1000 == 0:
            progress(done, total, "comparing")
        if stretches := align(sounds[a], sounds[b], offsets):
            links[a, b] = stretches
    progress(total, total, "comparing")
    sets = connected_sets(len(order), links)
    same = [_group(members, links, sounds, files) for members in sets if len(members) > 1 or len(files[members[0]]) > 1]
    alike = None
    if recordings is not None:
        head = {member: members[0] for members in sets for member in members}
        path_of = {path: number[content] for content, paths in prints.files.items() for path in paths}
        alike = _alike(recordings, path_of, head, threshold, sounds, files)
    quiet = sorted(path for sound, paths in zip(sounds, files, strict=True) if not sound.heard.any() for path in paths)
    return Duplicates(sorted(same, key=lambda group: group[0].path), alike, quiet)


def _rank(path: str, seconds: float) -> tuple[float, bool, str]:
    """By which the first of a group is the longest; of those as long, one without loss; of those, by its name."""
    return -round(seconds, 1), PurePath(path).suffix.lower() not in _LOSSLESS, path


def _group(
    members: Sequence[int],
    links: dict[tuple[int, int], list[Stretch]],
    sounds: Sequence[Fingerprint],
    files: Sequence[Sequence[str]],
) -> list[Member]:
    """A connected set as files, each related to the first where the two have anything in common, else to one between."""
    first = members[0]
    out = _copies(Member(files[first][0], sounds[first].seconds, "first"), files[first])
    for member, parent, offset in _paths(first, members, links):
        to, stretches = first, links.get((first, member))
        if stretches is None:  # not compared, as too many have the same frames; or they have nothing in common
            stretches = align(sounds[first], sounds[member], [offset])
        if not stretches:
            to, stretches = parent, links.get((parent, member)) or _turned(links[member, parent])
        of = Member(files[member][0], sounds[member].seconds, "same", files[to][0])
        out += _copies(_related(of, sounds[to], sounds[member], stretches), files[member])
    return out


def _copies(member: Member, paths: Sequence[str]) -> list[Member]:
    return [member, *(Member(path, member.seconds, "identical", member.path, level=0.0, errors=0.0) for path in paths[1:])]


def _paths(first: int, members: Sequence[int], links: dict[tuple[int, int], list[Stretch]]) -> list[tuple[int, int, int]]:
    """The members but the first, each with its neighbour on the shortest way, and the frame of the first where it begins."""
    beside: dict[int, list[tuple[int, int]]] = {member: [] for member in members}
    for a, b in links:
        if a in beside:
            best = max(links[a, b], key=lambda each: each.score)
            offset = round((best.start - best.other_start) * RATE / HOP)
            beside[a].append((b, offset))
            beside[b].append((a, -offset))
    at, parents, waiting = {first: 0}, dict[int, int](), deque([first])
    while waiting:
        here = waiting.popleft()
        for other, offset in beside[here]:
            if other not in at:
                at[other], parents[other] = at[here] + offset, here
                waiting.append(other)
    return [(member, parents[member], at[member]) for member in members if member != first]


def _turned(stretches: Iterable[Stretch]) -> list[Stretch]:
    """What two have in common, seen from the other."""
    return [
        each._replace(start=each.other_start, end=each.other_end, other_start=each.start, other_end=each.end, level=-each.level)
        for each in stretches
    ]


def _related(member: Member, to: Fingerprint, sound: Fingerprint, stretches: Sequence[Stretch]) -> Member:
    """A file with how it relates to another, of which these stretches are common."""
    frames = sum(each.frames for each in stretches)
    here = _is_whole(frames, sound)
    there = _is_whole(frames, to)
    relation: Relation = "same" if here and there else "cut" if here else "contains" if there else "shares"
    if relation == "contains":
        spans = _spans(_turned(stretches), sound.seconds, to.seconds, whole=True)
    else:
        spans = _spans(stretches, to.seconds, sound.seconds, whole=here) if relation != "same" else ()
    level = float(np.average([each.level for each in stretches], weights=[each.frames for each in stretches]))
    errors = float(np.average([each.errors for each in stretches], weights=[each.frames for each in stretches]))
    return Member(member.path, member.seconds, relation, member.to, spans, level, errors)


def _is_whole(frames: int, sound: Fingerprint) -> bool:
    """Whether so many frames are as good as all that is heard of a recording."""
    heard = int(sound.heard.sum())
    return frames >= heard - max((1 - _SHARE) * heard, min(_EDGE, heard / 2))


def _spans(stretches: Sequence[Stretch], longer: float, shorter: float, *, whole: bool) -> tuple[tuple[float, float], ...]:
    """Where the stretches are in the longer recording; of a `whole` one in one piece, where all of it would be."""
    if whole and len(stretches) == 1:
        start = stretches[0].start - stretches[0].other_start
        return ((max(0.0, start), min(longer, start + shorter)),)
    return tuple((each.start, each.end) for each in stretches)


def _alike(
    recordings: Recordings,
    path_of: dict[str, int],
    head: dict[int, int],
    threshold: float,
    sounds: Sequence[Fingerprint],
    files: Sequence[Sequence[str]],
) -> list[list[Member]]:
    """Groups of what sounds alike and is not in one group already."""
    known = [path in path_of for path in recordings.paths]
    contents = recordings.content[known].tolist()
    names = {content: path_of[path] for path, content in zip(compress(recordings.paths, known), contents, strict=True)}
    best: dict[tuple[int, int], float] = {}
    for a, b, cosine in alike_pairs(recordings.vectors, recordings.offsets, threshold):
        if a in names and b in names and head[names[a]] != head[names[b]]:
            heads = head[names[a]], head[names[b]]
            pair = min(heads), max(heads)
            best[pair] = max(best.get(pair, -1.0), cosine)
    groups = []
    for members in connected_sets(len(sounds), best):
        if len(members) < 2:
            continue
        group = [Member(files[members[0]][0], sounds[members[0]].seconds, "first")]
        for member in members[1:]:
            # The first of the group, wherever that is like it.
            to = next(other for other in members if (min(other, member), max(other, member)) in best)
            cosine = best[min(to, member), max(to, member)]
            group.append(Member(files[member][0], sounds[member].seconds, "alike", files[to][0], cosine=cosine))
        groups.append(group)
    return sorted(groups, key=lambda group: group[0].path)


def alike_pairs(vectors: np.ndarray, offsets: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    """The pairs of recordings of which each window of the one has one in the other that is almost equal.

    All are compared, some at a time.

    Args:
        vectors: (W, D) float32 unit vectors of windows.
        offsets: (C + 1,): the windows of recording c are offsets[c]..offsets[c + 1].
        threshold: the cosine that the least similar window of the one must have.

    Returns:
        The numbers of the two, the lower first, and that cosine, the larger of both directions.
    """
    found: dict[tuple[int, int], float] = {}
    count = len(offsets) - 1
    rows = max(1, _AT_ONCE // max(1, len(vectors)))
    first = 0
    while first < count:
        last = int(max(first + 1, np.searchsorted(offsets, offsets[first] + rows, "right") - 1))
        least = np.full((last - first, count), np.inf, np.float32)
        for row in range(offsets[first], offsets[last], rows):
            end = min(row + rows, int(offsets[last]))
            near = np.maximum.reduceat(vectors[row:end] @ vectors.T, offsets[:-1], axis=1)
            owners = np.searchsorted(offsets, np.arange(row, end), "right") - 1 - first
            np.minimum.at(least, owners, near)
        for a, b in np.argwhere(least >= threshold).tolist():
            if (here := a + first) != b:
                pair = min(here, b), max(here, b)
                found[pair] = max(found.get(pair, -1.0), min(1.0, float(least[a, b])))
        first = last
    return [(a, b, cosine) for (a, b), cosine in sorted(found.items())]
