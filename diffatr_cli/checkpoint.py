"""Checkpoints: weights as safetensors with their facts in the header, training state as one file that resuming reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import DiffATRError
from .files import replacing


def save_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace `path` by these tensors, with `facts` as JSON in its header."""
    with replacing(path) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata={"diffatr": json.dumps(facts)}
        )


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and its facts.

    Raises:
        DiffATRError: the file is missing, damaged, or not one of this project's checkpoints.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except FileNotFoundError as error:
        raise DiffATRError(f"{path}: there is no such checkpoint. Train one, or name another run.") from error
    except (SafetensorError, OSError) as error:
        raise DiffATRError(f"{path}: not a readable checkpoint ({error}). Train again, or restore the file.") from error
    if "diffatr" not in header:
        raise DiffATRError(f"{path}: these weights were not written by diffatr train commands.")
    return tensors, json.loads(header["diffatr"])


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load all of a module's weights.

    Raises:
        DiffATRError: names or shapes differ, as they do for the checkpoint of another recipe.
    """
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) + [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise DiffATRError(f"{path}: this checkpoint belongs to another recipe: {shown} do not fit the model.")
    module.load_state_dict(dict(tensors))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` by a training state: tensors, numbers, strings, and dicts and lists of them."""
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """A training state, or None if there is none. Raises DiffATRError if the file is damaged."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DiffATRError(f"{path}: not a readable training state ({error}). Remove it to start this phase again.") from error
    return state
