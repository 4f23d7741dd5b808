"""Prepared data sets on disk: a Parquet manifest beside its WAV files, and reading pieces of those."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from ..errors import DiffATRError
from ..files import replacing
from ..types import SAMPLE_RATE
from .audio import AudioError, Samples
from .vectors import DIGEST, Vectors, read_vectors

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.parquet"


@dataclass(frozen=True)
class Clip:
    """One prepared recording with its captions."""

    clip_id: str
    """Unique in the data set."""
    split: str
    """train, val or test."""
    path: str
    """Of the WAV file, relative to the data set's folder."""
    seconds: float
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """What `diffatr prepare` made under `root`."""

    name: str
    root: Path
    clips: tuple[Clip, ...]
    info: dict[str, Any]
    """What the whole set has in common: kind, resampler, a digest of all audio, ..."""
    vectors: Vectors | None = None
    """Of a set of `prepare features`: of all clips and captions, in their order; None of a set with audio."""

    def split(self, name: str) -> tuple[Clip, ...]:
        """The clips of one split, in the order of the caption file. Raises DiffATRError when there are none."""
        clips = tuple(clip for clip in self.clips if clip.split == name)
        if not clips:
            raise DiffATRError(f"{self.root}: the data set has no clips in its {name} split")
        return clips

    @property
    def given_sizes(self) -> tuple[int, int] | None:
        """The sizes of the vectors that the set holds in the place of audio, of sounds and captions; None if it has audio."""
        return None if self.vectors is None else (self.vectors.audio.shape[1], self.vectors.text.shape[1])

    def given(self, split: str) -> Vectors | None:
        """The vectors of one split's clips and captions, in their order; None where the set holds audio."""
        if self.vectors is None:
            return None
        inside = np.array([clip.split == split for clip in self.clips])
        counts = [len(clip.captions) for clip in self.clips]
        return Vectors(self.vectors.audio[inside], self.vectors.text[inside.repeat(counts)])

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a clip, a caption, a sample of audio or a vector does: for caches."""
        content = [[clip.clip_id, clip.split, clip.path, clip.seconds, clip.captions] for clip in self.clips]
        vectors = [self.info[DIGEST]] if DIGEST in self.info else []
        return hashlib.sha256(json.dumps([self.info.get("audio_md5"), content, *vectors]).encode()).hexdigest()


class Record(NamedTuple):
    """One row of the manifest: a clip, prepared or not, and what it was made from."""

    clip_id: str
    split: str
    captions: tuple[str, ...]
    path: str
    """Of the prepared WAV file, relative to the data set's folder."""
    source: str | None = None
    """The file it was made from, or how it was generated; None when there was none."""
    source_size: int = 0
    """Bytes."""
    source_mtime_ns: int = 0
    frames: int = 0
    """Samples at 32 kHz."""
    md5: str | None = None
    """Of the prepared samples."""
    license: str | None = None
    skipped: str | None = None
    """Why there is no audio; None for a prepared clip."""


_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("path", pa.string()),
        ("source", pa.string()),
        ("source_size", pa.int64()),
        ("source_mtime_ns", pa.int64()),
        ("frames", pa.int64()),
        ("md5", pa.string()),
        ("license", pa.string()),
        ("skipped", pa.string()),
    ]
)


_REQUIRED = ("clip_id", "split", "captions", "path", "source_size", "source_mtime_ns", "frames")
_INFO, _SHA256 = b"diffatr", b"diffatr_sha256"


def write_manifest(root: Path, records: Sequence[Record], info: dict[str, Any]) -> None:
    """Replace the manifest under `root`. The same records and info give the same bytes."""
    digest = hashlib.md5("".join(record.md5 or "-" for record in records).encode()).hexdigest()
    told = json.dumps({**info, "audio_md5": digest}, sort_keys=True).encode()
    columns = {name: [getattr(record, name) for record in records] for name in _SCHEMA.names}
    schema = _SCHEMA.with_metadata({_INFO: told, _SHA256: _digest(told, columns)})
    # Python opens the files: pyarrow takes no path that is not UTF-8.
    with replacing(root / MANIFEST) as temporary, temporary.open("wb") as file:
        pq.write_table(pa.table(columns, schema=schema), file, write_page_checksum=True)


def _digest(told: bytes, columns: Mapping[str, Sequence[Any]]) -> str:
    """Of all that a manifest says. The checksums of Parquet's pages cover neither their headers nor the footer."""
    digest = hashlib.sha256(told)
    for name in _SCHEMA.names:
        digest.update(json.dumps(columns[name]).encode())
    return digest.hexdigest()


def read_manifest(root: Path) -> tuple[list[Record], dict[str, Any]]:
    """All records of the manifest under `root`, skipped ones too, and what the set has in common.

    Raises:
        DiffATRError: the manifest is damaged, of another program, or may not be read.
        FileNotFoundError: there is none.
    """
    path = root / MANIFEST
    try:
        with path.open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
        if not table.schema.equals(_SCHEMA):
            raise ValueError("other columns")
        metadata = table.schema.metadata or {}
        columns = {name: table.column(name).to_pylist() for name in _SCHEMA.names}
        # Manifests without a digest are of an earlier revision.
        if not metadata.keys() <= {_INFO, _SHA256} or metadata.get(_SHA256, b"").decode() not in (
            "",
            _digest(metadata[_INFO], columns),
        ):
            raise ValueError("what it says is not what was written")
        info = json.loads(metadata[_INFO])
        if not isinstance(info, dict):
            raise ValueError("no facts in it")
        required = (*(columns[name] for name in _REQUIRED), *columns["captions"])
        if any(None in values for values in required) or min((*columns["frames"], *columns["source_size"]), default=0) < 0:
            raise ValueError("values that no clip has")
        columns["captions"] = [tuple(captions) for captions in columns["captions"]]
        return [Record(*row) for row in zip(*columns.values(), strict=True)], info
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (PermissionError, IsADirectoryError) as error:
        raise DiffATRError(f"{path}: cannot be read ({error.strerror}).") from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DiffATRError(
            f"{path}: damaged, or not a manifest of `diffatr prepare` ({reason}). Prepare again; finished clips are kept."
        ) from error


def load_dataset(data_dir: Path, name: str) -> Dataset:
    """The prepared data set `name` under `data_dir`.

    Raises:
        DiffATRError: it was not prepared, holds no clips, or is damaged; the message says which command prepares it.
    """
    root = data_dir / name
    try:
        records, info = read_manifest(root)
    except (FileNotFoundError, NotADirectoryError):
        known = sorted(path.parent.name for path in data_dir.glob(f"*/{MANIFEST}"))
        there = f" Prepared there: {', '.join(known)}." if known else ""
        where = "" if data_dir == Path("data") else f" --data {data_dir}"
        if name in ("clotho", "synthetic"):
            command = f"diffatr prepare {name}{where}`"
        elif name == "audiocaps":
            command = f"diffatr prepare audiocaps --from DIR{where}`"
        elif name == "features":
            command = f"diffatr prepare features --audio A.npy --text T.npy --captions captions.csv{where}`"
        else:
            command = f"diffatr prepare KIND --from DIR --name {name}{where}` with KIND clotho, audiocaps or folder"
        raise DiffATRError(f"{root}: no data set {name!r} was prepared here.{there} Make it with `{command}.") from None
    clips = tuple(
        Clip(record.clip_id, record.split, record.path, record.frames / SAMPLE_RATE, record.captions)
        for record in records
        if record.skipped is None
    )
    if not clips:
        raise DiffATRError(f"{root}: the data set {name!r} holds no clips. Prepare it again.")
    return Dataset(name, root, clips, info, read_vectors(root, info[DIGEST]) if DIGEST in info else None)


def read_piece(path: Path | str, start: int = 0, frames: int = -1) -> Samples:
    """Samples [start, start + frames) of a prepared 32 kHz WAV file as float32 (frames,), full scale +-1.

    Shorter when the file ends before, empty when it starts behind the end; frames = -1 reads to the end.

    Raises:
        AudioError: the file is missing or damaged.
    """
    try:
        with soundfile.SoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path)) as file:  # any name, as bytes
            if file.samplerate != SAMPLE_RATE or file.channels != 1:
                raise AudioError(path, "not a prepared clip (mono, 32 kHz)")
            if start >= file.frames:
                return np.zeros(0, np.float32)
            file.seek(start)
            samples: Samples = file.read(frames, dtype="float32")
            return samples
    except soundfile.LibsndfileError as error:
        reason = "damaged" if Path(path).exists() else "missing"
        raise AudioError(path, f"{reason} ({error.error_string.strip(' .')}); run `diffatr prepare` again") from None
