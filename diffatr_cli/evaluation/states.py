"""Token states and frames of data sets, kept in half precision beside the encoders that made them and mapped from there.

They are many times the size of embeddings, so they pass through memory a few at a time, and only those asked for are read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.ragged import Ragged
from ..core.sight import States
from ..core.windows import spans
from ..data.manifest import Dataset, read_piece
from ..errors import DiffATRError
from ..files import file_crc32, reason, replacing
from ..model import Retriever
from ..processes import first_alone
from ..progress import Progress, silent
from ..runs import encoders_of
from .by_workers import Workers
from .embedded_split import CLIPS_AT_ONCE, Captions, EmbeddedWindows

CAPTIONS_AT_ONCE = 4096

Sequences = Iterable[tuple[np.ndarray, list[Tensor]]]
"""The numbers of some sequences, and those sequences (L, F) float16, until each number has come once."""


def cached_states(model: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent) -> States:
    """The states of a split's captions and clips, whole, by the encoders of a run."""
    tokens = cached_tokens(model, run, dataset, split, progress)
    return States(tokens, cached_frames(model, run, dataset, split, progress))


def cached_tokens(model: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent) -> Ragged:
    """The token states of a split's captions, from the cache in the folder of the run's encoders or computed into it."""
    texts = Captions.of(dataset.split(split)).texts
    path = encoders_of(run).folder / f"tokens-{dataset.name}-{split}.f16"
    return cached_sequences(path, source_of(model, dataset), len(texts), lambda: _token_states(model, texts, progress))


def cached_frames(
    model: Retriever, run: Path, dataset: Dataset, split: str, progress: Progress = silent, workers: Workers | None = None
) -> Ragged:
    """The same of the frames of a split's clips. `workers`: who make them, if not this process."""
    path, clips = encoders_of(run).folder / f"frames-{dataset.name}-{split}.f16", len(dataset.split(split))
    return cached_sequences(path, source_of(model, dataset), clips, lambda: _frames(model, dataset, split, progress, workers))


def cached_states_of_windows(
    model: Retriever, run: Path, dataset: Dataset, split: str, windows: EmbeddedWindows, progress: Progress = silent
) -> States:
    """The states of a split's captions, and of the windows of its clips as `embedded_split.cached_windows` has them."""
    tokens = cached_tokens(model, run, dataset, split, progress)
    return States(tokens, window_frames(model, dataset, split, windows, encoders_of(run).folder, progress))


def states_of_windows(
    model: Retriever, dataset: Dataset, split: str, windows: EmbeddedWindows, folder: Path, progress: Progress = silent
) -> States:
    """The same of a model that has no run folder; the frames go into a file in `folder`, which must stay while they are used."""
    tokens = Ragged.of(model.token_states(Captions.of(dataset.split(split)).texts))
    return States(tokens, window_frames(model, dataset, split, windows, folder, progress))


def window_frames(
    model: Retriever, dataset: Dataset, split: str, windows: EmbeddedWindows, folder: Path, progress: Progress = silent
) -> Ragged:
    """The frames of all windows of a split's clips, from a file in a folder or computed into it."""

    def made() -> Sequences:
        windowing, clips, note = model.windowing, dataset.split(split), f"frames of the windows of {dataset.name} {split}"
        for start in range(0, len(clips), CLIPS_AT_ONCE):
            part = clips[start : start + CLIPS_AT_ONCE]
            waves = [read_piece(dataset.root / clip.path) for clip in part]
            pieces = [wave[a:b] for wave in waves for a, b in spans(len(wave), windowing)]
            first = int(windows.offsets[start])
            yield np.arange(first, first + len(pieces)), model.frames(pieces)
            progress(start + len(part), len(clips), note)

    path = folder / f"frames-of-windows-{dataset.name}-{split}.f16"
    return cached_sequences(path, source_of(model, dataset), int(windows.offsets[-1]), made)


def source_of(model: Retriever, dataset: Dataset) -> dict[str, str]:
    """What states are made of."""
    return {"encoders": model.model_id, "data": dataset.fingerprint}


def _token_states(model: Retriever, texts: list[str], progress: Progress) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    for start in range(0, len(texts), CAPTIONS_AT_ONCE):
        part = texts[start : start + CAPTIONS_AT_ONCE]
        yield np.arange(start, start + len(part)), model.token_states(part)
        progress(start + len(part), len(texts), "token states")


def _frames(
    model: Retriever, dataset: Dataset, split: str, progress: Progress, workers: Workers | None
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    clips, note = dataset.split(split), f"frames of {dataset.name} {split}"
    if workers is not None:
        for number, frames in enumerate(workers.embed(dataset, clips, "frames", note, progress)):
            yield np.array([number]), [frames]
        return
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        waves = [read_piece(dataset.root / clip.path) for clip in clips[start : start + CLIPS_AT_ONCE]]
        yield np.arange(start, start + len(waves)), model.frames(waves)
        progress(start + len(waves), len(clips), note)


def cached_sequences(path: Path, source: Mapping[str, str], count: int, make: Callable[[], Sequences]) -> Ragged:
    """The sequences of a file if they were made from this source and are whole, or `make()`, which goes into it.

    Of several processes the first one makes them.

    Args:
        count: of sequences.

    Raises:
        DiffATRError: the disk is full, or the file cannot be read.
    """

    def read_or_made() -> Ragged:
        found = _read(path, source)
        return _written(path, source, count, make) if found is None else found

    return first_alone(read_or_made)


def _written(path: Path, source: Mapping[str, str], count: int, make: Callable[[], Sequences]) -> Ragged:
    starts, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    rows = checksum = features = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for numbers, sequences in make():
            for number, sequence in zip(numbers.tolist(), sequences, strict=True):
                content = np.ascontiguousarray(sequence.numpy())
                starts[number], lengths[number], features = rows, len(content), content.shape[1]
                rows += len(content)
                checksum = zlib.crc32(content.tobytes(), checksum)
                content.tofile(file)
    facts = {
        "source": dict(source),
        "features": features,
        "starts": starts.tolist(),
        "lengths": lengths.tolist(),
        "crc32": checksum,
    }
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
    found = _read(path, source)
    if found is None:
        raise DiffATRError(f"{path}: was written, and cannot be read again. Look at that disk.")
    return found


def _read(path: Path, source: Mapping[str, str]) -> Ragged | None:
    """None where there is no such file, it is of another source, or it is damaged."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["source"] != dict(source):
            return None
        starts, lengths = (np.array(facts[name], dtype=np.int64) for name in ("starts", "lengths"))
        features, rows = int(facts["features"]), int(lengths.sum())
        if path.stat().st_size != 2 * features * rows or file_crc32(path) != facts["crc32"]:
            return None
        if not rows:
            return Ragged(np.zeros((0, features), np.float16), starts, lengths)
        return Ragged(np.memmap(path, np.float16, "r", shape=(rows, features)), starts, lengths)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiffATRError(f"{path}: cannot be read ({reason(error)}).") from error
    except (ValueError, TypeError, LookupError):
        return None
