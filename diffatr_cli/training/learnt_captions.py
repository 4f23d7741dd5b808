"""The captions and sounds that a run learnt from, and how they tell what it knows from what it does not.

They are kept beside phase two's calibration.

m captions of the validation split, U names, B captions of the bank, n training clips, D embedding size, F that of the caption
encoder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.bank import ARTICLES, CaptionBank, LearntSounds, simple_captions
from ..core.ragged import Ragged
from ..core.text import normalise_caption
from ..evaluation.embedded_split import Captions
from ..model import Retriever
from .sound_names import SOUND_NAMES

_AT_ONCE = 2**15  # pairs of a caption and a clip
SOUNDS = 2048
"""Training clips that are kept at most: as many again told no more on validation."""


@dataclass(frozen=True)
class Novelty:
    """How strange texts are to a bank (`CaptionBank.strangeness`), and the cosine that each may expect (`CaptionBank.expected`).

    Attributes:
        of_captions: (m,) of validation captions, each beside captions of other words than its own, as people will ask.
        expected: (m,) of the captions, likewise.
        of_names: (U,) of names that no training caption holds, `expected_of_names` (U,), and `names` (U, D), their unit vectors
            in the shared space.
        bank: what all this is measured by; `captions`, m normalised texts, and `pooled` (m, F) and `pooled_names` (U, F), unit
            vectors in the caption encoder's space.
        tokens: the token states of those names, for a model that re-ranks by frames.
    """

    of_captions: np.ndarray
    expected: np.ndarray
    of_names: np.ndarray
    expected_of_names: np.ndarray
    names: np.ndarray
    bank: CaptionBank
    captions: Sequence[str]
    pooled: np.ndarray
    pooled_names: np.ndarray
    tokens: Ragged | None = None

    def heard(self, caption: int, sound: np.ndarray) -> np.ndarray:
        """`CaptionBank.heard` of a sound (D,) and one of the captions, whose own words do not count beside others, (2,)."""
        return np.asarray(self.bank.heard(sound[None], self.pooled[[caption]], but=[self.captions[caption]])[0])

    def heard_by_name(self, name: int, sound: np.ndarray) -> np.ndarray:
        """The same of one of the names."""
        return np.asarray(self.bank.heard(sound[None], self.pooled_names[[name]])[0])


def learn_captions(
    model: Retriever, training: Captions, audio: np.ndarray | None, validation: Sequence[str]
) -> tuple[CaptionBank, Novelty]:
    """The bank of some training captions, and how strange the validation captions and names that it does not hold are to it.

    Args:
        audio: (V, n, D) unit vectors of the training clips under V augmentations; None where they are not at hand.
    """
    said = [normalise_caption(caption) for caption in training.texts]
    texts = simple_captions([text for text in said if text])
    held_out, pooled = [normalise_caption(caption) for caption in validation], model.pool_text(validation)
    shared, own = model.embed_and_pool_text(texts)
    kept = own.astype(np.float16).astype(np.float32)  # as they are kept, so that all later fits see the same
    worth = sounds = None
    if audio is not None:
        worth = _worth(texts, shared, said, training.clip_index, audio)
        sounds = _sounds(texts, zip(said, training.clip_index.tolist(), strict=True), audio)
    bank = CaptionBank.fit(texts, kept, held_out, pooled, worth, sounds)
    return bank, _novelty(model, bank, held_out, pooled)


def _worth(texts: Sequence[str], shared: np.ndarray, said: Sequence[str], clips: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """The mean cosine of each text (B, D) to the clips (V, n, D) of which it is said, (B,) float32."""
    number, mean = {text: row for row, text in enumerate(texts)}, audio.mean(0)
    pairs = np.array([(number[text], clip) for text, clip in zip(said, clips.tolist(), strict=True) if text in number])
    some = [pairs[start : start + _AT_ONCE] for start in range(0, len(pairs), _AT_ONCE)]
    cosine = np.concatenate([(shared[each[:, 0]] * mean[each[:, 1]]).sum(1) for each in some])
    counts = np.bincount(pairs[:, 0], minlength=len(texts))
    return np.asarray(np.bincount(pairs[:, 0], cosine, minlength=len(texts)) / counts, np.float32)


def _sounds(texts: Sequence[str], said: Iterable[tuple[str, int]], audio: np.ndarray) -> LearntSounds | None:
    """Some of the clips (V, n, D) of which one of the texts (B,) is said, evenly spaced; None where there is no such clip."""
    number, of_clip = {text: row for row, text in enumerate(texts)}, defaultdict(list)
    for text, clip in said:
        if text in number:
            of_clip[clip].append(number[text])
    clips = sorted(of_clip)
    if not clips:
        return None
    clips = [clips[i * len(clips) // min(SOUNDS, len(clips))] for i in range(min(SOUNDS, len(clips)))]
    most = max(len(of_clip[clip]) for clip in clips)
    rows = np.array([[*of_clip[clip], *of_clip[clip][:1] * (most - len(of_clip[clip]))] for clip in clips], np.int32)
    mean = audio[:, clips].astype(np.float32).mean(0)
    vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return LearntSounds(vectors.astype(np.float16).astype(np.float32), rows)


def novelty_of(model: Retriever, bank: CaptionBank, validation: Sequence[str]) -> Novelty:
    """How strange some captions, and the names that a bank does not hold, are to it."""
    return _novelty(model, bank, [normalise_caption(caption) for caption in validation], model.pool_text(validation))


def _novelty(model: Retriever, bank: CaptionBank, held_out: Sequence[str], pooled: np.ndarray) -> Novelty:
    """The same of captions that are normalised, and their vectors in the caption encoder's space."""
    names = names_not_held(SOUND_NAMES, bank.texts)
    vectors, own = np.zeros((0, model.dim), np.float32), np.zeros((0, pooled.shape[1]), np.float32)
    if names:
        vectors, own = model.embed_and_pool_text(names)
    return Novelty(
        of_captions=bank.strangeness(bank.nearest(pooled, but=held_out)[0]),
        expected=bank.expected(pooled, but=held_out),
        of_names=bank.strangeness(bank.nearest(own)[0]),
        expected_of_names=bank.expected(own),
        names=vectors,
        bank=bank,
        captions=held_out,
        pooled=pooled,
        pooled_names=own,
        tokens=Ragged.of(model.token_states(names)) if names and model.sees_frames else None,
    )


def names_not_held(names: Sequence[str], captions: Sequence[str]) -> list[str]:
    """The names of which no caption, normalised, has all words."""
    with_word: dict[str, set[int]] = defaultdict(set)
    for row, caption in enumerate(captions):
        for word in caption.split():
            with_word[word].add(row)
    words_of = {name: [word for word in normalise_caption(name).split() if word not in ARTICLES] for name in names}
    return [name for name, words in words_of.items() if not set.intersection(*(with_word[word] for word in words))]
