"""Searching an index of very many files by sound, by name and with filters, as the page asks, beside a plain loop over the files.

The index is made directly of random unit vectors, a window for each file, and of made-up names, folders and facts. A search takes
the text's vector as given, since embedding it costs the same with and without filters; from there on it is the page's: reading
the filters, choosing the files, and ranking by cosine and name. The plain loop asks each file by itself, in Python, whether it
fits, and then ranks what does by the same product; both find the same files, which is checked here.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from diffatr_cli.corpus.asking import ask_texts
from diffatr_cli.corpus.filtering import Columns, is_in
from diffatr_cli.corpus.filters import Condition, read_query
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.notes import Note, Notes, format_of
from diffatr_cli.corpus.session import IndexState, SearchSession
from diffatr_cli.corpus.snapshot import Recordings
from diffatr_cli.corpus.words import parts_of, stem
from diffatr_cli.errors import DiffATRError
from diffatr_cli.model import load_retriever, shipped_model
from diffatr_cli.web.app import make_app

from .common import Case, Row, Size, Skip, medians, pick

DIM = 512
WORDS = ("dog", "bark", "rain", "tin", "door", "wood", "creak", "wind", "tree", "car", "horn", "bird", "music", "crowd", "glass")
PLACES = ("field", "Field Recordings", "studio", "library/vendor", "music")
FOLDERS = [f"{place}/{year}" for place in PLACES for year in range(2015, 2025)]
QUERIES = ("dog length:<5 in:field -music", "rain on tin rate:>=48k channels:2", "door format:wav,flac date:2020..2022 -wood")


class _Model:
    """All that a search asks of a model that ranks by cosine: each text is one vector, the same for all."""

    reranker = calibration = bank = None
    sees_frames = False

    def __init__(self, vector: np.ndarray) -> None:
        self._vector = vector

    def embed_and_pool_text(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(self._vector, (len(texts), 1)), np.zeros((len(texts), 1), np.float32)


def made_up(count: int, rng: np.random.Generator) -> tuple[Recordings, list[Note]]:
    """An index of `count` files, and what is known of each."""
    vectors = rng.standard_normal((count, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = (f"{'_'.join(rng.choice(WORDS, 3))}_{i:06d}.{('wav', 'flac', 'mp3')[i % 3]}" for i in range(count))
    paths = sorted(os.path.join(FOLDERS[int(rng.integers(len(FOLDERS)))], name) for name in names)
    rates, days = rng.choice([44_100, 48_000, 96_000], count), rng.integers(16_000, 20_000, count)
    facts = zip(rng.integers(1, 3, count), rates, days, strict=True)
    notes = [Note(int(channels), int(rate), int(day), "") for channels, rate, day in facts]
    spans = np.stack([np.zeros(count), rng.uniform(0.2, 10, count)], 1)
    numbers = np.arange(count + 1)
    return Recordings(paths, numbers[:-1], numbers, spans, vectors, notes=Notes.of(paths, notes)), notes


def fits(path: str, seconds: float, note: Note, condition: Condition) -> bool:
    """Whether one file fits one filter."""
    folder, name = os.path.split(path)
    values = {"length": seconds, "channels": note.channels, "rate": note.rate, "date": note.day}
    if condition.key == "word":
        stems = {stem(part) for part in parts_of(f"{folder} {os.path.splitext(name)[0]}")}
        found = any(all(stem(part) in stems for part in parts_of(word)) for word in condition.words)
    elif condition.key == "in":
        found = any(is_in(folder, word) for word in condition.words)
    elif condition.key == "format":
        found = format_of(path) in condition.words
    else:
        found = any(interval.holds(values[condition.key]) for interval in condition.intervals)
    return found != condition.negated


def plain(recordings: Recordings, notes: list[Note], vector: np.ndarray, text: str, top: int) -> list[str]:
    """The best files by sound, file by file."""
    conditions = read_query(text).conditions
    chosen = [
        i
        for i, (path, span, note) in enumerate(zip(recordings.paths, recordings.spans.tolist(), notes, strict=True))
        if all(fits(path, span[1], note, condition) for condition in conditions)
    ]
    scores = recordings.vectors @ vector
    return [recordings.paths[i] for i in sorted(chosen, key=lambda i: (-scores[i], i))[:top]]


def search(size: Size) -> list[Row]:
    """Ask with filters, by sound alone and by both, and the same by the plain loop."""
    count, rounds = pick(size, 500, 20_000, 100_000), pick(size, 1, 3, 9)
    rng = np.random.default_rng(0)
    recordings, notes = made_up(count, rng)
    vector = recordings.vectors[0] + 0.1 * rng.standard_normal(DIM, np.float32)
    model: Any = _Model(vector / np.linalg.norm(vector))

    def ask(by: Any) -> list[list[str]]:
        return [[hit.path for hit in ask_texts(model, recordings, [text], by=by)[0].hits] for text in QUERIES]

    def loop() -> list[list[str]]:
        return [plain(recordings, notes, model._vector, text, 10) for text in QUERIES]

    began = time.perf_counter()
    Columns.of(recordings).prepare()  # as a session does when it takes up an index
    prepared = time.perf_counter() - began
    first = ask("sound")
    if first != loop():
        raise RuntimeError("the plain loop finds other files")
    took = medians({"sound": lambda: ask("sound"), "both": lambda: ask("both"), "loop": loop}, rounds)
    each = {name: seconds / len(QUERIES) for name, seconds in took.items()}
    masks = [Columns.of(recordings).fitting(read_query(text).conditions) for text in QUERIES]
    share = statistics.mean(float(mask.mean()) for mask in masks)
    what = f"{count:,} files"
    return [
        Row(
            f"a query with filters, by sound, {what}",
            each["sound"],
            each["loop"],
            remark=f"{100 * share:.0f} % of the files fit; {1e3 * prepared:.0f} ms once, when an index is taken up",
        ),
        Row(f"a query with filters, by sound and name, {what}", each["both"], goal="goal: 0.3 s"),
    ]


def page(size: Size) -> list[Row]:
    """What the page's server takes to answer with filters, with the model that ships."""
    try:
        model = load_retriever(shipped_model(), "cpu")
    except DiffATRError as error:
        raise Skip(str(error)) from None
    count, rounds = pick(size, 500, 20_000, 100_000), pick(size, 1, 3, 9)
    recordings, _ = made_up(count, np.random.default_rng(0))
    Columns.of(recordings).prepare()
    with tempfile.TemporaryDirectory() as folder:
        session = SearchSession(model, FolderIndex(Path(folder)))
        session._state = IndexState.of(recordings, {}, "made up", time.time())
        client = TestClient(make_app(session, hosts=["127.0.0.1"]), base_url="http://127.0.0.1")
        took = []
        for text in QUERIES * (rounds + 1):
            began = time.perf_counter()
            client.get("/api/search", params={"q": text}).raise_for_status()
            took.append(time.perf_counter() - began)
    warm = took[len(QUERIES) :]
    p50, p95 = np.quantile(warm, [0.5, 0.95]).tolist()
    what = f"an answer of the page with filters, {count:,} files"
    return [Row(f"{what}, median", p50, goal="goal: 0.3 s"), Row(f"{what}, 95th percentile", p95, goal="goal: 0.3 s")]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"search": search, "page": page}
