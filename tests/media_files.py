"""Sound in containers that PyAV writes, with or without a moving picture; import it after `pytest.importorskip("av")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def write_media(
    path: Path,
    samples: NDArray[Any],
    rate: int = 44_100,
    codec: str = "aac",
    picture: bool = False,
    kind: str | None = None,
    layout: str = "stereo",
) -> Path:
    """Write mono samples as stereo (or mono); `picture` adds a video stream of five frames a second.

    `kind` is FFmpeg's name of the container, where the path's ending does not say it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w", format=kind) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        if picture:  # after the sound's stream: all must be there before the first packet
            write_picture(out, round(5 * len(samples) / rate))
        channels = 1 if layout == "mono" else 2
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels).astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        frames = {"frame_size": stream.frame_size} if stream.frame_size else {}
        cut = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate, **frames)
        for piece in (*cut.resample(frame), *cut.resample(None), None):
            out.mux(stream.encode(piece))
    return path


def write_picture(out: Any, frames: int) -> None:
    """Add a small grey video of so many frames to an open container."""
    stream = out.add_stream("mpeg4", rate=5)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number % 256, np.uint8), format="rgb24")
        frame.pts = number
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
