"""Checkpoints: weights as safetensors with their facts in the header, training state as one file that resuming reads."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import DiffATRError
from .files import replacing, utf8_name


def save_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace `path` by these tensors, with `facts` as JSON in its header, and a checksum of both.

    Raises:
        DiffATRError: the disk is full, or the folder cannot be written.
    """
    kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(facts)
    with replacing(path) as temporary:
        save_file(kept, temporary, metadata={"diffatr": text, "crc32": _checksum(kept, text)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint and its facts.

    Raises:
        DiffATRError: the file is missing, damaged, or not one of this project's checkpoints.
    """
    remedy = "Train again, or restore the file."
    try:
        # Opened by Python first: safetensors says of any refusal that there is no such file.
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except FileNotFoundError as error:
        raise DiffATRError(f"{path}: there is no such checkpoint. Train one, or name another run.") from error
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "a checkpoint", remedy, error) from error
    if "diffatr" not in header:
        raise DiffATRError(f"{path}: these weights were not written by diffatr train commands.")
    try:
        facts = json.loads(header["diffatr"])
        whole = header.get("crc32") in (None, _checksum(tensors, header["diffatr"]))  # those of before have none
    except ValueError:
        whole = False
    if not whole:
        raise _unreadable(path, "a checkpoint", remedy)
    return tensors, facts


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Of everything in a checkpoint that matters. CRC-32 finds any flipped bit, and takes a third of BLAKE2's time."""
    value = zlib.crc32(facts.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _unreadable(path: Path, what: str, remedy: str, error: Exception | None = None) -> DiffATRError:
    """The error for a file that is there and is not, or no longer, what it should be."""
    if isinstance(error, OSError) and error.errno:  # the system refuses
        return DiffATRError(f"{path}: cannot be read ({os.strerror(error.errno)}).")
    return DiffATRError(f"{path}: is damaged, or not {what}. {remedy}")


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
    """Replace `path` by a training state: tensors, numbers, strings, and dicts and lists of them. Raises as `save_weights`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_state(path: Path) -> dict[str, Any] | None:
    """A training state, or None if there is none. Raises DiffATRError if the file is damaged."""
    if not path.is_file():
        return None
    remedy = "Remove it to start this phase again."
    try:
        with zipfile.ZipFile(path) as file:
            # torch writes checksums, and reads without a look at them; of what passes for a folder it reads nothing.
            whole = file.testzip() is None and not any(entry.external_attr for entry in file.infolist())
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True) if whole else {}
    except Exception as error:
        raise _unreadable(path, "a training state", remedy, error) from error
    if not whole:
        raise _unreadable(path, "a training state", remedy)
    return state
