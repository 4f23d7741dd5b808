"""Whether the network may be asked at all."""

from __future__ import annotations

import os

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def offline() -> bool:
    """Whether the network must not be asked: `--offline`, or what the hub's own library takes as such."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def go_offline() -> None:
    """From here on the network is not asked by this process or those that it starts. Libraries look when they are loaded."""
    os.environ[_OFFLINE[0]] = "1"
