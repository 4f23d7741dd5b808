"""Composed training items: which recordings are mixed, where and how loud each is, and how their captions become one.

The order of what is done to an item: each recording is cut as it would be alone, the cuts are mixed at levels drawn for them, and
the mixture is brought to the level that every sound is heard at, as a search brings a recording of the same sounds. From there on
it is treated as a recording is: the encoder varies it as a whole (`audio.perturb`, as another microphone or another distance
would) and hides stripes of it (SpecAugment). Varied one by one before, its parts would no longer have the levels drawn for them.

n clips, I items of an epoch. Lengths and places are in the unit of `Clips.offsets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..recipe_schema import PretrainSection

OTHERS = (0.6, 0.3, 0.1)  # shares of the composed items that have one, two and three recordings beside their own
IN_TURN = 0.5  # share of those whose recordings sound one after another, where there is room for it
_TRIES = 16  # to find another recording of a sound that is not there yet

NEUTRAL = (" and ", ", and ", ", ")
TOGETHER = (" while ", " as ")  # said where most of the shorter sound falls into the other
AFTER = (", then ", " and then ", " before ")  # said where each begins when all before it have ended


@dataclass(frozen=True)
class Composition:
    """What the items of an epoch are made of.

    Attributes:
        parts: (I, P) clips, the item's own first, -1 for none.
        in_turn: (I,) whether the recordings sound one after another.
        lengths: (I,) of the whole.
        order: (I,) where an item's length stands among those of the composed items, or of the others, from 0 to 1. Composed
            items are the longer ones: of batches sorted by length some would have hardly another item, sorted by this none.
    """

    parts: NDArray[np.int64]
    in_turn: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    order: NDArray[np.float64]

    @property
    def composed(self) -> NDArray[np.bool_]:
        """(I,) whether an item is composed."""
        return is_composed(self.parts)


@dataclass(frozen=True)
class Mixture:
    """Recordings at their places: one alone, or several that sound together.

    Attributes:
        clips: indices, the item's own first.
        lengths: of each as it is cut.
        starts: where each begins.
        decibels: that each is raised by before they are mixed.
        length: of the whole.
    """

    clips: tuple[int, ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    decibels: tuple[float, ...]
    length: int


def is_composed(parts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(I,) whether any recording is heard beside an item's own: `Composition.parts`, (I, P)."""
    return np.asarray((parts[:, 1:] >= 0).any(1))


def compose_epoch(
    section: PretrainSection, rng: np.random.Generator, owner: np.ndarray, lengths: np.ndarray, longest: int, group: np.ndarray
) -> Composition:
    """Draw which items of an epoch are composed, and of what.

    No two recordings of a mixture are of one positive group: "a dog barks and a dog barks" is nothing that anybody says. Where
    none of another group is found, an item has fewer. A mixture is at most as long as a crop is, and no longer than its
    recordings in a row; those that fit so may sound one after another.

    Args:
        owner: (I,) each item's own clip.
        lengths: (n,) of the clips.
        longest: of a crop.
        group: (n,) equal for clips that are not negatives of one another.
    """
    items, most = len(owner), len(OTHERS)
    wanted = np.where(rng.random(items) < section.compose, rng.choice(most, items, p=OTHERS) + 1, 0)
    parts = np.full((items, 1 + most), -1)
    parts[:, 0] = owner
    for place in range(1, 1 + most):
        for _ in range(_TRIES):
            open_ = np.flatnonzero((wanted >= place) & (parts[:, place] < 0))
            if not len(open_):
                break
            drawn = rng.integers(0, len(lengths), len(open_))
            there = np.where(parts[open_] < 0, -1, group[parts[open_]])
            fits = (there != group[drawn][:, None]).all(1)
            parts[open_[fits], place] = drawn[fits]
    cut = np.where(parts < 0, 0, np.minimum(lengths[parts], longest))
    total, least = cut.sum(1), cut.max(1)
    several = is_composed(parts)
    in_turn = several & (total <= longest) & (rng.random(items) < IN_TURN)
    room = np.minimum(total, longest) - least
    whole = np.where(in_turn, total, least + rng.integers(0, room + 1))
    order, by_length = np.empty(items), np.lexsort((rng.random(items), whole))
    for alike in (several, ~several):
        places = by_length[alike[by_length]]
        order[places] = (np.arange(len(places)) + 0.5) / max(1, len(places))
    return Composition(parts, in_turn, whole, order)


def place(
    composition: Composition, item: int, section: PretrainSection, rng: np.random.Generator, lengths: np.ndarray, longest: int
) -> Mixture:
    """Draw where the recordings of an item lie, and how loud each is. A recording alone lies where it is; nothing is drawn.

    Args:
        lengths, longest: as of `compose_epoch`.
    """
    clips = composition.parts[item][composition.parts[item] >= 0]
    cut, whole = np.minimum(lengths[clips], longest), int(composition.lengths[item])
    if len(clips) == 1:
        starts, decibels = np.zeros(1, int), np.zeros(1)
    elif composition.in_turn[item]:
        order = rng.permutation(len(clips))
        starts = np.empty(len(clips), int)
        starts[order] = np.cumsum(cut[order]) - cut[order]
        decibels = -section.compose_levels * rng.random(len(clips))
    else:
        starts = rng.integers(0, whole - cut + 1)
        decibels = -section.compose_levels * rng.random(len(clips))
    return Mixture(tuple(clips.tolist()), tuple(cut.tolist()), tuple(starts.tolist()), tuple(decibels.tolist()), whole)


def join_captions(captions: Sequence[str], mixture: Mixture, rng: np.random.Generator) -> str:
    """The captions of a mixture's recordings as one: "X and Y", "X while Y" or "X, then Y", as their places allow.

    "Then" and "before" are said where each recording begins when all before it have ended, and name them in that order. "While"
    and "as" are said once in a caption, where each two recordings share at least half of the shorter one. Else, and at times in
    either case, the joiner says nothing of time and the order is free. Words stay as they are; but for the last caption the
    punctuation at its end goes, and but for the first the capital at its beginning.
    """
    if len(captions) == 1:
        return captions[0]
    starts, ends = np.array(mixture.starts), np.array(mixture.starts) + mixture.lengths
    in_time = np.argsort(starts, kind="stable")
    follow = (starts[in_time][1:] >= np.maximum.accumulate(ends[in_time])[:-1]).all()
    shared = np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)
    meet = (2 * shared >= np.minimum(ends - starts, (ends - starts)[:, None])).all()
    order, says_time = rng.permutation(len(captions)), rng.random() < 0.5
    joiners = [str(rng.choice(NEUTRAL)) for _ in captions[1:]]
    if follow and says_time:
        order, joiners = in_time, [str(rng.choice(AFTER)) for _ in joiners]
    elif meet and says_time:
        joiners[rng.integers(len(joiners))] = str(rng.choice(TOGETHER))
    said: str = captions[order[0]]
    for joiner, index in zip(joiners, order[1:], strict=True):
        said = said.rstrip(" .,;:!?") + joiner + _inside(captions[index].lstrip())
    return said


def _inside(caption: str) -> str:
    """A caption as it stands within a sentence: "A dog barks" with a small letter, "I speak" and "TV noise" as they are."""
    first = caption.split(" ", 1)[0]
    small = first[1:].islower() or first == "A"
    return caption[:1].lower() + caption[1:] if small else caption
