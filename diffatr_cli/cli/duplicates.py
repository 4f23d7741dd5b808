"""`diffatr duplicates`: the same sound several times in a folder. It only reads and lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..printable import counted
from .console import Device, Json, progress_bar, say, show, show_csv
from .corpus import IndexPlace, Model, NewestOf, Run, clock, load_model, open_folder, placed, tell_update, update_index

if TYPE_CHECKING:
    from ..corpus.duplicates import Duplicates, Member


def duplicates(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of recordings, with all below it.")],
    same_only: Annotated[
        bool, typer.Option("--same-only", help="Compare fingerprints alone; no model is loaded, and no index made.")
    ] = False,
    alike: Annotated[
        float | None,
        typer.Option(
            "--alike",
            min=0,
            max=1,
            metavar="COSINE",
            help="From which cosine of embeddings on recordings are listed as alike; 0.96 if not given, which was measured with "
            "the shipped model.",
        ),
    ] = None,
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    index_place: IndexPlace = None,
    device: Device = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Threads that read; one a core if not given.")
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout instead of tables.")] = False,
) -> None:
    """List the same sound in other formats, levels and cuts, and what sounds alike. Nothing is deleted or changed.

    The same: by fingerprint, whatever the format and level, from about 0.3 s of sound on. A group's first file is the longest;
    each other is the same, a cut of it, contains it, or shares a part with it. Alike: by embedding, such as other speeds, pitches
    and takes; listen before you decide. Files are read once; the next time only new and changed ones.

    Example: diffatr duplicates ./clips --csv > duplicates.csv
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other.")
    if same_only and (alike is not None or run is not None or runs is not None or model_name is not None):
        raise UsageError("--same-only loads no model: leave out --alike, --run, --runs and --model.")
    from ..corpus.duplicates import ALIKE, find_duplicates
    from ..corpus.fingerprints import read_fingerprints

    folder = open_folder(corpus, index_place)
    with progress_bar() as progress:
        prints = read_fingerprints(folder, progress, workers)
    recordings, model = None, None
    if not same_only:
        model = load_model(run, runs, model_name, device)
        searched = placed(folder, model)
        tell_update(update_index(searched, model, workers))
        recordings = searched.read(model.model_id)
        if recordings.store is not None:
            say(f"{corpus}: too many windows to compare each with each. Sounds that are alike are not listed.")
            recordings = None
    with progress_bar() as progress:
        found = find_duplicates(prints, recordings, ALIKE if alike is None else alike, progress)
    if as_csv:
        show_csv(_rows(found, corpus))
        return
    if as_json:
        lists = {
            name: [{"path": str(corpus / each.path), "reason": each.reason} for each in getattr(prints, name)]
            for name in ("skipped", "partial")
        }
        groups = {
            name: None if of is None else [{"files": [_document(each, corpus) for each in group]} for group in of]
            for name, of in (("same", found.same), ("alike", found.alike))
        }
        files = sum(map(len, prints.files.values()))
        silent = [str(corpus / path) for path in found.silent]
        head = {"corpus": str(corpus), "model": model and model.name, "files": files, "read": prints.read}
        show(head | groups | {"silent": silent} | lists, as_json=True)
        return
    for each in prints.skipped:
        say(f"skipped {each.path}: {each.reason}")
    for each in prints.partial:
        say(f"only in part {each.path}: {each.reason}")
    if found.silent:
        say(f"silent files, only compared byte by byte: {len(found.silent)}")
    show(None, *_tables(found, corpus), as_json=False)
    counts = [f"in {counted(len(found.same), 'group')} of the same sound: {sum(map(len, found.same))}"]
    if found.alike is not None:
        counts.append(f"groups that sound alike: {len(found.alike)}")
    if prints.skipped:
        counts.append(f"skipped: {len(prints.skipped)}")
    say(f"{corpus}: files: {sum(map(len, prints.files.values()))}; " + "; ".join(counts))


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("duplicates")(duplicates)


def _document(member: Member, corpus: Path) -> dict[str, Any]:
    """A file as JSON; what is not known or means nothing of its relation is null."""
    return {
        "path": str(corpus / member.path),
        "seconds": round(member.seconds, 3),
        "format": _format(member),
        "relation": member.relation,
        "to": None if member.to is None else str(corpus / member.to),
        "spans": [[round(second, 3) for second in span] for span in member.spans],
        "level_db": None if member.level is None else round(member.level, 1),
        "bit_errors": None if member.errors is None else round(member.errors, 4),
        "cosine": None if member.cosine is None else round(member.cosine, 4),
    }


def _clock(seconds: float) -> str:
    """With tenths of seconds: effects are short."""
    tenths = round(10 * seconds)
    return f"{clock(tenths // 10)}.{tenths % 10}"


def _format(member: Member) -> str:
    return Path(member.path).suffix[1:].lower()


_COLUMNS = ("path", "seconds", "format", "relation", "to", "spans", "level_db", "bit_errors", "cosine")


def _rows(found: Duplicates, corpus: Path) -> list[list[Any]]:
    rows: list[list[Any]] = [["list", "group", *_COLUMNS]]
    for name, groups in (("same", found.same), ("alike", found.alike or [])):
        for number, group in enumerate(groups, 1):
            for member in group:
                cells = _document(member, corpus)
                cells["spans"] = " ".join(f"{start:.3f}-{end:.3f}" for start, end in member.spans)
                cells |= {key: Path(cells[key]) for key in ("path", "to") if cells[key] is not None}
                rows.append([name, number, *("" if cells[key] is None else cells[key] for key in _COLUMNS)])
    return rows


def _tables(found: Duplicates, corpus: Path) -> list[Any]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    tables = []
    for title, groups in (("The same sound", found.same), ("Alike, perhaps the same", found.alike or [])):
        if not groups:
            continue
        table = Table(title=title, box=box.SIMPLE_HEAD)
        for name in ("", "relation", "level", "length", "format"):
            table.add_column(name, justify="right", no_wrap=name != "relation")
        table.add_column("file", overflow="fold")
        for number, group in enumerate(groups, 1):
            for member in group:
                level = "" if member.level is None else f"{member.level:+.1f} dB"
                words = _words(member, group, corpus)
                cells = ("" if member.to else str(number), words, level, _clock(member.seconds), _format(member))
                table.add_row(*map(Text, cells), Text(str(corpus / member.path)), style=None if member.to else "bold")
            table.add_section()
        tables.append(table)
    return tables


def _words(member: Member, group: Sequence[Member], corpus: Path) -> str:
    """How a file relates to the group's first, or to which other one."""
    spans = ", ".join(f"{_clock(start)}-{_clock(end)}" for start, end in member.spans)
    words = {
        "first": "",
        "identical": "identical",
        "same": "same",
        "cut": f"cut from {spans}",
        "contains": f"contains it at {spans}",
        "shares": f"shares {spans}",
        "alike": f"alike {member.cosine or 0:.3f}",
    }[member.relation]
    return words if member.to in (None, group[0].path) else f"{words} of {corpus / str(member.to)}"
