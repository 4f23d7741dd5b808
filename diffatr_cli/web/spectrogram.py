"""Pictures of a sound for a page: its spectrogram as a PNG in one of two inks, and the outline of its waveform.

M mels, C columns.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import Literal

import numpy as np
import torch

from ..core.logmel import WINDOW, LogMel
from ..data.audio import Samples

Theme = Literal["light", "dark"]

RANGE = 66.0
"""Decibels between the faintest and the strongest ink."""
_HOP = 256  # samples
_STOPS: dict[Theme, tuple[tuple[float, tuple[int, int, int, int]], ...]] = {
    # (level, red green blue alpha): from nothing, where the page shows through, over the page's accent to its ink.
    "light": ((0.0, (222, 160, 120, 0)), (0.35, (224, 138, 88, 70)), (0.7, (196, 74, 16, 225)), (1.0, (74, 20, 6, 255))),
    "dark": ((0.0, (96, 36, 10, 0)), (0.35, (148, 56, 16, 110)), (0.7, (240, 126, 56, 235)), (1.0, (255, 238, 214, 255))),
}


def levels(samples: Samples, columns: int) -> np.ndarray:
    """Log-mel levels of a 32 kHz sound, (M, C) uint8, low notes last; C is `columns`, or fewer for a short sound.

    A column shows the loudest of its frames, so that a click in an hour is still seen. 255 is the loudest place of the sound,
    0 whatever lies `RANGE` dB or more below.
    """
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    decibels = _logmel()(torch.from_numpy(np.ascontiguousarray(padded, np.float32))[None])[0].numpy()  # (frames, M)
    edges = np.linspace(0, len(decibels), min(columns, len(decibels)) + 1).astype(int)[:-1]
    pooled = np.maximum.reduceat(decibels, edges)
    scaled = (pooled - pooled.max()) / RANGE + 1
    silent = pooled.max() <= -99  # the floor everywhere: nothing is the loudest place
    return np.ascontiguousarray(np.rint(np.clip(scaled, 0, 1) * (0 if silent else 255)).astype(np.uint8).T[::-1])


@cache
def _logmel() -> LogMel:
    return LogMel(_HOP)


def outline(samples: Samples, columns: int) -> np.ndarray:
    """Lowest and highest sample of each column, (C, 2); C is `columns`, or fewer for a very short sound."""
    if not len(samples):
        return np.zeros((1, 2), np.float32)
    edges = np.linspace(0, len(samples), min(columns, len(samples)) + 1).astype(int)[:-1]
    return np.stack([np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)], 1)


def png(picture: np.ndarray, theme: Theme) -> bytes:
    """A PNG of levels (rows, columns) uint8, in the colours of a light or of a dark page, clear where nothing sounds."""
    rows, columns = picture.shape
    colours = _palette(theme)
    filtered = np.zeros((rows, columns + 1), np.uint8)  # each row begins with its filter's number, 0: none
    filtered[:, 1:] = picture
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),  # 8 bits, colours from a palette
        (b"PLTE", colours[:, :3].tobytes()),
        (b"tRNS", colours[:, 3].tobytes()),
        (b"IDAT", zlib.compress(filtered.tobytes(), 6)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


@cache
def _palette(theme: Theme) -> np.ndarray:
    """(256, 4) uint8: red, green, blue and alpha of every level."""
    places, colours = zip(*_STOPS[theme], strict=True)
    at = np.linspace(0, 1, 256)
    channels = [np.interp(at, places, channel) for channel in np.array(colours, np.float64).T]
    return np.asarray(np.rint(np.stack(channels, 1)), np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
