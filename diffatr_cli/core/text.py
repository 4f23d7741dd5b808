"""Caption encoders: what all share, and the fast one, a BERT with its tokenizer. `pretrained` loads one.

B batch, L tokens, H size of a token state, F features of a caption (H, but where a model projects them).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from .bert import Bert
from .ragged import half

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenPooling = Literal["cls", "mean", "max", "mean_sqrt_len"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_caption(caption: str) -> str:
    """Lower case, punctuation removed, single spaces. Source: the baseline pipeline (Mei et al. 2022)."""
    return " ".join(caption.lower().translate(_PUNCTUATION).split())


class CaptionEncoder(nn.Module):
    """Base of the caption encoders: captions -> one vector each. A subclass tokenises and turns tokens into a vector.

    Attributes:
        features: F.

    Args:
        normalise: captions go through `normalise_caption`; else they are tokenised as they are written.
    """

    features: int

    def __init__(self, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise

    def tokenise(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> token ids (B, L) int64 and mask (B, L) bool, padded to the longest."""
        raise NotImplementedError

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token states: (B, L), (B, L) -> (B, L, H)."""
        raise NotImplementedError

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled caption vectors: (B, L), (B, L) -> (B, F)."""
        raise NotImplementedError

    def words(self) -> frozenset[str]:
        """The words that the tokenizer knows whole, lower case; none where that cannot be told."""
        return frozenset()

    def encode(self, captions: Sequence[str], batch_size: int = 64) -> Tensor:
        """Captions -> (B, F) float32 in their order, in evaluation mode, batched by length so that little is padded.

        Equal captions are embedded once.
        """
        different, rows = self._different(captions)
        parts = [torch.empty(0, self.features), *(pooled.float().cpu() for pooled, _ in self._run(self, different, batch_size))]
        return torch.cat(parts)[rows]

    def token_states(self, captions: Sequence[str], batch_size: int = 64) -> list[Tensor]:
        """Captions -> of each the states (L, H) of its own tokens, special ones too, float16 on the CPU; else as `encode`."""
        different, rows = self._different(captions)
        found = [
            each[inside.cpu()]
            for states, mask in self._run(self.tokens, different, batch_size)
            for each, inside in zip(half(states), mask, strict=True)
        ]
        return [found[row] for row in rows]

    def _different(self, captions: Sequence[str]) -> tuple[list[str], list[int]]:
        """The different captions as they are tokenised, by length, and the place of each caption among them."""
        written = [self.written(caption) for caption in captions]
        different = sorted(set(written), key=lambda caption: (len(caption), caption))
        row_of = {caption: row for row, caption in enumerate(different)}
        return different, [row_of[caption] for caption in written]

    @torch.inference_mode()
    def _run(
        self, function: Callable[[Tensor, Tensor], Tensor], written: Sequence[str], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What a function of ids and mask makes of batches of captions, in evaluation mode, and the masks."""
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        for start in range(0, len(written), batch_size):
            ids, mask = self.tokenise(written[start : start + batch_size])
            yield function(ids.to(device), mask.to(device)), mask
        self.train(training)

    def written(self, caption: str) -> str:
        """A caption as it is tokenised."""
        return normalise_caption(caption) if self.normalise else caption.strip()


def pool_tokens(states: Tensor, mask: Tensor, pooling: TokenPooling) -> Tensor:
    """Token states (B, L, H) and mask (B, L) -> (B, H), over a caption's own tokens.

    `cls` takes the first token's state; `mean_sqrt_len` divides the sum by the root of the number of tokens.
    """
    if pooling == "cls":
        return states[:, 0]
    inside = mask.unsqueeze(-1)
    if pooling == "max":
        return states.masked_fill(~inside, float("-inf")).amax(1)
    weights = inside.to(states.dtype)
    count = weights.sum(1)
    return (states * weights).sum(1) / (count if pooling == "mean" else count.sqrt())


class TextEncoder(CaptionEncoder):
    """A BERT, without `transformers`: the fast path.

    Args:
        bert: gives token states.
        tokenizer: of that BERT, padding to the longest of a batch.
        pooling: of `pool_tokens`.
        max_tokens: longer captions are cut; also those longer than the BERT has positions.
        normalise: as in `CaptionEncoder`.
    """

    def __init__(
        self, bert: Bert, tokenizer: Tokenizer, pooling: TokenPooling = "cls", max_tokens: int = 64, normalise: bool = True
    ) -> None:
        super().__init__(normalise)
        self.pooling = pooling
        self.tokenizer = tokenizer
        self.bert = bert
        self.tokenizer.enable_truncation(min(max_tokens, self.bert.config.max_position_embeddings))
        self.features: int = self.bert.config.hidden_size

    def tokenise(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer.encode_batch([self.written(caption) for caption in captions])
        ids = torch.tensor([e.ids for e in encoded], dtype=torch.long)
        return ids, torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)

    def words(self) -> frozenset[str]:
        return frozenset(word for word in self.tokenizer.get_vocab() if word.isalpha())

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.bert(ids, mask))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return pool_tokens(self.tokens(ids, mask), mask, self.pooling)
