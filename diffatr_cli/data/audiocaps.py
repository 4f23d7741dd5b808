"""AudioCaps: the authors' caption files, and whatever clips the user has, in any of the usual namings."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..errors import DiffATRError
from ..progress import Progress, silent
from .audio import AUDIO_SUFFIXES, Resampler
from .manifest import SPLITS
from .plan import Item, Plan, Skip
from .prepare import Report, claim, index_files, prepare
from .tables import read_csv

OFFICIAL = {"train": (49838, 49838), "val": (495, 2475), "test": (975, 4875)}
"""Clips and captions of version 1, per split."""


def prepare_audiocaps(
    out: Path,
    source: Path,
    audio: Path | None = None,
    resampler: Resampler = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Prepare AudioCaps from `source`, which holds {train,val,test}.csv or audiocaps_{train,val,test}.csv.

    Clips are looked for anywhere below `source` and `audio`, named `{youtube_id}_{start_time}`, `Y{youtube_id}` or
    `{audiocap_id}`. Those that are not found are counted as missing.

    Raises:
        DiffATRError: no caption file, a missing column, a full disk.
    """
    for folder in (source, audio):
        if folder is not None and not folder.is_dir():
            raise DiffATRError(f"{folder}: no such folder")
    with claim(out, "audiocaps"):
        plan = Plan()
        tables = {split: _caption_file(source, split) for split in SPLITS}
        if not any(tables.values()):
            raise DiffATRError(
                f"{source}: no train.csv, val.csv or test.csv here. The authors keep them at github.com/cdjkim/audiocaps."
            )
        sounds: dict[str, list[Path]] = defaultdict(list)
        for path in index_files([source, *([audio] if audio else [])], leave_out=out):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                sounds[path.stem].append(path)
        for split, table in tables.items():
            if table is None:
                plan.notes.append(f"no {split}.csv in {source}: the {split} split is left out")
            else:
                _read_split(table, split, sounds, plan)
        return prepare(out, "audiocaps", plan, None, OFFICIAL, resampler, workers, progress)


def _caption_file(source: Path, split: str) -> Path | None:
    names = (f"{split}.csv", f"audiocaps_{split}.csv", f"dataset/{split}.csv")
    return next((source / name for name in names if (source / name).is_file()), None)


def _read_split(table: Path, split: str, sounds: dict[str, list[Path]], plan: Plan) -> None:
    captions: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    seen: set[tuple[str, ...]] = set()
    for place, row in read_csv(table, split, ("youtube_id", "start_time", "caption"), plan):
        number, youtube = row.get("audiocap_id", ""), row["youtube_id"]
        caption = row["caption"].strip()
        try:
            start = int(float(row["start_time"]))
        except (ValueError, OverflowError):
            plan.skipped.append(Skip(split, place, "start_time is not a number"))
            continue
        # Two people may have written the same words; only a row with the same id is the same row.
        key = (number,) if number else (youtube, str(start), caption)
        reason = "no youtube_id" if not youtube else "empty caption" if not caption else "duplicate row" if key in seen else None
        if reason:
            plan.skipped.append(Skip(split, place, reason))
            continue
        seen.add(key)
        clip = f"{youtube}_{start}"
        captions[clip].append(caption)
        stems[clip].extend([f"Y{youtube}", *([number] if number else [])])
    for clip, texts in captions.items():
        source = _find(sounds, [clip, *dict.fromkeys(stems[clip])], split)
        plan.items.append(Item(f"{split}/{clip}", split, tuple(texts), clip, source))


def _find(sounds: dict[str, list[Path]], stems: list[str], split: str) -> str | None:
    for stem in stems:
        if paths := sounds.get(stem):
            # A user may keep a folder for each split; then the clip's own comes first.
            return str(next((path for path in paths if split in path.parts), paths[0]).absolute())
    return None
