"""DiffATR: find sounds by words and words by sounds, with diffusion-based audio-text retrieval."""

__version__ = "0.1.0"
