"""Fitting what scores are worth on a validation gallery: phase two's last step.

T distinct captions, n clips, N candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from ..core.calibration import Calibration, Logistic, presence_features
from ..core.denoiser import AttentionDenoiser
from ..core.factored import FactoredDenoiser
from ..core.losses import cosine_similarity
from ..core.schedule import NoiseSchedule
from ..core.scoring import diffusion_draws, diffusion_scores, fuse
from ..core.text import normalise_caption
from ..evaluation.embedded_split import Captions, EmbeddedSplit
from ..recipe_schema import Recipe
from ..types import Direction

SHORTLIST = 100  # candidates that a search re-ranks, so what scores and distributions are fitted for
QUERIES = 400  # at most, drawn from the captions and from the clips
FOLDERS = (16, 50, 150, 10**9)
"""Sizes of the made-up folders in which a query's sound is there or is not: distributions look different over few clips."""


def calibrate(
    gallery: EmbeddedSplit,
    captions: Captions,
    denoisers: Mapping[Direction, AttentionDenoiser],
    fusion_weights: Mapping[Direction, float],
    schedule: NoiseSchedule,
    recipe: Recipe,
    seed: int,
) -> Calibration | None:
    """Fit a model's calibration on a validation gallery; None where the gallery has no two sounds to tell apart.

    Which captions and clips match is `matching`'s. Two clips match if they share a caption. Whether a sound is there at all is
    fitted on folders made of some of the clips, with those that match a query left out of half of them.
    """
    rng = np.random.default_rng([seed, 5])
    texts, matches = matching(captions)
    audio = gallery.audio
    first = {normalise_caption(text): row for row, text in reversed(list(enumerate(captions.texts)))}
    text = gallery.text[[first[each] for each in texts]]
    if len(texts) < 2 or len(audio) < 2 or matches.all():
        return None
    asked = np.sort(rng.permutation(len(texts))[:QUERIES])
    heard = np.sort(rng.permutation(len(audio))[:QUERIES])
    group = captions.positive_groups("positives")
    same, itself = group[heard][:, None] == group[None], heard[:, None] == np.arange(len(group))

    def scores(direction: Direction, queries: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
        x0_hat = diffusion_scores(
            denoisers[direction],
            queries,
            candidates,
            schedule,
            steps=recipe.evaluation.steps,
            eta=recipe.evaluation.eta,
            draws=recipe.evaluation.draws,
            seed=seed,
            shortlist=SHORTLIST,
            x0=recipe.diffusion.x0,
        )
        return fuse(cosine_similarity(queries, candidates), x0_hat, fusion_weights[direction]).numpy()

    folders = list(_folders(text[asked], matches[asked], audio, FactoredDenoiser(denoisers["t2a"]), schedule, recipe, seed, rng))
    fits = (
        (scores("t2a", text[asked], audio).ravel(), matches[asked].ravel()),
        (scores("a2t", audio[heard], text).ravel(), matches.T[heard].ravel()),
        (cosine_similarity(audio[heard], audio).numpy()[~itself], same[~itself]),
    )
    labels = np.array([there for there, _ in folders])
    if not all(each.any() and not each.all() for each in (labels, *(label for _, label in fits))):
        return None
    text_to_audio, audio_to_text, audio_to_audio = (
        Logistic.fit(score[:, None].astype(np.float64), label) for score, label in fits
    )
    presence = Logistic.fit(np.stack([features for _, features in folders]), labels)
    return Calibration(text_to_audio, audio_to_text, audio_to_audio, presence)


def matching(captions: Captions) -> tuple[list[str], np.ndarray]:
    """The distinct captions, normalised, and which clips match them, (T, n) booleans.

    A clip matches a caption if one of its own captions contains it, or contains what else a clip of that caption is said to
    be, word for word: where "a dog barks" and "a hound yaps" are captions of one clip, both match "a hound yaps in the rain".
    """
    texts = [normalise_caption(text) for text in captions.texts]
    distinct = list(dict.fromkeys(texts))
    number = {text: row for row, text in enumerate(distinct)}
    clips = len(captions.first) - 1
    has = np.zeros((len(distinct), clips), dtype=bool)
    has[[number[text] for text in texts], captions.clip_index] = True
    padded = [f" {text} " for text in distinct]
    inside = np.array([[text in other for other in padded] for text in padded])  # [a, b]: b contains a
    mentions = inside.astype(np.float32) @ has.astype(np.float32) > 0  # (T, n): some caption of the clip contains it
    together = has.astype(np.float32) @ has.T.astype(np.float32) > 0  # (T, T): both are captions of one clip
    return distinct, together.astype(np.float32) @ mentions.astype(np.float32) > 0


def _folders(
    text: torch.Tensor,
    matches: np.ndarray,
    audio: torch.Tensor,
    factors: FactoredDenoiser,
    schedule: NoiseSchedule,
    recipe: Recipe,
    seed: int,
    rng: np.random.Generator,
) -> Iterator[tuple[bool, np.ndarray]]:
    """(whether the sound is there, `presence_features`) of each query in folders of several sizes, with and without it."""
    cosine = cosine_similarity(text, audio).numpy()
    for row, matching_clips in enumerate(matches):
        others = np.flatnonzero(~matching_clips)
        own = np.flatnonzero(matching_clips)
        for size in FOLDERS:
            if len(others) < 2:
                continue
            absent = rng.permutation(others)[:size]
            share = max(1, round(len(own) * len(absent) / len(others)))
            present = np.concatenate([absent, rng.permutation(own)[:share]])
            for there, clips in ((False, absent), (True, present)):
                near = clips[np.argsort(-cosine[row, clips], kind="stable")[:SHORTLIST]]
                x0_hat = diffusion_draws(
                    text[row],
                    factors.prepare(audio[near].to(factors.weight.device)),
                    schedule,
                    steps=recipe.evaluation.steps,
                    eta=recipe.evaluation.eta,
                    draws=recipe.evaluation.draws,
                    seed=seed,
                    x0=recipe.diffusion.x0,
                )
                yield there, presence_features(cosine[row, near], x0_hat.cpu().numpy())
