"""What commands that take sounds out share: their options, the export itself, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from ..printable import counted
from . import signals
from .console import say
from .targets import check_folder

if TYPE_CHECKING:
    from ..corpus.export import Exported, Piece
    from ..corpus.search import Found

Cut = Annotated[bool, typer.Option("--cut", help="Take the parts that are meant, as WAV, and not the whole files.")]
Fps = Annotated[
    int | None,
    typer.Option("--fps", metavar="24|25|30", help="Frames a second in which the EDL counts, non-drop-frame; 25 if not given."),
]


def check_export(named: str, folder: Path, corpus: Path, fps: int | None) -> None:
    """Raises UsageError for what cannot be, before any work is done. `named`: the option or argument that names the folder."""
    from ..corpus.edit_lists import FRAME_RATES
    from ..corpus.export import check_target

    if fps is not None and fps not in FRAME_RATES:
        raise UsageError(f"--fps {fps}: an EDL of whole frames counts in {', '.join(map(str, FRAME_RATES))} a second.")
    check_folder(named, folder)
    check_target(folder, corpus)


def pieces_of(results: Iterable[tuple[str, Found]], corpus: Path) -> list[Piece]:
    """What searches found, as pieces to take out."""
    from ..corpus.export import Piece

    return [
        Piece(hit.path, corpus / hit.path, hit.start, hit.end, name, hit.rank, hit.score)
        for name, found in results
        for hit in found.hits
    ]


def export(pieces: Sequence[Piece], folder: Path, *, cut: bool, title: str, fps: int | None) -> Exported:
    """Take pieces out into a folder, and say so. Raises DiffATRError where it cannot be written, or nothing could be read."""
    from ..corpus.edit_lists import FRAME_RATE
    from ..corpus.export import export_folder

    with signals.unwinding():
        done = export_folder(pieces, folder, cut=cut, title=title, rate=FRAME_RATE if fps is None else fps)
    for each in done.skipped:
        say(f"skipped {each.path}: {each.reason}")
    if done.skipped and not done.files:
        skipped = counted(len(done.skipped), "file")
        raise DiffATRError(f"{folder}: nothing was written there but lists: {skipped} skipped, see above.")
    count = len({name for _, name in done.files})
    say(
        f"{counted(count, 'file')} and {', '.join(done.lists)} in {folder}"
        + (f"; skipped: {len(done.skipped)}" if done.skipped else "")
    )
    return done


def export_document(done: Exported, folder: Path, corpus: Path, query: str | None = None) -> dict[str, Any]:
    """What was written, as JSON. `query`: of several searches, the one whose files are listed."""
    return {
        "folder": str(folder),
        "files": [
            {
                "file": str(folder / name),
                "path": str(corpus / piece.path),
                "start": round(piece.start, 3),
                "end": None if piece.end is None else round(piece.end, 3),
            }
            for piece, name in done.files
            if query is None or piece.query == query
        ],
        "lists": [str(folder / name) for name in done.lists],
        "skipped": [{"path": str(corpus / each.path), "reason": each.reason} for each in done.skipped],
    }
