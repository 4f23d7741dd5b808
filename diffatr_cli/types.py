"""Words and numbers that every part of the package means in the same way."""

from __future__ import annotations

from typing import Literal

Direction = Literal["t2a", "a2t"]
"""Text-to-audio: captions query clips. Audio-to-text: clips query captions."""
DIRECTIONS: tuple[Direction, ...] = ("t2a", "a2t")

System = Literal["baseline", "diff"]
"""`baseline` ranks by cosine similarity alone; `diff` uses the diffusion model."""

SAMPLE_RATE = 32_000
"""Hz, of every prepared clip and of everything the encoders hear."""
