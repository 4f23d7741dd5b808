import csv
import io
import json
import os
import shutil
import threading
import time

import filelock
import numpy as np
import pytest
import soundfile
import typer
from command_line import typed
from fake_retriever import RATE, FakeRetriever, write_tone
from typer.testing import CliRunner

from diffatr_cli.cli import index as index_module
from diffatr_cli.cli import query as module
from diffatr_cli.cli.corpus import clock_span
from diffatr_cli.corpus.describe import CaptionHit, Described, describe
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
from diffatr_cli.corpus.search import Found, Hit, embed_sound, embed_texts, hear_sound, search
from diffatr_cli.data.audio import load_audio
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.model import sampling_of

FACTS = ["format", "channels", "rate", "date", "metadata"]
app = typer.Typer()
module.register(app)
index_module.register(app)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (module, index_module):
        monkeypatch.setattr(command, "load_model", lambda *_: FakeRetriever(phase_two=True))
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
    settings = {name: options.pop(name) for name in ("steps", "shortlist", "seed") if name in options}
    sampling = sampling_of(model, folder=True, **settings)
    return search(model, index.read(model.model_id), embed_texts(model, [query]), sampling, **options)[0].hits


def test_json_is_one_document_as_agreed(clips):
    result = run("query", "900 Hz", "--corpus", "clips", "--top", 3, "--json")
    document = json.loads(result.stdout)
    expected = direct(clips, "900 Hz", top=3)
    of_text = ["familiarity", "nearest_caption", "suggestion", "foreign", "negation"]
    assert list(document) == ["query", "model", "filters", "present", "verdict", "remark", *of_text, "results", "index"]
    assert [document[name] for name in ("verdict", "remark", *of_text)] == [None, None, None, None, None, False, None]
    assert (document["query"], document["present"]) == ("900 Hz", None)
    assert [list(row) for row in document["results"]] == [["rank", "path", "start", "end", "score", "by", *FACTS]] * 3
    assert [(row["rank"], row["path"], row["start"], row["end"]) for row in document["results"]] == [
        (hit.rank, os.path.join("clips", hit.path), hit.start, hit.end) for hit in expected
    ]
    assert [row["score"] for row in document["results"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert "6 indexed" in result.stderr
    again = run("query", "900 Hz", "--corpus", "clips", "--top", 3, "--json")
    assert again.stderr.startswith("This model has no calibration")
    assert len(again.stderr.splitlines()) == 1  # nothing new, nothing more to say


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
    assert rows == [
        {"query": d["query"], **{k: str(v) for k, v in row.items() if k not in FACTS}} for d in documents for row in d["results"]
    ]


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
    assert clock_span(Hit(1, "x", start, end, 0.0)) == text


def test_a_sound_as_query(clips):
    document = json.loads(run("query", "--audio", clips / "deep" / "long.wav", "--corpus", clips, "--json").stdout)
    model, index = FakeRetriever(), FolderIndex(clips)
    waveform = load_audio(clips / "deep" / "long.wav")
    expected = search(model, index.read(model.model_id), embed_sound(model, waveform)[None], refine=False)[0].hits
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
    run("index", clips)
    write_tone(clips / "new.wav", 901, 2)

    def refuse(*_, **__):
        raise CannotUpdate(f"{clips}: the index cannot be written there (read-only).")

    monkeypatch.setattr(FolderIndex, "update", refuse)
    result = run("query", "900 Hz", "--corpus", clips, "--json")
    assert "read-only" in failure("index", clips).args[0]
    assert len(json.loads(result.stdout)["results"]) == 6
    assert "Searching what is indexed so far" in result.stderr


def test_a_query_waits_for_an_index_that_is_being_made(clips):
    run("index", clips)
    write_tone(clips / "new.wav", 901, 2)
    held = threading.Event()

    def index_elsewhere():
        with filelock.FileLock(clips / ".diffatr" / "lock"):
            held.set()
            time.sleep(0.5)

    other = threading.Thread(target=index_elsewhere)
    other.start()
    held.wait()
    result = run("query", "900 Hz", "--corpus", clips, "--json")
    other.join()
    assert result.stderr.count("Waiting until it is done") == 1
    assert len(json.loads(result.stdout)["results"]) == 7


def test_wrong_use_is_told_before_any_work(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    for arguments, words in (
        ((), "Say what to look for"),
        (("900 Hz", "--audio", clips / "200.wav"), "not both"),
        (("900 Hz", "--json", "--csv"), "exclude each other"),
        (("900 Hz", "--copy-to", clips / "found"), "--copy-to"),
        (("900 Hz", "--captions", clips / "200.wav"), "--audio FILE"),
        (("900 Hz", "--audio", clips / "200.wav", "--captions", clips / "200.wav"), "not both"),
        (("--audio", clips / "200.wav", "--captions", clips / "200.wav", "--play"), "--play"),
        (("--audio", clips / "200.wav", "--captions", clips / "200.wav", "--not", "x"), "--not"),
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


def test_which_model(tmp_path, monkeypatch):
    write_tone(tmp_path / "clips" / "a.wav", 300, 1)
    error = failure("query", "x", "--corpus", tmp_path / "clips", "--runs", tmp_path / "runs")
    assert "diffatr demo" in str(error)
    both = ("--runs", tmp_path / "runs", "--run", tmp_path / "runs" / "x" / "seed-0")
    for command in (("query", "x", "--corpus"), ("index",)):
        error = failure(*command, tmp_path / "clips", *both)
        assert (error.exit_code, "exclude each other" in str(error)) == (2, True)
    assert not (tmp_path / "clips" / ".diffatr").exists()

    asked = []
    for name in ("load_retriever", "load_listener"):
        monkeypatch.setattr(f"diffatr_cli.two_tower.{name}", lambda run, device: asked.append((run, device)) or FakeRetriever())
    monkeypatch.setattr("diffatr_cli.two_tower.shipped_model", lambda: tmp_path / "shipped")
    monkeypatch.setattr("diffatr_cli.runs.newest_run", lambda runs: runs / "newest")
    for options, run_folder in (((), "shipped"), (("--runs", tmp_path), "newest"), (("--run", tmp_path / "this"), "this")):
        for command in (("query", "300 Hz", "--corpus"), ("index",)):
            assert run(*command, tmp_path / "clips", *options, "--device", "cpu").exit_code == 0
            assert asked.pop() == (tmp_path / run_folder, "cpu")


def found(monkeypatch, present, *scores):
    """Let the search find files of these scores, with this probability that anything is there."""
    verdict = None if present is None else "found" if present >= 0.5 else "absent"
    hits = [Hit(rank, f"{rank}.wav", 0.0, 2.0, score) for rank, score in enumerate(scores, 1)]
    monkeypatch.setattr(
        "diffatr_cli.corpus.asking.ask_texts",
        lambda *_, **__: [Found(hits, present, calibrated=present is not None, verdict=verdict)],
    )


def test_calibrated_scores_are_shown_as_percentages(clips, monkeypatch):
    found(monkeypatch, 0.97, 0.934, 0.081, 0.004)
    result = run("query", "900 Hz", "--corpus", "clips")
    assert "match" in result.stdout
    assert "score" not in result.stdout
    assert " 93 % " in result.stdout
    assert " < 1 % " in result.stdout
    assert " 8 % " in result.stdout
    assert "calibration" not in result.stderr
    assert "nothing here" not in result.output
    document = json.loads(run("query", "900 Hz", "--corpus", "clips", "--json").stdout)
    assert (document["present"], [row["score"] for row in document["results"]]) == (0.97, [0.934, 0.081, 0.004])
    assert ",0.934,sound\r\n" in run("query", "900 Hz", "--corpus", "clips", "--csv").stdout_bytes.decode()


def test_captions_of_which_none_fits_show_no_percentages(clips, monkeypatch):
    """In the table, in JSON and in the words beside it alike."""
    (clips / "captions.txt").write_text("rain")
    arguments = ("query", "--audio", clips / "900.wav", "--captions", clips / "captions.txt")
    told = {}
    for name, described in {
        "found": Described([CaptionHit(1, "rain", 0.77)], 0.8, True, "found"),
        "absent": Described([CaptionHit(1, "rain", 0.07)], 0.08, True, "absent"),
        "unjudged": Described([CaptionHit(1, "rain", 0.77)], None),
    }.items():
        monkeypatch.setattr("diffatr_cli.corpus.describe.describe", lambda *_, given=described, **__: given)
        table, as_json = run(*arguments), run(*arguments, "--json")
        document = json.loads(as_json.stdout)
        assert list(document) == ["query", "model", "present", "verdict", "remark", "results"]
        assert (document["present"], document["verdict"]) == (described.present, described.verdict)
        assert document["remark"] == described.remark
        assert ([described.remark] if described.remark else []) == [
            line.partition(": ")[2] for line in as_json.stderr.splitlines()
        ]
        told[name] = table
    assert "77 %" in told["found"].stdout
    assert "match" in told["found"].stdout
    assert "%" not in told["absent"].stdout
    assert "none of these captions fits" in told["absent"].stdout
    assert "rain" in told["absent"].stdout
    assert "%" not in told["unjudged"].stdout  # a share among those listed is no probability of a match
    assert "0.770" in told["unjudged"].stdout
    assert told["unjudged"].stderr.count("compare the captions of this list") == 1


def test_scores_without_a_calibration_are_no_percentages(clips, monkeypatch):
    found(monkeypatch, None, 0.934, 0.081)
    result = run("query", "900 Hz", "--corpus", "clips")
    assert result.stderr.count("no calibration") == 1
    assert "score" in result.stdout
    assert "match" not in result.stdout
    assert "0.934" in result.stdout
    assert "%" not in result.stdout


def test_a_folder_without_such_a_sound_says_so_and_lists_the_nearest(clips, monkeypatch):
    found(monkeypatch, 0.2, 0.15, 0.02)
    result = run("query", "900 Hz", "--corpus", clips)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "900 Hz: nothing here sounds like that."
    assert "these are the nearest" in result.stdout
    assert "%" not in result.stdout  # nothing that could be taken for certain
    assert "match" not in result.stdout
    as_json = run("query", "900 Hz", "--corpus", clips, "--json")
    assert "nothing here sounds like that" in as_json.stderr
    assert json.loads(as_json.stdout)["present"] == 0.2
    assert json.loads(as_json.stdout)["verdict"] == "absent"
    assert json.loads(as_json.stdout)["remark"] == "nothing here sounds like that."
    assert len(json.loads(as_json.stdout)["results"]) == 2
    found(monkeypatch, 0.5, 0.45)
    assert "nothing here" not in run("query", "900 Hz", "--corpus", clips).output


def test_captions_for_a_sound(clips, tmp_path):
    (tmp_path / "captions.txt").write_text("200 Hz\r\n\n  6000 Hz [red] \n900 Hz\n200 Hz\n---\n", encoding="utf-8")
    arguments = ("query", "--audio", clips / "200.wav", "--captions", "captions.txt")
    result = run(*arguments, "--json")
    document = json.loads(result.stdout)
    model = FakeRetriever(phase_two=True)
    choices = ["200 Hz", "6000 Hz [red]", "900 Hz"]
    expected = describe(model, hear_sound(model, load_audio(clips / "200.wav"))[0], choices).hits
    assert list(document) == ["query", "model", "present", "verdict", "remark", "results"]
    assert document["query"] == str(clips / "200.wav")
    assert [list(row) for row in document["results"]] == [["rank", "caption", "score"]] * 3
    assert [(row["rank"], row["caption"]) for row in document["results"]] == [(hit.rank, hit.caption) for hit in expected]
    assert [row["score"] for row in document["results"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert document["results"][0]["caption"] == "200 Hz"
    notes = result.stderr.splitlines()
    assert (len(notes), notes[0]) == (2, "captions.txt:6: a caption without a letter or digit")
    assert notes[1] == f"{document['query']}: {document['remark']}"
    assert not (clips / ".diffatr").exists()

    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--csv", "--top", 2).stdout)))
    assert [row["caption"] for row in rows] == [hit.caption for hit in expected][:2]
    assert rows[0] == {"query": document["query"], **{k: str(v) for k, v in document["results"][0].items()}}
    table = run(*arguments).stdout
    assert "6000 Hz [red]" in table
    assert f"{expected[0].score:.3f}" in table
    least = (expected[0].score + expected[1].score) / 2
    assert len(json.loads(run(*arguments, "--json", "--min-score", least).stdout)["results"]) == 1
    none = run(*arguments, "--min-score", 50)
    assert (none.exit_code, none.stdout) == (0, "")
    assert "no caption scores 50" in none.stderr


def test_captions_come_from_tables_too(clips, tmp_path):
    (tmp_path / "c.csv").write_text("file,caption_1,caption_2\na.wav,200 Hz,900 Hz\nb.wav,900 Hz,\nc.wav\n", encoding="utf-8")
    (tmp_path / "only.csv").write_text("caption\n4000 Hz\n", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"captions": ["200 Hz", ""]}\n\n{"caption": "900 Hz"}\nnonsense\n', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("200 Hz caf\u00e9\n".encode("latin-1"))
    for name, captions, note in (
        ("c.csv", {"200 Hz", "900 Hz"}, "c.csv:4: 1 cells"),
        ("only.csv", {"4000 Hz"}, ""),
        ("c.jsonl", {"200 Hz", "900 Hz"}, "c.jsonl:4: not JSON"),
        ("latin.txt", {"200 Hz caf\u00e9"}, "read as Latin-1"),
    ):
        result = run("query", "--audio", clips / "200.wav", "--captions", name, "--json")
        assert {row["caption"] for row in json.loads(result.stdout)["results"]} == captions, name
        assert note in result.stderr
        assert len(result.stderr.splitlines()) == 1 + bool(note)  # the other says that there is no calibration


def test_caption_files_that_cannot_be_used(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.csv").write_text("file,words\na.wav,rain\n")
    for name, words in (
        ("missing.txt", "cannot be read"),
        ("empty.txt", "no captions"),
        ("other.csv", "no column caption"),
        (clips / "200.wav", "not a text file"),
    ):
        assert words in str(failure("query", "--audio", clips / "200.wav", "--captions", name)), name


@pytest.fixture
def players(tmp_path, monkeypatch):
    """A path with no programs; call it to add a player that writes its arguments down, one a line, and keeps its last file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, code=0):
        told = tmp_path / f"{name}.told"
        script = f"""#!/bin/sh
printf 'noise on stdout'
for last; do printf '%s\\n' "$last" >> '{told}'; done
/bin/cp -- "$last" '{told}.wav'
exit {code}
"""
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        return told

    return add


@pytest.mark.skipif(os.name == "nt", reason="the players are shell scripts")
def test_play_takes_the_first_player_and_plays_the_window(clips, tmp_path, monkeypatch, players):
    shutil.move(clips / "deep" / "long.wav", clips / "-$(x) ;'\".wav")
    monkeypatch.chdir(clips)
    name = str(clips / "-$(x) ;'\".wav")

    def arguments(*options):
        result = run("query", "6000 Hz", "--corpus", ".", "--top", 2, "--play", *options)
        assert result.exit_code == 0, result.output
        assert "noise" not in result.output
        return result

    aplay = players("aplay")
    best = json.loads(arguments("--json").stdout)["results"][0]
    start, end = best["start"], best["end"]
    assert (best["path"], end - start) == (os.path.basename(name), 10)
    played, rate = soundfile.read(f"{aplay}.wav")
    whole = load_audio(name)[round(start * RATE) : round(end * RATE)]
    assert rate == RATE
    np.testing.assert_allclose(played, whole, atol=1e-4)
    assert len(aplay.read_text().splitlines()) == 1
    assert not os.path.exists(aplay.read_text().strip())  # nothing stays behind

    sox = players("play")
    result = arguments()
    assert "playing 00:0" in result.stderr
    assert sox.read_text().splitlines()[0] == "-q"
    np.testing.assert_allclose(soundfile.read(f"{sox}.wav")[0], whole, atol=1e-4)
    mpv = players("mpv")
    arguments()
    assert mpv.read_text().splitlines()[-4:] == [f"--start={start:.3f}", f"--end={end:.3f}", "--", name]
    ffplay = players("ffplay")
    arguments()
    assert ffplay.read_text().splitlines()[-6:] == ["-ss", f"{start:.3f}", "-t", f"{end - start:.3f}", "-i", name]
    assert len(mpv.read_text().splitlines()) == 6  # it was not asked again


@pytest.mark.skipif(os.name == "nt", reason="the players are shell scripts")
def test_play_fails_quietly(clips, players, tmp_path):
    command = ("query", "900 Hz", "--corpus", clips, "--top", 1, "--play")
    result = run(*command)
    assert result.exit_code == 0
    assert "900.wav" in result.stdout
    assert result.stderr.splitlines()[-1] == "--play: there is no player here. Install ffmpeg (with its ffplay), mpv or sox."
    told = players("ffplay", code=3)
    result = run(*command)
    assert (result.exit_code, "failed (exit code 3)" in result.stderr) == (0, True)
    (tmp_path / "bin" / "ffplay").write_bytes(b"no program")
    assert "--play: " in run(*command).stderr.splitlines()[-1]
    told.unlink()
    assert run(*command, "--min-score", 50).exit_code == 0  # nothing to play
    assert not told.exists()


def test_a_weight_that_is_asked_for(clips, monkeypatch):
    """It ranks by that weight, and no probability is left that was fitted with another one."""
    from diffatr_cli.cli import corpus

    model = FakeRetriever(phase_two=True)
    monkeypatch.setattr(module, "load_model", corpus.load_model)
    monkeypatch.setattr("diffatr_cli.two_tower.load_any", lambda *_: model)
    asked = json.loads(run("query", "900 Hz", "--corpus", "clips", "--weight", 0.25, "--json").stdout)
    assert model.reweighed == 0.25
    assert [row["rank"] for row in asked["results"]] == list(range(1, len(asked["results"]) + 1))
    assert "--weight" in run("query", "900 Hz", "--corpus", "clips", "--weight", 0.25).stderr
    assert run("query", "900 Hz", "--corpus", "clips", "--weight", -1).exit_code == 2


def test_by_name_and_filters_from_the_command_line(clips):
    write_tone(clips / "deep" / "Wolf_Howl 02.wav", 3000, 2)
    document = json.loads(run("query", "200 Hz wolves howling in:deep", "--corpus", clips, "--json").stdout)
    assert document["filters"] == ["in:deep"]
    assert {os.path.basename(row["path"]): row["by"] for row in document["results"]} == {
        "long.wav": "sound",
        "Wolf_Howl 02.wav": "both",
    }
    row = next(row for row in document["results"] if row["by"] == "both")
    assert [row[name] for name in ("format", "channels", "rate", "metadata")] == ["wav", 1, RATE, {}]
    by_name = run("query", "200 wolf", "--corpus", clips, "--by", "name")
    assert "Wolf_Howl 02.wav" in by_name.stdout
    assert "450" not in by_name.stdout
    assert "calibration" not in by_name.stderr
    nothing = run("query", "200 tiger", "--corpus", clips, "--by", "name", "--json")
    assert [row["path"] for row in json.loads(nothing.stdout)["results"]] == [str(clips / "200.wav")]
    only = json.loads(run("query", "--audio", clips / "200.wav", "--corpus", clips, "--only", "length:>5", "--json").stdout)
    assert [os.path.basename(row["path"]) for row in only["results"]] == ["long.wav"]


def test_no_file_that_fits_is_no_failure(clips):
    result = run("query", "200 Hz format:mp3", "--corpus", clips)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines()[-1] == "200 Hz format:mp3: no file here fits format:mp3."
    result = run("query", "10 tiger", "--corpus", clips, "--by", "name")
    assert result.stderr.splitlines()[-1] == "10 tiger: no name and no metadata here has these words."


def test_what_is_wrong_with_a_filter_is_told_before_anything_is_loaded(clips, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("loaded"))
    error = failure("query", "dog lenght:<5", "--corpus", clips)
    assert isinstance(error, UsageError)
    assert str(error).splitlines()[1:] == ["  dog lenght:<5", "      ^^^^^^"]
    told = typed(["query", "dog lenght:<5", "--corpus", clips])
    assert (told.code, told.err.splitlines()[1:]) == (2, ["  dog lenght:<5", "      ^^^^^^"])
    assert "needs a value" in str(failure("query", "dog", "--only", "length:", "--corpus", clips))
    assert "is no filter" in str(failure("query", "dog", "--only", "quiet", "--corpus", clips))
    assert "Say beside them" in str(failure("query", "length:<5", "--corpus", clips))
    assert "has no words" in str(failure("query", "--audio", clips / "200.wav", "--by", "name", "--corpus", clips))


def test_options_that_mean_nothing_here_are_refused(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("mine")
    sound = ("--audio", clips / "200.wav", "--captions", tmp_path / "file")
    dog = ("dog", "--corpus", clips)
    for arguments, words in (
        ((*dog, "--fps", 30), "--fps: there is no EDL"),
        ((*dog, "--by", "name", "--not", "dog"), "--not: "),
        ((*dog, "--min-score", "nan"), "--min-score nan"),
        ((*dog, "--copy-to", "file"), "--copy-to file: a file is where a folder should be"),
        ((*dog, "--copy-to", "nope/x"), "--copy-to nope/x: there is no folder nope"),
        ((*dog, "--export", "file"), "--export file: a file is where a folder should be"),
        ((*dog, "--export", "nope/x"), "--export nope/x: there is no folder nope"),
        ((*sound, "--corpus", clips), "--corpus: means nothing with --captions"),
        ((*sound, "--index", "x"), "--index: means nothing"),
        ((*sound, "--by", "name"), "--by: means nothing"),
        ((*sound, "--exact"), "--exact: means nothing"),
    ):
        done = typed(["query", *arguments])
        assert (done.code, done.out) == (2, "")
        assert words in done.err
    assert not (tmp_path / "nope").exists()
    assert not (clips / ".diffatr").exists()


def test_a_bound_that_no_cosine_reaches(clips):
    """Of a search by sound, whose scores are cosines; those of diffusion are no such numbers."""
    done = typed(["query", "--audio", clips / "200.wav", "--corpus", clips, "--min-score", 50])
    assert (done.code, done.out) == (2, "")
    assert "cosines" in done.err


def test_export_takes_files_out_with_lists(clips, tmp_path):
    out = tmp_path / "out"
    result = run("query", "900 Hz", "200 Hz", "--corpus", clips, "--top", 2, "--export", out, "--json")
    documents = json.loads(result.stdout)
    for document in documents:
        files = document["export"]["files"]
        assert [each["path"] for each in files] == [hit["path"] for hit in document["results"]]
        assert [(each["start"], each["end"]) for each in files] == [(hit["start"], hit["end"]) for hit in document["results"]]
        for each in files:
            assert (tmp_path / each["file"]).read_bytes() == (tmp_path / each["path"]).read_bytes()
        assert document["export"]["lists"] == [str(out / name) for name in ("sounds.csv", "sounds.m3u8", "sounds.edl")]
    with (out / "sounds.csv").open() as table:
        rows = [(row["query"], row["source"]) for row in csv.DictReader(table)]
    assert rows == [(each["query"], hit["path"]) for each in documents for hit in each["results"]]
    assert f"files and sounds.csv, sounds.m3u8, sounds.edl in {out}" in result.stderr


def test_export_of_parts_skips_what_is_broken(clips, tmp_path, monkeypatch):
    folder = FolderIndex(clips)
    folder.update(FakeRetriever(phase_two=True))
    monkeypatch.setattr(module, "updated_recordings", lambda folder, model: folder.read(model.model_id))
    (clips / "900.wav").write_bytes(b"no sound any more")
    out = tmp_path / "out"
    result = run("query", "6000 Hz", "--corpus", clips, "--top", 6, "--export", out, "--cut", "--fps", 24, "--json")
    document = json.loads(result.stdout)["export"]
    assert [each["path"] for each in document["skipped"]] == [str(clips / "900.wav")]
    assert len(document["files"]) == 5
    (long,) = [each for each in document["files"] if each["path"].endswith("long.wav")]
    part, rate = soundfile.read(long["file"], dtype="int16")
    original, _ = soundfile.read(clips / "deep" / "long.wav", dtype="int16")
    assert np.array_equal(part, original[round(long["start"] * rate) : round(long["end"] * rate)])
    assert "* FRAME RATE: 24\r\n" in (out / "6000 Hz.edl").read_bytes().decode()
    assert "skipped 900.wav: not audio" in result.stderr
    assert "skipped: 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cut",), "--export DIR"),
        (("--export", "clips/out"), "lies in the folder of recordings"),
        (("--export", "out", "--fps", 29), "24, 25, 30"),
    ],
)
def test_wrong_use_of_export(clips, arguments, words):
    error = failure("query", "900 Hz", "--corpus", clips, *arguments)
    assert isinstance(error, UsageError)
    assert words in str(error)
    assert not (clips.parent / "out").exists()


def test_export_says_where_it_cannot_write(clips, tmp_path):
    (tmp_path / "out").write_bytes(b"a file")
    result = run("query", "900 Hz", "--corpus", clips, "--export", tmp_path / "out")
    assert isinstance(result.exception, DiffATRError)
    assert "a file is where a folder should be" in str(result.exception)
