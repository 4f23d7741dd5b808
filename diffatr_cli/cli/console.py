"""What commands share: results on stdout, talk and progress on stderr, and the options that many of them take."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..progress import Progress, silent

Data = Annotated[Path, typer.Option("--data", help="Folder of prepared data sets.", metavar="DIR", file_okay=False)]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of trained runs.", metavar="DIR", file_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of a table.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="NAME")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**31 - 1)]


def say(message: str) -> None:
    """One line of talk, on stderr."""
    typer.echo(message, err=True)


def show(document: Any, *tables: Any, as_json: bool) -> None:
    """The result of a command on stdout: rich tables, or the document as JSON."""
    if as_json:
        # Escaped to ASCII, because names of files need not be valid text.
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    from rich.console import Console

    # A pipe has no width; tables must not be squeezed into the 80 columns that rich assumes for one.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables:
        console.print(table)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with rate and time left on stderr while the block runs; silent when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, note: str) -> None:
            if done < bar.tasks[0].completed:  # another stage of the same job begins
                bar.reset(task)
            bar.update(task, completed=done, total=total or None, description=note)

        yield update
