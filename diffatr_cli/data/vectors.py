"""The vectors of a model that was run elsewhere, which a data set holds in the place of audio: one file beside its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import DiffATRError
from ..files import file_hash, reason, replacing

if TYPE_CHECKING:
    from torch import Tensor

FILE = "features.safetensors"
DIGEST = "features_sha256"
"""Where the manifest keeps the hash of the file."""


@dataclass(frozen=True)
class Vectors:
    """What a model that was run elsewhere made of clips, `audio` (n, F), and of captions, `text` (m, F'), float32."""

    audio: Tensor
    text: Tensor


def write_vectors(root: Path, audio: np.ndarray, text: np.ndarray) -> str:
    """Replace the vectors under `root`, (n, F) and (m, F') float32; the file's hash, for the manifest.

    Raises:
        DiffATRError: the disk is full, or the folder cannot be written.
    """
    for leftover in root.glob(f".{FILE}.*.tmp"):  # of an earlier run that was killed
        leftover.unlink(missing_ok=True)
    with replacing(root / FILE) as temporary:
        save_file({"audio": audio, "text": text}, temporary)
        return file_hash(temporary)


def read_vectors(root: Path, digest: str) -> Vectors:
    """The vectors under `root`. Raises DiffATRError where they are missing, or not those of this hash."""
    from safetensors.torch import load_file  # loads torch, which making a data set does without

    path = root / FILE
    try:
        if file_hash(path) != digest:
            raise DiffATRError(f"{path}: damaged, or not the vectors of this manifest. Run `diffatr prepare features` again.")
        tensors = load_file(path)
    except FileNotFoundError:
        raise DiffATRError(f"{path}: missing. Run `diffatr prepare features` again.") from None
    except (OSError, SafetensorError) as error:
        raise DiffATRError(f"{path}: cannot be read ({reason(error) if isinstance(error, OSError) else error})") from None
    return Vectors(tensors["audio"], tensors["text"])
