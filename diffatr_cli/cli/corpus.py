"""What the commands that search a folder share: their options, the model, the index, and how names and places are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from .console import progress_bar, say

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..corpus.elsewhere import Elsewhere
    from ..corpus.index import FolderIndex, IndexReport, Recordings
    from ..corpus.library import Library, Searched
    from ..corpus.search import Hit
    from ..engines import Engine
    from ..model import Retriever
    from ..types import Direction

Corpora = Annotated[
    list[Path] | None,
    typer.Option(
        "--corpus",
        metavar="DIR",
        help="Folder of recordings to search, with all below it; several, each with --corpus, are searched together. This folder "
        "if not given.",
        show_default=False,
    ),
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch/--no-watch", help="Follow the folder: what changes in it is found by itself, when it has come to rest."
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Diffusion steps; the number of the model's recipe if not given.")
]
Shortlist = Annotated[
    int | None,
    typer.Option("--shortlist", min=1, help="Files, the best by cosine, that diffusion re-ranks; the recipe's number, or 100."),
]
Weight = Annotated[
    float | None,
    typer.Option(
        "--weight",
        min=0,
        help="Weight of what diffusion says, beside the cosine; what validation chose if not given. With 0 nothing is sampled.",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="DIR",
        help="The model: a run's folder, RUNS/RECIPE/seed-N. The one that ships with diffatr if not given.",
    ),
]
NewestOf = Annotated[
    Path | None,
    typer.Option("--runs", metavar="DIR", help="The model: the newest run below this folder, instead of --run.", file_okay=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A model as it is, by its hub name or folder: a CLAP such as laion/clap-htsat-unfused, or a run's folder. "
        "`diffatr models` lists what is there.",
    ),
]
IndexPlace = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="DIR|URI",
        help="Where the index is kept: a folder, or object storage such as s3://bucket/prefix, with credentials from the "
        "environment; inside the folder of recordings (.diffatr) if not given.",
    ),
]
Approximate = Annotated[
    bool | None,
    typer.Option(
        "--approximate/--exact",
        help="Search by an approximate index, which leaves the vectors on the disk, or compare with each of them in memory; "
        "approximate beyond 2,000,000 windows if not given.",
    ),
]


def open_folder(corpus: Path, index: str | None, approximate: bool | None = None) -> FolderIndex:
    """The index of a folder. Raises DiffATRError where one of the two is not there, as far as that shows at once."""
    from ..corpus.index import FolderIndex

    folder = FolderIndex(corpus, index, approximate)
    folder.place.check()
    return folder


def open_folders(corpora: Sequence[Path] | None, index: str | None, approximate: bool | None = None) -> FolderIndex | Library:
    """The index of a folder, or of several as one; of several, what is wrong with one is told. Raises as `open_folder`."""
    from ..corpus.library import open_corpora

    return open_corpora(corpora or [Path()], index, approximate, say)


def placed(folder: FolderIndex | Library, model: Retriever) -> Searched:
    """The same, for a model: below a folder that is indexed for it, through that index, which is told."""
    from ..corpus.library import through_ancestors

    return through_ancestors(folder, model.model_id, say)


def load_model(run: Path | None, runs: Path | None, model: str | None, device: str, weight: float | None = None) -> Retriever:
    """The model of `run`, of the newest run below `runs`, or of the name `model`; without any, the one that ships.

    `weight`: of diffusion beside the cosine, in the place of the model's own.
    """
    if sum(given is not None for given in (run, runs, model)) > 1:
        raise UsageError("--run, --runs and --model exclude each other: each names the model.")
    from ..runs import newest_run
    from ..two_tower import load_any

    if runs is not None:
        run = newest_run(runs)
    loaded = load_any(model if run is None else run, device)
    if weight is not None:
        loaded.reweigh(weight)
    return loaded


def load_elsewhere(engine: Engine, run: Path | None, runs: Path | None, model: str | None) -> tuple[Retriever, Elsewhere]:
    """The model, for this process, which embeds nothing, and how the workers of an engine get theirs."""
    from functools import partial

    from ..corpus.elsewhere import Elsewhere
    from ..runs import newest_run
    from ..two_tower import load_any

    if runs is not None and run is None and model is None:
        run, runs = newest_run(runs), None
    here = load_model(run, runs, model, "cpu")
    # A folder goes to the workers by its whole path: they work in other folders.
    name = run.absolute() if run is not None else str(Path(model).absolute()) if model and Path(model).is_dir() else model
    return here, Elsewhere(engine, partial(load_any, name))


def check_score(
    least: float | None, model: Retriever | None = None, direction: Direction | None = None, *, calibrated: bool = False
) -> None:
    """Raises UsageError for a --min-score that no score is meant by.

    Args:
        model: whose scores they are; without one only what is a number is looked at, before the model is loaded.
        direction: of the search, whose scores are more than cosines where diffusion counts; None for a sound's.
        calibrated: they are probabilities.
    """
    if least is None:
        return
    hint = "a probability from 0 to 1, such as 0.5 for 50 %, or, of a model without a calibration, a score"
    if not math.isfinite(least):
        raise UsageError(f"--min-score {least}: is no number. Give {hint}.")
    if model is None or least <= 1:
        return
    if calibrated:
        raise UsageError(f"--min-score {least:g}: scores are probabilities from 0 to 1. Write 0.5 for 50 %.")
    if direction is None or model.reranker is None or not model.reranker.counts(direction):
        raise UsageError(f"--min-score {least:g}: scores of this model are cosines, of which none is above 1.")


def sampling_for(model: Retriever, steps: int | None, shortlist: int | None, seed: int, direction: Direction = "t2a") -> Sampling:
    """How a command samples; it says where a setting means nothing."""
    from ..model import sampling_of

    if steps is not None and model.reranker is None:
        say("This model has no diffusion phase; it ranks by cosine, and --steps means nothing.")
    elif steps is not None and model.reranker and not model.reranker.counts(direction):
        say("This model ranks by cosine, as validation chose, and --steps means nothing without --weight.")
    return sampling_of(model, folder=True, steps=steps, shortlist=shortlist, seed=seed)


def update_index(
    folder: Searched, model: Retriever, workers: int | None = None, elsewhere: Elsewhere | None = None
) -> IndexReport:
    with progress_bar() as progress:
        return folder.update(model, progress, workers, wait=say, tell=say, elsewhere=elsewhere)


def updated_recordings(folder: Searched, model: Retriever) -> Recordings:
    """What is in a folder, after bringing its index up to date and telling what that did; where it cannot be written, what is
    indexed so far. Raises DiffATRError where there is nothing."""
    from ..corpus.index import CannotUpdate, no_sounds

    unusable = []
    try:
        report = update_index(folder, model)
        unusable = report.skipped
        tell_update(report)
    except CannotUpdate as error:
        if not len(folder.read(model.model_id, frames=model.sees_frames)):
            raise
        say(f"{error} Searching what is indexed so far.")
    recordings = folder.read(model.model_id, frames=model.sees_frames)
    if not len(recordings):
        raise no_sounds(folder.corpus, unusable)
    return recordings


def tell_update(report: IndexReport) -> None:
    """What an update did, in one line, if it did anything."""
    counts = (
        (report.embedded, "indexed"),
        (report.reused, "known by content"),
        (report.removed, "removed"),
        (report.newly_partial, "only in part"),
        (report.repaired, "repaired"),
        (report.newly_skipped, "skipped"),
    )
    if not any(count for count, _ in counts):
        return
    text = "files: " + ", ".join(f"{count} {what}" for count, what in counts if count)
    told = [*(report.skipped if report.newly_skipped else ()), *(report.partial if report.newly_partial else ())]
    if told:
        text += ": " + "; ".join(f"{each.path} ({each.reason})" for each in told[:3])
        text += " ..." if len(told) > 3 else ""
    say(text)


def report_update(outcome: IndexReport | DiffATRError) -> None:
    """What came of an update that nobody waits for, in one line."""
    if isinstance(outcome, DiffATRError):
        say(f"diffatr: {outcome}")
    else:
        tell_update(outcome)


def tell_age(recordings: Recordings) -> None:
    """How much an index holds and when it changed last, for a person at a terminal."""
    import sys
    import time

    from ..progress import ago

    if sys.stderr.isatty():
        when = "" if recordings.updated is None else f", updated {ago(time.time() - recordings.updated)}"
        say(f"index: {len(recordings):,} file{'' if len(recordings) == 1 else 's'}{when}")


def index_document(folder: Searched, recordings: Recordings) -> dict[str, Any]:
    """The field `index` of a search's document: files and windows searched, when the index changed last (UTC), or null, and
    what is wrong with folders that are left out."""
    from datetime import UTC, datetime

    from ..corpus.library import Library

    problems = folder.problems if isinstance(folder, Library) else {}

    updated = None if recordings.updated is None else datetime.fromtimestamp(recordings.updated, UTC)
    return {
        "files": len(recordings),
        "windows": len(recordings.spans),
        "updated": updated and updated.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "problems": [{"folder": str(root), "reason": problem} for root, problem in problems.items()],
    }


def percent(score: float, calibrated: bool) -> str:
    """A score as people read it: a probability in percent, any other as it is."""
    if not calibrated:
        return f"{score:.3f}"
    return f"{100 * score:.0f} %" if score >= 0.01 else "< 1 %"


def clock_span(hit: Hit) -> str:
    """Where in its file a hit is, mm:ss-mm:ss or h:mm:ss, rounded outwards to whole seconds."""
    return "-".join(clock(seconds) for seconds in (math.floor(hit.start), math.ceil(hit.end)))


def clock(seconds: int) -> str:
    """Seconds as mm:ss or h:mm:ss."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
