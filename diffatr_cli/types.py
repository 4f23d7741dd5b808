"""Words and numbers that every part of the package means in the same way."""

from __future__ import annotations

from typing import Literal

Direction = Literal["t2a", "a2t"]
"""Text-to-audio: captions query clips. Audio-to-text: clips query captions."""
DIRECTIONS: tuple[Direction, ...] = ("t2a", "a2t")

System = Literal["baseline", "qbnorm", "walk", "diff", "one-step"]
"""`baseline` ranks by cosine similarity alone, `qbnorm` by the cosine with querybank normalisation, `walk` by the cosine with a
random walk over the candidates' neighbours; `diff` uses the diffusion model, `one-step` the same in one step."""
SYSTEMS: tuple[System, ...] = ("baseline", "qbnorm", "walk", "diff", "one-step")

SAMPLE_RATE = 32_000
"""Hz, of every prepared clip and of everything the encoders hear."""
