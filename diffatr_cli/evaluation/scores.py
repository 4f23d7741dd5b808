"""A matrix of anybody's scores, measured as our own are: the same metrics, tie rule, protocols and intervals."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from ..core.metrics import MetricAccumulator, mean_metrics
from ..errors import UsageError
from ..files import reason
from ..types import DIRECTIONS, Direction
from .evaluation_set import EvaluationSet, load_evaluation_set
from .protocol import PAPER
from .results import ScoresResult, SystemResult, paired_intervals


def evaluate_scores(
    scores: Path, target: str, *, data: Path, split: str = "test", protocol: str = PAPER, relevance: Path | None = None
) -> ScoresResult:
    """Measure the scores in a file.

    Args:
        scores: an npy or npz file of one matrix, captions x clips in the order of the data set's manifest, which serves both
            directions; or an npz of arrays named `t2a` (captions x clips), `a2t` (clips x captions), or both.

    Raises:
        UsageError: the file holds something else, a matrix of other sizes, or NaN; or as `load_evaluation_set`.
        DiffATRError: the data set is not prepared.
    """
    asked = load_evaluation_set(data, target, split, protocol, relevance)
    by_direction = _matrices(scores, asked)
    systems = []
    for direction, matrix in by_direction.items():
        task, accumulator = asked.tasks[direction], MetricAccumulator(asked.protocol.measure)
        accumulator.update(matrix[task.queries], task.relevant)
        queries = accumulator.queries()
        # As a system it is what ranks without diffusion.
        systems.append(SystemResult("baseline", direction, (mean_metrics(queries),), (queries,)))
    return ScoresResult(
        scores=str(scores),
        target=target,
        split=split,
        protocol=protocol,
        clips=len(asked.clips),
        captions=len(asked.captions.texts),
        directions=paired_intervals(asked.query_clips, systems)["baseline"],
        notes=asked.notes,
    )


def _matrices(path: Path, asked: EvaluationSet) -> dict[Direction, np.ndarray]:
    """The scores of the asked queries, by direction."""
    arrays = _read(path)
    named: dict[Direction, np.ndarray] = {direction: arrays[direction] for direction in DIRECTIONS if direction in arrays}
    if not named:
        if len(arrays) != 1:
            raise UsageError(
                f"{path}: holds {len(arrays)} arrays ({', '.join(arrays) or 'none'}). Give one (captions x clips), or name them "
                "t2a (captions x clips) and a2t (clips x captions)."
            )
        ((_, matrix),) = arrays.items()
        named = {"t2a": matrix, "a2t": matrix.T} if "a2t" in asked.tasks else {"t2a": matrix}
        _check(path, matrix, "t2a", asked)
    found = {direction: matrix for direction, matrix in named.items() if direction in asked.tasks}
    if not found:
        raise UsageError(f"{path}: has no t2a, the direction of --protocol {asked.protocol.name}.")
    for direction, matrix in found.items():
        _check(path, matrix, direction, asked)
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by their names, or that of an npy file without one; nothing pickled is loaded."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {reason(error)}") from None
    try:
        if not content.startswith(b"PK"):
            return {"": _array(content)}
        # Not by np.load: it stops where an array's own header says, so that zipfile may never come to the checksum.
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            return {name.removesuffix(".npy"): _array(file.read(name)) for name in file.namelist()}
    except Exception as error:  # damaged in one of many ways
        pickled = "allow_pickle" in str(error)
        told = "holds Python objects, which are never loaded" if pickled else "no npz or npy file, or a damaged one"
        raise UsageError(f"{path}: {told}. Save it with numpy.savez or numpy.save.") from None


def _array(content: bytes) -> np.ndarray:
    return np.asarray(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))


def _check(path: Path, matrix: np.ndarray, direction: Direction, asked: EvaluationSet) -> None:
    """Raises UsageError for a matrix that does not fit, with what would."""
    sizes = {"captions": len(asked.captions.texts), "clips": len(asked.clips)}
    rows, columns = ("captions", "clips") if direction == "t2a" else ("clips", "captions")
    expected = f"{sizes[rows]} rows ({rows}) and {sizes[columns]} columns ({columns})"
    where = f"{path}: {direction} of the {asked.split} split of {asked.dataset.name} needs {expected}"
    if matrix.shape != (sizes[rows], sizes[columns]):
        turned = " Turn it around." if matrix.shape == (sizes[columns], sizes[rows]) else ""
        raise UsageError(f"{where}, got {' x '.join(map(str, matrix.shape)) or 'a single number'}.{turned}")
    if not np.issubdtype(matrix.dtype, np.floating) and not np.issubdtype(matrix.dtype, np.integer):
        raise UsageError(f"{where} of numbers, got {matrix.dtype}.")
    places = asked.tasks[direction].queries
    if np.isnan(matrix[places]).any():
        row, column = np.argwhere(np.isnan(matrix[places]))[0].tolist()
        raise UsageError(f"{where} of numbers, and row {places[row]}, column {column} (from 0) is NaN.")
