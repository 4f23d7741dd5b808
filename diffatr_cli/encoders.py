"""Every encoder that a recipe can name, and how it is built: the one place to add another.

`audio.encoder` and `text.encoder` name, in this order, an encoder of this package, one that was registered from outside, or a
model of `transformers`, by its hub name or its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.audio_encoder import AudioEncoder, SideBySide, SmallCnn
from .core.ragged import half
from .core.text import CaptionEncoder, TextEncoder
from .device import wants_bf16
from .errors import DiffATRError, UsageError
from .files import file_hash
from .pretrained import load_panns, load_text_encoder, text_folder
from .pretrained.hub import EXTRACTOR, read_config, weights_of
from .recipe_schema import AudioSection, TextSection

AudioBuilder = Callable[[AudioSection], "ClipEncoder"]
"""From the `audio` section of a recipe to an encoder, with its first weights."""

ClipEncoder = Any
"""An encoder of clips: an `AudioEncoder` of log-mels, or a `WaveEncoder`, or what has its names."""

HEARING = "levelled"
"""Names the way from a file to what the audio encoder hears: decoding, mixing down, levels. Whoever changes what comes of a
recording gives it another name, so that indexes and caches are made again and vectors of two ways never mix."""

GROUP = "diffatr.audio_encoders"
"""The group of entry points under which a package that is installed offers audio encoders."""

_registered: dict[str, AudioBuilder] = {}


def register_audio_encoder(name: str, build: AudioBuilder) -> None:
    """Let `audio.encoder` name an encoder of one's own, in this process.

    An installed package does the same for every process with an entry point of the group `diffatr.audio_encoders`.

    Raises:
        UsageError: the name is taken by an encoder of this package.
    """
    if name in _OURS:
        raise UsageError(f"audio.encoder: {name} is an encoder of this package. Register yours under another name.")
    _registered[name] = build


def build_audio_encoder(section: AudioSection) -> ClipEncoder:
    """The audio encoder of a recipe, with the weights of others where it names them.

    Raises:
        UsageError: a field does not suit the encoder, or there is no such encoder.
        DiffATRError: its weights are missing or damaged.
    """
    if build := _OURS.get(section.encoder) or _registered.get(section.encoder) or _installed(section.encoder):
        return build(section) if section.encoder in _OURS else _build_others(build, section)
    if "/" not in section.encoder and not Path(section.encoder).is_dir():
        names = sorted({*_OURS, "features", *_registered, *(each.name for each in entry_points(group=GROUP))})
        raise UsageError(
            f"audio.encoder: there is no encoder {section.encoder}. Use one of {', '.join(names)}, an audio model's name on "
            "the hub (OWNER/NAME), or its folder."
        )
    if section.weights is not None:
        raise UsageError("audio.weights: PANNs weights fit cnn14 and resnet38; a model of transformers brings its own")
    if section.perturb:
        raise UsageError("audio.perturb: varies log-mels, which a model of transformers does not take; set it to false")
    from .pretrained.transformers_models import load_audio_model

    return load_audio_model(section.encoder, section.pooling, section.dropout)


def _build_others(build: AudioBuilder, section: AudioSection) -> ClipEncoder:
    """An encoder from outside this package. Raises DiffATRError where its code fails, UsageError where it is no encoder."""
    try:
        encoder = build(section)
    except DiffATRError:
        raise
    except Exception as error:
        raise DiffATRError(
            f"audio.encoder: {section.encoder}: its own code failed ({type(error).__name__}: {error}). --debug shows where."
        ) from error
    lacks = [name for name in ("features", "rate", "longest", "inputs", "pooled", "embed") if not hasattr(encoder, name)]
    if lacks:
        raise UsageError(
            f"audio.encoder: what {section.encoder} builds, a {type(encoder).__name__}, lacks {', '.join(lacks)}. Derive it from "
            "diffatr_cli.core.wave_encoder.WaveEncoder (docs/encoders.md)."
        )
    return encoder


def hears_logmels(section: AudioSection) -> bool:
    """Whether a recipe's audio encoder is one of this package, which learn from cached log-mels."""
    return section.encoder in _OURS


def is_given(section: AudioSection) -> bool:
    """Whether a recipe has no encoders, and takes the vectors that its data set holds."""
    return section.encoder == "features"


def is_of_transformers(section: AudioSection) -> bool:
    """Whether a recipe's audio encoder is a model of transformers. Its weights can be had again from where its name leads."""
    name = section.encoder
    return not (hears_logmels(section) or is_given(section) or name in _registered or _installed(name))


def audio_key(section: AudioSection) -> str | None:
    """What caches call the pooled features of a recipe's frozen audio encoder; None where it is trained.

    None too where nothing tells its weights apart: those that begin at random, those of somebody's code, and those whose file
    is gone.

    Raises:
        UsageError, DiffATRError: as `hub.model_folder`, for a model of transformers.
    """
    weights = section.weights or (section.encoder if is_of_transformers(section) else None)
    if section.finetune is not False or weights is None:
        return None
    if section.weights and not Path(section.weights).expanduser().is_file():
        return None
    settings = [section.encoder, section.pooling, section.weights, section.hop, section.channels]
    return hashlib.sha256(json.dumps([settings, source_id(weights, "audio.encoder"), HEARING]).encode()).hexdigest()[:16]


def source_id(name: str, field: str) -> str:
    """What tells models of others apart: a hash of the weights that a name stands for, and of its feature extractor's settings.

    Args:
        field: what `name` was given as, for messages.

    Raises:
        UsageError, DiffATRError: as `hub.model_folder`.
    """
    settings: list[str] = []
    if (path := Path(name).expanduser()).is_file():
        files = [path]
    else:
        folder = text_folder(name, field)
        files = weights_of(folder)
        if (folder / EXTRACTOR).is_file():
            settings = [json.dumps(read_config(folder, EXTRACTOR), sort_keys=True)]
    # The hub's cache names its files by their hashes, and large ones take seconds to read.
    known = [file.resolve().name for file in files]
    hashes = [name if len(name) == 64 else file_hash(file) for name, file in zip(known, files, strict=True)]
    return hashlib.sha256(" ".join([*(hashes or [name]), *settings]).encode()).hexdigest()[:16]


def pool_clips(encoder: ClipEncoder, waveforms: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Waveforms at an encoder's rate, of any lengths -> pooled features (n, F) float32 on the CPU, each as if it were alone.

    The encoders of this package hear every sound at one level; models of others hear them as they are. The encoder must be in
    evaluation mode.
    """
    if isinstance(encoder, AudioEncoder):
        from .core.inference import pooled_features

        return pooled_features(encoder, _tensors(waveforms), level=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16("auto", device)):
        pooled: Tensor = encoder.embed(waveforms)
    return pooled


def frames_of_clips(encoder: ClipEncoder, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
    """Waveforms at 32 kHz, of any lengths -> of each its frames (T', F) float16 on the CPU, of which `pool_clips` gives the
    pooled features. The encoder must be one of this package, in evaluation mode."""
    from .core.inference import frame_features

    return [half(frames) for frames in frame_features(encoder, _tensors(waveforms), level=True)]


def pool_with_frames(encoder: ClipEncoder, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, list[Tensor]]:
    """What `pool_clips` and `frames_of_clips` give, in one pass, of one clip at least."""
    from .core.audio_encoder import pool_frames
    from .core.inference import frame_features

    found = frame_features(encoder, _tensors(waveforms), level=True)
    return torch.cat([pool_frames(frames[None]) for frames in found]), [half(frames) for frames in found]


def _tensors(waveforms: Sequence[np.ndarray]) -> list[Tensor]:
    """Waveforms as tensors, which know no negative strides and no other machine's order of bytes, and may be written to."""
    return [torch.from_numpy(np.require(wave, np.float32, ("C", "W"))) for wave in waveforms]


def check_states(audio: AudioSection, text: CaptionEncoder | None) -> None:
    """Whether encoders give frames and token states, for `diffusion.conditioning`.

    Args:
        text: None where captions come as vectors.

    Raises:
        UsageError: one of them does not.
    """
    if not hears_logmels(audio):
        raise UsageError(
            f"diffusion.conditioning: frames are those of {', '.join(_OURS)}, and audio.encoder is {audio.encoder}. Set "
            "diffusion.conditioning=none, or train one of these."
        )
    if not isinstance(text, TextEncoder):
        raise UsageError(
            "diffusion.conditioning: frames are met by the token states of a BERT, and text.encoder is another model. Set "
            "diffusion.conditioning=none, or use minilm or bert-base-uncased."
        )


def build_text_encoder(section: TextSection) -> CaptionEncoder:
    """The caption encoder of a recipe. Raises as `load_text_encoder`."""
    return load_text_encoder(section.encoder, section.pooling, section.max_tokens, section.normalise)


def _small(section: AudioSection) -> AudioEncoder:
    if section.weights is not None:
        raise UsageError("audio.weights: PANNs weights fit cnn14 and resnet38, not the small encoder")
    settings = section.channels, section.hop, section.dropout, _stripes(section), section.perturb
    members = [SmallCnn(*settings) for _ in range(section.members)]
    return members[0] if len(members) == 1 else SideBySide(members)


def _panns(section: AudioSection) -> AudioEncoder:
    from .core.panns import Cnn14, ResNet38

    encoder = (Cnn14 if section.encoder == "cnn14" else ResNet38)(
        dropout=section.dropout, stripes=_stripes(section), perturbed=section.perturb
    )
    if section.weights is not None:
        load_panns(encoder, Path(section.weights).expanduser())
    return encoder


def _stripes(section: AudioSection) -> tuple[int, int] | None:
    return (section.time_stripe, section.mel_stripe) if section.spec_augment else None


_OURS: dict[str, AudioBuilder] = {"small": _small, "cnn14": _panns, "resnet38": _panns}


def _installed(name: str) -> AudioBuilder | None:
    """The builder that an installed package offers under this name."""
    for found in entry_points(group=GROUP, name=name):
        try:
            build: AudioBuilder = found.load()
        except Exception as error:
            package = found.dist.name if found.dist else found.value
            raise DiffATRError(
                f"audio.encoder: {name}: the package that offers it, {package}, cannot be loaded "
                f"({type(error).__name__}: {error})."
            ) from error
        return build
    return None
