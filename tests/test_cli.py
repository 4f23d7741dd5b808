"""The command line as users type it: what goes to stdout, what to stderr, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Workshop

from diffatr_cli.cli import demo
from diffatr_cli.cli.main import main
from diffatr_cli.data import synthetic

Diffatr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diffatr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Diffatr:
    """Type a command; returns (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffatr", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_help_names_every_command_with_its_purpose(diffatr: Diffatr) -> None:
    code, out, _ = diffatr("--help")
    assert code == 0
    for command in ("prepare", "pretrain", "train-diffusion", "evaluate", "cross-domain", "query", "index", "demo"):
        assert command in out
        assert "Usage" in diffatr(command, "--help")[1]


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "diffatr_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("diffatr ")
    done = subprocess.run([sys.executable, "-m", "diffatr_cli", "evaluate"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--target" in done.stderr


def test_a_whole_experiment(diffatr: Diffatr, workshop: Workshop, tmp_path: Path) -> None:
    where = ("--data", workshop.data, "--runs", tmp_path / "runs")
    few = ("pretrain.epochs=1", "diffusion.epochs=1")
    code, out, err = diffatr("pretrain", workshop.recipe_file, *few, *where, "--seed", 5, "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert Path(trained["folder"]) == tmp_path / "runs" / "tiny" / "seed-5" / "pretrain"
    assert trained["best"]["epoch"] == 1
    code, out, err = diffatr("train-diffusion", workshop.recipe_file, *few, *where, "--seed", 5)
    assert code == 0, err
    assert "t2a_weight" in out
    assert "kept in" in err

    code, out, err = diffatr("evaluate", "--source", "tones", "--target", "tones", "--seeds", "5", *where, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["clips"], result["captions"], result["seeds"]) == (8, 16, [5])
    for system in ("baseline", "diff"):
        for direction in ("t2a", "a2t"):
            assert set(result["systems"][system][direction]) == {"r1", "r5", "r10", "map10", "medr", "meanr"}
    code, out, _ = diffatr("evaluate", "--source", "tones", "--target", "tones2", *where, "--steps", 2, "--shortlist", 3)
    assert code == 0
    assert "12 clips" in out

    code, _, err = diffatr("cross-domain", "tones", "tones2", *where)
    assert code == 2
    assert "tones2" in err  # nothing was trained on it
    code, out, err = diffatr("query", "a low tone", "--corpus", workshop.data / "tones" / "test", "--runs", tmp_path / "runs",
                             "--index", tmp_path / "index", "--top", 3, "--json")  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert answer["query"] == "a low tone"
    assert [hit["rank"] for hit in answer["results"]] == [1, 2, 3]
    assert all(Path(hit["path"]).is_file() and hit["end"] > hit["start"] for hit in answer["results"])


def test_every_mistake_in_a_recipe_is_told_at_once(diffatr: Diffatr, workshop: Workshop, tmp_path: Path) -> None:
    code, out, err = diffatr("pretrain", workshop.recipe_file, "pretrain.epoch=1", "diffusion.lr=fast", "--runs", tmp_path)
    assert code == 2
    assert not out
    assert "pretrain.epoch" in err
    assert "diffusion.lr" in err
    assert "Traceback" not in err
    assert diffatr("pretrain", "no-such-recipe", "--runs", tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("evaluate", "--source", "x", "--target", "y"), 2, "diffatr pretrain"),
        (("evaluate", "--source", "x", "--target", "y", "--seeds", "one"), 2, "--seeds"),
        (("evaluate", "--source", "x", "--target", "y", "--seeds", "1,1"), 2, "--seeds"),
        (("cross-domain", "x", "x"), 2, "two different"),
        (("query", "x", "--corpus", ".", "--runs", "runs"), 1, "diffatr demo"),
        (("pretrain", "demo", "--device", "warp"), 2, "--device"),
        (("pretrain", "demo"), 1, "diffatr prepare synthetic"),
        (("train-diffusion", "demo"), 1, "diffatr pretrain demo"),
    ],
)
def test_wrong_use_is_two_and_failure_is_one(
    diffatr: Diffatr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tone.wav").touch()
    got, out, err = diffatr(*arguments)
    assert got == code, err
    assert told in err
    assert not out
    assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback(diffatr: Diffatr, tmp_path: Path) -> None:
    code, out, err = diffatr("evaluate", "--source", "x", "--target", "y", "--runs", tmp_path, "--debug")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0].startswith("Traceback")
    assert any("evaluate.py" in line for line in lines)
    assert "no run was trained on x" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "nonsense"),
        (("prepar",), "prepare"),  # what may have been meant
        (("--nonsense",), "--nonsense"),
        (("query", "x", "--nonsense"), "--nonsense"),
        (("query", "x", "--top"), "--top"),
        (("query", "x", "--top", "0"), "--top"),
        (("query", "x", "--top", "many"), "--top"),
        (("index",), "DIR"),
        (("tag", "a", "b"), "b"),
        (("evaluate",), "--target"),
        (("pretrain",), "RECIPE"),
        (("pretrain", "demo", "--data", __file__), "--data"),
        (("prepare", "nonsense"), "nonsense"),
        (("prepare", "folder", "--from", __file__), "--from"),
        (("prepare", "clotho", "--resampler", "nonsense"), "resampy"),
        (("cross-domain", "a", "b", "--recipe", "one"), "--recipe"),
    ],
)
def test_a_line_that_no_command_understands_is_answered_by_one(diffatr: Diffatr, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = diffatr(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("diffatr")
    assert words in line
    assert line.endswith(" --help.")
    assert ".." not in line


def test_a_command_of_several_gives_their_help(diffatr: Diffatr) -> None:
    code, out, err = diffatr("prepare")
    assert (code, err) == (2, "")
    assert out.strip() == diffatr("prepare", "--help")[1].strip()


def test_no_command_says_what_to_try(diffatr: Diffatr) -> None:
    code, out, err = diffatr()
    assert (code, err) == (0, "")
    first, *tries, last = out.splitlines()
    assert "Three" in first
    assert len(tries) == 3
    assert "--help" in last
    known = diffatr("--help")[1]
    for line in tries:
        program, command, *_ = line.split()
        assert program == "diffatr"
        assert command in known
    assert diffatr("--debug")[:2] == (0, out)


def test_the_demo_runs_everything(diffatr: Diffatr, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recipe that trains in seconds in place of the shipped one, whose minutes the CI spends on the README's command."""
    recipe = workshop.recipe("data.name=synthetic", "pretrain.epochs=1", "diffusion.epochs=1")
    monkeypatch.setattr("diffatr_cli.recipe.load_recipe", lambda name: recipe)
    make = synthetic.prepare_synthetic
    monkeypatch.setattr(synthetic, "prepare_synthetic", lambda root, progress: make(root, 12, 4, 6, 0, 1, progress))
    code, out, err = diffatr("demo", "--data", tmp_path / "data", "--runs", tmp_path / "runs", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert list(document) == ["prepare", "pretrain", "train-diffusion", "evaluate", "query"]
    assert document["evaluate"]["clips"] == 6
    assert document["query"]["query"] == demo.QUERY
    assert len(document["query"]["results"]) == 5
