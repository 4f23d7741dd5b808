"""What commands share: results on stdout, talk and progress on stderr, and the options that many of them take.

All that a command prints goes through here, and only here is it made fit for where it goes: what a terminal would obey is
replaced, letters that the encoding lacks are too, and a stream that nobody reads or that cannot be written ends no work.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import launched
from ..errors import DiffATRError
from ..files import reason
from ..printable import printable
from ..progress import Progress, ProgressLog
from . import signals

if TYPE_CHECKING:
    from rich.table import Table

Data = Annotated[Path, typer.Option("--data", help="Folder of prepared data sets.", metavar="DIR", file_okay=False)]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of trained runs.", metavar="DIR", file_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of a table.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="NAME")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**31 - 1)]


class ReaderGone(BaseException):
    """Whoever read stdout, such as `head`, has gone: nothing is left to be done, and nothing has failed."""


def prepare_streams() -> None:
    """Make the streams take whatever is printed. Where one is closed, what goes there goes nowhere.

    Letters that an encoding lacks become one `?` each on stdout, where tables stand in columns, and escapes on stderr, so that a
    message still tells which file it means. What stdin has that is no text becomes replacement characters.
    """
    with contextlib.suppress(OSError):
        while (free := os.open(os.devnull, os.O_RDWR)) < 3:  # or a file of ours would take the place of a stream
            pass
        os.close(free)
    for name, errors in (("stdin", "replace"), ("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8", errors=errors))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if isinstance(sys.stdin, io.TextIOWrapper) and codecs.lookup(sys.stdin.encoding).name == "ascii":
        sys.stdin.reconfigure(encoding="utf-8")  # a locale that knows only ASCII says nothing about what comes in


def say(*lines: str, for_all: bool = True) -> None:
    """Talk, on stderr, a line each. That nobody can read it is no reason to stop the work.

    Of several processes the first speaks, but where what is said is not said `for_all`.
    """
    if for_all and launched.rank() > 0:
        return
    with contextlib.suppress(OSError):
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()


class _Listener(logging.Handler):
    """Says what the package's modules log."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def hear_package() -> None:
    """Say what modules of the package have to tell while they work, such as that a model is being fetched."""
    log = logging.getLogger(__package__.partition(".")[0])
    log.setLevel(logging.INFO)
    log.propagate = False
    if not any(isinstance(handler, _Listener) for handler in log.handlers):
        log.addHandler(_Listener())


def show(document: Any, *tables: Table, as_json: bool) -> None:
    """The result of a command on stdout: rich tables, or the document as JSON.

    Raises:
        ReaderGone: nobody reads it any more.
        DiffATRError: it cannot be written.
    """
    if as_json:
        # Escaped to ASCII, because names of files need not be valid text. Delete is the one control character that JSON leaves.
        _write(json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f") + "\n")
        return
    for table in tables:
        _write(_rendered(table))


def show_csv(rows: Sequence[Sequence[str | float | Path]]) -> None:
    """A result on stdout as CSV, UTF-8; names of files are the bytes that they are, but for a terminal. Raises as `show`."""
    if sys.stdout.isatty():
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([printable(str(cell)) if isinstance(cell, (str, Path)) else cell for cell in row] for row in rows)
        _write(out.getvalue())
    else:
        _write(csv_bytes(rows))


def csv_bytes(rows: Sequence[Sequence[str | float | Path]]) -> bytes:
    """Rows as a CSV file in UTF-8; names of files are the bytes that they are."""
    out = io.StringIO()
    csv.writer(out).writerows([_utf8(cell) if isinstance(cell, Path) else cell for cell in row] for row in rows)
    return out.getvalue().encode("utf-8", "surrogateescape")


def show_line(text: str) -> None:
    """A result on stdout that is one line. Raises as `show`."""
    _write(f"{printable(text)}\n")


def show_text(text: str) -> None:
    """A result on stdout that is a document of lines. Raises as `show`."""
    _write("".join(f"{printable(line)}\n" for line in text.splitlines()))


def _utf8(path: Path) -> str:
    """A path, in whatever encoding its name is, so that encoding it as UTF-8 with `surrogateescape` gives its own bytes."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _write(result: str | bytes) -> None:
    if launched.rank() > 0:  # the first of several processes shows what all have
        return
    try:
        if isinstance(result, bytes):
            sys.stdout.flush()
            sys.stdout.buffer.write(result)
        else:
            sys.stdout.write(result)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise DiffATRError(f"stdout: {reason(error)}") from error


def _rendered(table: Table) -> str:
    from rich.console import Console
    from rich.text import Text

    encoding = sys.stdout.encoding

    def fit(text: str) -> str:
        """What stdout can show, before the columns are laid out: a wide letter is replaced by a narrow sign. Lines stay."""
        lines = "\n".join(map(printable, text.split("\n")))
        return lines.encode(encoding, "replace").decode(encoding)

    class Results(Console):
        """Takes strings as they are: rich sees markup in brackets, and pictures between colons, where a name has them."""

        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(fit(text), **options)

    title, caption = (text if isinstance(text, Text) else Text(text or "") for text in (table.title, table.caption))
    table.title = table.caption = None
    for column in table.columns:
        for cell in (column.header, column.footer, *column.cells):
            if isinstance(cell, Text):
                cell.plain = fit(printable(cell.plain))
    # In the encoding of stdout, which says whether there are signs for lines. We write it: rich ends the process where it cannot.
    page = io.TextIOWrapper(io.BytesIO(), encoding, "replace", newline="")
    terminal = sys.stdout.isatty()
    # A pipe has no width; tables must not be squeezed into the 80 columns that rich assumes for one.
    console = Results(file=page, force_terminal=terminal or None, markup=False, emoji=False, width=None if terminal else 160)

    def print_indented(text: Text, style: str) -> None:
        """In lines of which none starts with what a name may hold, so that it cannot pass for a message of ours."""
        text.plain = fit(text.plain)
        for line in text.wrap(console, console.width - 1) if text else ():
            console.print(Text(" ").append_text(line), style=style)

    print_indented(title, "table.title")
    console.print(table)
    print_indented(caption, "table.caption")
    page.seek(0)
    return page.read()


@contextmanager
def joined(device: str) -> Iterator[None]:
    """While the block runs, this process works together with the others that torchrun started with it, if it did."""
    if not launched.several():
        yield
        return
    from ..processes import join, leave

    join(device)
    yield
    leave()  # not after a failure: the others would wait to part


@contextmanager
def progress_bar(interval: float = 30.0) -> Iterator[Progress]:
    """A bar with rate and time left on stderr while the block runs, or, where nothing can be drawn, a line each `interval`.

    A signal unwinds the block.

    Args:
        interval: seconds; shorter work writes no line.
    """
    drawn = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")  # on these nothing can be drawn over
    with signals.unwinding(), _bar() if drawn and launched.rank() == 0 else _log(interval) as progress:
        yield progress


@contextmanager
def _log(interval: float) -> Iterator[Progress]:
    log, ended = ProgressLog(), threading.Event()

    def report() -> None:
        while not ended.wait(interval):
            if line := log.line():
                say(line)

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield log.update
    finally:
        ended.set()
        reporter.join()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    # Results stay on stdout, also where the two streams go to different places.
    bar = Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    task = bar.add_task("", total=None)

    def update(done: int, total: int, note: str) -> None:
        bar.start()  # not before there is something to draw: a download that comes first may draw a bar of its own
        if done < bar.tasks[0].completed:  # another stage of the same job begins
            bar.reset(task)
        bar.update(task, completed=done, total=total or None, description=printable(note))

    try:
        yield update
    finally:
        bar.stop()
