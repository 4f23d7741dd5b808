"""Searching by the approximate index: against brute force in numpy, and against the exact search of the same folder."""

import dataclasses

import numpy as np
import pytest
from fake_retriever import FakeRetriever, make_reranker, write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from diffatr_cli.core.calibration import Calibration, Logistic
from diffatr_cli.corpus import index as index_module
from diffatr_cli.corpus import nearest, vector_index
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.report import Damaged
from diffatr_cli.corpus.scan import Stamp
from diffatr_cli.corpus.search import search
from diffatr_cli.corpus.store import ContentWindows, FileRow, FileTable, WindowTable
from diffatr_cli.corpus.trajectory import trajectory

DIM = 16
MODEL = "model-a"


def clustered(count, rng, spread=0.5):
    """Unit vectors around 40 centres, (count, DIM) float16."""
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    vectors = centres[rng.integers(0, 40, count)] + spread * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


class Made:
    """An index whose tables were written by hand: files, some of one content, with one to `longest` windows each."""

    def __init__(self, root, contents=400, longest=6, seed=0, copies=5):
        rng = np.random.default_rng(seed)
        self.corpus, self.folder = root / "clips", root / "index"
        self.corpus.mkdir(parents=True)
        self.folder.mkdir()
        self.windows = {}
        self.files = {}
        for number in range(contents):
            self.new(number, int(rng.integers(1, longest + 1)), rng)
        for number in range(copies):
            self.files[f"copy-{number}.wav"] = self.files[f"{number:04d}.wav"]
        self.index = FolderIndex(self.corpus, self.folder, approximate=True)
        self.file_table.mend()
        self.table.mend()
        self.table.add(self.windows)
        self.put()

    @property
    def file_table(self):
        return FileTable(self.index.place, self.index._table_names(MODEL)[0])

    @property
    def table(self):
        return WindowTable(self.index.place, self.index._table_names(MODEL)[1], DIM)

    def trained(self):
        return vector_index._trained(self.table._table)

    def new(self, number, length, rng):
        content = f"{rng.bytes(16).hex()}"
        spans = np.stack([5.0 * np.arange(length), 5.0 * np.arange(length) + 10], 1)
        self.windows[content] = ContentWindows(spans, clustered(length, rng))
        self.files[f"{number:04d}.wav"] = content
        return content

    def put(self):
        stamp = Stamp(1, 2, 3, 4)
        self.file_table.put({path.encode(): FileRow(stamp, content, "", "", "") for path, content in self.files.items()})

    def read(self, approximate=True):
        self.index.approximate = approximate
        return self.index._read_tables(MODEL, training=lambda text: None) if not approximate else self.stored()

    def stored(self):
        recordings = self.index._read_tables(MODEL, training=lambda text: None)
        store = self.index._store(MODEL, self.folder / "snapshot", recordings.hashes)
        return dataclasses.replace(recordings, store=store)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("made"))


def queries(count, seed=1):
    vectors = clustered(count, np.random.default_rng(seed)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(made, query, unwanted=None):
    """The best score of every file, highest first."""
    best = {}
    for path, content in made.files.items():
        vectors = made.windows[content].vectors.astype(np.float32)
        scores = vectors @ query
        if unwanted is not None:
            scores = scores - np.maximum(0, vectors @ unwanted)
        best[path] = float(scores.max())
    return sorted(best.items(), key=lambda each: (-each[1], each[0]))


def test_the_vectors_are_not_in_memory_and_the_index_is_trained(made):
    recordings = made.read()
    assert len(recordings.vectors) == 0
    assert len(recordings.spans) == sum(len(each.spans) for each in made.windows.values())
    assert len(made.trained()) == 1


def test_recall_against_brute_force(made):
    model, recordings = FakeRetriever(), made.read()
    found = [
        len({hit.path for hit in each.hits} & {path for path, _ in brute_force(made, query)[:10]})
        for query in queries(40)
        for each in search(model, recordings, query[None], refine=False, top=10)
    ]
    assert sum(found) >= 0.99 * 400


def test_scores_are_exact_and_so_is_the_window(made):
    for query in queries(10, seed=2):
        (found,) = search(FakeRetriever(), made.read(), query[None], refine=False, top=10)
        for hit in found.hits:
            windows = made.windows[made.files[hit.path]]
            scores = windows.vectors.astype(np.float32) @ query
            row = int(np.flatnonzero(windows.spans[:, 0] == hit.start)[0])
            assert hit.score == pytest.approx(float(scores[row]), abs=1e-6)


@pytest.fixture
def all_fetched(monkeypatch):
    monkeypatch.setattr(nearest, "_FETCH", 10**5)


def ask_both(made, model, query, **options):
    exact, stored = made.read(approximate=False), made.read()
    return search(model, exact, query[None], **options), search(model, stored, query[None], **options)


@pytest.mark.parametrize("phase_two", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_where_all_is_fetched_results_are_those_of_the_exact_search(made, all_fetched, phase_two, calibrated):
    model = FakeRetriever()
    model.reranker = make_reranker(DIM) if phase_two else None
    if calibrated:
        score, presence = Logistic((3.0, 0.1, 0.0, 0.1, -0.2), 0.0), Logistic((1.0, 1.0, 0.1, 0.1, 0.1), -1.0)
        model.calibration = Calibration(score, None, None, presence)
    for number, query in enumerate(queries(6, seed=3)):
        for unwanted in (None, queries(6, seed=4)[number]):
            exact, stored = ask_both(made, model, query, unwanted=unwanted, top=12)
            assert same(exact[0], stored[0])


def same(one, other):
    assert [(hit.path, hit.start, hit.end) for hit in one.hits] == [(hit.path, hit.start, hit.end) for hit in other.hits]
    np.testing.assert_allclose([hit.score for hit in one.hits], [hit.score for hit in other.hits], atol=1e-6)
    assert (one.present is None) == (other.present is None)
    assert one.present is None or one.present == pytest.approx(other.present, abs=1e-6)
    return one.verdict == other.verdict


@pytest.mark.parametrize("case", ["few", "unwanted", "long"])
def test_what_the_fetched_do_not_settle_is_fetched_or_scanned(tmp_path, monkeypatch, case):
    """A few windows are fetched at a time, in their exact order, of few contents or all near to what is not wanted."""
    monkeypatch.setattr(vector_index, "_LEAST", 10**9)  # not trained: LanceDB compares with each
    monkeypatch.setattr(nearest, "_FETCH", 4)
    monkeypatch.setattr(nearest, "_TIMES", 1)
    monkeypatch.setattr(nearest, "_MOST", 64)
    made = Made(tmp_path, contents=5, longest=400) if case == "long" else Made(tmp_path)
    for query in queries(4, seed=5):
        unwanted = query if case == "unwanted" else None
        exact, stored = ask_both(made, FakeRetriever(), query, refine=False, unwanted=unwanted, top=5 if case == "long" else 12)
        assert same(exact[0], stored[0])


@given(st.integers(1, 30), st.integers(0, 10**6), st.booleans())
@settings(max_examples=15)
def test_a_scan_gives_the_nearest_of_brute_force(made, depth, seed, against):
    recordings, (query, other) = made.read(), queries(2, seed)
    unwanted = other if against else None
    windows = recordings.store._scanned(recordings, query, depth, unwanted)
    scores = windows.vectors @ query - (0 if unwanted is None else np.maximum(0, windows.vectors @ other))
    by_content = {made.files[path]: score for path, score in brute_force(made, query, unwanted)}
    np.testing.assert_allclose(np.sort(scores), np.sort(list(by_content.values()))[-depth:], atol=1e-6)


def test_the_trajectory_is_that_of_the_exact_search(made, all_fetched):
    model = FakeRetriever(phase_two=True)
    (query,) = queries(1)
    one = trajectory(model, made.read(approximate=False), query)
    other = trajectory(model, made.read(), query)
    assert one.paths == other.paths
    np.testing.assert_array_equal(one.windows, other.windows)
    np.testing.assert_allclose(one.x0_hat, other.x0_hat, atol=1e-6)


def test_vectors_of_windows_by_their_rows(made):
    rows = np.array([7, 3, 300, 3])
    np.testing.assert_array_equal(made.read().vectors_at(rows), made.read(approximate=False).vectors[rows])


def test_the_index_follows_the_table(tmp_path):
    """New contents are found before they have codes and after; those of no file never; twice as many train it anew."""
    made = Made(tmp_path, contents=300)
    made.read()
    trained = made.trained()
    rng = np.random.default_rng(9)
    new = made.new(900, 1, rng)
    made.table.add({new: made.windows[new]})
    made.put()
    query = made.windows[new].vectors[0].astype(np.float32)
    query /= np.linalg.norm(query)

    def best():
        return search(FakeRetriever(), made.read(), query[None], refine=False, top=3)[0].hits[0].path

    assert best() == "0900.wav"
    made.table.tidy()
    assert best() == "0900.wav"
    assert made.trained() == trained
    made.files["moved.wav"] = made.files.pop("0900.wav")
    made.file_table.keep(rows_of(made))
    made.put()
    assert best() == "moved.wav"
    del made.files["moved.wav"]
    made.file_table.keep(rows_of(made))
    assert best() not in ("moved.wav", "0900.wav")  # its windows are in the table still
    del made.windows[new]
    made.table.keep(set(made.windows))
    assert best() not in ("moved.wav", "0900.wav")
    more = [made.new(1000 + number, 4, rng) for number in range(400)]
    made.table.add({content: made.windows[content] for content in more})
    made.put()
    made.read()
    (name,) = made.trained()
    assert name not in trained
    assert best() == brute_force(made, query)[0][0]


def rows_of(made):
    return {path.encode(): FileRow(Stamp(1, 2, 3, 4), content, "", "", "") for path, content in made.files.items()}


def test_a_damaged_vector_is_never_an_answer(tmp_path):
    made = Made(tmp_path)
    recordings = made.read()
    recordings.sums[:] ^= 1  # as if every vector had changed since
    snapshot = made.folder / "snapshot"
    snapshot.touch()
    with pytest.raises(Damaged):
        search(FakeRetriever(), recordings, queries(1), refine=False)
    assert not snapshot.exists()


def test_damage_in_the_index_costs_the_index_alone(tmp_path):
    made = Made(tmp_path)
    made.read()
    made.table.seal()
    for path in made.folder.glob("windows-*.lance/_indices/*/*"):
        path.write_bytes(b"damage")
    with pytest.raises(Damaged):
        made.read()
    assert made.table.mend() == (set(made.windows), set())
    (query,) = queries(1)
    (found,) = search(FakeRetriever(), made.read(), query[None], refine=False)
    assert [hit.path for hit in found.hits][:3] == [path for path, _ in brute_force(made, query)[:3]]


def test_another_corpus_of_the_same_index_is_not_found(tmp_path):
    """Half the contents are of no file of this corpus."""
    made = Made(tmp_path)
    for path in list(made.files)[::2]:
        del made.files[path]
    made.file_table.keep(rows_of(made))
    for query in queries(5):
        (found,) = search(FakeRetriever(), made.read(), query[None], refine=False)
        assert [hit.path for hit in found.hits][:1] == [path for path, _ in brute_force(made, query)[:1]]


def test_the_bound_decides_and_can_be_overruled(tmp_path, monkeypatch):
    corpus = tmp_path / "clips"
    for i in range(12):
        write_tone(corpus / f"{i:02d}.wav", 150 + 97 * i, 0.3, seed=i)
    model = FakeRetriever()
    monkeypatch.setattr(index_module, "BOUND", 11)
    monkeypatch.setattr(vector_index, "_LEAST", 10**9)  # too few to train on: they are compared one by one

    def held(approximate):
        folder = FolderIndex(corpus, None, approximate)
        folder.update(model)
        return len(folder.read(MODEL).vectors)

    assert [held(None), held(False), held(True), held(None)] == [0, 12, 0, 0]
    monkeypatch.setattr(index_module, "BOUND", 12)
    assert [held(None), held(True), held(None)] == [12, 0, 12]
    assert model.embedded == 12
    (corpus / "03.wav").unlink()
    folder = FolderIndex(corpus, None, approximate=True)
    folder.update(model)
    found = search(model, folder.read(MODEL), model.embed_text(["441 Hz"]), refine=False, top=12)[0]
    assert {hit.path for hit in found.hits} == {f"{i:02d}.wav" for i in range(12) if i != 3}
