"""The two towers: an audio and a text encoder, each with a projection head into the shared space of unit vectors.

B batch, S samples, T frames, M mels, D shared size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .audio_encoder import AudioEncoder
from .text import TextEncoder


class ProjectionHead(nn.Sequential):
    """Linear to 2D, ReLU, Linear to D: (B, F) -> (B, D). Source: the baseline pipeline (Mei et al. 2022)."""

    def __init__(self, features: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(features, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, F) -> unit vectors (B, D)."""
        return functional.normalize(self(pooled).float(), dim=-1)


class TwoTowers(nn.Module):
    """Audio and captions as unit vectors of one space, whose dot product is the cosine of Eq. 7.

    Args:
        audio: the audio encoder.
        text: the caption encoder, or None where captions arrive as its cached vectors only.
        text_features: F of the caption encoder.
        dim: D.
        dropout: inside the heads.
    """

    def __init__(self, audio: AudioEncoder, text: TextEncoder | None, text_features: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.audio = audio
        self.text = text
        self.audio_head = ProjectionHead(audio.features, dim, dropout)
        self.text_head = ProjectionHead(text_features, dim, dropout)

    def embed_pooled_audio(self, pooled: Tensor) -> Tensor:
        """Pooled audio features (B, F_audio) -> unit vectors (B, D)."""
        return self.audio_head.embed(pooled)

    def embed_pooled_text(self, pooled: Tensor) -> Tensor:
        """Pooled caption features (B, F_text) -> unit vectors (B, D)."""
        return self.text_head.embed(pooled)

    def embed_logmel(self, logmel: Tensor) -> Tensor:
        """Log-mels (B, T, M) in dB -> unit vectors (B, D)."""
        return self.embed_pooled_audio(self.audio.pooled(logmel))

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, D). Raises RuntimeError where the caption encoder was left out."""
        if self.text is None:
            raise RuntimeError("these towers were built without their caption encoder")
        return self.embed_pooled_text(self.text(ids, mask))
