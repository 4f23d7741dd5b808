"""Streams of any kind: encodings with few letters, readers that have gone, disks that are full, streams that are closed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from audio_files import table, tone
from command_line import DIFFATR, ROOT, Stream, start, typed
from conftest import Workshop
from fake_retriever import FakeRetriever, write_tone
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.cli import corpus, query
from diffatr_cli.cli.console import show_csv

LETTERS = "caf\u00e9 \u65e5\u672c \U0001f436"  # all of them, one, or none have a place in cp1252 and in ASCII
NARROW = ["cp1252", "ascii"]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose names no narrow encoding can write, and a model that takes no time."""
    for module in (query, corpus):
        monkeypatch.setattr(module, "load_model", lambda *_: FakeRetriever(phase_two=True))
    folder = tmp_path / LETTERS
    for hz in (200, 900, 4000):
        write_tone(folder / f"{hz} {LETTERS}.wav", hz, 2)
    (folder / f"bad {LETTERS}.wav").write_text("no sound")
    return folder


# --- letters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", NARROW)
def test_tables_get_replaced_letters_and_signs(clips: Path, encoding: str) -> None:
    result = typed(["query", f"900 Hz {LETTERS}", "--corpus", clips], encoding)
    assert result.code == 0, result.err
    some = LETTERS.encode(encoding, "replace").decode(encoding)
    assert f"900 {some}.wav" in result.out
    assert len({len(line) for line in result.out.splitlines() if line.startswith("|")}) == 1  # columns stay columns
    escaped = LETTERS.encode(encoding, "backslashreplace").decode(encoding)
    assert f"bad {escaped}.wav" in result.err
    wide = typed(["query", f"900 Hz {LETTERS}", "--corpus", clips])
    assert f"900 {LETTERS}.wav" in wide.out
    assert "\u2500" in wide.out


@pytest.mark.parametrize("encoding", [*NARROW, "utf-8"])
def test_json_and_csv_say_the_same_in_any_encoding(clips: Path, encoding: str) -> None:
    arguments = ["query", f"900 Hz {LETTERS}", "--corpus", clips, "--top", "3"]
    result = typed([*arguments, "--json"], encoding)
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["query"] == f"900 Hz {LETTERS}"
    result = typed([*arguments, "--csv"], encoding)
    rows = list(csv.DictReader(io.StringIO(result.out.encode(encoding, "surrogateescape").decode("utf-8"))))
    assert [row["path"] for row in rows] == [row["path"] for row in document["results"]]
    terminal = typed([*arguments, "--csv"], encoding, terminal=True)
    assert terminal.code == 0, terminal.err
    some = str(clips).encode(encoding, "replace").decode(encoding)
    assert all(some in line for line in terminal.out.splitlines()[1:])


@pytest.mark.parametrize("encoding", NARROW)
def test_every_command_survives_letters_it_cannot_write(clips: Path, workshop: Workshop, trained: Path, tmp_path: Path,
                                                        encoding: str) -> None:  # fmt: skip
    tone(tmp_path / "in" / "good.wav")
    table(tmp_path / "in" / "captions.csv", "file,caption,split", [["good.wav", "x", "train"], [LETTERS, "y", "train"]])
    runs = trained.parents[1]
    some = ("--data", workshop.data, "--runs", runs)
    for arguments, code, words in (
        (["--help"], 0, "Usage"),
        (["query", "--help"], 0, "Usage"),
        (["index", clips], 0, "Index"),
        (["prepare", "folder", "--from", tmp_path / "in", "--data", tmp_path / LETTERS], 0, "skipped"),
        (["evaluate", "--source", "tones", "--target", "tones", *some], 0, "8 clips"),
        (["evaluate", "--source", LETTERS, "--target", "tones", *some], 2, ""),
        (["pretrain", LETTERS], 2, ""),
        (["query", "x", "--corpus", tmp_path / LETTERS / LETTERS], 2, ""),
        ([LETTERS], 2, ""),
    ):
        result = typed(arguments, encoding)
        assert result.code == code, (arguments, result)
        assert "unexpected" not in result.err
        assert words in result.out


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
    ],
    ids=lambda environment: ",".join(environment),
)
def test_the_process_itself(tmp_path: Path, environment: dict[str, str]) -> None:
    """Names, arguments and stdin under a locale, of which a process alone has one."""
    name = f"{LETTERS}.csv"
    (tmp_path / name).write_text("file,caption\n", encoding="utf-8")
    process = start(
        [*DIFFATR, "prepare", "folder", "--from", tmp_path, "--data", tmp_path / LETTERS],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        text=False,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1  # it prepares nothing, and says so after its table
    assert err.count(b"\n") == 1
    assert b"unexpected" not in err


def test_texts_that_come_in_disguise(clips: Path) -> None:
    """Where the locale knows ASCII alone, Python hands each other byte of an argument on as half of a surrogate pair."""
    disguised = f"900 Hz {LETTERS}".encode().decode("ascii", "surrogateescape")
    document = json.loads(typed(["query", disguised, "--corpus", clips, "--json", "--not", disguised]).out)
    assert document["query"] == f"900 Hz {LETTERS}"
    (broken,) = json.loads(typed(["query", "-", "--corpus", clips, "--json"], stdin=b"900 Hz \xff\n").out)
    assert broken["query"] == "900 Hz \N{REPLACEMENT CHARACTER}"
    (narrow,) = json.loads(typed(["query", "-", "--corpus", clips, "--json"], "ascii", stdin="900 Hz \u00e9".encode()).out)
    assert narrow["query"] == "900 Hz \u00e9"


@given(st.text(st.characters(exclude_characters="\r\n"), max_size=40))
def test_csv_gives_names_back_as_they_are(name: str) -> None:
    raw = name.encode("utf-8", "surrogatepass").replace(b"\0", b"")
    stream = Stream("cp1252", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        show_csv([["path"], [Path(os.fsdecode(raw))]])
    assert isinstance(stream.buffer, io.BytesIO)
    text = stream.buffer.getvalue().decode("utf-8", "surrogateescape")
    assert os.fsencode(list(csv.reader(io.StringIO(text)))[1][0]) == os.fsencode(Path(os.fsdecode(raw)))


# --- readers and disks -----------------------------------------------------------------------------------------------


@pytest.fixture
def found(workshop: Workshop, trained: Path, tmp_path: Path) -> list[str | Path]:
    """A command that prints more than a pipe's first line."""
    corpus = workshop.data / "tones" / "test"
    return ["query", "a low tone", "a high tone", "--corpus", corpus, "--index", tmp_path / "index", "--run", trained]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["query", "--help"]])
def test_a_reader_that_has_gone_is_no_failure_of_help(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start([*DIFFATR, *arguments], stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_another_pipe_that_breaks_is_a_failure(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom diffatr_cli.data import synthetic\nfrom diffatr_cli.__main__ import main\n"
        "def fail(*_): raise BrokenPipeError(32, 'Broken pipe', 'that of a worker')\n"
        "synthetic.prepare_synthetic = fail\nsys.argv = ['diffatr', 'prepare', 'synthetic']\nmain()"
    )
    process = start([DIFFATR[0], "-c", code], cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", "diffatr: that of a worker: Broken pipe.\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--json"], ["--csv"]], ids=["table", "json", "csv"])
def test_head_of_results(found: list[str | Path], kind: list[str]) -> None:
    process = start([*DIFFATR, *found, *kind])
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(60) == 141
    said = ("files: ", "a low tone: ", "a high tone: ")  # what a few steps of training think of them is no matter here
    assert [line for line in err.splitlines() if not line.startswith(said)] == []


def test_talk_that_nobody_reads_ends_no_work(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "good.wav")
    (tmp_path / "in" / "captions.csv").write_bytes("file,caption,split\ngood.wav,caf\u00e9,train\n".encode("latin-1"))
    reading, writing = os.pipe()
    os.close(reading)
    process = start(
        [*DIFFATR, "prepare", "folder", "--from", tmp_path / "in", "--data", tmp_path / "data", "--json"], stderr=writing
    )
    os.close(writing)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["notes"]  # which was said to nobody


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_behind_stdout_is_named() -> None:
    with open("/dev/full", "w") as full:
        process = start([*DIFFATR, "--version"], stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("diffatr: stdout: the disk is full.")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(shutil.which("sh") is None, reason="a shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_trouble(tmp_path: Path, closed: str) -> None:
    """And no file of ours takes the place of one: what is said later would go into it."""
    command = f"exec '{DIFFATR[0]}' -m diffatr_cli prepare synthetic --train 2 --val 1 --test 1 --data '{tmp_path}' {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert (b"prepared" in done.stdout) == (closed in ("2>&-", "<&-"))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"prepared" not in path.read_bytes()
