"""A folder with what an evaluation saw, for other programs: ranks, the best candidates, the challenge's table, all scores.

    export.json                  what was evaluated, with its results
    clips.csv, captions.csv      what the numbers of clips and captions elsewhere mean
    SYSTEM/ranks.csv             a row a direction, seed and query: rank, reciprocal rank, metrics
    SYSTEM/top100.parquet        a row a direction, seed, query and place: candidate, score, whether it is relevant
    SYSTEM/challenge-seed-N.csv  caption, fname_1 .. fname_16, as the DCASE challenge takes it
    SYSTEM/scores-seed-N.npz     by request: `t2a` (captions x clips) and `a2t` (clips x captions), float16

Queries that the protocol does not ask have no row, and NaN in the matrices.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ..errors import UsageError
from ..files import replacing_folder
from ..types import Direction, System
from .evaluation_set import EvaluationSet, clip_file
from .results import EvaluationResult

RECORD = "export.json"
TOP = 100
CHALLENGE = 16


class Exporter:
    """Collects what is written into a folder; made by `exporting`."""

    def __init__(self, folder: Path, asked: EvaluationSet, identity: Mapping[str, str], matrices: bool) -> None:
        self._folder, self._asked, self._identity, self._matrices = folder, asked, identity, matrices
        self._best: dict[tuple[System, int, Direction], list[tuple[np.ndarray, np.ndarray]]] = {}
        self._scores: dict[tuple[System, int, Direction], np.ndarray] = {}

    def of_seed(self, seed: int) -> Callable[[Direction, System, slice, Tensor], None]:
        """What takes the scores of one training seed: direction, system, rows of the task, (rows, candidates)."""

        def take(direction: Direction, system: System, rows: slice, scores: Tensor) -> None:
            key, values = (system, seed, direction), scores.cpu().numpy()
            # Equal scores in the order of the candidates, so that the same evaluation gives the same file.
            best = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
            self._best.setdefault(key, []).append((best, np.take_along_axis(values, best, 1)))
            if self._matrices:
                if key not in self._scores:
                    sizes = len(self._asked.captions.texts), len(self._asked.clips)
                    self._scores[key] = np.full(sizes if direction == "t2a" else sizes[::-1], np.nan, np.float16)
                self._scores[key][self._asked.tasks[direction].queries[rows]] = values.astype(np.float16)

        return take

    def finish(self, result: EvaluationResult) -> None:
        """Write everything."""
        clips, captions = self._asked.clips, self._asked.captions
        files = [clip_file(clip) for clip in clips]
        self._csv("clips.csv", ("clip", "clip_id", "fname"), ((i, c.clip_id, files[i]) for i, c in enumerate(clips)))
        rows = zip(range(len(captions.texts)), captions.clip_index.tolist(), captions.texts, strict=True)
        self._csv("captions.csv", ("caption_number", "clip", "caption"), rows)
        for system in dict.fromkeys(each.system for each in result.systems):
            self._write_ranks(system, result)
            self._write_best(system, result.seeds)
            for seed in result.seeds:
                self._write_challenge(system, seed, files)
                if self._matrices:
                    self._write_scores(system, seed)
        written = sorted(str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file())
        record = {"export": self._identity, "result": result.to_json(), "files": [RECORD, *written]}
        (self._folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _write_ranks(self, system: System, result: EvaluationResult) -> None:
        metrics = [name for name in result.metrics if name not in ("medr", "meanr")]
        clips, texts = self._asked.clips, self._asked.captions.texts

        def rows() -> Iterator[Sequence[Any]]:
            for each in result.systems:
                for seed, queries in zip(result.seeds, each.queries, strict=True) if each.system == system else ():
                    task = self._asked.tasks[each.direction]
                    columns = [queries[name].tolist() for name in ("rank", *metrics)]
                    for query, clip, rank, *values in zip(task.queries.tolist(), task.clips.tolist(), *columns, strict=True):
                        caption = texts[query] if each.direction == "t2a" else ""
                        yield each.direction, seed, query, clips[clip].clip_id, caption, rank, 1 / rank, *values

        head = ("direction", "seed", "query", "clip_id", "caption", "rank", "reciprocal_rank", *metrics)
        self._csv(f"{system}/ranks.csv", head, rows())

    def _write_best(self, system: System, seeds: Sequence[int]) -> None:
        tables = []
        for (of, seed, direction), blocks in self._best.items():
            if of != system or seed not in seeds:
                continue
            task = self._asked.tasks[direction]
            best, scores = (np.concatenate(part) for part in zip(*blocks, strict=True))
            count, top = best.shape
            relevant = np.stack([np.isin(row, good) for row, good in zip(best, task.relevant, strict=True)])
            columns = {
                "direction": pa.array([direction] * (count * top)).dictionary_encode(),
                "seed": pa.array(np.full(count * top, seed), pa.int64()),
                "query": pa.array(np.repeat(task.queries, top), pa.int32()),
                "place": pa.array(np.tile(np.arange(1, top + 1), count), pa.int32()),
                "candidate": pa.array(best.ravel(), pa.int32()),
                "score": pa.array(scores.ravel(), pa.float32()),
                "relevant": pa.array(relevant.ravel()),
            }
            tables.append(pa.table(columns))
        with self._path(f"{system}/top{TOP}.parquet").open("wb") as file:
            pq.write_table(pa.concat_tables(tables).unify_dictionaries(), file)

    def _write_challenge(self, system: System, seed: int, files: Sequence[str]) -> None:
        blocks = self._best[system, seed, "t2a"]
        best = np.concatenate([block for block, _ in blocks])[:, :CHALLENGE].tolist()
        asked = self._asked.tasks["t2a"].queries.tolist()
        texts = self._asked.captions.texts
        none = [""] * (CHALLENGE - len(best[0]))  # where the split has fewer clips
        rows = ((texts[query], *(files[clip] for clip in row), *none) for query, row in zip(asked, best, strict=True))
        head = ("caption", *(f"fname_{i + 1}" for i in range(CHALLENGE)))
        self._csv(f"{system}/challenge-seed-{seed}.csv", head, rows)

    def _write_scores(self, system: System, seed: int) -> None:
        arrays = {direction: self._scores[system, seed, direction] for direction in self._asked.tasks}
        with self._path(f"{system}/scores-seed-{seed}.npz").open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def _csv(self, name: str, head: Sequence[str], rows: Iterator[Sequence[Any]] | Any) -> None:
        # Names of files need not be valid text; their own bytes are written.
        with self._path(name).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(rows)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        return path


@contextmanager
def exporting(folder: Path, asked: EvaluationSet, identity: Mapping[str, str], matrices: bool = False) -> Iterator[Exporter]:
    """An `Exporter` whose files are in `folder` once the block has ended well; until then it is as it was.

    Args:
        identity: what was asked of which models; an earlier export of the same is replaced.

    Raises:
        UsageError: the folder holds something else.
        DiffATRError: it cannot be written.
    """
    _check_free(folder, identity)
    with replacing_folder(folder) as temporary:
        yield Exporter(temporary, asked, identity, matrices)


def _check_free(folder: Path, identity: Mapping[str, str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file. Name a folder for --export.")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if not there:
        return
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        earlier, files = dict(record["export"].items()), set(record["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{folder}: is not empty and holds no earlier export. Name another folder for --export.") from None
    if earlier != dict(identity):
        told = ", ".join(f"{key} {value}" for key, value in earlier.items())
        raise UsageError(f"{folder}: holds the export of another evaluation ({told}). Name another folder for --export.")
    if foreign := sorted(there - files):
        raise UsageError(f"{folder}: holds {foreign[0]}, which no export wrote. Move it, or name another folder for --export.")
