"""Models of `transformers` from folders and the hub: text models, audio models, and CLAP's two towers.

Weights are read from safetensors, or from `pytorch_model.bin` by torch's safe unpickling. A model's own code is never run.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffATRError, UsageError
from .hub import model_folder, read_config, weights_of

if TYPE_CHECKING:
    from torch import nn

    from ..core.transformers_audio import Family, FramePooling, TransformersAudio
    from ..core.transformers_text import TransformersText

_WAVEFORMS = ("wav2vec2", "wav2vec2-conformer", "wavlm", "hubert", "data2vec-audio", "unispeech", "unispeech-sat", "sew", "sew-d")
AUDIO_MODELS = ("audio-spectrogram-transformer", "clap", "whisper", *_WAVEFORMS)
"""The types of audio models that are known here."""

_EXTRACTORS: dict[str, tuple[str, dict[str, Callable[[Any], int]]]] = {
    "audio-spectrogram-transformer": (
        "ASTFeatureExtractor",
        {"num_mel_bins": lambda config: config.num_mel_bins, "max_length": lambda config: config.max_length},
    ),
    "clap": ("ClapFeatureExtractor", {"feature_size": lambda config: config.audio_config.num_mel_bins}),
    "whisper": (
        "WhisperFeatureExtractor",
        {"feature_size": lambda config: config.num_mel_bins, "nb_max_frames": lambda config: 2 * config.max_source_positions},
    ),
}
_OF_WAVEFORMS: tuple[str, dict[str, Callable[[Any], int]]] = ("Wav2Vec2FeatureExtractor", {})
"""The feature extractor of each architecture, and what of it must be as the model has it."""


def load_audio_model(name: str, pooling: FramePooling, dropout: float = 0.0, field: str = "audio.encoder") -> TransformersAudio:
    """An audio model by its hub name or folder, with its own feature extractor.

    Args:
        pooling: as in `TransformersAudio`.
        dropout: of pooled features while training.
        field: what `name` was given as, for messages.

    Raises:
        UsageError: it is no audio model of an architecture that is known here, or has no pooling of its own.
        DiffATRError: as `hub.model_folder`, or its files do not fit together.
    """
    from ..core.transformers_audio import ClapAudio, SpectrogramTransformer, TransformersAudio, WaveformEncoder, WhisperEncoder

    folder = model_folder(name, field)
    kind = _kind(folder, AUDIO_MODELS, field, "an audio model")
    config, extractor = _load(folder, field, "config"), _load(folder, field, "extractor")
    _check_extractor(kind, config, extractor, folder, field)
    model = _load(folder, field, "model")
    families = {"audio-spectrogram-transformer": SpectrogramTransformer, "clap": ClapAudio, "whisper": WhisperEncoder}
    family = families.get(kind, WaveformEncoder)
    _without(model, {"clap": ("text_model", "text_projection"), "whisper": ("decoder",)}.get(kind, ()))

    def ask(model: Any) -> Family:
        return family(model, extractor)

    try:
        return TransformersAudio(model, ask, pooling, dropout)
    except ValueError as error:
        raise UsageError(f"audio.pooling: {error}") from None
    except AttributeError as error:
        raise DiffATRError(f"{field}: {folder}: its feature extractor is not that of the model ({error}).") from None


def load_text_model(
    name: str, folder: Path, pooling: str, max_tokens: int = 64, normalise: bool = True, field: str = "text.encoder"
) -> TransformersText:
    """A text model, or CLAP's text tower, from its folder.

    Args:
        name: what messages call it.
        pooling: `cls`, `mean`, `max`, or `model`: as sentence-transformers set it up, or CLAP's pooled and projected vector.

    Raises:
        UsageError: it is no text model, or has no pooling of its own.
        DiffATRError: its files do not fit together.
    """
    from torch import nn

    from ..core.transformers_text import TransformersText

    config = _load(folder, field, "config")
    words = _check_reads(config, folder, field)
    tokenizer = _load(folder, field, "tokenizer")
    files = sorted({*tokenizer.vocab_files_names.values()})
    if files and not any((folder / file).is_file() for file in files):  # transformers would begin an empty vocabulary
        raise DiffATRError(
            f"{field}: {folder}: its tokenizer has no vocabulary ({' or '.join(files)}). Copy the folder again, whole."
        )
    if len(tokenizer) > words:
        raise other_tokenizer(field, folder, len(tokenizer), words)
    if tokenizer.pad_token is None:
        raise UsageError(f"{field}: {name}: its tokenizer has no padding, as those of models that write; name one that reads.")
    after: nn.Module = nn.Identity()
    if config.model_type == "clap":
        model = _load(folder, field, "model")
        features, how, after = model.config.text_config.hidden_size, pooling, nn.Identity()
        if pooling == "model":
            features, how, after = model.config.projection_dim, "pooler", model.text_projection
        model = model.text_model
    else:
        features, how = config.hidden_size, pooling
        if pooling == "model":
            how, after, features = _sentence_pooling(name, folder, features)
        model = _load(folder, field, "model")
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return TransformersText(model, tokenizer, how, after, int(features), max_tokens, normalise)


def other_tokenizer(field: str, folder: Path, known: int, words: int) -> DiffATRError:
    """The error for a tokenizer that knows more tokens than its model."""
    return DiffATRError(
        f"{field}: {folder}: its tokenizer knows {known:,} tokens and its model {words:,}: they are not of one model. Copy the "
        "folder again, whole."
    )


def _check_reads(config: Any, folder: Path, field: str) -> int:
    """How many tokens a text model knows. Raises UsageError where it is none."""
    from transformers import MODEL_MAPPING

    if config.model_type == "clap":
        return int(config.text_config.vocab_size)
    found = MODEL_MAPPING.get(type(config), None)
    takes = getattr(found[0] if isinstance(found, tuple) else found, "main_input_name", None)
    if takes != "input_ids" or not hasattr(config, "hidden_size") or not hasattr(config, "vocab_size"):
        raise UsageError(
            f"{field}: {folder} holds a model of the type {config.model_type}, which reads no texts. Name a text model, such as "
            "a BERT, RoBERTa or MPNet, or a CLAP."
        )
    return int(config.vocab_size)


def _check_extractor(kind: str, config: Any, extractor: Any, folder: Path, field: str) -> None:
    """Raises DiffATRError where a feature extractor is not that of the model, which would fail later or hear nonsense."""
    name, sizes = _EXTRACTORS.get(kind, _OF_WAVEFORMS)
    if not any(base.__name__ == name for base in type(extractor).__mro__):
        wrong = f"is of a {type(extractor).__name__}, and a model of the type {kind} has a {name}"
    else:
        wrong = "; ".join(
            f"has {key} {found}, and the model {of_model(config)}"
            for key, of_model in sizes.items()
            if (found := getattr(extractor, key)) != of_model(config)
        )
    if wrong:
        raise DiffATRError(
            f"{field}: {folder}: its feature extractor (preprocessor_config.json) {wrong}. Copy the folder again, whole."
        )


def _sentence_pooling(name: str, folder: Path, features: int) -> tuple[str, nn.Module, int]:
    """The pooling that sentence-transformers keep beside a model, what follows it, and the size of the outcome."""
    from torch import nn

    from ..core.transformers_text import Dense, Unit

    if not (folder / "modules.json").is_file():
        raise UsageError(f"text.pooling: {name} brings no pooling of its own; use cls or mean.")
    how, after = "mean", list[nn.Module]()
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}
    for module in _list(folder / "modules.json"):
        kind, part = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
        if kind == "Pooling":
            config = read_config(part)
            chosen = [mode for mode in modes if config.get(f"pooling_mode_{mode}")]
            others = [key for key, on in config.items() if key.startswith("pooling_mode_") and on and key[13:] not in modes]
            named = config.get("pooling_mode")
            how = modes[chosen[0]] if chosen else str(named)
            if len(chosen) > 1 or others or how not in modes.values():
                raise UsageError(f"text.pooling: {name} pools in a way not known here ({part / 'config.json'}); use cls or mean.")
        elif kind == "Dense":
            config = read_config(part)
            linear = nn.Linear(int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True)))
            linear.load_state_dict({key.removeprefix("linear."): value for key, value in _tensors(part).items()})
            activation = getattr(nn, str(config.get("activation_function", "Identity")).rpartition(".")[2], None)
            if activation not in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid):
                raise UsageError(f"text.pooling: {name} has a layer not known here ({part / 'config.json'}); use cls or mean.")
            after.append(Dense(linear, activation()))
            features = linear.out_features
        elif kind == "Normalize":
            after.append(Unit())
        elif kind != "Transformer":
            raise UsageError(f"text.pooling: {name} has a part that is not known here ({kind}); use cls or mean.")
    return how, nn.Sequential(*after), features


def _list(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DiffATRError(f"{path}: cannot be read as sentence-transformers' list of modules. Copy the folder again, whole.")
    return found


def _tensors(folder: Path) -> dict[str, Any]:
    """The weights in a folder, by safe loading."""
    try:
        if (path := folder / "model.safetensors").is_file():
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        path = folder / "pytorch_model.bin"
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise DiffATRError(f"{path}: cannot be read as weights ({type(error).__name__}).") from error


def _kind(folder: Path, known: tuple[str, ...], field: str, what: str) -> str:
    kind = str(read_config(folder).get("model_type"))
    if kind not in known:
        raise UsageError(
            f"{field}: {folder} holds a model of the type {kind}, which is not {what} known here: {', '.join(known)}."
        )
    return kind


def _load(folder: Path, field: str, what: str) -> Any:
    """A model, its settings, its tokenizer or its feature extractor, from a folder alone.

    Raises:
        DiffATRError: it is missing, damaged, or needs code that comes with it.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoTokenizer
    from transformers.utils import logging as talk

    loaders: dict[str, Callable[..., Any]] = {
        "model": AutoModel.from_pretrained,
        "config": AutoConfig.from_pretrained,
        "tokenizer": AutoTokenizer.from_pretrained,
        "extractor": AutoFeatureExtractor.from_pretrained,
    }
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # between WavLM's code and torch's
    talk.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # Other revisions of transformers load in the type of the file, which may be half precision.
        more = {"dtype": "float32", "output_loading_info": True} if what == "model" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is wrong an error tells
            loaded = loaders[what](str(folder), local_files_only=True, trust_remote_code=False, **more)
    except Exception as error:
        raise _told(error, folder, field, what) from error
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()  # type: ignore[no-untyped-call]
    if what != "model":
        return loaded
    model, told = loaded
    # Poolers that a checkpoint lacks and that are not used here are no loss; anything else would be left at random.
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(("pooler.", "text_model.pooler.position")))
    if missing or told["mismatched_keys"]:
        shown = ", ".join([*missing, *map(str, told["mismatched_keys"])][:3])
        raise DiffATRError(f"{field}: {folder}: its weights lack some or have other shapes ({shown}). Copy it again, whole.")
    return model.eval()


def _told(error: Exception, folder: Path, field: str, what: str) -> DiffATRError:
    """Why something cannot be loaded, for people: what transformers advises is often the one thing that is never done here."""
    name = {"model": "a model", "config": "its settings", "tokenizer": "its tokenizer", "extractor": "its feature extractor"}[
        what
    ]
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    said = " ".join(map(str, chain))
    if "trust_remote_code" in said:
        return UsageError(
            f"{field}: {folder}: {name} comes with code of its own, which is never run here. Name a model of a type that "
            "transformers knows itself."
        )
    if what == "model" and any(isinstance(each, pickle.UnpicklingError) for each in chain):
        files = ", ".join(path.name for path in weights_of(folder) if path.suffix == ".bin")
        return DiffATRError(
            f"{field}: {folder}: {files} is refused: it is damaged, or holds Python objects beside plain tensors, which could "
            "run code. Take the model with model.safetensors instead."
        )
    if what == "config" and "does not recognize" in said:
        import transformers

        return UsageError(
            f"{field}: {folder} holds a model of the type {read_config(folder).get('model_type')}, which transformers "
            f"{transformers.__version__} does not know. Name another, or install a later transformers."
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return DiffATRError(f"{field}: {folder}: {name} cannot be loaded from it ({reason}). Copy the folder again, whole.")


def _without(model: Any, parts: tuple[str, ...]) -> None:
    """Let go of parts of a model that are not asked."""
    for part in parts:
        delattr(model, part)
