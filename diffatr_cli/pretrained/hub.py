"""Models of others as folders: a local one, or a hub name that is fetched once, which is said before it begins."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import DiffATRError, UsageError
from .fetch import fetch, folder_name

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What weights are called, the best first: only the first that a model has is fetched and read."""
EXTRACTOR = "preprocessor_config.json"
"""The settings of a feature extractor."""
_BESIDE = ("*.json", "*.txt", "*.model", "README.md")
"""What is fetched beside weights: settings, vocabularies, the card."""
_LAYERS = ("[0-9]_[A-Z]*/config.json", "[0-9]_[A-Z]*/model.safetensors", "[0-9]_[A-Z]*/pytorch_model.bin")
"""The layers that sentence-transformers keeps in folders."""


def model_folder(name: str, field: str) -> Path:
    """The folder of a model: `name` itself, or where the hub's model of that name lies in the cache, fetched if it is not there.

    Args:
        field: what `name` was given as, for messages (`text.encoder`, `--model`).

    Raises:
        UsageError: `name` is neither a folder nor a name that the hub could have.
        DiffATRError: the hub cannot be reached or may not be asked, or has no such model; or the folder lacks files.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise UsageError(f"{field}: {name} is no folder. Name a folder that holds a model, or one of the hub as OWNER/NAME.")
        folder = _of_the_hub(name, field)
    if not (folder / "config.json").is_file():
        raise DiffATRError(f"{field}: {folder} holds no model (no config.json).")
    weights = weights_of(folder)
    missing = [WEIGHTS[0]] if not weights else [each.name for each in weights if not each.is_file()]
    if missing:
        raise DiffATRError(
            f"{field}: {folder} lacks {', '.join(missing)}: half downloaded? Copy it whole, or name the model by its hub name."
        )
    for path in weights:
        if not _is_all_there(path):
            raise DiffATRError(
                f"{field}: {path} is damaged or half downloaded. Copy it again, or delete it and name the model by its hub name."
            )
    return folder


def weights_of(folder: Path) -> list[Path]:
    """The files of a model's weights, whether they are there or not; none where nothing says which."""
    for name in WEIGHTS:
        if (path := folder / name).is_file():
            return [path, *(folder / shard for shard in _shards(path))] if name.endswith(".index.json") else [path]
    return []


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model's settings. Raises DiffATRError where they are missing or damaged."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiffATRError(f"{path}: cannot be read as a model's settings ({error}).") from None
    if not isinstance(config, dict):
        raise DiffATRError(f"{path}: not a model's settings.")
    return config


def cache_folder() -> Path:
    """Where the hub's models are kept on this machine, as `huggingface_hub` finds it; importing that takes 0.4 s."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def snapshot_of(model: Path) -> Path | None:
    """The folder of a hub model's files, in its folder of the cache; None where the cache names none. It may be there in part."""
    try:
        return model / "snapshots" / (model / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _of_the_hub(name: str, field: str) -> Path:
    """The folder of a hub model, fetched as far as it is not there. One that is whole is used without asking the hub."""
    model = cache_folder() / folder_name(name)
    snapshot = snapshot_of(model)
    listed = _listing(model, snapshot.name) if snapshot else None
    if snapshot and listed and all((snapshot / file).is_file() for file in _wanted(listed)):
        return snapshot
    try:
        return fetch(name, _wanted, _are_weights, cache_folder(), field)
    except DiffATRError as error:
        # Other programs keep no listing there. What they have fetched may do, and loading it tells what it lacks.
        weights = weights_of(snapshot) if snapshot and listed is None and error.exit_code == 1 else []
        if snapshot and weights and all(each.is_file() for each in weights):
            return snapshot
        raise


def _listing(model: Path, commit: str) -> list[str] | None:
    """What files a model has on the hub, as `huggingface_hub` notes it beside them; None where it has not, or in another form."""
    try:
        files = list(json.loads((model / "trees" / f"{commit}.json").read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if all(isinstance(each, str) for each in files) else None


def _are_weights(name: str) -> bool:
    return "/" not in name and name.endswith((".safetensors", ".bin"))


def _is_all_there(path: Path) -> bool:
    """Whether a file of weights has its end, by what its beginning or its end says of it; none is read whole."""
    if path.suffix == ".json":
        return True
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(8)
        if path.suffix == ".safetensors":  # the length of its header, which says where each tensor ends
            length = int.from_bytes(start, "little")
            try:
                header = json.loads(file.read(length)) if 8 + length <= size else {}
                ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                return False
            return bool(ends) and size == 8 + length + max(ends)
        return not start.startswith(b"PK") or zipfile.is_zipfile(path)  # else of the form that torch had before zip files


def _wanted(files: Iterable[str]) -> list[str]:
    """Of a model's files those that are read here: of its weights one form, and what lies beside them."""
    top, nested = set[str](), set[str]()
    for name in files:
        (nested if "/" in name else top).add(name)
    form = next((name for name in WEIGHTS if name in top), "")
    shards = form.removesuffix(".index.json").replace(".", "-*.") if form.endswith(".index.json") else form
    beside = {name for name in top if any(fnmatch(name, each) for each in _BESIDE) and not name.endswith(".index.json")}
    layers = {name for name in nested if any(fnmatch(name, each) for each in _LAYERS)}
    layers -= {name for name in layers if name.endswith(".bin") and f"{name.partition('/')[0]}/{WEIGHTS[0]}" in layers}
    return sorted({form} - {""} | {name for name in top if shards and fnmatch(name, shards)} | beside | layers)


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names. None of them may lie elsewhere."""
    named = read_config(index.parent, index.name).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
        raise DiffATRError(f"{index}: does not say which files hold the weights. Copy the folder again, whole.")
    names = sorted(set(named.values()))
    if any(Path(name).name != name for name in names):
        raise DiffATRError(f"{index}: names files outside its folder, so it is not used.")
    return names
