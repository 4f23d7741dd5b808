"""`diffatr query`: find sounds in a folder of one's own recordings, and captions for a sound."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from ..files import reason, replacing
from ..printable import counted, were
from . import signals
from .console import Device, Json, Seed, say, show, show_csv
from .corpus import (
    Approximate,
    Corpora,
    IndexPlace,
    Model,
    NewestOf,
    Run,
    Shortlist,
    Steps,
    Weight,
    check_score,
    clock_span,
    index_document,
    load_model,
    open_folders,
    percent,
    placed,
    sampling_for,
    tell_age,
    updated_recordings,
)
from .export import Cut, Fps, check_export, export, export_document, pieces_of
from .targets import check_folder

if TYPE_CHECKING:
    from ..corpus.describe import Described
    from ..corpus.search import Found, Hit


class SearchBy(StrEnum):
    """What a text finds files by."""

    sound = "sound"
    name = "name"
    both = "both"


def query(
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="What it sounds like, in quotes; several for several searches; - reads lines."),
    ] = None,
    corpora: Corpora = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="FILE", help="Search for what sounds like this file, instead of a text.")
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            metavar="FILE",
            help="With --audio: rank these captions, one a line or in a CSV or JSONL file, instead of searching a folder.",
        ),
    ] = None,
    unwanted: Annotated[str | None, typer.Option("--not", metavar="TEXT", help="What it should not sound like.")] = None,
    by: Annotated[
        SearchBy, typer.Option("--by", help="What a text finds files by: their sound, their name and metadata, or both.")
    ] = SearchBy.both,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="FILTERS", help='Look at these files alone, such as "length:<5 in:field -music".'),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Hits to show for each search.")] = 10,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Leave out hits that score less; 0.5 is 50 %.")] = None,
    steps: Steps = None,
    shortlist: Shortlist = None,
    weight: Weight = None,
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="DIR", help="Copy the found files into this folder too.")
    ] = None,
    export_to: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="DIR", help="Copy the found files into this folder too, with a CSV, a playlist (M3U) and an EDL."
        ),
    ] = None,
    cut: Cut = False,
    fps: Fps = None,
    play: Annotated[
        bool, typer.Option("--play", help="Play the best hit, from its place, with ffplay, mpv, sox, paplay, aplay or afplay.")
    ] = False,
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    index_place: IndexPlace = None,
    approximate: Approximate = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout instead of a table.")] = False,
) -> None:
    """Find the recordings in a folder that sound like a text, or like another sound; or the captions that fit a sound.

    The folder is indexed first, which takes its time once; afterwards only new and changed files are read. A match in percent
    is the probability that the file holds what was asked for. Where nothing seems to, or the model learnt no sound by that name,
    it says so, and shows the nearest without a match; so it does where none of the captions fits a sound. Runs without a
    calibration give scores that only rank. With --not, files lose by how much they sound like that text, while the match shown is
    that of the wanted one.

    A text finds files by their sound, and by the words of their names and metadata; the match is that of the sound. It may hold
    filters: length:<5, in:FOLDER, format:wav, channels:2, rate:>=48k, date:2024-05, and -WORD for a word that no name or metadata
    is to have.

    Example: diffatr query "dog barking" --corpus ./clips

    Example: diffatr query "dog length:<5 in:field -music"

    Example: diffatr query "dog barking" --corpus ./clips --corpus /media/archive

    Example: diffatr query "rain on a roof" --corpus ./clips --export ./for-the-edit --cut

    Example: diffatr query --audio what.wav --captions captions.txt
    """
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other: stdout carries one of them.")
    if cut and export_to is None:
        raise UsageError("--cut: the parts are to go somewhere. Name a folder: --export DIR")
    if fps is not None and export_to is None:
        raise UsageError("--fps: there is no EDL without an export. Name a folder: --export DIR")
    if unwanted is not None and by is SearchBy.name:
        raise UsageError("--not: says what files should not sound like, and means nothing with --by name. Leave out one of them.")
    check_score(min_score)
    if (audio is None) == (not texts):
        raise UsageError("Say what to look for: a TEXT in quotes, or --audio FILE" + (", not both." if texts else "."))
    if captions is not None:
        if audio is None:
            raise UsageError("--captions: they are ranked for a sound. Name it: --audio FILE.")
        refused = {
            "--not": unwanted,
            "--only": only,
            "--copy-to": copy_to,
            "--export": export_to,
            "--play": play or None,
            "--corpus": corpora,
            "--index": index_place,
            "--approximate": approximate or None,
            "--exact": approximate is False or None,
            "--by": None if by is SearchBy.both else by,
        }
        for option, given in refused.items():
            if given is not None:
                raise UsageError(f"{option}: means nothing with --captions, which finds captions and no files.")
        from ..corpus.describe import describe
        from ..corpus.search import hear_sound
        from ..data.audio import load_audio

        choices = _captions_for(captions, audio)
        model = load_model(run, runs, model_name, device, weight)
        check_score(min_score, model, "a2t", calibrated=bool(model.calibration and model.calibration.audio_to_text))
        heard = load_audio(audio, rate=model.windowing.rate)
        settings = sampling_for(model, steps, shortlist, seed, "a2t")
        vector, frames = hear_sound(model, heard)
        described = describe(model, vector, choices, settings, frames=frames, top=top, min_score=min_score)
        _print_captions(str(audio), model.name, described, min_score, as_json, as_csv)
        return
    if copy_to is not None:
        check_folder("--copy-to", copy_to)
    for root in corpora or [Path()]:
        if copy_to is not None and copy_to.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"--copy-to {copy_to}: lies in the searched folder {root}, where the copies would be found as well.")
        if export_to is not None:
            check_export("--export", export_to, root, fps)
    if audio is not None and by is SearchBy.name:
        raise UsageError("--by name: a sound has no words to look for in names. Leave out --by, or search for a TEXT.")
    names = [str(audio)] if audio is not None else _lines(texts or [])

    from ..corpus.asking import ask_sound, ask_texts, read_words
    from ..corpus.filters import read_filters
    from ..corpus.search import embed_sound, embed_texts
    from ..data.audio import load_audio, open_sound

    filters = "" if only is None else _decoded(only)
    read_filters(filters)  # what is wrong with them is told before the model, which takes seconds
    for name in names if audio is None else ():
        read_words(name)
    folder = open_folders(corpora, index_place, approximate)
    corpus = folder.corpus  # that paths are below
    if audio is not None:
        open_sound(audio).close()  # what is wrong with it is told before the model, which takes seconds
    model = load_model(run, runs, model_name, device, weight)
    fitted = model.calibration and (model.calibration.text_to_audio if audio is None else model.calibration.audio_to_audio)
    check_score(min_score, model, "t2a" if audio is None else None, calibrated=bool(fitted))
    sound = None if audio is None else load_audio(audio, rate=model.windowing.rate)
    whole = placed(folder, model)
    recordings = updated_recordings(whole, model)
    tell_age(recordings)
    settings = sampling_for(model, steps, shortlist, seed)
    options: dict[str, Any] = {"top": top, "min_score": min_score, "only": filters}
    if unwanted is not None:
        options["unwanted"] = embed_texts(model, [_decoded(unwanted)])[0]
    if sound is None:
        found = ask_texts(model, recordings, names, settings, by=by.value, **options)
    else:
        found = [ask_sound(model, recordings, embed_sound(model, sound), settings, **options)]
    results = list(zip(names, found, strict=True))
    if copy_to is not None:
        _copy(results, corpus, copy_to)
    exported = None
    if export_to is not None:
        title = names[0] if len(names) == 1 and audio is None else "sounds"
        exported = export(pieces_of(results, corpus), export_to, cut=cut, title=title, fps=fps)
    if by is not SearchBy.name and not all(each.calibrated for each in found):
        what = "scores" if sound is None and model.reranker and model.reranker.counts("t2a") else "scores are cosines: they"
        remedy = "`diffatr calibrate` fits one." if weight is None else "Leave out --weight for what was calibrated."
        unfitted = "This model has no calibration for this kind of search"
        say(f"{unfitted}: its {what} rank the hits, and are no probabilities. {remedy}")
    for name, each in results:
        if each.remark:
            say(f"{name}: {each.remark}")
    searched = {"index": index_document(whole, recordings)}
    documents = [found_document(name, model.name, each, corpus) | searched for name, each in results]
    if exported is not None and export_to is not None:
        for document in documents:
            document["export"] = export_document(exported, export_to, corpus, document["query"])
    if as_csv:
        _print_csv(documents, "path", "start", "end", "score", "by")
    elif as_json:
        several = len(documents) > 1 or "-" in (texts or [])
        show(documents if several else documents[0], as_json=True)
    else:
        show(None, *(found_table(name, each, corpus) for name, each in results if each.hits), as_json=False)
        for name, each in results:
            if not each.hits and each.fitting != 0:
                say(f"{name}: {_nothing(by, min_score)}")
    if play:
        from .play import play_hit

        for _, each in results:
            for hit in each.hits[:1]:
                play_hit(corpus / hit.path, hit)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("query")(query)


def _lines(texts: Sequence[str]) -> list[str]:
    """The texts to search for, `-` replaced by the lines of stdin."""
    lines = [
        line
        for text in texts
        for line in (sys.stdin.read().splitlines() if text == "-" else [_decoded(text)])
        if text != "-" or line.strip()
    ]
    if not lines:
        raise UsageError("-: stdin holds no line to search for.")
    return [line.strip() for line in lines]


def _decoded(argument: str) -> str:
    """An argument as text: under a locale without UTF-8, or with letters of another one, its bytes come in disguise."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "replace")
    return argument


def _captions_for(captions: Path, audio: Path) -> list[str]:
    """The captions of a file, after a look at the sound that they are for: what is wrong with it is told first."""
    from ..data.audio import open_sound
    from ..data.captions import read_captions

    choices, notes = read_captions(captions)
    if notes:
        say("; ".join(notes[:3]) + ("; ..." if len(notes) > 3 else ""))
    open_sound(audio).close()
    return choices


def _print_captions(name: str, model: str, described: Described, min_score: float | None, as_json: bool, as_csv: bool) -> None:
    """`present`, `verdict` and `remark` in the document are as in `found_document`, of the captions of the list."""
    from rich.text import Text

    hits, remark = described.hits, described.remark
    if remark:
        say(f"{name}: {remark}")
    document = {
        "query": name,
        "model": model,
        "present": None if described.present is None else round(described.present, 6),
        "verdict": described.verdict,
        "remark": remark,
        "results": [{"rank": hit.rank, "caption": hit.caption, "score": round(hit.score, 6)} for hit in hits],
    }
    if as_csv:
        _print_csv([document], "caption", "score")
    elif not as_json and not hits:
        say(f"{name}: no caption scores {min_score:g} or more.")
    elif described.certain:
        table = _hits_table(name, "match" if described.calibrated else "score", "caption")
        for hit in hits:
            table.add_row(str(hit.rank), percent(hit.score, described.calibrated), Text(hit.caption))
        show(document, table, as_json=as_json)
    else:
        table = _hits_table(f"{name} (none of these captions fits; these are the nearest)", "caption")
        for hit in hits:
            table.add_row(str(hit.rank), Text(hit.caption), style="dim")
        show(document, table, as_json=as_json)


def found_document(name: str, model: str, found: Found, corpus: Path) -> dict[str, Any]:
    """The document of `query --json` for one search.

    `present`: the probability that anything searched matches; null where it is not known. `verdict`: `found`, `absent`, `unknown`
    (absent, and no sound by that name was learned), `negated`, or null where nothing is judged; but for `found` and null, the
    results are the nearest there is and no matches. `remark`: what is said of it. Of the text: `familiarity`, its cosine to
    `nearest_caption`, the nearest training caption, both null for a model that kept none; `suggestion`, the text respelt;
    `foreign`, whether it looks like another language; `negation`, its `wanted` (or null) and `unwanted`. All of these are null
    for a sound. `filters`: those of the query, as they were written.
    """
    present = None if found.present is None else round(found.present, 6)
    told = found.reading.to_json() if found.reading else dict.fromkeys(_OF_TEXT)
    judged = {"present": present, "verdict": found.verdict, "remark": found.remark}
    results = [_row(hit, corpus) for hit in found.hits]
    return {"query": name, "model": model, "filters": list(found.filters)} | judged | told | {"results": results}


def _nothing(by: SearchBy, min_score: float | None) -> str:
    """Why there are no hits."""
    if min_score is None:
        return "no name and no metadata here has these words." if by is SearchBy.name else "nothing was found."
    return f"no {'name' if by is SearchBy.name else 'sound'} scores {min_score:g} or more."


_OF_TEXT = ("familiarity", "nearest_caption", "suggestion", "foreign", "negation")


def _row(hit: Hit, corpus: Path) -> dict[str, Any]:
    """`by`, `format`, `channels`, `rate`, `date` and `metadata` are as in `Hit` and `FileFacts`; null where it is not known."""
    facts = hit.facts._asdict() if hit.facts else dict.fromkeys(("format", "channels", "rate", "date", "metadata"))
    return {
        "rank": hit.rank,
        "path": str(corpus / hit.path),
        "start": round(hit.start, 3),
        "end": round(hit.end, 3),
        "score": round(hit.score, 6),
        "by": hit.by,
        **facts,
    }


def found_table(name: str, found: Found, corpus: Path) -> Any:
    """The rich table of one search's hits."""
    from rich.text import Text

    if not found.certain:
        table = _hits_table(f"{name} ({_DOUBTS[found.verdict or 'absent']}; these are the nearest)", "place", "by", "file")
        for hit in found.hits:
            style = "dim" if hit.by == "sound" else None
            table.add_row(str(hit.rank), clock_span(hit), hit.by, Text(str(corpus / hit.path)), style=style)
        return table
    table = _hits_table(name, "match" if found.calibrated else "score", "place", "by", "file")
    for hit in found.hits:
        score = percent(hit.score, found.calibrated)
        table.add_row(str(hit.rank), score, clock_span(hit), hit.by, Text(str(corpus / hit.path)))
    return table


_DOUBTS = {
    "absent": "nothing here sounds like that",
    "unknown": "no sound by that name was learned",
    "negated": "what is named is not wanted",
}


def _hits_table(title: str, *columns: str) -> Any:
    """A table for ranks and these columns, of which the last is text and may take several lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Texts and names go in as Text, because brackets and colons in them are no markup.
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    for name in ("", *columns[:-1]):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def _print_csv(documents: Sequence[dict[str, Any]], *columns: str) -> None:
    rows: list[list[Any]] = [["query", "rank", *columns]]
    for document in documents:
        for row in document["results"]:
            cells = [Path(row[name]) if name == "path" else row[name] for name in columns]
            rows.append([document["query"], row["rank"], *cells])
    show_csv(rows)


def _copy(results: Sequence[tuple[str, Found]], corpus: Path, folder: Path) -> None:
    """Copy found files, whole, as RANK-NAME, or QUERY-RANK-NAME with several queries; never over another file."""
    copied = 0
    try:
        with signals.unwinding():
            folder.mkdir(parents=True, exist_ok=True)
            for number, (_, found) in enumerate(results, 1):
                for hit in found.hits:
                    source = corpus / hit.path
                    stem = f"{hit.rank:02d}-{source.stem}" if len(results) == 1 else f"{number:02d}-{hit.rank:02d}-{source.stem}"
                    target, again = folder / (stem + source.suffix), 1
                    while target.exists() and not filecmp.cmp(source, target, shallow=False):
                        again += 1
                        target = folder / f"{stem} ({again}){source.suffix}"
                    if not target.exists():
                        with replacing(target) as temporary:
                            shutil.copy2(source, temporary)
                    copied += 1
    except OSError as error:
        so_far = f"{counted(copied, 'file')} {were(copied)} copied."
        raise DiffATRError(f"--copy-to: {error.filename}: {reason(error)} {so_far}") from error
    except DiffATRError as error:
        raise DiffATRError(f"--copy-to: {error} {counted(copied, 'file')} {were(copied)} copied.") from error
    say(f"{counted(copied, 'file')} copied to {folder}")
