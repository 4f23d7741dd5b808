"""Searching by the approximate index beside the exact search of the same vectors, both from what an index keeps on the disk.

The vectors are embeddings, each drawn from those of real recordings where the environment names a folder of them
(DIFFATR_BENCH_CLIPS), else of the package's procedural sounds by the shipped model, with normal noise of half its length at
most added, which makes one cluster of each. Queries are texts, and further vectors made in the same way. How many vectors:
DIFFATR_BENCH_WINDOWS. The recall is of the exact search's first ten; stage two is left out on both sides. Peak memory is each
search's own process's, from its start through all queries.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diffatr_cli.core.windows import spans
from diffatr_cli.corpus import vector_index
from diffatr_cli.corpus.index import FolderIndex, IndexReport
from diffatr_cli.corpus.note_table import NoteRow
from diffatr_cli.corpus.notes import UNKNOWN
from diffatr_cli.corpus.scan import Stamp
from diffatr_cli.corpus.search import embed_sound, embed_texts, search
from diffatr_cli.corpus.snapshot import write_snapshot
from diffatr_cli.corpus.store import ContentWindows, FileRow, FileTable, WindowTable
from diffatr_cli.data import sounds
from diffatr_cli.data.audio import AUDIO_SUFFIXES, load_audio
from diffatr_cli.errors import DiffATRError
from diffatr_cli.model import Retriever, load_retriever, shipped_model

from .common import Case, Row, Size, Skip, pick

ROOT = Path(__file__).parents[1]
NOISE = 0.5  # length of the longest noise beside the vector's own, 1
PORTION = 20_000


def search_both(size: Size) -> list[Row]:
    """Make an index, train, and ask both searches the same."""
    count = int(os.environ.get("DIFFATR_BENCH_WINDOWS") or pick(size, 1_500, 20_000, 1_000_000))
    asked = pick(size, 4, 60, 200)
    try:
        model = load_retriever(shipped_model(), "cpu")
    except DiffATRError as error:
        raise Skip(str(error)) from None
    embeddings = _embeddings(model, pick(size, 8, 252, 504))
    texts = embed_texts(model, list(sounds.KINDS)[: asked // 2])
    questions = np.concatenate([texts, perturbed(embeddings, asked - len(texts), np.random.default_rng(1)).astype(np.float32)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        np.save(folder / "queries.npy", questions / np.linalg.norm(questions, axis=1, keepdims=True))
        index = FolderIndex(folder / "clips", folder / "index", approximate=True)
        _fill(index, model, embeddings, count)
        table = WindowTable(index.place, index._table_names(model.model_id)[1], model.dim)
        before = _bytes(index.folder)
        began = time.perf_counter()
        vector_index.train(table._table)
        trained = time.perf_counter() - began
        size_of_index = _bytes(index.folder) - before
        for way in (False, True):
            _write_snapshot(FolderIndex(index.corpus, index.folder, approximate=way), model.model_id, count)
        answers = {way: _in_child(folder, way, model.model_id) for way in ("exact", "approximate")}
    exact, near = answers["exact"], answers["approximate"]
    recall = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact["paths"], near["paths"], strict=True)])
    what = f"{count:,} windows of {model.dim}"
    return [
        Row(
            f"a query, median, {what}",
            near["p50"],
            exact["p50"],
            remark=f"recall of the exact first ten {recall:.4f} over {asked} queries (goal: 0.99)",
            curve=("windows", count),
        ),
        Row(f"a query, 95th percentile, {what}", near["p95"], exact["p95"], goal="goal: 0.3 s on two cores"),
        Row(f"peak memory, {what}", near["peak_gb"], exact["peak_gb"], "GB", goal="goal: 2 GB", remark="less is better"),
        Row(f"read what is searched, {what}", near["read"], exact["read"]),
        Row(f"train the index, {what}", trained, remark=f"{size_of_index / 1e6:.1f} MB beside {before / 1e6:.1f} MB"),
    ]


def perturbed(embeddings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors around embeddings (n, D), (count, D) float16 unit vectors."""
    dim = embeddings.shape[1]
    lengths = NOISE * rng.uniform(0, 1, (count, 1)).astype(np.float32) / np.sqrt(dim).astype(np.float32)
    vectors = embeddings[rng.integers(0, len(embeddings), count)] + lengths * rng.standard_normal((count, dim), np.float32)
    return np.asarray((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))


def _embeddings(model: Retriever, count: int) -> np.ndarray:
    """Of recordings, (n, D): real ones where they are given, else `count` procedural ones."""
    if given := os.environ.get("DIFFATR_BENCH_CLIPS"):
        paths = sorted(path for path in Path(given).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)[:20_000]
        return np.stack([embed_sound(model, load_audio(path, rate=model.windowing.rate)) for path in paths])
    waves = (
        sounds.render(kind, np.random.default_rng([turn, number]), 4.0)
        for turn in range(-(-count // len(sounds.KINDS)))
        for number, kind in enumerate(sounds.KINDS)
    )
    return np.concatenate([model.embed_audio([wave]) for wave, _ in zip(waves, range(count), strict=False)])


def _fill(index: FolderIndex, model: Retriever, embeddings: np.ndarray, count: int) -> None:
    """Write the tables of an index with a file for each vector."""
    files_name, windows_name = index._table_names(model.model_id)
    files, windows = FileTable(index.place, files_name), WindowTable(index.place, windows_name, model.dim)
    notes = index._note_table()
    for table in (files, windows, notes):
        table.mend()
    rng = np.random.default_rng(0)
    span = np.array(spans(model.windowing.length, model.windowing)) / model.windowing.rate
    for first in range(0, count, PORTION):
        vectors = perturbed(embeddings, min(PORTION, count - first), rng)
        hashes = [rng.bytes(16).hex() for _ in vectors]
        windows.add({each: ContentWindows(span, vectors[i : i + 1]) for i, each in enumerate(hashes)})
        stamp = Stamp(1, 1, 1, 1)
        paths = [f"{first + i:09d}.wav".encode() for i in range(len(hashes))]
        rows = zip(paths, (FileRow(stamp, each, "", "", "") for each in hashes), strict=True)
        files._table.add(files._to_arrow(dict(rows)))
        notes._table.add(notes._to_arrow(dict.fromkeys(paths, NoteRow(stamp, UNKNOWN))))
    windows.tidy()
    files.tidy()
    notes.tidy()
    windows.seal()


def _write_snapshot(index: FolderIndex, model_id: str, count: int) -> None:
    recordings, mark = index._read_tables(model_id), index._mark_of_tables(model_id)
    path = index._snapshot_path(model_id, approximate=bool(index.approximate))
    write_snapshot(path, mark, None, IndexReport(count, count), recordings)


def _in_child(folder: Path, way: str, model_id: str) -> dict[str, object]:
    command = [sys.executable, "-m", __name__, str(folder), way, model_id]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class _Cosines:
    """All that a search by cosine asks of a model."""

    reranker = calibration = None


def _peak() -> float:
    """This process's peak memory in GB. On Linux getrusage begins at its parent's, so that /proc is asked."""
    import resource

    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024 / 1e9  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _ask(folder: Path, way: str, model_id: str) -> dict[str, object]:
    """What a process finds for all queries, and what it takes."""
    index = FolderIndex(folder / "clips", folder / "index", way == "approximate")
    queries = np.load(folder / "queries.npy")
    began = time.perf_counter()
    recordings = index.read(model_id)
    read = time.perf_counter() - began
    took, paths = [], []
    for query in (queries[0], *queries):  # the first once more: it opens files
        began = time.perf_counter()
        (found,) = search(_Cosines(), recordings, query[None], refine=False, top=10)  # type: ignore[arg-type]
        took.append(time.perf_counter() - began)
        paths.append([hit.path for hit in found.hits])
    p50, p95 = np.quantile(took[1:], [0.5, 0.95]).tolist()
    return {"paths": paths[1:], "p50": p50, "p95": p95, "read": read, "peak_gb": _peak()}


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"search": search_both}


if __name__ == "__main__":
    print(json.dumps(_ask(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
