"""The `diffatr` command: its subcommands, and how their failures are told.

Commands import what they run inside themselves, so that `diffatr --help` waits for neither torch nor transformers.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import INTERRUPTED, DiffATRError
from . import demo, evaluate, prepare, query, serve, train
from .console import say

app = typer.Typer(
    help="Find sounds by words and words by sounds: audio-text retrieval with a diffusion model that re-ranks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffatr {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Options that stand before the command; `main` reads `--debug` wherever it stands."""


app.add_typer(prepare.app, name="prepare")
train.register(app)
evaluate.register(app)
query.register(app)
serve.register(app)
demo.register(app)


def main() -> None:
    """Run the command line; exit with 0, with 1 for a failure, with 2 for wrong use."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="diffatr")
    except DiffATRError as error:
        if debug:
            raise
        say(f"diffatr: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if not _is_interrupt(end):
            raise
        say(INTERRUPTED)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug:
            raise
        say(
            f"diffatr: unexpected {type(error).__name__}: {error}. Run it again with --debug for the place, and please report it."
        )
        sys.exit(1)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an exception is Ctrl-C, or the exit that typer makes of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
