"""Which clips match which captions, where equal captions mean equal sounds.

T distinct captions, n clips.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ..core.text import normalise_caption
from .embedded_split import Captions


def matching(captions: Captions) -> tuple[list[str], np.ndarray]:
    """The distinct captions, normalised, and which clips match them, (T, n) booleans.

    A clip matches a caption if one of its own captions contains it, or contains what else a clip of that caption is said to
    be, word for word: where "a dog barks" and "a hound yaps" are captions of one clip, both match "a hound yaps in the rain".
    """
    texts = [normalise_caption(text) for text in captions.texts]
    distinct = list(dict.fromkeys(texts))
    number = {text: row for row, text in enumerate(distinct)}
    clips_of: list[set[int]] = [set() for _ in distinct]
    texts_of: dict[int, set[int]] = defaultdict(set)
    for text, clip in zip(texts, captions.clip_index.tolist(), strict=True):
        clips_of[number[text]].add(clip)
        texts_of[clip].add(number[text])
    with_word: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(distinct):
        for word in dict.fromkeys(text.split()):
            with_word[word].append(row)
    mentions: list[set[int]] = []  # of each caption the clips of which some caption contains it
    for row, text in enumerate(distinct):
        words = text.split()
        # Only texts with its rarest word can contain a caption.
        candidates = min((with_word[word] for word in words), key=len) if words else [row]
        containing = [other for other in candidates if f" {text} " in f" {distinct[other]} "]
        mentions.append(set().union(*(clips_of[other] for other in containing)))
    matches = np.zeros((len(distinct), len(captions.first) - 1), dtype=bool)
    for row, clips in enumerate(clips_of):
        together = set().union(*(texts_of[clip] for clip in clips))
        matches[row, sorted(set().union(*(mentions[other] for other in together)))] = True
    return distinct, matches
