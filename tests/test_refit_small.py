"""What calibrates the model that ships: which clips match a text by what its words mean."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from diffatr_cli.data.manifest import Clip

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from refit_small import meant_by_words

COMPOSER: Any = SimpleNamespace(
    EVENTS={
        "rain": ([], ["rain falls"], ["drops patter"]),
        "heavy_rain": ([], ["heavy rain pours"], ["a downpour beats the roof"]),
        "light_rain": ([], ["light rain"], []),
        "wipers": ([], ["wipers squeak"], []),
        "dog_bark": ([], ["a dog barks"], []),
    }
)


def clip(path: str, *captions: str) -> Clip:
    return Clip(path, "val", path, 1.0, captions)


def test_a_clip_matches_what_the_words_mean() -> None:
    clips = [
        clip("val/val/whole/heavy_rain-0000.wav", "heavy rain pours"),
        clip("val/val/single/rain-0003.wav", "rain falls"),
        clip("val/val/scenes/audiocaps-0-00000.wav", "A dog barks while a downpour beats the roof"),
        clip("val/val/procedural/bell-0000.wav", "a bell rings"),
    ]
    texts = ["rain falls", "heavy rain pours", "the sound of a dog barks", "a bell rings", "something else"]
    found = meant_by_words(COMPOSER, clips, texts)
    # By `small_queries.ALSO` both rains answer one another.
    expected = np.array(
        [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool
    )  # what is no kind of the composer's is left to the captions
    np.testing.assert_array_equal(found, expected)
