"""`diffatr index`: index folders of recordings, and follow them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from . import signals
from .console import Device, Json, say, show
from .corpus import Approximate, IndexPlace, Model, NewestOf, Run, load_elsewhere, load_model, update_index
from .engine import Address, Engine, EngineName, engine_of

if TYPE_CHECKING:
    from ..corpus.elsewhere import Elsewhere
    from ..corpus.library import Folder, Searched
    from ..model import Retriever


def index(
    corpora: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of recordings, each with all below it.")],
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    index_place: IndexPlace = None,
    approximate: Approximate = None,
    device: Device = "auto",
    engine: Engine = EngineName.local,
    address: Address = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Threads that read, or processes for a GPU; with --engine ray, workers that read and embed. One a core, or a "
            "GPU, if not given.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on: follow the folders, and index what changes in them, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Index folders of recordings, so that `query` answers at once; only new and changed files are read again.

    Each folder gets an index of its own. One that cannot be indexed is told, and the others are indexed. With --engine ray many
    machines read and embed, and this one keeps the index; what is there is not embedded again.

    Example: diffatr index ./clips

    Example: diffatr index ./clips /media/archive --watch
    """
    if watch and as_json:
        raise UsageError("--json prints one document and ends: leave out --watch.")
    from ..corpus.library import Library, open_corpora, placed_folder

    opened = open_corpora(corpora, index_place, approximate)
    folders = opened.folders if isinstance(opened, Library) else [opened]
    several = len(corpora) > 1
    problems = dict(opened.problems) if isinstance(opened, Library) else {}
    for problem in problems.values():
        say(f"diffatr: {problem}")
    with engine_of(engine, address, workers, device) as engine_there:
        if engine_there is None:
            model, elsewhere = load_model(run, runs, model_name, device), None
        else:
            model, elsewhere = load_elsewhere(engine_there, run, runs, model_name)
        if model_name is not None:
            model.load_audio()  # what is wrong with a model of others is told before its folder is scanned
        documents: list[dict[str, Any]] = []
        done: list[Folder] = []
        for each in folders:
            folder = placed_folder(each, model.model_id, say)
            try:
                documents.append(_indexed(folder, model, workers, elsewhere, quiet=as_json))
            except DiffATRError as error:
                if not several and not watch:
                    raise
                problems[each.corpus] = str(error)
                say(f"diffatr: {error}")
            done.append(folder)
        if as_json and documents:
            show(documents if several else documents[0], as_json=True)
        if watch and done:
            _follow(done, model, workers, elsewhere)
    if problems:
        raise DiffATRError(f"not indexed: {', '.join(map(str, problems))}. Why stands above.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("index")(index)


def _indexed(
    folder: Folder, model: Retriever, workers: int | None, elsewhere: Elsewhere | None, *, quiet: bool
) -> dict[str, Any]:
    """Index one folder, and show what was done, but where it is `quiet`; its document. Raises DiffATRError."""
    from ..corpus.index import no_sounds

    report = update_index(folder, model, workers, elsewhere)
    if not quiet:
        for each in report.skipped:
            say(f"skipped {each.path}: {each.reason}")
        for each in report.partial:
            say(f"only in part {each.path}: {each.reason}")
    if not report.files:
        raise no_sounds(folder.corpus, report.skipped)
    counts = {
        name: getattr(report, name) for name in ("files", "windows", "embedded", "reused", "unchanged", "removed", "repaired")
    }
    place = str(folder.place)
    if not quiet:
        from ..report.tables import rows_table

        more = {"only in part": len(report.partial), "skipped": len(report.skipped)}
        rows = [(name, str(count)) for name, count in (counts | more).items()]
        show(None, rows_table("Index", ("", ""), rows, caption=place), as_json=False)
    lists = {
        name: [{"path": str(folder.corpus / each.path), "reason": each.reason} for each in getattr(report, name)]
        for name in ("skipped", "partial")
    }
    return {"corpus": str(folder.corpus), "index": place} | counts | lists


def _follow(folders: list[Folder], model: Retriever, workers: int | None, elsewhere: Elsewhere | None) -> None:
    """Index what changes in folders until a signal."""
    from ..corpus.library import Library
    from .watch import watcher_of

    folder: Searched = folders[0] if len(folders) == 1 else Library(folders)
    watcher = watcher_of(folder, lambda: folder.update(model, workers=workers, tell=say, elsewhere=elsewhere))
    say(f"{', '.join(map(str, folder.roots))}: followed. Ctrl-C ends this.")
    with signals.unwinding():
        watcher.run()
