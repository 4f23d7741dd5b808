"""What holds for every command before it runs: no value is empty, and a word with a space in it is a text, not an option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand

from ..errors import UsageError


class App(typer.Typer):
    """Commands that are all a `Command`."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """As of typer."""
        return super().command(name, cls=Command, **settings)


class Command(TyperCommand):
    """A command that looks at the words of its line before they are parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of typer. Raises UsageError where a value is empty."""
        if ctx.resilient_parsing:  # a shell asks what could come next
            return super().parse_args(ctx, args)
        line = _read(self.params, args)
        for option, value in line.values:
            _refuse_empty(option, value)
        own = [each for each in self.params if each.param_type_name == "argument"]
        places = [each for each in own for _ in range(max(1, each.nargs))]
        for place, value in enumerate(line.texts):
            if places:
                _refuse_empty(places[min(place, len(places) - 1)], value)
        if any(_is_odd(text) for text in line.texts):  # else the line stays as it is, for the messages about it
            args = [*line.options, "--", *line.texts]
        return super().parse_args(ctx, args)


class _Line(NamedTuple):
    """The words of a line: options with their values as they stand, each value beside its parameter, and what is no option."""

    options: list[str]
    values: list[tuple[Any, str]]
    texts: list[str]


def _read(params: list[Any], args: list[str]) -> _Line:
    """What each word is, as the parser will see it."""
    named = {name: each for each in params if each.param_type_name == "option" for name in (*each.opts, *each.secondary_opts)}
    line, words = _Line([], [], []), iter(args)
    for word in words:
        if word == "--":
            line.texts.extend(words)
            break
        if not _is_option(word):
            line.texts.append(word)
            continue
        line.options.append(word)
        name, is_there, value = word.partition("=")
        if is_there and word.startswith("--"):
            if name in named and not named[name].is_flag:
                line.values.append((named[name], value))
        elif word in named:
            for given in _taken(named[word], words):
                line.options.append(given)
                line.values.append((named[word], given))
    return line


def _taken(option: Any, words: Iterator[str]) -> list[str]:
    """The words behind an option that are its values."""
    count = 0 if option.is_flag or getattr(option, "count", False) else option.nargs
    return list(islice(words, count))


def _is_option(word: str) -> bool:
    """One with a space in its name is none of ours, but a text that begins with `-`."""
    name = word.partition("=")[0] if word.startswith("--") else word
    return name.startswith("-") and name != "-" and not any(sign.isspace() for sign in name)


def _is_odd(text: str) -> bool:
    return text.startswith("-") and text != "-"


def _refuse_empty(param: Any, value: str) -> None:
    """Raises UsageError for a value that says nothing; taken as a path, it would mean the current folder."""
    if value.strip():
        return
    if param.param_type_name == "argument":
        name = (param.metavar or param.name).strip("[].").upper()
        rest = "Say what it is to be."
    else:
        name = max(param.opts, key=len)
        rest = "Give it a value." if param.required else "Give it a value, or leave it out."
    raise UsageError(f"{name}: the value is empty, as that of a variable which is not set. {rest}")
