"""Captions by any text model of `transformers`: what `text.encoder` names beside BERTs. `pretrained` loads one.

B batch, L tokens, H size of a token state, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .text import CaptionEncoder, TokenPooling, pool_tokens


class TransformersText(CaptionEncoder):
    """A text model with its own tokenizer.

    Args:
        model: its call gives `last_hidden_state` and perhaps `pooler_output`.
        tokenizer: of `transformers`.
        pooling: of `pool_tokens`; `pooler` takes the model's own `pooler_output`.
        after: what follows the pooling: a projection, or sentence-transformers' dense layers.
        features: F.
        max_tokens: longer captions are cut; also those longer than the model has positions.
        normalise: as in `CaptionEncoder`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[..., Any],
        pooling: TokenPooling | str,
        after: nn.Module,
        features: int,
        max_tokens: int = 64,
        normalise: bool = True,
    ) -> None:
        super().__init__(normalise)
        self.model, self.after = model, after
        self.tokenizer, self.pooling = tokenizer, pooling
        self.features = features
        self.max_tokens = min(max_tokens, _positions(model), getattr(tokenizer, "model_max_length", max_tokens))

    def tokenise(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        written = [self.written(caption) for caption in captions]
        encoded = self.tokenizer(written, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out = self.model(input_ids=ids, attention_mask=mask.long())
        if self.pooling == "pooler":
            pooled = out.pooler_output
        else:
            pooled = pool_tokens(out.last_hidden_state, mask, cast(TokenPooling, self.pooling))
        return cast(Tensor, self.after(pooled))


def _positions(model: Any) -> int:
    """How many tokens a model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    # RoBERTa and its kin count positions from the padding's number on.
    offset = any(
        isinstance(each, nn.Embedding) and each.padding_idx is not None
        for name, each in model.named_modules()
        if name.endswith("position_embeddings")
    )
    return int(positions) - (model.config.pad_token_id + 1 if offset else 0)


class Dense(nn.Module):
    """A dense layer as sentence-transformers has it after its pooling: (B, H) -> (B, F)."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.activation(self.linear(x)))


class Unit(nn.Module):
    """Vectors of norm 1, as sentence-transformers' `Normalize` makes them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=-1)
