"""Two-tower models of others as they are: a CLAP serves a folder without any training."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .calibrations import calibrations_folder, stored_calibration
from .core.text import CaptionEncoder
from .core.towers import NoHead
from .core.transformers_audio import TransformersAudio
from .device import resolve_device
from .encoders import HEARING, source_id
from .errors import UsageError
from .model import Retriever, load_listener, load_retriever, shipped_model
from .pretrained.hub import model_folder, read_config

FIELD = "--model"
SHIPPED = "diffatr-small"
"""The name of the model inside the package."""


def load_two_tower(name: str, device: str = "auto") -> Retriever:
    """A CLAP by its hub name or folder. It has no diffusion phase: a search ranks by its cosine.

    Raises:
        UsageError: the model has not a tower of sound and one of text.
        DiffATRError: as `hub.model_folder`.
    """
    folder = model_folder(name, FIELD)
    config = read_config(folder)
    if config.get("model_type") != "clap":
        raise UsageError(
            f"{FIELD}: {name} is of the type {config.get('model_type')}, which has no towers of sound and of text. "
            "Name a CLAP, or train on it: audio.encoder or text.encoder of a recipe."
        )

    def load_audio() -> TransformersAudio:
        from .pretrained.transformers_models import load_audio_model

        return load_audio_model(str(folder), "model", field=FIELD)

    def load_text() -> CaptionEncoder:
        from .pretrained.transformers_models import load_text_model

        return load_text_model(name, folder, "model", max_tokens=512, normalise=False, field=FIELD)

    model_id = calibration_key(folder)
    heads, dim = (NoHead(), NoHead()), int(config.get("projection_dim", 512))
    return Retriever(heads, load_audio, load_text, dim, model_id, None, None, resolve_device(device), name, hears_logmels=False)


def calibration_key(folder: Path) -> str:
    """The id of a two-tower model as it is: of its vectors, and of what was fitted on them."""
    return hashlib.sha256(f"two towers {source_id(str(folder), FIELD)} {HEARING}".encode()).hexdigest()[:16]


def load_any(name: str | Path | None, device: str = "auto") -> Retriever:
    """The model of a name: a run's folder, `RUNS/RECIPE/seed-N`, or a two-tower model of others; without one, that which ships.

    Where `diffatr calibrate` fitted what its scores are worth, that counts.

    Raises:
        UsageError: a folder holds neither.
        UsageError, DiffATRError: as `load_listener` and `load_two_tower`.
    """
    model = _load(name, device)
    if calibrations_folder().is_dir() and (own := stored_calibration(model.calibration_key)):
        model.calibration = own
    return model


def _load(name: str | Path | None, device: str) -> Retriever:
    if name is None or name == SHIPPED:
        shipped = load_retriever(shipped_model(), device)
        shipped.name = SHIPPED
        return shipped
    folder = Path(name).expanduser()
    # A Path is never a name of the hub.
    if (folder / "config.json").is_file() or (isinstance(name, str) and not folder.is_dir()):
        return load_two_tower(str(name), device)
    # Phase two alone is a run too: on the encoders of another.
    if folder.is_dir() and not any((folder / phase).is_dir() for phase in ("pretrain", "diffusion")):
        seeds = sorted(each.parent for each in (*folder.glob("seed-*/pretrain"), *folder.glob("*/seed-*/pretrain")))
        remedy = f"Name a run in it, such as {seeds[0]}" if seeds else "Name a run (RUNS/RECIPE/seed-N) or a model's whole folder"
        raise UsageError(f"{folder}: holds no run (no pretrain/) and no model (no config.json). {remedy}.")
    return load_listener(folder, device)
