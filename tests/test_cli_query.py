import csv
import io
import json
import os
import shutil

import pytest
import typer
from fake_retriever import FakeRetriever, write_tone
from typer.testing import CliRunner

from diffatr_cli.cli import query as module
from diffatr_cli.data.audio import load_audio
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.index import FolderIndex
from diffatr_cli.search import Hit, embed_sound, embed_texts, search

app = typer.Typer()
module.register(app)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_model", lambda run, runs, device: FakeRetriever(phase_two=True))
    for hz in (200, 450, 900, 2000, 4000):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
    write_tone(tmp_path / "clips" / "deep" / "long.wav", 6000, 12)
    return tmp_path / "clips"


def run(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def failure(*arguments, stdin=None):
    result = run(*arguments, stdin=stdin)
    assert isinstance(result.exception, DiffATRError), result.output
    assert result.stdout == ""
    return result.exception


def direct(clips, query, **options):
    """What the job finds, called without the command line."""
    model, index = FakeRetriever(phase_two=True), FolderIndex(clips)
    index.update(model)
    return search(model, index.read(model.model_id), embed_texts(model, [query]), **options)[0]


def test_json_is_one_document_as_agreed(clips):
    result = run("query", "900 Hz", "--corpus", "clips", "--top", 3, "--json")
    document = json.loads(result.stdout)
    expected = direct(clips, "900 Hz", top=3)
    assert set(document) == {"query", "results"}
    assert document["query"] == "900 Hz"
    assert [list(row) for row in document["results"]] == [["rank", "path", "start", "end", "score"]] * 3
    assert [(row["rank"], row["path"], row["start"], row["end"]) for row in document["results"]] == [
        (hit.rank, os.path.join("clips", hit.path), hit.start, hit.end) for hit in expected
    ]
    assert [row["score"] for row in document["results"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert "6 indexed" in result.stderr
    assert run("query", "900 Hz", "--corpus", "clips", "--top", 3, "--json").stderr == ""  # nothing new, nothing to say


def test_several_texts_give_a_list(clips):
    both = json.loads(run("query", "200 Hz", "-", "--corpus", clips, "--json", stdin="900 Hz\n\n 4000 Hz \r\n").stdout)
    assert [document["query"] for document in both] == ["200 Hz", "900 Hz", "4000 Hz"]
    alone = json.loads(run("query", "900 Hz", "--corpus", clips, "--json").stdout)["results"]
    for one, beside in zip(alone, both[1]["results"], strict=True):
        assert one == beside | {"score": pytest.approx(beside["score"], abs=1e-5)}
    assert isinstance(json.loads(run("query", "-", "--corpus", clips, "--json", stdin="900 Hz").stdout), list)


def test_csv_has_the_same_rows(clips):
    documents = json.loads(run("query", "200 Hz", "900 Hz", "--corpus", clips, "--json", "--top", 2).stdout)
    rows = list(csv.DictReader(io.StringIO(run("query", "200 Hz", "900 Hz", "--corpus", clips, "--csv", "--top", 2).stdout)))
    assert rows == [{"query": d["query"], **{k: str(v) for k, v in row.items()}} for d in documents for row in d["results"]]


def test_the_table_names_file_and_place(clips):
    name = "[bold]:dog:\x1b[31m.wav"
    shutil.move(clips / "900.wav", clips / name)
    out = run("query", "900 Hz", "--corpus", "clips").stdout
    assert "[bold]:dog:\N{REPLACEMENT CHARACTER}[31m.wav" in out
    assert "\x1b" not in out
    assert "00:00-00:02" in out
    assert "00:02-00:12" in out or "00:00-00:10" in out
    assert len([line for line in out.splitlines() if "clips" in line]) == 6


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [(0, 0.4, "00:00-00:01"), (200, 210, "03:20-03:30"), (2.5, 12.5, "00:02-00:13"), (3595, 3605, "59:55-1:00:05")],
)
def test_places(start, end, text):
    assert module.place(Hit(1, "x", start, end, 0.0)) == text


def test_a_sound_as_query(clips):
    document = json.loads(run("query", "--audio", clips / "deep" / "long.wav", "--corpus", clips, "--json").stdout)
    model, index = FakeRetriever(), FolderIndex(clips)
    waveform = load_audio(clips / "deep" / "long.wav")
    expected = search(model, index.read(model.model_id), embed_sound(model, waveform)[None], refine=False)[0]
    assert document["query"] == str(clips / "deep" / "long.wav")
    assert [row["path"] for row in document["results"]] == [str(clips / hit.path) for hit in expected]
    assert document["results"][0]["path"] == str(clips / "deep" / "long.wav")
    assert document["results"][0]["score"] == pytest.approx(1, abs=1e-3)


def test_options_reach_the_search(clips):
    def rows(*options):
        return json.loads(run("query", "900 Hz", "--corpus", clips, "--json", *options).stdout)["results"]

    for options, arguments in (
        (("--shortlist", 2), {"shortlist": 2}),
        (("--steps", 3), {"steps": 3}),
        (("--seed", 7), {"seed": 7}),
        (("--min-score", 0.5), {"min_score": 0.5}),
        (("--not", "450 Hz"), {"unwanted": embed_texts(FakeRetriever(), ["450 Hz"])[0]}),
    ):
        got, want = rows(*options), direct(clips, "900 Hz", **arguments)
        assert [row["path"] for row in got] == [str(clips / hit.path) for hit in want]
        assert [row["score"] for row in got] == pytest.approx([hit.score for hit in want], abs=1e-6)
        assert got != rows(), options
    none = run("query", "900 Hz", "--corpus", clips, "--min-score", 50)
    assert (none.exit_code, none.stdout.strip()) == (0, "")
    assert "no sound scores 50" in none.stderr


def test_copy_to_never_overwrites(clips, tmp_path):
    target = tmp_path / "found"
    target.mkdir()
    (target / "01-900.wav").write_text("mine")
    for _ in range(2):  # the second time finds its own copies there
        run("query", "900 Hz", "--corpus", clips, "--top", 1, "--copy-to", target)
    assert (target / "01-900.wav").read_text() == "mine"
    assert sorted(path.name for path in target.iterdir()) == ["01-900 (2).wav", "01-900.wav"]
    assert (target / "01-900 (2).wav").read_bytes() == (clips / "900.wav").read_bytes()
    run("query", "200 Hz", "4000 Hz", "--corpus", clips, "--top", 1, "--copy-to", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["01-01-200.wav", "02-01-4000.wav"]


def test_bad_files_lose_nothing_else(clips):
    (clips / "broken.wav").write_text("no sound")
    result = run("query", "900 Hz", "--corpus", clips, "--json")
    assert len(json.loads(result.stdout)["results"]) == 6
    assert "1 skipped: broken.wav (" in result.stderr
    listed = run("index", clips, "--json")
    document = json.loads(listed.stdout)
    assert [each["path"] for each in document["skipped"]] == [str(clips / "broken.wav")]
    assert {k: document[k] for k in ("files", "windows", "embedded", "unchanged", "removed")} == {
        "files": 6,
        "windows": 7,
        "embedded": 0,
        "unchanged": 6,
        "removed": 0,
    }
    assert document["index"] == str(clips / ".diffatr")
    table = run("index", clips)
    assert "skipped broken.wav: " in table.stderr
    assert "files" in table.stdout


def test_names_that_are_not_text(clips):
    name = os.fsdecode(b"9\xe9.wav")
    shutil.move(clips / "900.wav", clips / name)
    found = json.loads(run("query", "900 Hz", "--corpus", clips, "--top", 1, "--json").stdout)["results"][0]["path"]
    assert found == str(clips / name)
    assert run("query", "900 Hz", "--corpus", clips, "--top", 1).exit_code == 0
    assert b"9\xe9.wav" in run("query", "900 Hz", "--corpus", clips, "--top", 1, "--csv").stdout_bytes


def test_an_index_that_cannot_be_updated_is_searched_as_it_is(clips, monkeypatch):
    import filelock

    run("index", clips)
    write_tone(clips / "new.wav", 901, 2)
    with filelock.FileLock(clips / ".diffatr" / "lock"):
        result = run("query", "900 Hz", "--corpus", clips, "--json")
        assert "another process" in failure("index", clips).args[0]
    assert len(json.loads(result.stdout)["results"]) == 6
    assert "Searching what is indexed so far" in result.stderr


def test_wrong_use_is_told_before_any_work(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_model", lambda *_: pytest.fail("the model was loaded"))
    for arguments, words in (
        ((), "Say what to look for"),
        (("900 Hz", "--audio", clips / "200.wav"), "not both"),
        (("900 Hz", "--json", "--csv"), "exclude each other"),
        (("900 Hz", "--copy-to", clips / "found"), "--copy-to"),
        (("-",), "stdin holds no line"),
        (("900 Hz", "--corpus", tmp_path / "nowhere"), "no such folder"),
        (("900 Hz", "--corpus", clips / "200.wav"), "not a folder"),
    ):
        error = failure("query", *(() if "--corpus" in arguments else ("--corpus", clips)), *arguments, stdin="\n")
        assert isinstance(error, UsageError)
        assert words in str(error)
    assert not (clips / ".diffatr").exists()
    missing = failure("query", "--audio", tmp_path / "missing.wav", "--corpus", clips)
    assert (missing.exit_code, "missing.wav" in str(missing)) == (1, True)


def test_nothing_to_search_in(clips, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no sound files" in str(failure("query", "900 Hz", "--corpus", tmp_path / "empty"))
    (tmp_path / "empty" / "x.wav").write_text("no sound")
    for command in (("query", "900 Hz", "--corpus"), ("index",)):
        error = failure(*command, tmp_path / "empty")
        assert "none of its sound files can be used, 1 skipped: x.wav" in str(error)
        assert error.exit_code == 1


def test_without_a_run_it_says_how_to_get_one(tmp_path):
    write_tone(tmp_path / "clips" / "a.wav", 300, 1)
    error = failure("query", "x", "--corpus", tmp_path / "clips", "--runs", tmp_path / "runs")
    assert "--run" in str(error)
    assert not (tmp_path / "clips" / ".diffatr").exists()
