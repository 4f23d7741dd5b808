"""A query that re-ranks its shortlist by frames, against the same query by pooled vectors alone.

The corpus is of windows with random vectors and random frames of the shipped model's sizes, the frames on the disk as an index
keeps them; the conditioner is untrained, which takes as long as a trained one. A query is from its text to its hits: its sentence
vector and token states, the cosines, the frames of the shortlist of 64, and 50 steps. The start of the process is not in it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from diffatr_cli.core.query_conditioned import QueryConditioner
from diffatr_cli.core.scoring import Reranker
from diffatr_cli.corpus.frames import FrameTable, StoredFrames
from diffatr_cli.corpus.search import search_texts
from diffatr_cli.corpus.snapshot import Recordings
from diffatr_cli.errors import DiffATRError
from diffatr_cli.model import Retriever, load_retriever, shipped_model
from diffatr_cli.types import DIRECTIONS

from .common import Case, Row, Size, Skip, medians, pick

FRAMES = 31  # of a window of ten seconds
SHORTLIST = 64


def query(size: Size) -> list[Row]:
    """One text over many windows."""
    windows, rounds = pick(size, 50, 1_000, 10_000), pick(size, 1, 5, 15)
    try:
        model = load_retriever(shipped_model(), "cpu")
    except DiffATRError as error:
        raise Skip(str(error)) from None
    pooled = load_retriever(shipped_model(), "cpu")
    assert model.reranker is not None
    assert pooled.reranker is not None
    model.reranker, pooled.reranker = _by_frames(model), pooled.reranker.with_weight(1.0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(windows, model.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hashes = np.array([rng.bytes(16).hex() for _ in range(windows)], "S32")
    with tempfile.TemporaryDirectory() as name:
        table = FrameTable(Path(name), "frames")
        table.mend()
        for content in hashes.tolist():
            table.add(content.decode(), 0, [rng.normal(size=(FRAMES, _sizes(model)[0])).astype(np.float16)])
        table.complete(dict.fromkeys((content.decode() for content in hashes.tolist()), 1))
        offsets = np.arange(windows + 1)
        spans = np.tile([[0.0, 10.0]], (windows, 1))
        frames = StoredFrames(table, Path(name) / "snapshot", hashes, offsets)
        recordings = Recordings(
            [f"{i:05d}.wav" for i in range(windows)], np.arange(windows), offsets, spans, vectors, frames, hashes
        )
        texts = iter(f"a dog barks {number} times" for number in range(10**6))

        def ask(asked: Retriever) -> None:
            text = [next(texts)]
            sampling = asked.reranker.sampling.for_folder(shortlist=SHORTLIST) if asked.reranker else None
            search_texts(asked, recordings, text, sampling)

        took = medians({"frames": lambda: ask(model), "pooled": lambda: ask(pooled)}, rounds)
    what = f"a query over {windows:,} windows, by frames"
    return [Row(what, took["frames"], took["pooled"], goal="goal: at most 0.15 s", remark="beside it: by pooled vectors alone")]


def _by_frames(model: Retriever) -> Reranker:
    """The model's reranker, with conditioners, and a weight that counts."""
    of_frames, of_tokens = _sizes(model)
    plain = model.reranker
    assert plain is not None
    generator = torch.Generator().manual_seed(0)
    conditioners = {each: QueryConditioner(of_tokens, of_frames, model.dim, generator=generator).eval() for each in DIRECTIONS}
    weights = dict.fromkeys(DIRECTIONS, 1.0)
    return Reranker(plain.denoisers, plain.schedule, plain.sampling, weights, conditioners=conditioners)


def _sizes(model: Retriever) -> tuple[int, int]:
    """Features of a frame and of a token."""
    assert model.feature_sizes is not None
    return model.feature_sizes


def cases(size: Size) -> dict[str, Case]:
    """The benchmark by its name."""
    return {"query": query}
