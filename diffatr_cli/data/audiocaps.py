"""AudioCaps: the authors' caption files, and whatever clips the user has, in any of the usual namings."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..engines import Engine
from ..errors import DiffATRError
from ..progress import Progress, silent
from .audio import Partial, Resampler
from .caption_rows import caption_problem
from .listing import file_stem, none_found, walk_sounds
from .manifest import SPLITS
from .plan import Item, Plan, Skip
from .prepare import Report, claim, prepare
from .tables import read_csv

OFFICIAL = {"train": (49838, 49838), "val": (495, 2475), "test": (975, 4875)}
"""Clips and captions of version 1, per split."""

_TIMES = re.compile(r"_(\d+(?:\.\d+)?)(?:[_-](\d+(?:\.\d+)?))?")
_SHORTEST, _LONGEST = 0.5, 60.0
"""Seconds from the start to the end in a file's name; clips have ten, or less where the video ends."""


def prepare_audiocaps(
    out: Path,
    source: Path,
    audio: Path | None = None,
    resampler: Resampler = "soxr",
    workers: int | None = None,
    progress: Progress = silent,
    partial: Partial = "skip",
    engine: Engine | None = None,
) -> Report:
    """Prepare AudioCaps from `source`, which holds {train,val,test}.csv or audiocaps_{train,val,test}.csv.

    Clips are looked for anywhere below `source` and `audio`, named `{youtube_id}`, `{youtube_id}_{start}` or
    `{youtube_id}_{start}_{end}`, with or without a `Y` in front, the times in seconds or milliseconds, padded with zeros or not;
    or `{audiocap_id}`. Those that are not found are counted as missing.

    Raises:
        DiffATRError: no caption file, a missing column, a full disk.
    """
    for folder in (source, audio):
        if folder is not None and not os.path.isdir(folder):
            raise DiffATRError(f"{folder}: no such folder")
    with claim(out, "audiocaps") as earlier:
        plan = Plan()
        tables = {split: _caption_file(source, split) for split in SPLITS}
        if not any(tables.values()):
            raise DiffATRError(
                f"{source}: no train.csv, val.csv or test.csv here. The authors keep them at github.com/cdjkim/audiocaps."
            )
        problems: dict[str, str] = {}
        sounds = _Sounds(list(walk_sounds([source, *([audio] if audio else [])], out, problems)))
        plan.notes.extend(f"{folder}: cannot be read ({reason})" for folder, reason in problems.items())
        for split, table in tables.items():
            if table is None:
                plan.notes.append(f"no {split}.csv in {source}: the {split} split is left out")
            else:
                _read_split(table, split, sounds, plan)
        if plan.items and not any(item.source for item in plan.items):
            plan.notes.insert(0, none_found(f"the clip {plan.items[0].name}", sounds.paths[0].name if sounds.paths else None))
        return prepare(
            out, "audiocaps", plan, earlier, None, OFFICIAL, resampler, workers, progress, partial=partial, engine=engine
        )


def _caption_file(source: Path, split: str) -> Path | None:
    names = (f"{split}.csv", f"audiocaps_{split}.csv", f"dataset/{split}.csv")
    return next((source / name for name in names if os.path.isfile(source / name)), None)


@dataclass
class _Clip:
    youtube: str
    start: int
    """Seconds."""
    captions: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)


def _read_split(table: Path, split: str, sounds: _Sounds, plan: Plan) -> None:
    clips: dict[tuple[str, int], _Clip] = {}
    seen: set[tuple[str, ...]] = set()
    for place, row in read_csv(table, split, ("youtube_id", "start_time", "caption"), plan):
        number, youtube = row.get("audiocap_id", ""), row["youtube_id"].strip()
        caption = row["caption"].strip()
        try:
            start = int(float(row["start_time"]))
        except (ValueError, OverflowError):
            plan.skipped.append(Skip(split, place, "start_time is not a number"))
            continue
        # Two people may have written the same words; only a row with the same id is the same row.
        key = (number,) if number else (youtube, str(start), caption)
        reason = None if youtube else "no youtube_id"
        if reason := reason or caption_problem(caption) or ("duplicate row" if key in seen else None):
            plan.skipped.append(Skip(split, place, reason))
            continue
        seen.add(key)
        clip = clips.setdefault((youtube, start), _Clip(youtube, start))
        clip.captions.append(caption)
        clip.numbers.extend([number] if number else [])
    starts: dict[str, int] = defaultdict(int)
    for clip in clips.values():
        starts[clip.youtube] += 1
    for clip in clips.values():
        path = sounds.find(clip, split, alone=starts[clip.youtube] == 1)
        name = f"{clip.youtube}_{clip.start}"
        source = None if path is None else str(path.absolute())
        plan.items.append(Item(f"{split}/{name}", split, tuple(clip.captions), name, source))


class _Sounds:
    """Sound files by the clips that their names may mean."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_time: dict[tuple[str, float], list[tuple[float | None, Path]]] = defaultdict(list)
        for path in paths:
            stem = file_stem(path.name)
            self._by_stem[stem].append(path)
            # An id may hold underscores and digits, so all ways to part a name are kept.
            for cut in (match.start() for match in re.finditer("_", stem)):
                if cut and (timed := _TIMES.fullmatch(stem, cut)):
                    self._by_time[stem[:cut], float(timed[1])].append((float(timed[2]) if timed[2] else None, path))

    def find(self, clip: _Clip, split: str, alone: bool) -> Path | None:
        """The file of a clip; `alone` says that no other clip is of the same video, so that its id is enough."""
        names = (clip.youtube, f"Y{clip.youtube}")
        exact = [self._by_stem.get(f"{name}_{clip.start}", []) for name in names]
        timed = [self._timed(name, clip.start, unit) for unit in (1, 1000) for name in names]
        named = [self._by_stem.get(name, []) for name in (*(reversed(names) if alone else ()), *clip.numbers)]
        paths = next(filter(None, (*exact, *timed, *named)), None)
        # A user may keep a folder for each split; then the clip's own comes first.
        return None if paths is None else next((path for path in paths if split in path.parts), paths[0])

    def _timed(self, name: str, start: int, unit: int) -> list[Path]:
        """Files of a name and a start in `unit`ths of a second, and an end, if they have one, that is in the same unit."""
        found = self._by_time.get((name, float(start * unit)), [])
        return [path for end, path in found if end is None or _SHORTEST * unit <= end - start * unit <= _LONGEST * unit]
