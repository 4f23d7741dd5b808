"""The `diffatr` command: its subcommands, and how their failures are told.

Commands import what they run inside themselves, so that `diffatr --help` waits for neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from typing import Annotated, Any

import typer

from .. import __version__, launched
from ..errors import DiffATRError, UsageError
from ..files import reason
from ..network import go_offline
from . import (
    collections,
    demo,
    duplicates,
    evaluate,
    index,
    models,
    prepare,
    query,
    reproduce,
    serve,
    signals,
    tag,
    train,
    trajectory,
)
from .command import App
from .console import ReaderGone, hear_package, prepare_streams, say, show_line, show_text

app = App(
    help="Find sounds by words and words by sounds: audio-text retrieval with a diffusion model that re-ranks.",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


_FIRST = """Three things to try:
  diffatr query "a dog barking" --corpus FOLDER    find sounds in a folder of recordings
  diffatr serve --corpus FOLDER                    search it in the browser, by ear and eye
  diffatr tag FOLDER                               name the sounds in each recording
All commands: diffatr --help; one of them: diffatr query --help"""
_COMPLETING = "_DIFFATR_COMPLETE"
"""The variable by which a shell asks what could come next on a line."""
_BY_SEVERAL = ("pretrain", "train-diffusion", "evaluate", "cross-domain", "reproduce")
"""Commands whose work several processes can share."""


def _version(wanted: bool) -> None:
    if wanted:
        show_line(f"diffatr {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; may stand anywhere on the line.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the network; may stand anywhere on the line.")] = False,
) -> None:
    """Options that stand before the command; `main` reads `--debug` and `--offline` wherever they stand."""
    if context.invoked_subcommand is None:
        show_text(_FIRST)
        return
    if launched.several() and context.invoked_subcommand not in _BY_SEVERAL:
        raise UsageError(f"{context.invoked_subcommand} is the work of one process. Start it without torchrun.")


app.add_typer(prepare.app, name="prepare")
train.register(app)
evaluate.register(app)
reproduce.register(app)
trajectory.register(app)
query.register(app)
index.register(app)
tag.register(app)
duplicates.register(app)
collections.register(app)
serve.register(app)
models.register(app)
demo.register(app)


# What typer raises for wrong use; not all of its versions have a name for it.
_WrongUse: Any = typer.BadParameter.__base__
_INDEXING = {"index", "watch"}  # the names of the threads of `corpus.session` and `corpus.watching`
_BY_SIGPIPE = 141  # what shells show for a program that ends because nobody reads what it writes


def main() -> None:
    """Run the command line; exit with 0, with 1 for a failure, with 2 for wrong use, with 130 after Ctrl-C."""
    prepare_streams()
    if _COMPLETING in os.environ:
        app(prog_name="diffatr")
    hear_package()
    debug = "--debug" in sys.argv
    if "--offline" in sys.argv:
        go_offline()
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--debug", "--offline")]
    try:
        code = app(args=arguments, prog_name="diffatr", standalone_mode=False) or 0
        interrupted = code == 130  # so typer passes KeyboardInterrupt on
    except BaseException as error:
        interrupted = isinstance(error, (KeyboardInterrupt, typer.Abort))
        done = isinstance(error, SystemExit) and not error.code  # so typer ends where completion was installed or shown
        code = 0 if done or interrupted or signals.arrived() else _tell(error, debug)
    if interrupted or signals.arrived():
        code = signals.exit_code()
        if (line := signals.farewell()) and _tells("signal"):
            say(line, for_all=False)
    signals.finished(code)
    if any(thread.name in _INDEXING for thread in threading.enumerate()):  # `serve` was ended in the midst of a long file
        signals.end_at_once(code)
    sys.exit(code)


def _tell(error: BaseException, debug: bool) -> int:
    """Tell of a failure in a line (or one for each mistake in a recipe); the exit code. Of several processes that fail in the
    same way one tells."""
    if isinstance(error, SystemExit):  # rich ends so where nobody reads the help, and typer where any other pipe breaks
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        error = ReaderGone() if frame.f_globals["__name__"].startswith("rich.") else error.__context__ or error
    if isinstance(error, ReaderGone):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BY_SIGPIPE
    if debug and not isinstance(error, _WrongUse):
        for part in traceback.format_exception(error):
            # A newline in the message may be one in a name.
            say(*part.splitlines() if part.startswith((" ", "\n", "Traceback")) else [part.rstrip("\n")], for_all=False)
    lines, code = _described(error)
    if _tells(f"{type(error).__name__} {error}"):
        say(*lines, for_all=False)
    return code


def _tells(what: str) -> bool:
    """Whether this process tells of something that several may meet."""
    if not launched.several():
        return True
    from ..processes import tells

    return tells(what)


def _described(error: BaseException) -> tuple[list[str], int]:
    """A failure in words, and its exit code."""
    if isinstance(error, _WrongUse):
        message = " ".join(error.format_message().split())  # there is none where the help was shown instead
        command = error.ctx.command_path if error.ctx else "diffatr"
        return [f"{command}: {message.removesuffix('.')}. See {command} --help."] if message else [], int(error.exit_code)
    if isinstance(error, DiffATRError):
        first, *more = map(str, error.args)
        return [f"diffatr: {first}", *more], error.exit_code
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return [f"diffatr: {place}{reason(error)}"], 1
    if isinstance(error, MemoryError):
        return ["diffatr: there is not enough memory for this."], 1
    kind, text = type(error).__name__, " ".join(str(error).split())
    return [f"diffatr: unexpected {kind}: {text}. Run it again with --debug for the place, and please report it."], 1
