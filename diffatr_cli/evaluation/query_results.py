"""What every query got, kept beside a run: one row a system, direction and query, so that runs compare query by query."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import replacing
from ..types import Direction, System

Queries = Mapping[str, np.ndarray]
_FACTS = b"diffatr"


def query_results_file(run: Path, target: str, facts: Mapping[str, Any]) -> Path:
    """Where the results of a seed folder (`runs/RECIPE/seed-N`) on a data set are kept, a file for each setting that was asked.

    Those of an earlier model or of earlier data have the same place, and are replaced.
    """
    settings = {name: value for name, value in facts.items() if name not in ("model", "data")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return run / "evaluation" / f"{target}-{facts['split']}-{facts['protocol']}-{digest}.parquet"


def write_query_results(
    path: Path,
    results: Mapping[tuple[System, Direction], Queries],
    places: Mapping[Direction, np.ndarray],
    clips: Mapping[Direction, np.ndarray],
    facts: Mapping[str, Any],
) -> None:
    """Replace a file of results.

    Args:
        results: what `MetricAccumulator.queries` gives of each system in each direction.
        places, clips: of each query its place among the split's captions (t2a) or clips (a2t), and its clip.
        facts: what the results depend on: the model, the data, the settings. Plain values.

    Raises:
        DiffATRError: the file cannot be written.
    """
    tables = []
    for (system, direction), queries in results.items():
        count = len(queries["rank"])
        columns = {
            "system": pa.array([system] * count).dictionary_encode(),
            "direction": pa.array([direction] * count).dictionary_encode(),
            "query": pa.array(places[direction], pa.int32()),
            "clip": pa.array(clips[direction], pa.int32()),
        }
        tables.append(pa.table(columns | {name: pa.array(values) for name, values in queries.items()}))
    table = pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata({_FACTS: json.dumps(dict(facts)).encode()})
    with replacing(path) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)


def read_query_results(path: Path, facts: Mapping[str, Any]) -> dict[tuple[System, Direction], dict[str, np.ndarray]] | None:
    """What `write_query_results` kept, with `query` and `clip` beside the metrics; None where it is of other facts or unreadable.

    Nothing is lost with such a file: evaluating again writes it anew.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        if json.loads((table.schema.metadata or {})[_FACTS]) != json.loads(json.dumps(dict(facts))):
            return None
        names = [name for name in table.column_names if name not in ("system", "direction")]
        system, direction = (np.array(table.column(name).to_pylist(), dtype=object) for name in ("system", "direction"))
        columns = {name: table.column(name).to_numpy() for name in names}
        pairs = dict.fromkeys(zip(system.tolist(), direction.tolist(), strict=True))
        return {(s, d): {name: values[(system == s) & (direction == d)] for name, values in columns.items()} for s, d in pairs}
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
