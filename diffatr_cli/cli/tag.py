"""`diffatr tag`: labels for the recordings of a folder, and new names for the files by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DiffATRError, UsageError
from ..files import replacing
from ..printable import counted
from . import signals
from .console import Device, Json, csv_bytes, progress_bar, say, show
from .corpus import (
    IndexPlace,
    Model,
    NewestOf,
    Run,
    check_score,
    load_model,
    open_folder,
    percent,
    placed,
    sampling_for,
    tell_update,
    update_index,
    updated_recordings,
)
from .targets import check_file

if TYPE_CHECKING:
    from ..corpus.describe import Choices, Described
    from ..corpus.names import Pattern
    from ..data.vocabulary import Label, Vocabulary
    from ..model import Retriever

UNKNOWN = "unknown"
FITS = 0.1
"""The probability from which on a label is given, where nothing else is said: on single recordings held out to choose by, 82 % of
the labels given are right then, and 16 % of the recordings get none (docs/tagging.md)."""
_HEAD = ("path", "label")  # of the CSV, before "probability" or "score"
_FIRST = 10  # lines of what was written to a file that are shown


def tag(
    corpus: Annotated[Path | None, typer.Argument(metavar="DIR", help="Folder of recordings, with all below it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the labels to this CSV file.")] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            "--vocabulary",
            metavar="FILE",
            help="Labels to choose from: one a line, or a CSV, TSV or JSONL file with a column label or name, or a list with "
            "Category and SubCategory. The kinds that the model was taught if not given.",
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="Labels a recording, at most.")] = 5,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help=f"Leave out labels that score less; {FITS} (10 %) if not given.")
    ] = None,
    rename: Annotated[
        str | None,
        typer.Option(
            "--rename",
            metavar="PATTERN",
            help='Show what files would be called by their best label, such as "{label}_{stem}"; stem is the old name. The '
            "vocabulary's columns are fields too.",
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="With --rename: rename the files, and log it.")] = False,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="With --apply: the new log; renamed-TIME.jsonl in DIR if not given."),
    ] = None,
    undo: Annotated[
        Path | None, typer.Option("--undo", metavar="LOG", help="Rename back what this log says, and nothing else.")
    ] = None,
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    index_place: IndexPlace = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Label the recordings of a folder: the names of sounds that fit each, with probabilities; "unknown" where none does.

    The folder is indexed first, as by `query`. A long recording gets a label by the window of it that fits best.

    Example: diffatr tag ./clips --out tags.csv

    Example: diffatr tag ./clips --vocabulary ucs.csv --rename "{CatID}_{label}_{stem}"

    Example: diffatr tag ./clips --rename "{label}_{stem}" --apply, and back: diffatr tag --undo ./clips/renamed-TIME.jsonl
    """
    if undo is not None:
        others = (out, vocabulary, rename, apply or None, log, min_score, run, runs, model_name, index_place)
        if any(other is not None for other in others):
            raise UsageError("--undo: renames back and does nothing else. Leave out the other options.")
        _undo(undo, corpus, as_json)
        return
    if corpus is None:
        raise UsageError("Name a folder of recordings: diffatr tag DIR")
    if rename is None and (apply or log is not None):
        raise UsageError("--apply and --log: mean something with --rename PATTERN only.")
    if log is not None and not apply:
        raise UsageError("--log: nothing is renamed, and nothing logged, without --apply.")
    if log is not None:
        check_file("--log", log, read={"--vocabulary": vocabulary})
    if out is not None:
        check_file("--out", out, ours=_is_csv_of_ours, read={"--vocabulary": vocabulary, "--log": log})
    check_score(min_score)
    from ..corpus.describe import Choices
    from ..corpus.tagging import tag as tag_all

    folder = open_folder(corpus, index_place)
    given = None if vocabulary is None else _vocabulary(vocabulary)
    pattern = None if rename is None or given is None else _pattern(rename, given)
    model = load_model(run, runs, model_name, device)
    calibrated = bool(model.calibration and model.calibration.audio_to_text)
    check_score(min_score, model, "a2t", calibrated=calibrated)
    labels = given or _kinds(model)
    if rename is not None and pattern is None:
        pattern = _pattern(rename, labels)
    searched = placed(folder, model)
    recordings = updated_recordings(searched, model)
    choices = Choices(model, [label.caption for label in labels.labels])
    _tell_unfamiliar(choices, labels.labels)
    if min_score is None and calibrated:
        min_score = FITS
    with progress_bar() as progress:
        described = tag_all(
            model,
            recordings,
            choices,
            sampling_for(model, None, None, 0, "a2t"),
            top=top,
            min_score=min_score,
            progress=progress,
        )
    if not calibrated:
        say("This model has no calibration for labels: scores rank them, and nothing tells where none fits. `diffatr calibrate`.")
    by_caption = {label.caption: label for label in labels.labels}
    tagged = [_Tagged.of(path, each, by_caption) for path, each in zip(recordings.paths, described, strict=True)]
    score = "probability" if calibrated else "score"
    rows = [row for each in tagged for row in each.rows(corpus, labels.columns)]
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_bytes(csv_bytes([[*_HEAD, score, *labels.columns], *rows]))
    unknown = sum(not each.labels for each in tagged)
    document: dict[str, Any] = {
        "corpus": str(corpus),
        "model": model.name,
        "vocabulary": str(vocabulary or model.kinds),
        "labels": len(labels.labels),
        "files": len(tagged),
        UNKNOWN: unknown,
        "out": None if out is None else str(out),
        "results": [each.to_json(corpus, score) for each in tagged],
    }
    count = f"{len(tagged) - unknown} of {counted(len(tagged), 'recording')} labelled, {unknown} unknown"
    if pattern is None:
        if as_json:
            show(document, as_json=True)
            return
        _show_rows(rows[:_FIRST] if out is not None else rows, len(rows), score, labels.columns, count, calibrated)
        if out is not None:
            say(f"{count} -> {out}")
        return
    _rename(corpus, tagged, pattern, document, apply, log, as_json, lambda: tell_update(update_index(searched, model)))


@dataclass(frozen=True)
class _Tagged:
    """A recording with the labels that fit it, best first, each with its score; none where it is unknown."""

    path: str
    labels: list[tuple[Label, float]]
    described: Described

    @classmethod
    def of(cls, path: str, described: Described, by_caption: dict[str, Label]) -> _Tagged:
        # What does not fit is not given out: of an absent sound the list holds the nearest, whose scores are no promise.
        hits = described.hits if described.certain else []
        return cls(path, [(by_caption[hit.caption], hit.score) for hit in hits], described)

    def rows(self, corpus: Path, columns: Sequence[str]) -> list[list[Any]]:
        if not self.labels:
            return [[corpus / self.path, UNKNOWN, "", *("" for _ in columns)]]
        further = [[label.columns.get(column, "") for column in columns] for label, _ in self.labels]
        return [
            [corpus / self.path, label.name, round(score, 6), *cells]
            for (label, score), cells in zip(self.labels, further, strict=True)
        ]

    def to_json(self, corpus: Path, score_name: str) -> dict[str, Any]:
        present = self.described.present
        return {
            "path": str(corpus / self.path),
            "present": None if present is None else round(present, 6),
            "verdict": self.described.verdict,
            "labels": [dict(label.columns) | {"label": label.name, score_name: round(score, 6)} for label, score in self.labels],
        }


def _is_csv_of_ours(beginning: bytes) -> bool:
    """Whether a file begins as the CSV of this command does."""
    head = beginning.partition(b"\n")[0].strip().decode("utf-8", "replace").split(",")
    return tuple(head[:2]) == _HEAD and head[2:3] in (["probability"], ["score"])


def _vocabulary(path: Path) -> Vocabulary:
    from ..data.vocabulary import read_vocabulary

    found = read_vocabulary(path)
    if found.notes:
        counts = f"{counted(len(found.labels), 'label')}; {counted(len(found.notes), 'note')}"
        say(f"{path}: {counts}: " + "; ".join(found.notes[:3]))
    return found


def _kinds(model: Retriever) -> Vocabulary:
    if model.kinds is None:
        raise UsageError(
            f"{model.name}: brings no list of the kinds of sound that it was taught. Name the labels: --vocabulary FILE, one a "
            "line; or put such a list into the run's folder as kinds.csv."
        )
    return _vocabulary(model.kinds)


def _pattern(rename: str, labels: Vocabulary) -> Pattern:
    from ..corpus.names import Pattern

    return Pattern(rename, ["label", *labels.columns])


def _tell_unfamiliar(choices: Choices, labels: Sequence[Label]) -> None:
    strange = [labels[i].name for i in choices.unfamiliar()]
    if strange:
        shown = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        of = f"{len(strange)} of {counted(len(labels), 'label')} {'names' if len(strange) == 1 else 'name'}"
        say(f"{of} no sound that the model learnt; such are often wrong: {shown}")


def _show_rows(
    rows: Sequence[Sequence[Any]], total: int, score: str, columns: Sequence[str], count: str, calibrated: bool
) -> None:
    from ..report.tables import rows_table

    cells = [
        [str(path), label, percent(value, calibrated) if value != "" else "", *further] for path, label, value, *further in rows
    ]
    more = f"{total - len(rows)} more lines; " if total > len(rows) else ""
    show(None, rows_table("Labels", ("file", "label", score, *columns), cells, caption=more + count), as_json=False)


def _rename(
    corpus: Path,
    tagged: Sequence[_Tagged],
    pattern: Pattern,
    document: dict[str, Any],
    apply: bool,
    log: Path | None,
    as_json: bool,
    follow: Callable[[], None],
) -> None:
    from ..corpus.names import plan_renames
    from ..corpus.renaming import Outcome, apply_renames

    wanted = {
        each.path: pattern.stem(Path(each.path).stem, {**each.labels[0][0].columns, "label": each.labels[0][0].name})
        for each in tagged
        if each.labels
    }
    plan = plan_renames(corpus, wanted)
    todo, left = [each for each in plan if not each.why_not], [each for each in plan if each.why_not]
    outcome = Outcome()
    if apply and todo:
        log = log or corpus / f"renamed-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        say(f"the log, by which --undo renames back: {log}")
        with signals.unwinding():
            outcome = apply_renames(corpus, todo, log)
        follow()
    left_as_is = [*((each.old, each.why_not or "") for each in left), *outcome.failed]
    pairs = outcome.done if apply else [(each.old, each.new) for each in todo]
    if as_json:
        told = _renames_json(corpus, pairs, left_as_is) | {"log": str(log) if apply and todo else None, "applied": apply}
        show(document | told, as_json=True)
    else:
        _show_renames(pairs, left_as_is, "renamed" if apply else "--apply renames them")
    if apply:
        _fail_for(len(outcome.failed) + sum(each.refused for each in left), len(outcome.done), "renamed")


def _undo(log: Path, corpus: Path | None, as_json: bool) -> None:
    from ..corpus.renaming import undo_renames

    with signals.unwinding():
        folder, outcome = undo_renames(log, corpus)
    if as_json:
        show(_renames_json(folder, outcome.done, outcome.failed) | {"log": str(log)}, as_json=True)
    else:
        _show_renames(outcome.done, outcome.failed, "renamed back")
    _fail_for(len(outcome.failed), len(outcome.done), "renamed back")


def _fail_for(failed: int, done: int, what: str) -> None:
    """Raises DiffATRError where files could not be renamed."""
    if failed:
        others = "; the others were" if done else ""
        raise DiffATRError(f"{counted(failed, 'file')} could not be {what}{others}.")


def _renames_json(corpus: Path, pairs: Sequence[tuple[str, str]], failed: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "renames": [{"old": str(corpus / old), "new": str(corpus / new)} for old, new in pairs],
        "left": [{"path": str(corpus / path), "reason": why} for path, why in failed],
    }


def _show_renames(pairs: Sequence[tuple[str, str]], failed: Sequence[tuple[str, str]], what: str) -> None:
    from ..report.tables import rows_table

    if pairs:
        rows = [(old, Path(new).name) for old, new in pairs]
        caption = f"{counted(len(rows), 'file')}: {what}"
        show(None, rows_table("Names", ("file", "new name"), rows, caption=caption), as_json=False)
    else:
        say("No file gets another name.")
    for path, why in failed:
        say(f"left as it is: {path}: {why}")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("tag")(tag)
