"""What PyAV itself trips over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

from media_files import write_media

from diffatr_cli.data.pyav_decoder import PyAVDecoder


class Growing:
    """A container that finds a further stream in the middle: at the end PyAV asks its list for it, which lacks it."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def demux(self, stream: Any) -> Iterator[Any]:
        yield from self.container.demux(stream)
        raise IndexError("list index out of range")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_stream_that_begins_in_the_middle_of_the_file(tmp_path: Path, seconds: float) -> None:
    def samples(growing: bool) -> np.ndarray:
        decoder = PyAVDecoder(path)
        if growing:
            decoder._container = Growing(decoder._container)
        decoder.seek(seconds)
        blocks = [block.samples for block in decoder.blocks()]
        assert decoder.partial is None
        decoder.close()
        return np.concatenate(blocks)

    path = write_media(tmp_path / "a.mka", np.sin(np.arange(3 * 44_100) / 20))
    np.testing.assert_array_equal(samples(growing=True), samples(growing=False))
