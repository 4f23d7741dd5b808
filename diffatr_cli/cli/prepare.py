"""`diffatr prepare clotho|audiocaps|folder|features|synthetic`: make a data set, show what came of it and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import DiffATRError, UsageError
from ..printable import counted
from .command import App
from .console import Data, Json, Seed, progress_bar, say, show
from .engine import Address, Engine, EngineName, engine_of

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.prepare import Report

app = App(
    help="Make a data set ready for training: 32 kHz mono WAV files and a manifest under data/NAME. "
    "Whatever is cut off continues with the same command; files that cannot be used are listed and left out.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Option("--name", help="Keep the data set under this name.", metavar="NAME")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Processes at work; all cores by default, with --engine ray those of the cluster.", min=1, metavar="N"
    ),
]
Resampling = Annotated[
    Literal["soxr", "resampy"],
    typer.Option("--resampler", help="How sample rates become 32 kHz. Both lose less than 0.01 dB; resampy is slower."),
]
Cut = Annotated[
    Literal["keep", "skip"],
    typer.Option("--partial", help="Recordings of which a part is missing: keep what is there, or skip them."),
]
Source = Annotated[Path, typer.Option("--from", help="Folder with what you have.", metavar="DIR", file_okay=False)]
Size = Annotated[int, typer.Option(help="Number of clips in this split.", min=0, metavar="N")]


@app.command()
def clotho(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder with what you have of it; nothing is downloaded then.", metavar="DIR", file_okay=False
        ),
    ] = None,
    data: Data = Path("data"),
    name: Name = "clotho",
    mirror: Annotated[
        str | None, typer.Option("--mirror", help="Download from this address instead of Zenodo.", metavar="URL")
    ] = None,
    resampler: Resampling = "soxr",
    partial: Cut = "skip",
    workers: Workers = None,
    engine: Engine = EngineName.local,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Clotho v2.1: 5929 clips of 15 to 30 seconds with five captions each.

    Downloads 6 GB and more from Zenodo (needs the extra `data`), or takes what is in --from DIR: the clotho_captions_*.csv, and
    the archives clotho_audio_*.7z or the folders development, validation and evaluation, at any depth.

    Example: diffatr prepare clotho --from ~/Downloads/clotho
    """
    if mirror is not None and source is not None:
        raise UsageError("--mirror: nothing is downloaded with --from. Leave out one of them.")
    from ..data.clotho import HOME, prepare_clotho

    root = _root(data, name)
    with engine_of(engine, address, workers, "cpu") as there, progress_bar() as progress:
        report = prepare_clotho(
            root, source, resampler, workers, progress, base=(mirror or HOME).rstrip("/"), partial=partial, engine=there
        )
    _finish(report, as_json)


@app.command()
def audiocaps(
    source: Source,
    audio: Annotated[
        Path | None, typer.Option("--audio", help="Folder of clips, when they are elsewhere.", metavar="DIR", file_okay=False)
    ] = None,
    data: Data = Path("data"),
    name: Name = "audiocaps",
    resampler: Resampling = "soxr",
    partial: Cut = "skip",
    workers: Workers = None,
    engine: Engine = EngineName.local,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """AudioCaps: ten-second clips of videos; you bring the audio.

    --from DIR holds train.csv, val.csv and test.csv as the authors publish them, and the clips anywhere below it (or in --audio
    DIR), named ID, ID_START or ID_START_END by their YouTube id, in seconds or milliseconds, with or without a Y in front; or
    AUDIOCAPID; in any audio format. Clips that you lack are counted and left out.

    Example: diffatr prepare audiocaps --from ~/audiocaps
    """
    from ..data.audiocaps import prepare_audiocaps

    root = _root(data, name)
    with engine_of(engine, address, workers, "cpu") as there, progress_bar() as progress:
        report = prepare_audiocaps(root, source, audio, resampler, workers, progress, partial, there)
    _finish(report, as_json)


@app.command()
def folder(
    source: Source,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", help="The table; by default the only one in DIR.", metavar="FILE", dir_okay=False),
    ] = None,
    data: Data = Path("data"),
    name: Annotated[
        str | None, typer.Option("--name", help="Keep the data set under this name; by default the folder's.")
    ] = None,
    resampler: Resampling = "soxr",
    partial: Cut = "skip",
    workers: Workers = None,
    engine: Engine = EngineName.local,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Your own sounds: any folder with a table of files and captions: CSV (comma, semicolon or tab), JSON lines, or JSON.

    The table has a column `file` (or file_name, filename, path, audio), and `caption`, `captions`, `text` or `caption_1`,
    `caption_2`, ..., whose cells may hold lists; a file may stand in several rows. A column `split` says train, val or test;
    without one, files are dealt out by their names. WavCaps' JSON files are read as they are.

    Example: diffatr prepare folder --from ./recordings --name recordings
    """
    from ..data.folder import prepare_folder

    root = _root(data, name or source.resolve().name)
    with engine_of(engine, address, workers, "cpu") as there, progress_bar() as progress:
        report = prepare_folder(root, source, captions, resampler, workers, progress, partial, there)
    _finish(report, as_json)


@app.command()
def features(
    audio: Annotated[Path, typer.Option("--audio", help="Vectors of the clips.", metavar="NPY", dir_okay=False)],
    text: Annotated[Path, typer.Option("--text", help="Vectors of the captions.", metavar="NPY", dir_okay=False)],
    captions: Annotated[Path, typer.Option("--captions", help="The table of both.", metavar="FILE", dir_okay=False)],
    val: Annotated[
        tuple[Path, Path, Path] | None, typer.Option("--val", help="The same three for validation.", metavar="A T CSV")
    ] = None,
    test: Annotated[
        tuple[Path, Path, Path] | None, typer.Option("--test", help="The same three for the test.", metavar="A T CSV")
    ] = None,
    data: Data = Path("data"),
    name: Name = "features",
    as_json: Json = False,
) -> None:
    """Vectors of one's own, from any model run elsewhere, instead of sounds: train on them with the recipe `features`.

    The table is one as `prepare folder` takes; a column `clip` may name the clips. T has a row for each caption, in the order of
    the table: a row of the table with several captions takes several rows of T, in their order, an empty cell none. A has a row
    for each clip, in the order in which the table names them first. Both are .npy files of float16, float32 or float64, a vector
    a row. A column `split` says train, val or test; without one, clips are dealt out by their names, or with --val or --test all
    are for training. Clips and captions whose vector is zero or holds NaN or infinity are listed and left out.

    Example: diffatr prepare features --audio A.npy --text T.npy --captions captions.csv
    """
    from ..data.features import Source, prepare_features

    others = {split: Source(*given) for split, given in (("val", val), ("test", test)) if given}
    root = _root(data, name)
    with progress_bar() as progress:
        report = prepare_features(root, Source(audio, text, captions), others, progress)
    _finish(report, as_json)


@app.command()
def synthetic(
    data: Data = Path("data"),
    name: Name = "synthetic",
    train: Size = 400,
    val: Size = 60,
    test: Size = 80,
    seed: Seed = 0,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """A small set of generated sounds, to try everything without any download.

    Dogs, sirens, rain, bells and some forty other kinds, alone or two together, five seconds a clip, with captions.

    Example: diffatr prepare synthetic --train 200
    """
    from ..data.synthetic import prepare_synthetic

    root = _root(data, name)
    with progress_bar() as progress:
        report = prepare_synthetic(root, train, val, test, seed, workers, progress)
    _finish(report, as_json)


def _root(data: Path, name: str) -> Path:
    if not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise UsageError(f"--name: {name!r} cannot be the name of a folder")
    return data / name


def _finish(report: Report, as_json: bool) -> None:
    shown = 5
    for note in report.notes[:shown]:
        say(f"note: {note}")
    if len(report.notes) > shown:
        say(f"note: and {len(report.notes) - shown} more like these; --json lists all")
    if as_json:
        show(report.to_json(), as_json=True)
    else:
        show(None, *report_tables(report), as_json=False)
    if report.clips == 0:
        raise DiffATRError(f"{report.root}: nothing was prepared; not one of {report.listed} listed clips can be used.")


def report_tables(report: Report) -> list[Table]:
    """What was prepared, and what was skipped and why if anything was."""
    return [_counts(report), *([_skips(report)] if report.skipped else [])]


def _counts(report: Report) -> Table:
    from rich.table import Table

    table = Table(title=f"prepared: {report.name}", caption=_caption(report))
    official = any(split.official for split in report.splits.values())
    hours = ["hours"] if report.sizes is None else []
    for column in (
        "split",
        "clips",
        "captions",
        *hours,
        "listed",
        *(["official clips", "official captions"] if official else []),
    ):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in report.splits.items():
        numbers = [f"{split.clips}", f"{split.captions}", *(f"{split.hours:.2f}" for _ in hours), f"{split.listed}"]
        table.add_row(name, *numbers, *(map(str, split.official) if split.official else []))
    return table


def _caption(report: Report) -> str:
    if report.sizes is not None:
        sounds, captions = report.sizes
        return f"vectors of {sounds} numbers for clips and {captions} for captions, in {report.root}"
    made = f"{counted(report.converted, 'clip')} made now" + (f", {report.kept} finished before" if report.kept else "")
    return f"{made}, in {report.root}; resampler: {report.resampler}"


def _skips(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="skipped")
    for column in ("split", "why", "number", "such as"):
        table.add_column(column, justify="right" if column == "number" else "left", overflow="fold")
    examples, most = report.examples(3), 20
    for split, reasons in report.reasons().items():
        for reason, number in list(reasons.items())[:most]:
            some = examples[split, reason]
            table.add_row(split, Text(reason), str(number), Text(", ".join(some) + (", ..." if number > len(some) else "")))
        if rest := list(reasons.values())[most:]:
            table.add_row(split, f"{len(rest)} more reasons; --json lists all", str(sum(rest)), "")
    return table
