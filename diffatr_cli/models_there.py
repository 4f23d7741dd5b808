"""The models that a search can use or a recipe can build on: the one that ships, runs, and what was fetched from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from .calibrations import calibrations_folder
from .checkpoint import load_weights
from .errors import DiffATRError
from .model import id_of_encoders, shipped_model
from .pretrained.hub import cache_folder, read_config, snapshot_of, weights_of
from .runs import BEST, encoders_of, models_below, recipe_of, weights_hash
from .two_tower import SHIPPED, calibration_key

_TEXT = (
    "bert", "roberta", "mpnet", "distilbert", "deberta", "deberta-v2", "xlm-roberta", "electra", "albert", "camembert",
    "modernbert", "longformer", "t5", "mt5", "umt5",
)  # fmt: skip
"""The types of text models that are listed; recipes take more."""


@dataclass(frozen=True)
class ModelThere:
    """One model on this machine.

    Attributes:
        name: as --model, --run or a recipe takes it.
        kind: `shipped`, `run`, `two towers` (for --model), or `sound` and `text` (encoders for a recipe).
        megabytes: of its weights.
        languages: of the texts that it reads; None if unknown.
        licence: as its card says; None if unknown.
        calibrated: whether its scores are shown as probabilities; None for an encoder, which has none.
    """

    name: str
    kind: str
    megabytes: float
    languages: str | None
    licence: str | None
    calibrated: bool | None

    def to_json(self) -> dict[str, Any]:
        """A row of `models --json`."""
        return asdict(self)


def models_there(runs: Path, notes: list[str]) -> list[ModelThere]:
    """The shipped model, the runs below a folder, and the models in the hub's cache.

    Args:
        notes: models that cannot be read are named here, and passed over.
    """
    found = [_run(SHIPPED, shipped_model(), "shipped", "English", "non-commercial use (docs/model-card.md)")]
    for run in models_below(runs):
        try:
            found.append(_run(str(run), run, "run", None, None))
        except DiffATRError as error:
            notes.append(f"passed over {error}")
    for folder in sorted(cache_folder().glob("models--*")):
        try:
            found += _of_hub(folder)
        except DiffATRError as error:
            notes.append(f"passed over {error}")
    return found


def _run(name: str, run: Path, kind: str, languages: str | None, licence: str | None) -> ModelThere:
    recipe_of(run)
    first = encoders_of(run)
    files = [path for path in (first.folder / BEST, run / "diffusion" / BEST) if path.is_file()]
    key = "-".join([id_of_encoders(first.check()), *map(weights_hash, files[1:])])
    own = any(load_weights(path)[1].get("calibration") for path in files)
    return ModelThere(name, kind, _megabytes(files), languages, licence, own or _is_calibrated(key))


def _of_hub(folder: Path) -> Iterator[ModelThere]:
    """A model in the hub's cache, if it is whole and of a kind that is of use here."""
    snapshot = snapshot_of(folder)
    files = weights_of(snapshot) if snapshot else []
    if not snapshot or not (snapshot / "config.json").is_file() or not files or not all(path.is_file() for path in files):
        return
    from .pretrained.transformers_models import AUDIO_MODELS

    kind = str(read_config(snapshot).get("model_type"))
    name = folder.name.removeprefix("models--").replace("--", "/")
    card = _card(snapshot)
    of_use = "two towers" if kind == "clap" else "sound" if kind in AUDIO_MODELS else "text" if kind in _TEXT else None
    if of_use is None:
        return
    calibrated = _is_calibrated(calibration_key(snapshot)) if kind == "clap" else None
    yield ModelThere(name, of_use, _megabytes(files), card.get("language"), card.get("license"), calibrated)


def _is_calibrated(key: str) -> bool:
    return (calibrations_folder() / f"{key}.json").is_file()


def _megabytes(files: list[Path]) -> float:
    return round(sum(path.stat().st_size for path in files) / 1e6, 1)


def _card(folder: Path) -> dict[str, str]:
    """The language and licence that a model's card names, in the YAML at the head of its README."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, IndexError, yaml.YAMLError):
        return {}
    if not isinstance(head, dict):
        return {}
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key in ("language", "license")
        if (value := head.get(key))
    }
