"""The two towers: an audio and a text encoder, each with a projection head into the shared space of unit vectors.

B batch, S samples, T frames, M mels, F features of an encoder, D shared size.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from .text import CaptionEncoder


class ProjectionHead(nn.Sequential):
    """Linear to H, 2D if not given, ReLU, Linear to D: (B, F) -> (B, D). Source: the baseline pipeline (Mei et al. 2022)."""

    def __init__(self, features: int, dim: int, dropout: float = 0.0, width: int | None = None) -> None:
        width = width or 2 * dim
        super().__init__(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, dim))

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, F) -> unit vectors (B, D)."""
        return functional.normalize(self(pooled).float(), dim=-1)


class NoHead(nn.Module):
    """For encoders whose vectors share a space already: (B, D) -> (B, D)."""

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) -> unit vectors (B, D)."""
        return functional.normalize(pooled.float(), dim=-1)


Head = ProjectionHead | NoHead


class TwoTowers(nn.Module):
    """Audio and captions as unit vectors of one space, whose dot product is the cosine of Eq. 7.

    Args:
        audio: the audio encoder, or None where there is none, and clips arrive as pooled features.
        text: the caption encoder, or None where captions arrive as its cached vectors only.
        audio_features, text_features: F of either.
        dim: D.
        dropout: inside the heads.
        heads: `mlp`, or `none` where the encoders' vectors share a space.
        head_width: H of the heads.

    Raises:
        ValueError: without heads, where a size of the encoders is not D.
    """

    def __init__(
        self,
        audio: Any,
        text: CaptionEncoder | None,
        audio_features: int,
        text_features: int,
        dim: int,
        dropout: float = 0.0,
        heads: Literal["mlp", "none"] = "mlp",
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.audio = audio
        self.text = text
        if heads == "none" and (audio_features, text_features) != (dim, dim):
            raise ValueError(
                f"without heads, sounds of {audio_features} and captions of {text_features} features share no space of {dim}"
            )
        self.audio_head: Head = NoHead() if heads == "none" else ProjectionHead(audio_features, dim, dropout, head_width)
        self.text_head: Head = NoHead() if heads == "none" else ProjectionHead(text_features, dim, dropout, head_width)

    def embed_pooled_audio(self, pooled: Tensor) -> Tensor:
        """Pooled audio features (B, F) -> unit vectors (B, D)."""
        return self.audio_head.embed(pooled)

    def embed_pooled_text(self, pooled: Tensor) -> Tensor:
        """Pooled caption features (B, F) -> unit vectors (B, D)."""
        return self.text_head.embed(pooled)

    def embed_clips(self, inputs: Any) -> Tensor:
        """What the audio encoder's `pooled` takes, log-mels (B, T, M) in dB or another's inputs -> unit vectors (B, D)."""
        return self.embed_pooled_audio(self.audio.pooled(inputs))

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> unit vectors (B, D). Raises RuntimeError where the caption encoder was left out."""
        if self.text is None:
            raise RuntimeError("these towers were built without their caption encoder")
        return self.embed_pooled_text(self.text(ids, mask))
