"""Names of files reach a terminal only as what can be shown: no escape, no new line, no turn of the writing direction."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
from pathlib import Path

import pytest
from command_line import DIFFATR, Stream, Terminal, controls, shown, typed
from fake_retriever import FakeRetriever, write_tone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich import box
from rich.table import Column, Table
from rich.text import Text

from diffatr_cli.cli import answering, console, corpus, query
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.printable import printable

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\ndiffatr: all is well\r\t\x7f\x9b5m\u202egpj.\u2066\u200f\udcff"
THOROUGHLY = settings(
    max_examples=25,
    phases=[Phase.reuse, Phase.generate],  # an example runs many commands; to shrink one takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Anything that a name may hold, with what terminals obey more often than by chance; short, because names end at 255 bytes.
pieces = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(["\x1b[31m", "\x1b]0;x\x07", "\n", "\r", "\x9b2J", "\x7f", "\u202e", "\u2066", "\u2029", "\udcff"]),
    st.sampled_from(["[red]", "[]", ":dog:", "%s", "{x}", "-"]),
)
names = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda name: name not in (".", ".."))


@given(st.text())
def test_printable_keeps_what_can_be_shown_and_only_that(text: str) -> None:
    safe = printable(text)
    assert len(safe) == len(text)
    assert safe.isprintable()
    assert all(new in (old, "\N{REPLACEMENT CHARACTER}") for old, new in zip(text, safe, strict=True))
    assert printable(safe) == safe
    if text.isprintable():
        assert safe == text


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of one that takes seconds to load."""
    for module in (query, corpus, answering):
        monkeypatch.setattr(module, "load_model", lambda *_: FakeRetriever(phase_two=True))


# --- each command's failure ------------------------------------------------------------------------------------------


def failures(root: Path, name: str) -> list[list[str | Path]]:
    """Commands that fail about a file, a folder, a recipe or a data set of this name."""
    place, sound = root / name, root / "clips" / "good.wav"
    return [
        [f"--{name}"],
        ["prepare", f"x{name}"],
        ["prepare", "folder", "--from", place],
        ["prepare", "folder", "--from", root / "clips", "--captions", place],
        ["prepare", "folder", "--from", root, "--data", sound / name],
        ["prepare", "clotho", "--from", place],
        ["prepare", "audiocaps", "--from", place],
        ["prepare", "synthetic", f"--name=../{name}"],
        ["prepare", "synthetic", f"--train={name}x"],
        ["prepare", "synthetic", "--data", sound / name],
        ["pretrain", f"./{name}"],
        ["pretrain", "demo", f"pretrain.{name}=1"],
        ["pretrain", "demo", "--data", place, "--runs", place],
        ["train-diffusion", "demo", "--runs", place],
        ["train-diffusion", "demo", f"diffusion.lr={name}"],
        ["evaluate", f"--source={name}", f"--target={name}", "--runs", place],
        ["evaluate", "--source=x", "--target=y", f"--seeds={name}"],
        ["cross-domain", f"x{name}", f"x{name}"],
        ["query", "x", "--corpus", place],
        ["query", "x", "--corpus", root / "clips", "--index", sound / name],
        ["query", "--audio", place],
        ["query", "--audio", sound, "--captions", place],
        ["index", place],
        ["index", root / "clips", "--index", sound / name],
        ["serve", "--corpus", place],
        ["demo", "--data", sound / name],
    ]


def check_failures(root: Path, name: str) -> None:
    write_tone(root / "clips" / "good.wav", 440, 0.5)
    for arguments in failures(root, name):
        result = typed([os.fspath(argument) for argument in arguments], terminal=True)
        assert result.code in (1, 2), (arguments, result)
        assert not controls(result.out + result.err), (arguments, result)
        assert len(result.err.splitlines()) == 1, (arguments, result)
        assert "unexpected" not in result.err, (arguments, result)


def test_failures(tmp_path: Path, model: None) -> None:
    check_failures(tmp_path, EVIL)


@pytest.mark.slow
@THOROUGHLY
@given(names)
def test_failures_about_any_name(tmp_path_factory: pytest.TempPathFactory, model: None, name: str) -> None:
    check_failures(tmp_path_factory.mktemp("names"), name)


@settings(max_examples=30)
@given(st.lists(names, min_size=1, max_size=3), st.sampled_from([DiffATRError, UsageError, OSError, RuntimeError, MemoryError]))
def test_whatever_an_exception_says(texts: list[str], kind: type[Exception]) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def fail(**_: object) -> None:
            raise OSError(5, "Input/output error", texts[0]) if kind is OSError else kind(*texts)

        patch.setattr("diffatr_cli.data.synthetic.prepare_synthetic", lambda *_: fail())
        for debug in ([], ["--debug"]):
            result = typed(["prepare", "synthetic", *debug], terminal=True)
            assert result.code == (2 if kind is UsageError else 1)
            assert not controls(result.out + result.err)
            assert ("Traceback" in result.err) == bool(debug)
            assert debug or len(result.err.splitlines()) == (len(texts) if issubclass(kind, DiffATRError) else 1)


# --- what commands show when all goes well ---------------------------------------------------------------------------


def check_results(root: Path, name: str) -> None:
    folder = root / "clips"  # LanceDB opens no folder in whose path are such names
    below = folder / f"d{name}"
    write_tone(below / f"x{name}.wav", 900, 0.5)
    (below / f"bad{name}.wav").write_text("no sound")
    valid = name.replace("\udcff", "")  # captions and names of data sets are text, unlike names of files
    table = root / "captions.jsonl"
    table.write_text(json.dumps({"caption": f"900 Hz {valid}"}))
    for arguments in (
        ["index", folder],
        ["query", f"900 Hz {name}", "--corpus", folder],
        ["query", f"900 Hz {name}", "--corpus", folder, "--json"],
        ["query", f"900 Hz {name}", "--corpus", folder, "--csv"],
        ["query", f"900 Hz {name}", "--corpus", folder, "--min-score", "50"],
        ["query", "900 Hz", "--corpus", folder, "--copy-to", root / f"found{name}"],
        ["query", "--audio", below / f"x{name}.wav", "--captions", table],
        ["query", "--audio", below / f"x{name}.wav", "--captions", table, "--csv"],
        ["prepare", "synthetic", "--train=1", "--val=0", "--test=0", "--data", root, "--name=p" + valid.replace("\\", "")],
    ):
        result = typed([os.fspath(argument) for argument in arguments], terminal=True)
        assert result.code == 0, (arguments, result)
        assert not controls(result.out + result.err), (arguments, result)
    path = os.fspath(below / f"x{name}.wav")
    piped = typed(["query", f"900 Hz {name}", "--corpus", os.fspath(folder), "--csv"])
    rows = list(csv.reader(io.StringIO(piped.out, newline="")))
    assert [row[2] for row in rows[1:]] == [path]  # byte for byte
    assert json.loads(typed(["query", "900 Hz", "--corpus", os.fspath(folder), "--json"]).out)["results"][0]["path"] == path


def test_results(tmp_path: Path, model: None) -> None:
    check_results(tmp_path, EVIL)


@pytest.mark.slow
@THOROUGHLY
@given(names)
def test_results_about_any_name(tmp_path_factory: pytest.TempPathFactory, model: None, name: str) -> None:
    check_results(tmp_path_factory.mktemp("names"), name)


def test_tables_of_names_keep_brackets_and_columns(tmp_path: Path) -> None:
    rows = [["[red]x[/red].wav", "a"], [":dog:.wav", "b"], [EVIL, "c"], ["[/]", "d"]]
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["file", "caption"], *rows])
    arguments = ["prepare", "folder", "--from", tmp_path, "--data", tmp_path / "data", "--name", "[b]:cat:"]
    result = typed(arguments, terminal=True)
    assert result.code == 1  # there is none of them
    assert not controls(result.out + result.err)
    for words in ("[red]x[/red].wav", ":dog:.wav", "[/]", "prepared: [b]:cat:"):
        assert words in "".join(line.strip(" |\u2502") for line in result.out.splitlines())


@given(st.integers(0, 250), st.sampled_from(["", " ", "\n", "\u3000"]), st.sampled_from([None, box.SIMPLE_HEAD]))
def test_no_line_of_a_table_begins_with_a_name(length: int, between: str, style: box.Box | None) -> None:
    """Wherever it is wrapped."""
    name = "a" * length + between + "diffatr: all is well " * 3
    for text in (name, Text(name)):
        table = Table(Column(overflow="fold"), title=text, caption=text, **({"box": style} if style else {}))
        table.add_row(Text(name))
        stream = Stream("utf-8", terminal=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            patch.setenv("COLUMNS", "100")
            console.show(None, table, as_json=False)
        lines = shown(stream.written("utf-8")).splitlines()
        assert not [line for line in lines if line.startswith(("a", "diffatr"))]
        assert sum("".join(lines).count(letter) for letter in "dtw") >= 27  # nothing is cut off


def test_the_note_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream("utf-8", terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with console.progress_bar() as progress:
        progress(1, 2, f"training on [b]{EVIL}")
    text = shown(stream.written("utf-8"))
    assert "training on [b]" in text
    assert not controls(text)


def test_nothing_is_printed_past_the_console() -> None:
    """Neither results nor talk, by any module: the console alone knows what the streams take."""
    ways = {"print", "typer.echo", "typer.secho"}
    ways |= {f"sys.{stream}.{call}" for stream in ("stdout", "stderr") for call in ("write", "writelines", "buffer.write")}
    printing = set()
    for path in Path(console.__file__).parents[1].rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if ways & {ast.unparse(call.func) for call in calls}:
            printing.add(path.name)
    assert printing == {"console.py"}


# --- a real terminal -------------------------------------------------------------------------------------------------


def test_in_a_terminal(tmp_path: Path) -> None:
    """A folder and a table full of such names, through the process that a person would start."""
    (tmp_path / EVIL).mkdir()
    for number in range(3):
        (tmp_path / EVIL / f"{number}{EVIL}.wav").write_text("no sound")
    with (tmp_path / "captions.csv").open("wb") as file:
        file.write(b"file,caption,split\n")
        for number in range(3):
            file.write(b'"' + os.fsencode(f"{EVIL}/{number}{EVIL}.wav") + b'",x,train\n')
    for arguments, code in (
        (["prepare", "folder", "--from", tmp_path, "--data", tmp_path / "data", "--name", EVIL], 1),
        (["prepare", "folder", "--from", tmp_path / "no" / EVIL, "--data", tmp_path / "data"], 1),
        (["query", "x", "--corpus", tmp_path / "no" / EVIL], 2),
        (["pretrain", EVIL, "--debug"], 2),
        ([EVIL], 2),
    ):
        terminal = Terminal([*DIFFATR, *arguments])
        text = shown(terminal.read())
        assert terminal.process.wait(60) == code, text
        assert not controls(text), arguments
        assert not [line for line in text.splitlines() if line.startswith("diffatr: all is well")]
