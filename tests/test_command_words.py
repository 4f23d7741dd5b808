"""What holds for the words of every command's line: no value may be empty, and a word with a space in it is no option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import typed
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.cli.command import Command, _read
from diffatr_cli.cli.main import app


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands, those of groups too, by their names."""
    for name, each in (group or typer.main.get_command(app)).commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*names, name))
        else:
            yield (*names, name), each


COMMANDS = dict(commands())


def is_text(param: Any) -> bool:
    return param.param_type_name == "argument"


def value_of(param: Any, empty: int | None = None) -> list[str]:
    """What is typed for a parameter; of its values one may be empty."""
    values = ["" if place == empty else "x" for place in range(max(1, param.nargs))]
    return values if is_text(param) else [param.opts[0], *values]


CASES = [
    pytest.param(names, param, place, id=f"{'-'.join(names)}-{param.name}-{place}")
    for names, command in COMMANDS.items()
    for param in command.params
    if is_text(param) or not param.is_flag
    for place in range(max(1, param.nargs))
]


def test_there_are_commands_and_parameters_enough_to_mean_something():
    assert len(COMMANDS) >= 22
    assert len(CASES) >= 150
    assert all(isinstance(command, Command) for command in COMMANDS.values())


@pytest.mark.parametrize(("names", "param", "place"), CASES)
def test_no_parameter_of_any_command_takes_an_empty_value(names, param, place, tmp_path, monkeypatch):
    """An unset variable of the shell must not mean "here"."""
    monkeypatch.chdir(tmp_path)
    texts, options = [], []
    for each in COMMANDS[names].params:
        if each is param or each.required or (is_text(each) and is_text(param)):
            (texts if is_text(each) else options).extend(value_of(each, place if each is param else None))
    done = typed([*names, *options, *texts])
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    named = param.metavar.strip("[].") if is_text(param) else max(param.opts, key=len)
    assert line.startswith(f"diffatr: {named}: the value is empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--corpus="], ["--corpus", " "], ["dog", ""], ["--", ""]])
def test_empty_values_however_they_are_written(words):
    done = typed(["query", "rain", *words])
    assert done.code == 2
    assert "the value is empty" in done.err


@pytest.mark.parametrize("text", ["-music dog", "-horn car", "--corpus x", "-n 5", '-"two words" rain'])
def test_a_filter_may_stand_at_the_beginning(text, tmp_path):
    """It goes as far as looking for the folder: no option is missed, and no help shown."""
    for line in ([text], ["rain", text], [text, "rain", "--top", "3"], ["--by", "sound", "--only", "-music", text]):
        done = typed(["query", *line, "--corpus", tmp_path / "nowhere"])
        assert (done.code, done.out) == (2, "")
        assert done.err == f"diffatr: {tmp_path}/nowhere: there is no such folder. Name a folder of recordings.\n"


def test_what_is_wrong_with_an_option_is_still_told():
    for line in (["-music dog", "--bogus"], ["dog", "--bogus"], ["-music"]):
        done = typed(["query", *line])
        assert done.code == 2
        assert "No such option" in done.err


WORD = st.sampled_from(["dog", "-", "-music dog", "in:x y", "a=b c", "-x=1 2"])
OPTION = st.sampled_from([["--top", "3"], ["--top=3"], ["-n", "3"], ["-n3"], ["--by=name"], ["--only", "-music x"], ["--cut"]])


@given(st.lists(st.one_of(OPTION, WORD.map(lambda word: [word]))))
def test_texts_keep_their_order_whatever_stands_between(parts):
    command = COMMANDS[("query",)]
    words = [part[0] for part in parts if not any(sign in part[0] for sign in ("--top", "-n", "--by", "--only", "--cut"))]
    args = [word for part in parts for word in part]
    assert _read(command.params, args).texts == words
    context = command.make_context("query", args)
    assert list(context.params["texts"] or []) == words


def test_folders_and_files_may_begin_so_too(tmp_path):
    name = Path("- my clips")
    assert f"{name}: there is no such folder" in typed(["index", name]).err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["evaluate", "--target", "x", "--source", "x", "--workers", "2"], "--workers is for --engine ray alone"),
        (["cross-domain", "--workers", "2"], "--workers is for --engine ray alone"),
        (["prepare", "clotho", "--from", ".", "--mirror", "http://x"], "--mirror: nothing is downloaded with --from"),
        (["evaluate", "--target", "x", "--source", "x", "--export", "nope/x"], "--export nope/x: there is no folder nope"),
        (["collections", "export", "Rain", "nope/x"], "DIR nope/x: there is no folder nope"),
    ],
)
def test_what_means_nothing_or_has_no_place_is_refused(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = typed(line)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert list(tmp_path.iterdir()) == []
