"""`diffatr collections`: the named collections of a folder of recordings, which the page of `serve` fills as well."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import App
from .console import Json, say, show
from .corpus import IndexPlace, open_folder
from .export import Cut, Fps, check_export, export, export_document

if TYPE_CHECKING:
    from ..corpus.collections import Collection, Place
    from ..corpus.library import Folder

app = App(
    help="Named collections of sounds: list, show, fill and export them. The page of `serve` shows the same ones.",
    no_args_is_help=True,
)
Corpus = Annotated[Path, typer.Option("--corpus", metavar="DIR", help="Folder of recordings whose collections these are.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection's name, in any case of its letters.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of the folder of recordings.")]


@app.command("list")
def list_(corpus: Corpus = Path("."), index_place: IndexPlace = None, as_json: Json = False) -> None:
    """List the collections of a folder.

    Example: diffatr collections list --corpus ./clips
    """
    from ..corpus.collections import Collections

    kept = Collections(_opened(corpus, index_place))
    found = kept.all()
    rows = [{"name": each.name, "sounds": len(each.members)} for each in found]
    from ..report.tables import rows_table

    table = rows_table(
        "Collections", ("name", "sounds"), [(each.name, str(len(each.members))) for each in found], caption=str(kept.path)
    )
    show({"file": str(kept.path), "collections": rows}, table, as_json=as_json)


@app.command("show")
def show_(name: Name, corpus: Corpus = Path("."), index_place: IndexPlace = None, as_json: Json = False) -> None:
    """Show what is in a collection, and what of it is gone from the folder.

    Example: diffatr collections show Favourites --corpus ./clips
    """
    collection, places = _places(_opened(corpus, index_place), name)
    from ..report.tables import rows_table

    rows = [(_span(each), str(corpus / (each.path or each.member.path)), each.reason or "") for each in places]
    document = {"name": collection.name, "sounds": [_document(each, corpus) for each in places]}
    show(document, rows_table(collection.name, ("part", "file", "missing"), rows), as_json=as_json)


@app.command("add")
def add(
    name: Name,
    files: Files,
    part: Annotated[
        str | None, typer.Option("--part", metavar="START-END", help="Only this part of each file, in seconds, such as 30-40.")
    ] = None,
    corpus: Corpus = Path("."),
    index_place: IndexPlace = None,
) -> None:
    """Put files into a collection, which is made if there is none of that name. They must be in the index.

    Example: diffatr collections add Rain clips/roof.wav --corpus ./clips
    """
    from ..corpus.collections import Collections, Member, check_part

    start, end = _part(part)
    folder = _opened(corpus, index_place)
    contents = folder.contents()
    members = []
    for file in files:
        if (content := contents.get(path := _below(file, corpus))) is None:
            raise UsageError(f"{file}: is not in the index of {corpus}. Index the folder first: diffatr index {corpus}")
        if end is not None and (length := _length(corpus / path)) is not None:
            check_part(str(file), start, end, length)
        members.append(Member(content, path, start, end))
    kept = Collections(folder)
    made = not any(name.casefold() in (each.name.casefold(), each.id) for each in kept.all())
    collection, count = (kept.make(name, members), len(set(members))) if made else kept.add(name, members)
    say(f"{collection.name}: {count} added, {len(collection.members)} in it")


@app.command("remove")
def remove(
    name: Name,
    files: Files,
    corpus: Corpus = Path("."),
    index_place: IndexPlace = None,
) -> None:
    """Take files out of a collection, whatever part of them it holds. The files stay where they are.

    Example: diffatr collections remove Rain clips/roof.wav --corpus ./clips
    """
    from ..corpus.collections import Collections

    folder = _opened(corpus, index_place)
    _, places = _places(folder, name)
    wanted = {_below(file, corpus): file for file in files}
    gone = [(each.path or each.member.path, each.member.identity) for each in places]
    if missing := wanted.keys() - {path for path, _ in gone}:
        raise UsageError(f"{wanted[min(missing)]}: is not in {name}.")
    collection, count = Collections(folder).remove(name, (identity for path, identity in gone if path in wanted))
    say(f"{collection.name}: {count} removed, {len(collection.members)} in it")


@app.command("export")
def export_(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where the copies go; nothing there is written over.")],
    cut: Cut = False,
    fps: Fps = None,
    corpus: Corpus = Path("."),
    index_place: IndexPlace = None,
    as_json: Json = False,
) -> None:
    """Copy what is in a collection into a folder, with a CSV, a playlist (M3U) and an edit decision list (EDL).

    Example: diffatr collections export Rain ./for-the-edit --cut --corpus ./clips
    """
    from ..corpus.export import Piece

    check_export("DIR", target, corpus, fps)
    collection, places = _places(_opened(corpus, index_place), name)
    pieces = []
    for each in places:
        if each.path is None:
            say(f"missing {each.member.path}: {each.reason}")
        else:
            pieces.append(Piece(each.path, corpus / each.path, each.member.start, each.member.end))
    done = export(pieces, target, cut=cut, title=collection.name, fps=fps)
    missing = [_document(each, corpus) for each in places if each.path is None]
    if as_json:
        show(export_document(done, target, corpus) | {"missing": missing}, as_json=True)


def register(main: typer.Typer) -> None:
    """Add this module's commands."""
    main.add_typer(app, name="collections")


def _opened(corpus: Path, index_place: str | None) -> Folder:
    """The index of a folder, below an indexed one through the index of that, whatever model it is of."""
    from ..corpus.library import placed_folder

    return placed_folder(open_folder(corpus, index_place), None, say)


def _places(folder: Folder, name: str) -> tuple[Collection, list[Place]]:
    from ..corpus.collections import Collections, places_of

    collection = Collections(folder).find(name)
    return collection, places_of(collection.members, folder.contents())


def _document(place: Place, corpus: Path) -> dict[str, Any]:
    member = place.member
    path = str(corpus / (place.path or member.path))
    return {"path": path, "start": member.start, "end": member.end, "missing": place.reason, "content": member.content}


def _span(place: Place) -> str:
    start, end = place.member.start, place.member.end
    return "whole" if end is None else f"{start:.1f}-{end:.1f} s"


def _part(text: str | None) -> tuple[float, float | None]:
    if text is None:
        return 0.0, None
    found = re.fullmatch(r"(\d{1,8}(?:\.\d{1,6})?)-(\d{1,8}(?:\.\d{1,6})?)", text)
    if found is None or float(found[1]) >= float(found[2]):
        raise UsageError(f"--part {text}: two numbers of seconds, such as 30-40, the first less than the second.")
    return float(found[1]), float(found[2])


def _length(file: Path) -> float | None:
    """Seconds of a file; None where it does not say, or cannot be read any more, which an export tells."""
    from ..data.audio import AudioError
    from ..data.excerpt import duration

    try:
        return duration(file)
    except AudioError:
        return None


def _below(file: Path, corpus: Path) -> str:
    """A file by its path below the corpus; also where that is how it was given, or where it is gone."""
    root = Path(os.path.abspath(corpus))
    inside = [full for each in (file, corpus / file) if (full := Path(os.path.abspath(each))).is_relative_to(root)]
    found = next(filter(os.path.lexists, inside), inside[0] if inside else None)
    return str(file if found is None else found.relative_to(root))
