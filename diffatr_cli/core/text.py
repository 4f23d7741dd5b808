"""The caption encoder: a BERT, its tokenizer, and the pooling of token states. `pretrained` loads one.

B batch, L tokens, F features (768 for bert-base-uncased, 384 for MiniLM).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from .bert import Bert

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_caption(caption: str) -> str:
    """Lower case, punctuation removed, single spaces. Source: the baseline pipeline (Mei et al. 2022)."""
    return " ".join(caption.lower().translate(_PUNCTUATION).split())


class TextEncoder(nn.Module):
    """Captions -> one vector each.

    Args:
        bert: gives token states.
        tokenizer: of that BERT, padding to the longest of a batch.
        pooling: the [CLS] state, or the mean over a caption's tokens.
        max_tokens: longer captions are cut; also those longer than the BERT has positions.
    """

    def __init__(self, bert: Bert, tokenizer: Tokenizer, pooling: Literal["cls", "mean"] = "cls", max_tokens: int = 64) -> None:
        super().__init__()
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.bert = bert
        self.tokenizer.enable_truncation(min(max_tokens, self.bert.config.max_position_embeddings))
        self.features: int = self.bert.config.hidden_size

    def tokenise(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> token ids (B, L) int64 and mask (B, L) bool, padded to the longest."""
        encoded = self.tokenizer.encode_batch([normalise_caption(c) for c in captions])
        ids = torch.tensor([e.ids for e in encoded], dtype=torch.long)
        return ids, torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token states: (B, L), (B, L) -> (B, L, F)."""
        return cast(Tensor, self.bert(ids, mask))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled caption vectors: (B, L), (B, L) -> (B, F)."""
        states = self.tokens(ids, mask)
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str], batch_size: int = 64) -> Tensor:
        """Captions -> (B, F) float32 in their order, in evaluation mode, batched by length so that little is padded.

        Equal captions are embedded once.
        """
        device = next(self.bert.parameters()).device
        different = sorted({normalise_caption(caption) for caption in captions}, key=lambda caption: (len(caption), caption))
        row_of = {caption: row for row, caption in enumerate(different)}
        pooled = torch.empty(len(different), self.features)
        training = self.training
        self.eval()
        for start in range(0, len(different), batch_size):
            ids, mask = self.tokenise(different[start : start + batch_size])
            pooled[start : start + batch_size] = self(ids.to(device), mask.to(device)).float().cpu()
        self.train(training)
        return pooled[[row_of[normalise_caption(caption)] for caption in captions]]
