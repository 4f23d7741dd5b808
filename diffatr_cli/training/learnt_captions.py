"""The captions that a run learnt from, and how they tell what it knows from what it does not: beside phase two's calibration.

m captions of the validation split, U names, D embedding size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.bank import CaptionBank, simple_captions
from ..core.ragged import Ragged
from ..core.text import normalise_caption
from ..model import Retriever
from .sound_names import SOUND_NAMES

_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Novelty:
    """How strange texts are to a bank (`CaptionBank.strangeness`).

    Attributes:
        of_captions: (m,) of validation captions, each beside captions of other words than its own, as people will ask.
        of_names: (U,) of names that no training caption holds, and `names` (U, D), their unit vectors in the shared space.
        tokens: the token states of those names, for a model that re-ranks by frames.
    """

    of_captions: np.ndarray
    of_names: np.ndarray
    names: np.ndarray
    tokens: Ragged | None = None


def learn_captions(model: Retriever, training: Sequence[str], validation: Sequence[str]) -> tuple[CaptionBank, Novelty]:
    """The bank of some training captions, and how strange the validation captions and names that it does not hold are to it."""
    texts = simple_captions([text for caption in training if (text := normalise_caption(caption))])
    held_out, pooled = [normalise_caption(caption) for caption in validation], model.pool_text(validation)
    kept = model.pool_text(texts).astype(np.float16).astype(np.float32)  # as they are kept, so that all later fits see the same
    bank = CaptionBank.fit(texts, kept, held_out, pooled)
    return bank, _novelty(model, bank, held_out, pooled)


def novelty_of(model: Retriever, bank: CaptionBank, validation: Sequence[str]) -> Novelty:
    """How strange some captions, and the names that a bank does not hold, are to it."""
    return _novelty(model, bank, [normalise_caption(caption) for caption in validation], model.pool_text(validation))


def _novelty(model: Retriever, bank: CaptionBank, held_out: Sequence[str], pooled: np.ndarray) -> Novelty:
    """The same of captions that are normalised, and their vectors in the caption encoder's space."""
    of_captions = bank.strangeness(bank.nearest(pooled, but=held_out)[0])
    names = names_not_held(SOUND_NAMES, bank.texts)
    if not names:
        return Novelty(of_captions, np.zeros(0), np.zeros((0, model.dim), np.float32))
    vectors, own = model.embed_and_pool_text(names)
    tokens = Ragged.of(model.token_states(names)) if model.sees_frames else None
    return Novelty(of_captions, bank.strangeness(bank.nearest(own)[0]), vectors, tokens)


def names_not_held(names: Sequence[str], captions: Sequence[str]) -> list[str]:
    """The names of which no caption, normalised, has all words."""
    with_word: dict[str, set[int]] = defaultdict(set)
    for row, caption in enumerate(captions):
        for word in caption.split():
            with_word[word].add(row)
    words_of = {name: [word for word in normalise_caption(name).split() if word not in _ARTICLES] for name in names}
    return [name for name, words in words_of.items() if not set.intersection(*(with_word[word] for word in words))]
