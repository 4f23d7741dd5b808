"""`diffatr tag` as people run it: labels for a folder, as `query --captions` gives them for a file, and names by them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from command_line import typed
from fake_retriever import FakeRetriever, write_tone
from typer.testing import CliRunner

from diffatr_cli.cli import query, tag
from diffatr_cli.core.bank import CaptionBank
from diffatr_cli.core.calibration import Calibration, Logistic
from diffatr_cli.errors import DiffATRError, UsageError

app = typer.Typer()
query.register(app)
tag.register(app)
LABELS = ("200 Hz", "900 Hz", "4000 Hz")
PRESENCE = Logistic((40.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), -36.0)  # from a cosine of 0.9 on something fits


def calibrated():
    model = FakeRetriever()
    score = Logistic((20.0,), -17.0)
    model.calibration = Calibration(score, score, None, None, captions=PRESENCE, captions_told_below=0.5)
    return model


@pytest.fixture
def models(monkeypatch):
    """What the commands load; put another one there."""
    models = [calibrated()]
    for module in (query, tag):
        monkeypatch.setattr(module, "load_model", lambda *_: models[0])
    return models


@pytest.fixture
def clips(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    for hz in (200, 900, 15000):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
    write_tone(tmp_path / "clips" / "sub" / "long.wav", 4000, 23)
    shutil.copy(tmp_path / "clips" / "900.wav", tmp_path / "clips" / "copy.wav")
    rows = [f"{label},{code}" for label, code in zip(LABELS, ("LOW", "MID", "HIGH"), strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["Label,CatID", *rows]))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    return Path("clips")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.mark.parametrize("diffuses", [False, True])
def test_a_file_is_tagged_as_query_describes_it(clips, models, diffuses):
    """Whatever its length: a file of one window, of several, and a copy."""
    if diffuses:
        models[0].reranker = FakeRetriever(phase_two=True).reranker
    tagged = document("tag", clips, "--vocabulary", "labels.txt", "--min-score", -9)
    assert [Path(each["path"]).name for each in tagged["results"]] == ["15000.wav", "200.wav", "900.wav", "copy.wav", "long.wav"]
    for each in tagged["results"]:
        asked = document("query", "--audio", each["path"], "--captions", "labels.txt")
        assert each["verdict"] == asked["verdict"]
        assert each["present"] == pytest.approx(asked["present"], abs=1e-6)
        given = asked["results"] if asked["verdict"] == "found" else []
        assert [label["label"] for label in each["labels"]] == [hit["caption"] for hit in given]
        assert [label["probability"] for label in each["labels"]] == pytest.approx([hit["score"] for hit in given], abs=1e-6)
    verdicts = {Path(each["path"]).name: each["verdict"] for each in tagged["results"]}
    assert verdicts["15000.wav"] == "absent"
    assert verdicts["long.wav"] == "found"


def test_a_long_recording_has_the_labels_of_its_windows(clips):
    from fake_retriever import tone
    from soundfile import write

    write(clips / "both.wav", np.concatenate([tone(200, 15), tone(4000, 15)]), 32000)
    tagged = document("tag", clips, "--vocabulary", "labels.txt", "--min-score", 0.5)
    labels = {Path(each["path"]).stem: {label["label"] for label in each["labels"]} for each in tagged["results"]}
    assert labels == {
        "200": {"200 Hz"},
        "900": {"900 Hz"},
        "copy": {"900 Hz"},
        "15000": set(),
        "long": {"4000 Hz"},
        "both": {"200 Hz", "4000 Hz"},
    }


def test_the_csv_and_what_is_shown_of_it(clips):
    result = run("tag", clips, "--vocabulary", "labels.csv", "--out", "tags.csv", "--min-score", 0.5)
    assert result.exit_code == 0, result.exception
    rows = list(csv.DictReader(Path("tags.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["path"], row["label"], row["catid"]) for row in rows] == [
        ("clips/15000.wav", "unknown", ""),
        ("clips/200.wav", "200 Hz", "LOW"),
        ("clips/900.wav", "900 Hz", "MID"),
        ("clips/copy.wav", "900 Hz", "MID"),
        ("clips/sub/long.wav", "4000 Hz", "HIGH"),
    ]
    assert rows[0]["probability"] == ""  # no percentage contradicts the verdict
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows[1:])
    assert "4 of 5 recordings labelled, 1 unknown" in result.stdout
    assert "tags.csv" in result.stderr
    shown = run("tag", clips, "--vocabulary", "labels.csv", "--min-score", 0.5).stdout
    assert shown.count("clips/") == len(rows)
    assert len(document("tag", clips, "--vocabulary", "labels.txt", "--min-score", -9, "--top", 1)["results"][1]["labels"]) == 1


def test_a_model_without_calibration_only_ranks(clips, models):
    models[0].calibration = None
    result = run("tag", clips, "--vocabulary", "labels.txt", "--out", "tags.csv")
    assert "no calibration" in result.stderr
    rows = list(csv.DictReader(Path("tags.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["path", "label", "score"]
    assert len(rows) == 5 * len(LABELS)
    assert "%" not in result.stdout


def test_labels_that_the_model_never_learnt_are_told(clips, models):
    model = models[0]
    model.bank = CaptionBank(("200 hz", "900 hz"), model.pool_text(["200 Hz", "900 Hz"]), 0.99)
    result = run("tag", clips, "--vocabulary", "labels.txt")
    assert "1 of 3 labels names no sound that the model learnt; such are often wrong: 4000 Hz" in result.stderr


def test_the_kinds_that_a_model_brings(clips, models):
    with pytest.raises(UsageError, match="--vocabulary FILE"):
        raise run("tag", clips).exception
    models[0].kinds = Path("labels.csv")
    assert document("tag", clips)["labels"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Name a folder"),
        (("clips", "--apply"), "--rename"),
        (("clips", "--rename", "{stem}", "--log", "x"), "--apply"),
        (("--undo", "x", "--out", "y"), "does nothing else"),
        (("clips", "--vocabulary", "labels.txt", "--rename", "{CatID}"), "{CatID} is not known here. There are: stem, label."),
    ],
)
def test_wrong_use(clips, arguments, words):
    error = run("tag", *arguments).exception
    assert isinstance(error, UsageError)
    assert words in str(error)


def test_renaming_is_shown_then_done_then_undone(clips, models):
    names = {path.name for path in clips.rglob("*.wav")}
    command = ("tag", clips, "--vocabulary", "labels.csv", "--min-score", 0.5, "--rename", "{CatID}_{label}")
    preview = run(*command)
    assert "LOW_200 Hz.wav" in preview.stdout
    assert {path.name for path in clips.rglob("*.wav")} == names
    planned = document(*command)
    embedded = models[0].embedded
    done = document(*command, "--apply", "--log", "log.jsonl")
    assert done["renames"] == planned["renames"]
    after = {"15000.wav", "LOW_200 Hz.wav", "MID_900 Hz.wav", "MID_900 Hz (2).wav", "HIGH_4000 Hz.wav"}
    assert {path.name for path in clips.rglob("*.wav")} == after
    found = document("query", "--audio", clips / "LOW_200 Hz.wav", "--corpus", clips, "--top", 1)["results"]
    assert [row["path"] for row in found] == ["clips/LOW_200 Hz.wav"]
    assert models[0].embedded == embedded + 1  # the sound asked with; the index followed by content
    assert document(*command)["renames"] == []  # they are called so already
    back = document("tag", "--undo", "log.jsonl")
    assert len(back["renames"]) == 4
    assert {path.name for path in clips.rglob("*.wav")} == names


def test_what_cannot_be_undone_is_told_with_an_exit_code(clips):
    command = ("tag", clips, "--vocabulary", "labels.csv", "--min-score", 0.5, "--rename", "{label}_{stem}")
    document(*command, "--apply", "--log", "log.jsonl")
    (clips / "200 Hz_200.wav").write_bytes(b"changed")
    result = run("tag", "--undo", "log.jsonl")
    assert isinstance(result.exception, DiffATRError)
    assert "1 file could not be renamed back" in str(result.exception)
    assert "200 Hz_200.wav: it was changed since." in result.stderr
    assert (clips / "900.wav").exists()


def test_a_probability_of_presence_alone_decides_on_unknown(clips, models):
    """Above the verdict's bound a file is labelled, below it unknown, at the same scores."""
    models[0].calibration = replace(models[0].calibration, captions_told_below=1.0)
    assert document("tag", clips, "--vocabulary", "labels.txt", "--min-score", 0)["unknown"] == 5
    models[0].calibration = replace(models[0].calibration, captions_told_below=0.0)
    assert document("tag", clips, "--vocabulary", "labels.txt", "--min-score", 0)["unknown"] == 0


def put(file, content=b"mine"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "clips/900.wav"), "--out clips/900.wav: has the ending of a recording"),
        (("--out", "new.OGG"), "--out new.OGG: has the ending of a recording"),
        (("--out", "labels.csv"), "--out labels.csv: is the file of --vocabulary"),
        (("--out", "clips/../labels.csv"), "is the file of --vocabulary"),
        (("--out", "link.csv"), "is the file of --vocabulary"),
        (("--out", "clips"), "--out clips: a folder is where a file should be"),
        (("--out", "mine.csv"), "--out mine.csv: is there already, and was not written by this command"),
        (("--out", "/dev/null"), "is there already"),
        (("--out", "nope/x/tags.csv"), "--out nope/x/tags.csv: there is no folder nope/x"),
        (("--out", "mine.csv/tags.csv"), "there is no folder mine.csv"),
        (("--rename", "{stem}_{label}", "--apply", "--log", "mine.csv"), "--log mine.csv: is there already"),
        (("--rename", "{stem}_{label}", "--apply", "--log", "clips/log.wav"), "has the ending of a recording"),
        (("--rename", "{stem}_{label}", "--apply", "--log", "nope/log.jsonl"), "there is no folder nope"),
        (("--rename", "{stem}_{label}", "--apply", "--log", "a", "--out", "a"), "--out a: is the file of --log"),
    ],
)
def test_no_content_of_anybody_is_lost(clips, monkeypatch, arguments, words):
    """Before any work: the model is not even loaded."""
    monkeypatch.setattr(tag, "load_model", lambda *_: pytest.fail("the model was loaded"))
    put(Path("mine.csv"), b"path,label\r\nof somebody else")
    Path("link.csv").symlink_to("labels.csv")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    done = typed(["tag", clips, "--vocabulary", "labels.csv", *arguments])
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_earlier_csv_of_labels_is_replaced_and_so_is_an_empty_file(clips, models):
    put(Path("empty.csv"), b"")
    for calibration in (models[0].calibration, None):
        models[0].calibration = calibration
        for out in ("tags.csv", "tags.csv", "empty.csv"):
            done = typed(["tag", clips, "--vocabulary", "labels.csv", "--out", out])
            assert done.code == 0, done.err
            assert Path(out).read_text(encoding="utf-8").startswith("path,label,")
    assert "score" in Path("tags.csv").read_text(encoding="utf-8").splitlines()[0]


def test_what_the_system_refuses_to_rename_is_a_failure(clips, monkeypatch):
    """Links are left as they are by our rules, and that is none; a folder that cannot be written is."""
    from diffatr_cli.corpus import names

    command = ("tag", clips, "--vocabulary", "labels.csv", "--min-score", 0.5, "--rename", "{label}_{stem}")
    (clips / "link.wav").symlink_to("900.wav")
    access = names.os.access
    monkeypatch.setattr(names.os, "access", lambda path, mode: Path(path).name != "sub" and access(path, mode))
    assert typed(command).code == 0  # nothing is to be renamed yet
    done = typed([*command, "--apply", "--log", "log.jsonl"])
    assert done.code == 1
    assert "left as it is: sub/long.wav: its folder cannot be written" in done.err
    assert done.err.splitlines()[-1] == "diffatr: 1 file could not be renamed; the others were."
    assert (clips / "200 Hz_200.wav").exists()
    again = typed([*command, "--apply", "--log", "again.jsonl", "--json"])  # nothing else is left to be renamed
    assert again.code == 1
    assert json.loads(again.out)["renames"] == []
    assert again.err.splitlines()[-1] == "diffatr: 1 file could not be renamed."
    monkeypatch.setattr(names.os, "access", access)
    assert typed([*command, "--apply", "--log", "third.jsonl"]).code == 0


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "50", "1.5"])
def test_a_bound_that_no_score_is_meant_by(clips, models, number):
    done = typed(["tag", clips, "--vocabulary", "labels.txt", "--min-score", number])
    assert (done.code, done.out) == (2, "")
    assert "--min-score" in done.err
    assert "0.5 for 50 %" in done.err
    models[0].calibration = None
    done = typed(["tag", clips, "--vocabulary", "labels.txt", "--min-score", number])
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize("option", ["--min-score", "--run", "--model", "--index"])
def test_undo_takes_no_other_options(clips, option):
    done = typed(["tag", "--undo", "log.jsonl", option, "1"])
    assert done.code == 2
    assert "does nothing else" in done.err


def test_numbers_of_notes_in_words(clips):
    Path("twice.txt").write_text("200 Hz\n900 Hz\n200 Hz\n")
    assert "twice.txt: 2 labels; 1 note: " in run("tag", clips, "--vocabulary", "twice.txt").stderr
