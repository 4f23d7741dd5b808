"""Decoding with PyAV (extra `audio`): what libsndfile does not read, and the sound of videos."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio_error import NEEDS_PYAV, TRUNCATED, AudioError, check_rate
from .decoder import BLOCK_FRAMES, BLOCK_SAMPLES, Block, CannotDecode
from .spliced_file import SplicedFile

_ALLOWED = (
    "mov,matroska,webm,asf,avi,flv,live_flv,mpegts,mpeg,mpegvideo,mxf,gxf,wtv,dv,rm,ivr,nut,ogg,wav,w64,aiff,au,caf,iff,voc,"
    "aac,adts,loas,ac3,eac3,dts,dtshd,truehd,mlp,amr,mp3,flac,ape,wv,tta,mpc,mpc8,tak,shn,dsf,oma,xwma,adx,vqf,qcp,dss,qoa,"
    "ircam,sox,nistsphere,spdif,sds"
)
"""Kinds of file that may be opened. Others open further files or addresses that a file names, such as playlists."""
SAFELY = {"format_whitelist": _ALLOWED, "protocol_whitelist": "file"}
_STATED = frozenset(
    ("mov,mp4,m4a,3gp,3g2,mj2", "asf", "avi", "wav", "w64", "caf", "aiff", "wv", "tta", "ape", "tak", "dsf", "flac")
)
"""Containers that state how long a stream is. Of the others FFmpeg guesses it, many times too long at worst."""
_NO_SEEKING = frozenset(("aac", "loas", "ac3", "eac3", "amr", "dts", "dtshd", "truehd", "mlp", "wav"))
"""Formats without a container, where FFmpeg guesses where a second is; and WAV, whose rarer codecs need all that came before."""
_SLACK = 0.5  # seconds that a container may state too many


def has_pyav() -> bool:
    """Whether the extra `audio` is installed."""
    return importlib.util.find_spec("av") is not None


class PyAVDecoder:
    """The first sound track of a file, or of a spliced one, opened by FFmpeg. See `Decoder`.

    Raises:
        CannotDecode: FFmpeg does not read it, or there is no sound in it.
        AudioError: PyAV is not installed, or the sample rate is beyond reason.
    """

    floats: bool

    def __init__(self, path: Path, spliced: SplicedFile | None = None) -> None:
        if not has_pyav():
            raise AudioError(path, NEEDS_PYAV)
        self._path = path
        # Never by name: FFmpeg takes some names for addresses, and endings for more than they are.
        self._source = spliced or SplicedFile(path, [(0, path.stat().st_size)])
        self._open()

    def _open(self) -> None:
        import av

        self._source.seek(0)
        try:
            self._container: Any = av.open(self._source, options=dict(SAFELY), metadata_errors="replace")
        except av.error.FFmpegError as error:
            self._source.close()
            self._reraise(error)
            raise CannotDecode(f"not audio, or damaged ({error.strerror})", unknown=True) from None
        try:
            self._open_stream()
        except BaseException:
            self.close()
            raise

    def _open_stream(self) -> None:
        if not self._container.streams.audio:
            raise CannotDecode("no sound in it")
        self._stream = self._container.streams.audio[0]
        codec = self._stream.codec_context
        if codec is None or not codec.sample_rate:
            raise CannotDecode("no sound in it")
        self.rate = check_rate(self._path, codec.sample_rate)
        self.floats = codec.name.startswith("pcm_f")
        self.seconds = self._stated()
        self.partial: str | None = None
        tracks = len(self._container.streams.audio)
        self.notes = [f"the first of {tracks} sound tracks"] if tracks > 1 else []
        self._sought: float | None = None

    def _stated(self) -> float | None:
        stream, kind = self._stream, self._container.format.name
        if kind in _STATED and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if kind == "matroska,webm" and self._container.duration and len(self._container.streams) == 1:
            return float(self._container.duration / 1_000_000)
        return None

    def seek(self, seconds: float) -> None:
        if seconds <= 0 or self._container.format.name in _NO_SEEKING:
            return
        import av

        stream = self._stream
        # In streams without an index FFmpeg may land behind the place that it was asked for.
        for early in (1.0, 10.0):
            offset = (stream.start_time or 0) + int(max(0.0, seconds - early) / (stream.time_base or 1))
            try:
                self._container.seek(offset, stream=stream)
                landed = next((packet.pts for packet in self._packets() if packet.pts is not None), None)
                if landed is not None and (landed - (stream.start_time or 0)) * stream.time_base <= seconds:
                    self._container.seek(offset, stream=stream)
                    self._sought = seconds
                    return
            except av.error.FFmpegError:
                break
        self._container.close()  # from the beginning, then
        self._open()

    def blocks(self) -> Iterator[Block]:
        at, waiting, waiting_frames, rate = 0.0, list[NDArray[np.float32]](), 0, self.rate
        decoded = 0.0
        for frame, start in self._frames():
            samples = _floats(frame)
            if waiting and (frame.sample_rate != rate or samples.shape[1] != waiting[0].shape[1]):
                yield from _cut(np.concatenate(waiting), rate, at)
                at, waiting, waiting_frames = at + waiting_frames / rate, [], 0
            if start is not None:
                at = start
            if frame.sample_rate != rate:
                try:
                    rate = check_rate(self._path, frame.sample_rate)
                except AudioError as error:
                    if not decoded:
                        raise
                    self.partial = f"truncated or damaged ({error.reason})"
                    break
            waiting.append(samples)
            waiting_frames += len(samples)
            decoded += len(samples) / rate
            if waiting_frames >= BLOCK_FRAMES:
                yield from _cut(np.concatenate(waiting), rate, at)
                at, waiting, waiting_frames = at + waiting_frames / rate, [], 0
        if waiting:
            yield from _cut(np.concatenate(waiting), rate, at)
        if not decoded and self._sought is None:
            raise CannotDecode(self.partial or "not audio, or damaged")
        if self._sought is None:
            if self.seconds is not None and decoded < self.seconds - _SLACK:
                self.partial = self.partial or TRUNCATED
                self.notes.append(f"{decoded:.1f} s of {self.seconds:.1f} s can be read")
            elif self.partial is None and _ends_early(self._path):
                self.partial = TRUNCATED

    def _packets(self) -> Iterator[Any]:
        """Of the stream, and last an empty one, which has the decoder hand out what it holds back."""
        try:
            yield from self._container.demux(self._stream)
        except IndexError:
            # At the end PyAV looks at streams that began in the middle of the file, and which its own list lacks. They come after
            # this one.
            return

    def _frames(self) -> Iterator[tuple[Any, float | None]]:
        """The decoded frames; after seeking, with the first one the second at which it begins."""
        import av

        stream, start = self._stream, self._sought
        packets = damaged = 0
        try:
            for packet in self._packets():
                packets += 1
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except av.error.FFmpegError as error:
                    self._reraise(error)
                    damaged += 1
                    continue
                for frame in frames:
                    if start is not None and frame.pts is not None:
                        start = float((frame.pts - (stream.start_time or 0)) * stream.time_base)
                    yield frame, start
                    start = None
        except av.error.FFmpegError as error:
            self._reraise(error)
            self.partial = f"truncated or damaged ({error.strerror})"
        if damaged:
            self.notes.append(f"{damaged} of {packets} packets are damaged and left out")
            if damaged > max(2, packets // 100):
                self.partial = self.partial or "truncated or damaged (many packets cannot be decoded)"

    def _reraise(self, error: Exception) -> None:
        """What is not the file's fault goes on as it is."""
        if self._source.trouble is not None:
            raise self._source.trouble from None
        if isinstance(error, MemoryError):
            raise MemoryError from None

    def close(self) -> None:
        self._container.close()
        self._source.close()


def _floats(frame: Any) -> NDArray[np.float32]:
    """A decoded frame as (samples, channels) of full scale +-1."""
    try:
        values = frame.to_ndarray()
    except ValueError:  # 64-bit integers, which numpy could hold and PyAV does not hand out
        raise CannotDecode(f"samples of a kind that cannot be read ({frame.format.name})") from None
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return np.ascontiguousarray((values.astype(np.float32) - 128) / 128)
    if values.dtype.kind == "i":
        return np.ascontiguousarray(values * np.float32(2.0 ** (1 - 8 * values.itemsize)), dtype=np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def _cut(samples: NDArray[np.float32], rate: int, start: float) -> Iterator[Block]:
    step = max(1, min(BLOCK_FRAMES, BLOCK_SAMPLES // samples.shape[1]))
    for first in range(0, len(samples), step):
        yield Block(samples[first : first + step], rate, start + first / rate)


def _ends_early(path: Path) -> bool:
    """Whether a file is shorter than it says itself: AVI in its first chunk, Matroska in its segment."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        head = stream.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return size < int.from_bytes(head[4:8], "little") + 8 < 1 << 31
        stream.seek(0)
        for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
            if stream.read(4) != name:
                return False
            first = stream.read(1)
            if not first or not first[0]:
                return False
            width = 9 - first[0].bit_length()
            length = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + stream.read(width - 1))
            if length == (1 << 7 * width) - 1:  # unknown, as live writers leave it
                return False
            if name == b"\x18\x53\x80\x67":
                return stream.tell() + length > size
            stream.seek(length, 1)
    return False
