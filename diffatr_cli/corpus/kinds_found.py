"""Which kinds of sound, of those that a model was taught, a folder has, judged as `describe` judges one sound.

C contents, F files, N kinds, W windows, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.calibration import Calibration, of_known, presence_of_cosines, score_features
from ..data.vocabulary import Label, read_vocabulary
from ..model import sampling_of
from .describe import Choices, describe
from .search import can_judge, second_stage
from .snapshot import Recordings
from .some_contents import fair_sample, in_blocks

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever

MOST = 20_000
"""Contents that are judged at most,"""
MOST_SAMPLED = 500
"""and of a model whose second stage counts for captions, which each sound then goes through."""

_PIECE = 32  # captions embedded before whoever searches goes first

Patiently = Callable[[Callable[[], Any]], Any]
"""Does work with the model when nobody waits for it."""


@dataclass(frozen=True)
class KindsFound:
    """The kinds found.

    Attributes:
        labels: N kinds.
        files: (N,) how many of the files looked at each fits; a file may be of several kinds.
        looked: how many files were looked at, of `total`.
        best: (C,) the number of the kind that fits each content best, -1 where none does, -2 where it was not looked at.
    """

    labels: Sequence[Label]
    files: np.ndarray
    looked: int
    total: int
    best: np.ndarray

    def in_order(self) -> list[tuple[Label, int]]:
        """The kinds that there are, and how many files each fits, most frequent first, of equal ones in the order of the list."""
        return [(self.labels[i], int(self.files[i])) for i in np.argsort(-self.files, kind="stable") if self.files[i]]


def find_kinds(
    retriever: Retriever,
    recordings: Recordings,
    sampling: Sampling | None = None,
    patiently: Patiently = lambda work: work(),
) -> KindsFound | None:
    """The kinds of `Retriever.kinds` in these recordings; None for a model that brings none, or cannot tell whether one fits.

    A kind fits where its probability is not below that from which on the calibration says that any caption fits at all.

    Args:
        patiently: runs each piece of work with the model, so that it may wait for others in between.

    Raises:
        DiffATRError: the list cannot be read.
        Damaged: vectors do not fit their checksums.
    """
    calibration = retriever.calibration
    if retriever.kinds is None or calibration is None or calibration.audio_to_text is None or calibration.captions is None:
        return None
    if not can_judge(retriever, calibration.captions):
        return None
    labels = read_vocabulary(retriever.kinds).labels
    captions = [label.caption for label in labels]
    count = len(recordings.offsets) - 1
    fits = np.zeros(len(labels), np.int64)
    best = np.full(count, -2)
    plain = second_stage(retriever, "a2t") is None
    looked = fair_sample(count, MOST if plain else MOST_SAMPLED)
    copies = np.bincount(recordings.content, minlength=count)  # files of each content
    sampling = sampling or sampling_of(retriever, folder=True)
    if plain and count:
        pieces = (captions[first : first + _PIECE] for first in range(0, len(captions), _PIECE))
        both = [patiently(lambda piece=piece: retriever.embed_and_pool_text(piece)) for piece in pieces]  # type: ignore[misc]
        texts, pooled = (np.concatenate(each) for each in zip(*both, strict=True))
        for block in in_blocks(recordings, looked):
            of_windows = block.vectors @ texts.T
            cosine = np.maximum.reduceat(of_windows, block.offsets[:-1])
            heard = None
            if retriever.bank is not None:
                windows = _best_windows(of_windows, cosine, block.offsets)
                heard = retriever.bank.heard(block.vectors[windows], pooled[cosine.argmax(1)])
            probability = _probabilities(calibration, cosine, sampling.shortlist, heard)
            best[block.contents] = _best(probability, calibration.captions_told_below)
            fits += copies[block.contents] @ (probability >= calibration.captions_told_below)
    elif count:
        choices: list[Choices] = []
        number = {caption: i for i, caption in enumerate(captions)}
        for content in looked.tolist():
            rows = np.arange(recordings.offsets[content], recordings.offsets[content + 1])

            def probabilities(rows: np.ndarray = rows) -> np.ndarray:
                if not choices:
                    choices.append(Choices(retriever, captions))
                frames = recordings.frames(rows).joined() if retriever.sees_frames and recordings.frames else None
                described = describe(
                    retriever, recordings.vectors_at(rows), choices[0], sampling, frames=frames, top=len(captions)
                )
                found = np.zeros((1, len(captions)))
                for hit in described.hits:
                    found[0, number[hit.caption]] = hit.score
                return found

            probability = patiently(probabilities)
            best[content] = _best(probability, calibration.captions_told_below)[0]
            fits += copies[content] * (probability[0] >= calibration.captions_told_below)
    return KindsFound(labels, fits, int(copies[looked].sum()), len(recordings), best)


def _best_windows(of_windows: np.ndarray, cosine: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The window of each of n sounds that its best caption fits best: (W, N), (n, N), (n + 1,) -> (n,)."""
    content = np.repeat(np.arange(len(cosine)), np.diff(offsets))
    own = of_windows[np.arange(len(content)), cosine.argmax(1)[content]]
    best = np.flatnonzero(own == cosine.max(1)[content])
    return best[np.unique(content[best], return_index=True)[1]]


def _probabilities(calibration: Calibration, cosine: np.ndarray, shortlist: int | None, heard: np.ndarray | None) -> np.ndarray:
    """What `describe` gives each of N captions for each of some sounds, by their cosines alone: (n, N) -> (n, N).

    `heard`: (n, 2) of each sound and its best caption (`CaptionBank.heard`).
    """
    assert calibration.audio_to_text is not None
    assert calibration.captions is not None
    shown = -np.sort(-cosine, axis=1)[:, :shortlist]
    present = of_known(calibration.captions, presence_of_cosines(shown, cosine.shape[1], heard))
    features = [score_features(each, sure, candidates=cosine.shape[1]) for each, sure in zip(cosine, present, strict=True)]
    return np.asarray(np.minimum(of_known(calibration.audio_to_text, np.stack(features)), present[:, None]))


def _best(probability: np.ndarray, least: float) -> np.ndarray:
    """The number of the best kind of each sound, -1 where none reaches `least`; (n, N) -> (n,)."""
    best = probability.argmax(1)
    return np.where(probability[np.arange(len(best)), best] >= least, best, -1)
