"""The approximate index of a table of windows: IVF_PQ of LanceDB, by which the windows nearest to a query are found.

Vectors are grouped around centroids (IVF), and what is left of each is coded by product quantisation (PQ), one byte for a few
values. The codes choose candidates; what is said of these is worked out from their vectors. Rows that came after the training
are searched one by one, until `optimize` gives them codes by the same centroids.

D embedding size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

FOLDER = "_indices"
"""Below that of the table: the files of the index."""
_NAME = re.compile(r"vectors-(\d+)")  # with the rows that it was trained on, since LanceDB keeps no such number
_PARTITION = 4096  # vectors of one centroid
_SUB_VECTOR = 8  # values that one byte stands for
_PROBES = 32  # partitions searched
_ROUNDS = 20  # of k-means: the codes only choose candidates
_SAMPLES = 128  # vectors for each centroid that are looked at
_LEAST = 512  # rows from which on there is anything to train: PQ has 256 centroids
_MOST_PARTS = 8  # pieces that optimising may leave the index in
_FAR = timedelta(days=1)


def holds(name: str) -> bool:
    """Whether a file of a table, by its name below it, is of the index alone."""
    return name.startswith(f"{FOLDER}/")


def is_due(table: Table) -> bool:
    """Whether there is no index, the table has doubled or halved since it was trained, or it lies in many pieces."""
    rows = table.count_rows()
    trained = _trained(table)
    if rows < _LEAST or len(trained) != 1:
        return rows >= _LEAST
    ((name, size),) = trained.items()
    stats = table.index_stats(name)
    return stats is None or not size / 2 < rows < 2 * size or (stats.num_indices or 1) > _MOST_PARTS


def train(table: Table) -> None:
    """Train the index anew, in the place of any other, on `_LEAST` rows or more."""
    from lancedb.index import IvfPq

    rows, dim, trained = table.count_rows(), table.schema.field("vector").type.list_size, _trained(table)
    how = IvfPq(
        distance_type="cosine",
        num_partitions=max(1, rows // _PARTITION),
        num_sub_vectors=_sub_vectors(dim),
        max_iterations=_ROUNDS,
        sample_rate=_SAMPLES,
    )
    name = f"vectors-{rows}"
    table.create_index("vector", config=how, name=name, replace=True, wait_timeout=_FAR)
    for other in trained.keys() - {name}:
        table.drop_index(other)


def drop(table: Table) -> None:
    """Remove the index. Its files stay, for earlier versions of the table."""
    for name in _trained(table):
        table.drop_index(name)


def nearest(table: Table, query: np.ndarray, count: int, seen: Set[str]) -> pa.Table:
    """The `count` windows nearest to a query (D,), as the codes see them: `hash`, `start`, `vector`; fewer if there are no more.

    Args:
        seen: contents that are left out.
    """
    question: Any = table.search(query.astype(np.float32), vector_column_name="vector")
    question = question.distance_type("cosine").minimum_nprobes(_PROBES).maximum_nprobes(0).limit(count)
    question = question.select(["hash", "start", "vector", "_distance"])
    if seen:
        question = question.where(f"hash NOT IN ({', '.join(map(_quoted, sorted(seen)))})", prefilter=True)
    return question.to_arrow()


def at(table: Table, places: Iterable[tuple[str, float]]) -> pa.Table:
    """The rows of windows by the hash of their content and their start, and perhaps others: `hash`, `start`, `vector`."""
    hashes, starts = map(set, zip(*places, strict=True))
    where = f"hash IN ({', '.join(map(_quoted, sorted(hashes)))}) AND start IN ({', '.join(map(repr, sorted(starts)))})"
    return table.search().where(where).select(["hash", "start", "vector"]).to_arrow()


def _sub_vectors(dim: int) -> int:
    """Into how many parts PQ cuts a vector: equal ones, of about `_SUB_VECTOR` values."""
    return next(parts for parts in range(max(1, dim // _SUB_VECTOR), 0, -1) if dim % parts == 0)


def _trained(table: Table) -> dict[str, int]:
    """The names of the indices of vectors, with the number of rows that each was trained on."""
    found = ((each.name, _NAME.fullmatch(each.name)) for each in table.list_indices())
    return {name: int(match[1]) for name, match in found if match}


def _quoted(content: str) -> str:
    return "'" + content.replace("'", "''") + "'"
