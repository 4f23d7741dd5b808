"""`diffatr prepare` at the command line: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from audio_files import bad_files, table, tone

from diffatr_cli.cli import main
from diffatr_cli.data.manifest import load_dataset


class Shell:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, stdout, stderr of `diffatr prepare ...`."""
        self.monkeypatch.setattr(sys, "argv", ["diffatr", "prepare", *map(str, arguments)])
        try:
            main.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of one good file, one with brackets in its name, and all the bad ones."""
    bad = bad_files(tmp_path / "my sounds")
    tone(tmp_path / "my sounds" / "good.wav")
    rows = [[name, "something", "train"] for name in ("good.wav", *bad, "[red]x.wav")]
    table(tmp_path / "my sounds" / "captions.csv", "file,caption,split", rows)
    return tmp_path / "my sounds"


def test_a_table_of_what_is_there_and_what_is_not(shell: Shell, tmp_path: Path, sounds: Path) -> None:
    code, out, err = shell("folder", "--from", sounds, "--data", tmp_path / "data")
    assert (code, err) == (0, "")
    assert "prepared: my sounds" in out
    for words in ("train", "silent", "truncated", "not audio", "shorter than 0.1 s", "resampler", "[red]x.wav"):
        assert words in out
    assert [clip.captions for clip in load_dataset(tmp_path / "data", "my sounds").clips] == [("something",)]


def test_json_is_one_document_with_every_skip(shell: Shell, tmp_path: Path, sounds: Path) -> None:
    code, out, _ = shell("folder", "--from", sounds, "--data", tmp_path / "data", "--name", "x", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["splits"]["train"] == {"clips": 1, "captions": 1, "hours": 0.5 / 3600, "listed": 10, "official": None}
    assert len(document["skipped"]) == 9
    assert document["reasons"]["train"]["missing"] == 2
    assert (document["name"], document["converted"], document["kept"]) == ("x", 1, 0)


def test_nothing_prepared_is_a_failure_after_the_table(shell: Shell, tmp_path: Path) -> None:
    table(tmp_path / "in" / "val.csv", "audiocap_id,youtube_id,start_time,caption", [["1", "-x", "30", "a dog"]])
    code, out, err = shell("audiocaps", "--from", tmp_path / "in", "--data", tmp_path / "data", "--json")
    assert code == 1
    assert json.loads(out)["skipped"] == [{"split": "val", "what": "val/-x_30", "reason": "missing"}]
    assert err.splitlines()[-1].endswith("not one of 1 listed clips can be used.")
    assert any("no train.csv" in line for line in err.splitlines())


def test_synthetic_makes_what_is_asked_for(shell: Shell, tmp_path: Path) -> None:
    arguments = ("synthetic", "--train", 3, "--val", 1, "--test", 0, "--seed", 7, "--data", tmp_path, "--json")
    code, out, _ = shell(*map(str, arguments))
    assert code == 0
    assert [counts["clips"] for counts in json.loads(out)["splits"].values()] == [3, 1, 0]
    assert load_dataset(tmp_path, "synthetic").info["seed"] == 7
    assert "4 finished before" in " ".join(shell(*map(str, arguments[:-1]))[1].split())


def test_what_is_left_of_a_cut_recording_is_kept_on_demand(shell: Shell, tmp_path: Path, sounds: Path) -> None:
    arguments = ("folder", "--from", sounds, "--data", tmp_path / "data", "--json", "--name")
    assert json.loads(shell(*arguments, "skipped")[1])["splits"]["train"]["clips"] == 1
    code, out, err = shell(*arguments, "kept", "--partial", "keep")
    document = json.loads(out)
    assert (code, document["splits"]["train"]["clips"], document["partial"]) == (0, 2, 1)
    assert "what is left of recordings cut short, such as train/truncated.wav" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["folder"], 2, "--from"),
        (["folder", "--from", "nowhere"], 1, "no such folder"),
        (["clotho", "--from", "."], 1, "clotho_captions_development.csv"),
        (["clotho", "--from", "nowhere"], 1, "no such folder"),
        (["audiocaps", "--from", "."], 1, "train.csv"),
        (["synthetic", "--name", "../x"], 2, "--name"),
        (["synthetic", "--train", "-1"], 2, "--train"),
        (["synthetic", "--workers", "0"], 2, "--workers"),
        (["clotho", "--resampler", "kaiser_fast"], 2, "kaiser_fast"),
        (["audiocaps", "--from", ".", "--partial", "some"], 2, "--partial"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_use_is_2_and_failure_1_with_the_remedy(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = shell(*arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert not list(tmp_path.glob("data/*/*"))


def test_help_explains_each_command(shell: Shell) -> None:
    for command in ("clotho", "audiocaps", "folder", "synthetic"):
        code, out, _ = shell(command, "--help")
        assert code == 0
        assert "Example:" in out
        assert "--name" in out
        assert command in shell("--help")[1]
