"""BERT as an encoder of token states, for training and inference, without a library that takes seconds to load.

B batch, L tokens, F features, heads x d = F. Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional
Transformers". The state dict has the names of `transformers.BertModel`, so that weights published for it fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BertConfig:
    """The sizes in a BERT's `config.json`; the defaults are bert-base's, which such a file may leave out."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BertConfig:
        """The content of a `config.json`. Raises ValueError where it describes something else than this BERT."""
        fixed = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
        for name, value in fixed.items():
            if document.get(name, value) != value:
                raise ValueError(f"its {name} is {document[name]!r}; a BERT with {value!r} is needed")
        config = cls(**{field.name: document[field.name] for field in fields(cls) if field.name in document})
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads cannot share {config.hidden_size} features evenly")
        return config


class Bert(nn.Module):
    """Token embeddings and the layers over them, without the pooling layer. Made to be loaded: it starts with empty embeddings.

    Dropout falls where BERT has it: on the embeddings, the attention weights and each half-layer's output.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        features = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": _table(config.vocab_size, features),
                "position_embeddings": _table(config.max_position_embeddings, features),
                "token_type_embeddings": _table(config.type_vocab_size, features),
                "LayerNorm": nn.LayerNorm(features, config.layer_norm_eps),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) and which of them are no padding (B, L) bool -> states (B, L, F); those of padding mean nothing.

        L may reach `max_position_embeddings`. All tokens are of the first segment.
        """
        table = self.embeddings
        words, segment = table["word_embeddings"](ids), cast(Tensor, table["token_type_embeddings"].weight)[0]
        states = words + segment + cast(Tensor, table["position_embeddings"].weight)[: ids.shape[1]]
        states = functional.dropout(table["LayerNorm"](states), self.config.hidden_dropout_prob, self.training)
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            states = layer(states, mask[:, None, None, :])
        return cast(Tensor, states)


class _Layer(nn.Module):
    """Self-attention, then two linear maps; each half adds its input and normalises."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        features = config.hidden_size
        heads = nn.ModuleDict({name: nn.Linear(features, features) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": heads, "output": _joined(features, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(features, config.intermediate_size)})
        self.output = _joined(config.intermediate_size, config)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, F) and the keys to attend to, (B, 1, 1, L) bool -> (B, L, F)."""
        heads = cast(nn.ModuleDict, self.attention["self"])
        q, k, v = (
            heads[name](states).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)
        states = self._add(cast(nn.ModuleDict, self.attention["output"]), attended, states)
        return self._add(self.output, functional.gelu(self.intermediate["dense"](states)), states)

    def _add(self, half: nn.ModuleDict, inner: Tensor, states: Tensor) -> Tensor:
        new = functional.dropout(half["dense"](inner), self.config.hidden_dropout_prob, self.training)
        return cast(Tensor, half["LayerNorm"](new + states))


def _table(rows: int, features: int) -> nn.Embedding:
    """An embedding to be loaded. Of zeros, because to draw normal numbers on the meta device loads torch's compiler, a second."""
    return nn.Embedding(rows, features, _weight=torch.zeros(rows, features))


def _joined(width: int, config: BertConfig) -> nn.ModuleDict:
    """The end of a half-layer: a linear map back to the features, and the layer norm of its sum with the input."""
    return nn.ModuleDict(
        {"dense": nn.Linear(width, config.hidden_size), "LayerNorm": nn.LayerNorm(config.hidden_size, config.layer_norm_eps)}
    )


def state_from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are published -> the state dict of `Bert`, float32.

    Drops a leading `bert.`, all that is no encoder (pooling layer, heads of the pre-training tasks, position numbers), and the
    names `gamma` and `beta` that the layer norms of bert-base-uncased have from TensorFlow.
    """
    state = {}
    for name, tensor in tensors.items():
        own = (
            name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        )
        if own.startswith(("embeddings.", "encoder.")) and not own.endswith("_ids"):
            state[own] = tensor.float()
    return state
