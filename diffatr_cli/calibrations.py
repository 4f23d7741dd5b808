"""Calibrations that people fit themselves (`diffatr calibrate`): kept for the user, found again by the model's id."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .core.calibration import Calibration
from .errors import DiffATRError
from .files import write_text


def calibrations_folder() -> Path:
    """Where they are: `diffatr/calibrations` in the user's folder of data (XDG_DATA_HOME)."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "diffatr" / "calibrations"


def save_calibration(key: str, calibration: Calibration, facts: Mapping[str, Any]) -> Path:
    """Keep a calibration for a model of this key, in the place of an earlier one; `facts` tell people where it comes from.

    Raises:
        DiffATRError: it cannot be written.
    """
    path = calibrations_folder() / f"{key}.json"
    write_text(path, json.dumps({**facts, "calibration": calibration.to_json()}, indent=2) + "\n")
    return path


def stored_calibration(key: str) -> Calibration | None:
    """The calibration that was kept for a model of this key; None if there is none.

    Raises:
        DiffATRError: the file is damaged.
    """
    path = calibrations_folder() / f"{key}.json"
    try:
        return Calibration.from_json(json.loads(path.read_text(encoding="utf-8"))["calibration"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DiffATRError(f"{path}: not a readable calibration ({type(error).__name__}). Remove it.") from None
