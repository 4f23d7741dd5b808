"""`diffatr query` and `diffatr index`: find sounds in a folder of one's own recordings."""

from __future__ import annotations

import contextlib
import csv
import filecmp
import gc
import io
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from .console import Device, Json, Runs, Seed, progress_bar, say, show

if TYPE_CHECKING:
    from ..index import FolderIndex, IndexReport
    from ..model import Retriever
    from ..search import Hit

Run = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="The model: a run's folder, RUNS/RECIPE/seed-N. The newest of --runs if not given."
    ),
]
IndexFolder = Annotated[
    Path | None,
    typer.Option(
        "--index", metavar="DIR", help="Where the index is kept; inside the folder of recordings (.diffatr) if not given."
    ),
]


def query(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="What it sounds like, in quotes; several for several searches; - reads lines."),
    ] = None,
    corpus: Annotated[
        Path, typer.Option("--corpus", metavar="DIR", help="Folder of recordings to search, with all below it.")
    ] = Path("."),
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="FILE", help="Search for what sounds like this file, instead of a text.")
    ] = None,
    unwanted: Annotated[str | None, typer.Option("--not", metavar="TEXT", help="What it should not sound like.")] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Hits to show for each search.")] = 10,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Leave out hits that score less.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Diffusion steps; the number of the model's recipe if not given.")
    ] = None,
    shortlist: Annotated[
        int, typer.Option("--shortlist", min=1, help="Files, the best by cosine, that diffusion re-ranks.")
    ] = 100,
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="DIR", help="Copy the found files into this folder too.")
    ] = None,
    run: Run = None,
    runs: Runs = Path("runs"),
    index_folder: IndexFolder = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout instead of a table.")] = False,
) -> None:
    """Find the recordings in a folder that sound like a text, or like another sound.

    The folder is indexed first, which takes its time once; afterwards only new and changed files are read.

    Example: diffatr query "dog barking" --corpus ./clips
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other: stdout carries one of them.")
    if (audio is None) == (not texts):
        raise UsageError("Say what to look for: a TEXT in quotes, or --audio FILE" + (", not both." if texts else "."))
    if copy_to is not None and copy_to.resolve().is_relative_to(corpus.resolve()):
        raise UsageError(f"--copy-to {copy_to}: lies in the searched folder {corpus}, where the copies would be found as well.")
    names = [str(audio)] if audio is not None else _lines(texts or [])

    with _no_collection():
        from ..data.audio import load_audio
        from ..index import CannotUpdate, no_sounds
        from ..search import embed_sound, embed_texts, search

    folder = _open(corpus, index_folder)
    sound = None if audio is None else load_audio(audio)  # before the model, which takes seconds
    model = _model(run, runs, device)
    unusable = []
    try:
        report = _update(folder, model)
        unusable = report.skipped
        _tell(report)
    except CannotUpdate as error:
        if not len(folder.read(model.model_id)):
            raise
        say(f"{error} Searching what is indexed so far.")
    recordings = folder.read(model.model_id)
    if not len(recordings):
        raise no_sounds(corpus, unusable)
    if steps is not None and not model.denoisers:
        say("This model has no diffusion phase; hits are ranked by cosine, and --steps means nothing.")
    found = search(
        model,
        recordings,
        embed_texts(model, names) if sound is None else embed_sound(model, sound)[None],
        unwanted=None if unwanted is None else embed_texts(model, [unwanted])[0],
        refine=sound is None,
        top=top,
        shortlist=shortlist,
        steps=steps,
        min_score=min_score,
        seed=seed,
    )
    results = list(zip(names, found, strict=True))
    if copy_to is not None:
        _copy(results, corpus, copy_to)
    documents = [{"query": name, "results": [_row(hit, corpus) for hit in hits]} for name, hits in results]
    if as_csv:
        _print_csv(documents)
    elif as_json:
        several = len(documents) > 1 or "-" in (texts or [])
        # Escaped to ASCII, because names of files need not be valid text.
        typer.echo(json.dumps(documents if several else documents[0], indent=2))
    else:
        show(None, *(_table(name, hits, corpus) for name, hits in results if hits), as_json=False)
        for name, hits in results:
            if not hits:
                say(f"{name}: no sound scores {min_score:g} or more.")


def index(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of recordings, with all below it.")],
    run: Run = None,
    runs: Runs = Path("runs"),
    index_folder: IndexFolder = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Index a folder of recordings, so that `query` answers at once; only new and changed files are read again.

    Example: diffatr index ./clips
    """
    from ..index import no_sounds

    folder = _open(corpus, index_folder)
    report = _update(folder, _model(run, runs, device))
    if not as_json:
        for each in report.skipped:
            say(f"skipped {_printable(each.path)}: {each.reason}")
    if not report.files:
        raise no_sounds(corpus, report.skipped)
    counts = {name: getattr(report, name) for name in ("files", "windows", "embedded", "reused", "unchanged", "removed")}
    if as_json:
        skipped = [{"path": str(corpus / each.path), "reason": each.reason} for each in report.skipped]
        typer.echo(json.dumps({"corpus": str(corpus), "index": str(folder.folder)} | counts | {"skipped": skipped}, indent=2))
        return
    from ..report.tables import rows_table

    rows = [(name, str(count)) for name, count in (counts | {"skipped": len(report.skipped)}).items()]
    show(None, rows_table("Index", ("", ""), rows, caption=str(folder.folder)), as_json=False)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("query")(query)
    app.command("index")(index)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage while modules load: there is next to none, and to look for it takes a tenth of a query's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or the first collection would look through all that was loaded
        gc.enable()


def _lines(texts: Sequence[str]) -> list[str]:
    """The texts to search for, `-` replaced by the lines of stdin."""
    lines = [
        line
        for text in texts
        for line in (sys.stdin.read().splitlines() if text == "-" else [text])
        if text != "-" or line.strip()
    ]
    if not lines:
        raise UsageError("-: stdin holds no line to search for.")
    return [line.strip() for line in lines]


def _open(corpus: Path, index_folder: Path | None) -> FolderIndex:
    from ..index import FolderIndex

    return FolderIndex(corpus, index_folder)


def _model(run: Path | None, runs: Path, device: str) -> Retriever:
    with _no_collection():
        from ..model import load_retriever
        from ..runs import newest_run

    return load_retriever(newest_run(runs) if run is None else run, device)


def _update(folder: FolderIndex, model: Retriever) -> IndexReport:
    with progress_bar() as progress:
        return folder.update(model, progress)


def _tell(report: IndexReport) -> None:
    """What an update did, in one line, if it did anything."""
    counts = (
        (report.embedded, "indexed"),
        (report.reused, "known by content"),
        (report.removed, "removed"),
        (report.newly_skipped, "skipped"),
    )
    if not any(count for count, _ in counts):
        return
    text = "files: " + ", ".join(f"{count} {what}" for count, what in counts if count)
    if report.newly_skipped:
        text += ": " + "; ".join(f"{_printable(each.path)} ({each.reason})" for each in report.skipped[:3])
        text += " ..." if len(report.skipped) > 3 else ""
    say(text)


def _row(hit: Hit, corpus: Path) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "path": str(corpus / hit.path),
        "start": round(hit.start, 3),
        "end": round(hit.end, 3),
        "score": round(hit.score, 6),
    }


def _table(name: str, hits: Sequence[Hit], corpus: Path) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_printable(name)), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("place", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for hit in hits:
        # As Text, because brackets and colons in names are no markup.
        table.add_row(str(hit.rank), f"{hit.score:.3f}", place(hit), Text(_printable(str(corpus / hit.path))))
    return table


def place(hit: Hit) -> str:
    """Where in its file a hit is, mm:ss-mm:ss or h:mm:ss, rounded outwards to whole seconds."""
    return "-".join(_clock(seconds) for seconds in (math.floor(hit.start), math.ceil(hit.end)))


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def _printable(text: str) -> str:
    """Text without what a terminal would obey or cannot show."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _print_csv(documents: Sequence[dict[str, Any]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["query", "rank", "path", "start", "end", "score"])
    for document in documents:
        writer.writerows([document["query"], *row.values()] for row in document["results"])
    typer.echo(out.getvalue().encode("utf-8", "surrogateescape"), nl=False)  # names that are not UTF-8 come out as they are


def _copy(results: Sequence[tuple[str, Sequence[Hit]]], corpus: Path, folder: Path) -> None:
    """Copy found files, whole, as RANK-NAME, or QUERY-RANK-NAME with several queries; never over another file."""
    copied = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (_, hits) in enumerate(results, 1):
            for hit in hits:
                source = corpus / hit.path
                stem = f"{hit.rank:02d}-{source.stem}" if len(results) == 1 else f"{number:02d}-{hit.rank:02d}-{source.stem}"
                target, again = folder / (stem + source.suffix), 1
                while target.exists() and not filecmp.cmp(source, target, shallow=False):
                    again += 1
                    target = folder / f"{stem} ({again}){source.suffix}"
                if not target.exists():
                    shutil.copy2(source, target)
                copied += 1
    except OSError as error:
        raise DiffATRError(f"--copy-to {folder}: {error.strerror} ({error.filename}); {copied} files were copied.") from error
    say(f"{copied} files copied to {folder}")
