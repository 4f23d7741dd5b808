"""Work handed to engines: the plain one, and what the driver and the workers of Ray's do, without Ray."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from audio_files import bad_files, table
from cluster_work import Count, loader
from command_line import typed
from fake_retriever import FakeRetriever, contents, write_tone
from hypothesis import given
from hypothesis import strategies as st
from test_imports import loaded_after
from test_index_frames import FramedRetriever

from diffatr_cli import __version__
from diffatr_cli.cluster import engine as engine_module
from diffatr_cli.cluster import worker as worker_module
from diffatr_cli.corpus import batches
from diffatr_cli.corpus import elsewhere as elsewhere_module
from diffatr_cli.corpus.elsewhere import Elsewhere, EmbedFiles, _File
from diffatr_cli.corpus.examine import Vector
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.windows import Missing, Window
from diffatr_cli.data.convert import Conversion, Converter
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.engines import InProcess, ItemLost, by_item
from diffatr_cli.errors import DiffATRError, UsageError

GENERATOR = Path(__file__).parents[2] / "shared" / "cases" / "odd_audio.py"


@given(st.lists(st.integers(0, 4), max_size=20), st.randoms())
def test_pieces_come_item_by_item_in_order_whatever_is_left_early(items, random):
    want = [[(item, piece) for piece in range(item)] for item in items]
    assert [list(lane) for lane in InProcess().map(Count(), items)] == want
    for lane, pieces in zip(InProcess().map(Count(), items), want, strict=True):
        taken = random.randint(0, len(pieces))
        assert list(islice(lane, taken)) == pieces[:taken]


def test_pieces_of_none():
    assert [list(lane) for lane in by_item(iter([(1, "a")]), 3)] == [[], ["a"], []]


# --- the driver ------------------------------------------------------------------------------------------------------


def rows_of(items, start, end):
    """What a worker sends of some items, undisturbed."""
    for number in range(start, end):
        for piece in range(items[number]):
            yield worker_module.Row(number, piece, "piece", (items[number], piece))
        yield worker_module.Row(number, items[number], "end", None)


@pytest.fixture(scope="module")
def engine():
    try:
        return engine_module.RayEngine()
    except UsageError:
        pytest.skip("needs the extra `cluster`")


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_each_piece_comes_once_whatever_workers_are_lost(engine, items, data):
    """A round ends anywhere, and may say again what it said before, or leave something out."""
    troubles = data.draw(st.lists(st.sampled_from(["lost", "again", "gap", "short"]), max_size=2))

    def a_round(work, all_items, start, end):
        rows = list(rows_of(items, start, end))
        if not troubles:
            yield from rows
            return
        trouble = troubles.pop()
        place = data.draw(st.integers(0, len(rows) - 1))
        if trouble == "again":
            yield from rows[:place]
            yield from rows_of(items, start, end)
        elif trouble == "gap":
            yield from rows[:place] + rows[place + 1 :]
        else:
            yield from rows[:place]
            if trouble == "lost":
                raise engine_module._Gone("a machine")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_round", a_round)
        patch.setattr(engine, "_part", lambda: None)
        got = [list(lane) for lane in engine.map(Count(), items)]
    assert got == [[(item, piece) for piece in range(item)] for item in items]


def test_rounds_of_which_nothing_comes_are_an_end(engine, monkeypatch):
    def a_round(work, items, start, end):
        raise engine_module._Gone("one of two machines")
        yield

    parted = []
    monkeypatch.setattr(engine, "_round", a_round)
    monkeypatch.setattr(engine, "_part", lambda: parted.append(1))
    with pytest.raises(DiffATRError, match=r"do not stay alive: one of two machines\. The same command continues"):
        list(engine.map(Count(), [1, 2]))
    assert len(parted) == 2


# --- a worker --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Fragile:
    """Ends its process over the items that it is told."""

    batch = 8

    def __init__(self, deadly):
        self.deadly = deadly

    def open(self):
        return self._pieces

    def _pieces(self, items):
        for place, item in enumerate(items):
            if item in self.deadly:
                raise Killed
            yield place, item


class Now:
    """A remote method that is called at once."""

    def __init__(self, method):
        self.remote = method


class Notes:
    def __init__(self):
        notes = worker_module.Notes()
        for name in ("begin", "enter", "leave", "end"):
            setattr(self, name, Now(getattr(notes, name)))


def test_an_item_that_ends_processes_costs_itself_alone(monkeypatch):
    pytest.importorskip("ray")
    notes, items, lives = Notes(), list(range(10, 18)), 0
    rows = None
    while rows is None:
        lives += 1
        worker = worker_module.Worker(pickle.dumps(Fragile({12, 16})), notes, __version__)
        monkeypatch.setattr(worker, "_note", lambda what, number: getattr(notes, what).remote(number))
        try:
            rows = list(worker._rows(100, items))
        except Killed:
            continue
    assert lives == 4  # together, 12 alone, 16 alone, and to the end
    kinds = {row.item: row.kind for row in rows}
    assert [number for number, kind in kinds.items() if kind == "lost"] == [102, 106]
    assert [row.value for row in rows if row.kind == "piece"] == [10, 11, 13, 14, 15, 17]
    assert len(kinds) == 8


class Cannot:
    batch = 1

    def __init__(self, error):
        self.error = error

    def open(self):
        raise self.error


def test_what_the_work_raises_travels():
    pytest.importorskip("ray")
    for error, kind, told in (
        (UsageError("no such folder"), UsageError, "no such folder"),
        (DiffATRError("disk full", "more"), DiffATRError, "disk full\nmore"),
        (ValueError("odd\nthing"), DiffATRError, "unexpected ValueError: odd thing"),
    ):
        (row,) = worker_module.Worker(pickle.dumps(Cannot(error)), Notes(), __version__)._rows(0, [1])
        raised = worker_module.failure(pickle.loads(pickle.dumps(row)).value)
        assert type(raised) is kind
        assert told in str(raised)
    (row,) = worker_module.Worker(pickle.dumps(Cannot(None)), Notes(), "0.0.1")._rows(0, [1])
    assert "0.0.1 here. Install the same" in row.value[1][0]


# --- an index whose files are embedded elsewhere ---------------------------------------------------------------------


def a_corpus(folder: Path) -> Path:
    """Good files of all lengths, copies, and bad ones of every kind."""
    for number, seconds in enumerate((0.4, 1.5, 10, 12.25, 31)):
        write_tone(folder / f"{number % 2}/{number}.wav", 200 + 90 * number, seconds, seed=number)
    write_tone(folder / "x.flac", 700, 3)
    shutil.copy(folder / "x.flac", folder / "0/copy.flac")
    bad_files(folder / "bad")
    if GENERATOR.exists():
        subprocess.run([sys.executable, GENERATOR, folder / "odd"], check=True, capture_output=True)
    return folder


def as_rows(report):
    return {name: value for name, value in vars(report).items() if name != "repaired"}


def test_the_index_is_the_same(tmp_path):
    clips = a_corpus(tmp_path / "clips")
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    elsewhere = Elsewhere(InProcess(), loader())
    for _ in range(3):
        assert as_rows(there.update(FakeRetriever(), elsewhere=elsewhere)) == as_rows(here.update(FakeRetriever()))
        assert contents(there) == contents(here)
        (clips / "bad/again.wav").write_bytes((clips / "bad/mislabelled.wav").read_bytes())
        write_tone(clips / "new.wav", 1500, 2)
        (clips / "x.flac").rename(clips / "renamed.flac")
        write_tone(clips / "x.flac", 800, 2)


class OnGPU(FakeRetriever):
    device = "cuda"


class FramedOnGPU(FramedRetriever):
    device = "cuda"


@pytest.mark.parametrize("retriever", [OnGPU, FramedOnGPU])
@pytest.mark.parametrize("processes", [False, True])
def test_the_index_of_workers_with_gpus_is_the_same(tmp_path, monkeypatch, retriever, processes):
    monkeypatch.setattr(elsewhere_module, "pay", lambda workers: processes)
    monkeypatch.setattr(elsewhere_module, "_GPU_FILES", 5)
    monkeypatch.setattr(batches, "GPU_BATCH", 3)
    clips = a_corpus(tmp_path / "clips")
    for number in range(3):
        write_tone(clips / f"{number} long.flac", 500 + number, 90)
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    on_processor, made = retriever(), []
    on_processor.device = "cpu"
    engine = InProcess("cuda", 3)
    elsewhere = Elsewhere(engine, lambda device: made.append(retriever()) or made[-1])
    for _ in range(2):
        assert as_rows(there.update(on_processor, elsewhere=elsewhere)) == as_rows(here.update(on_processor))
        assert contents(there) == contents(here)
        for path in clips.rglob("*.wav"):
            path.touch()
    assert made


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=6), st.randoms())
def test_what_a_worker_tells_is_in_order_however_it_is_found(plan, random):
    """`plan`: of the findings in each file, which are windows. Files are read side by side, and windows embedded in any order."""
    window = Window(0, 1, np.zeros(1, np.float32))
    told, got = elsewhere_module._Told(len(plan)), []
    left = [[*kinds, None] for kinds in plan]
    waiting = []
    while any(left) or waiting:
        if any(left) and random.random() < 0.6:
            place = random.choice([place for place, each in enumerate(left) if each])
            kind = left[place].pop(0)
            each = told.add(place, None if kind is None else window if kind else Missing("all"))
            if kind:
                waiting.append(each)
        elif waiting:
            each = waiting.pop(random.randrange(len(waiting)))
            elsewhere_module._embed([each], (np.ones((1, 4)), [None]))
        got += [(place, type(finding)) for place, finding in told.ready()]
    assert got == [(place, Vector if kind else Missing) for place, kinds in enumerate(plan) for kind in kinds]


def test_what_is_known_is_not_embedded_again(tmp_path):
    clips, notes = a_corpus(tmp_path / "clips"), tmp_path / "notes"
    index, elsewhere = FolderIndex(clips), Elsewhere(InProcess(), loader(notes))
    first = index.update(FakeRetriever(), elsewhere=elsewhere)
    assert sum(int(line.split()[1]) for line in notes.read_text().splitlines()) >= first.windows
    notes.unlink()
    for path in sorted(clips.rglob("*.wav")):
        path.touch()
    again = index.update(FakeRetriever(), elsewhere=elsewhere)
    assert (again.embedded, again.reused, again.newly_skipped) == (0, first.embedded + first.reused - again.unchanged, 0)
    assert not notes.exists()


def work(corpus, **changes):
    fields = {"load": loader(), "model_id": "model-a", "device": "cpu", "threads": 1, "frames": False}
    first = _File(b"a.wav", 1, "")
    return EmbedFiles(corpus, **(fields | changes), settled=np.zeros(0, "S16"), first=first)


def test_a_worker_tells_that_it_cannot_see_the_files(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):  # a place where nothing is mounted is empty
        with pytest.raises(UsageError, match=r"not to be seen there.*every machine"):
            work(folder).open()
    write_tone(tmp_path / "a.wav", 300, 1)
    work(tmp_path).open()
    with pytest.raises(UsageError, match="another model there than here"):
        work(tmp_path, model_id="b").open()


def test_a_lost_item_is_a_reason_that_does_not_last(tmp_path):
    write_tone(tmp_path / "clips/a.wav", 300, 1)
    write_tone(tmp_path / "clips/b.wav", 400, 1)

    class Losing(InProcess):
        def map(self, work, items):
            def lost():
                raise ItemLost("it died twice")
                yield

            for number, lane in enumerate(super().map(work, items)):
                yield lost() if number == 0 else lane

    index = FolderIndex(tmp_path / "clips")
    report = index.update(FakeRetriever(), elsewhere=Elsewhere(Losing(), loader()))
    assert [(each.path, each.reason) for each in report.skipped] == [("a.wav", "cannot be decoded (it died twice)")]
    assert report.files == 1
    assert index.update(FakeRetriever(), elsewhere=Elsewhere(InProcess(), loader())).embedded == 1


# --- clips that are converted elsewhere -------------------------------------------------------------------------------


def a_table(folder):
    """Good and bad recordings with captions; the folder."""
    clips = a_corpus(folder / "clips")
    (clips / "0/long.wav").write_bytes((clips / "0/4.wav").read_bytes())
    paths = sorted(path for path in clips.rglob("*") if path.is_file() and path.suffix != ".json")
    table(folder / "c.csv", "file,caption,split", [[str(path), "a sound", "train"] for path in paths])
    return folder


def test_a_data_set_is_the_same(tmp_path):
    source = a_table(tmp_path / "source")
    here = prepare_folder(tmp_path / "here", source, workers=1)
    there = prepare_folder(tmp_path / "there", source, engine=InProcess())
    assert there.to_json() | {"name": "", "root": ""} == here.to_json() | {"name": "", "root": ""}
    assert here.converted > 5
    assert here.skipped
    for path in (tmp_path / "here").rglob("*.wav"):
        assert (tmp_path / "there" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )
    assert prepare_folder(tmp_path / "there", source, engine=InProcess()).converted == 0


def test_a_worker_tells_that_it_cannot_see_the_data_set(tmp_path):
    with pytest.raises(UsageError, match="not to be seen there"):
        Conversion(Converter(), tmp_path, ".seen").open()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["index", "--help"], ["prepare", "folder", "--help"]])
def test_nothing_of_ray_is_loaded_without_the_engine(arguments):
    code = f"""
import runpy
sys.argv = ["diffatr", *{arguments!r}]
try:
    runpy.run_module("diffatr_cli", run_name="__main__")
except SystemExit as end:
    assert not end.code
"""
    assert loaded_after(code).isdisjoint({"ray", "pandas"})
    assert "ray" not in loaded_after("import diffatr_cli.cli.main, diffatr_cli.corpus.index, diffatr_cli.cluster")


def test_without_the_extra_one_sentence_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    result = typed(["index", tmp_path, "--engine", "ray"])
    assert (result.code, result.out) == (2, "")
    assert result.err == "diffatr: --engine ray needs the extra `cluster`: pip install 'diffatr[cluster]'\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--address", "auto"], "--address is for --engine ray alone"),
        (["--engine", "ray", "--address", "ray://a:10001"], "HOST:PORT of a cluster that this machine is part of"),
        (["--engine", "ray", "--device", "mps"], "cpu or cuda, not on mps"),
        (["--engine", "spark"], "--engine"),
    ],
)
def test_wrong_use(tmp_path, monkeypatch, arguments, told):
    monkeypatch.setattr(engine_module, "find_spec", lambda name: object())
    result = typed(["index", tmp_path, *arguments])
    assert result.code == 2
    assert told in result.err


def test_the_command_with_workers_of_threads(tmp_path):
    write_tone(tmp_path / "a.wav", 300, 1)
    result = typed(["index", tmp_path, "--workers", "1", "--json", "--device", "cpu"])
    assert (result.code, json.loads(result.out)["embedded"]) == (0, 1)
