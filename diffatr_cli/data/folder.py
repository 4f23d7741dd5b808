"""Any folder of sounds with a table of captions."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

from ..errors import DiffATRError, UsageError
from ..progress import Progress, silent
from .audio import Resampler
from .caption_rows import TABLE_SUFFIXES, caption_rows
from .manifest import SPLITS
from .plan import Item, Plan, Skip
from .prepare import Report, claim, prepare

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_ALL = "all"  # where rows are counted that belong to no split


def prepare_folder(
    out: Path,
    source: Path,
    captions: Path | None = None,
    resampler: Resampler = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Prepare the sounds below `source` that a caption file names, relative to `source` or to the caption file.

    The caption file (by default the only CSV, TSV, JSONL or JSON file directly in `source`) has a column `file`, `file_name`,
    `filename`, `path` or `audio`; captions in `caption`, `captions` or `caption_1`, `caption_2`, ..., or in `text`; and perhaps
    a `split`. Several rows of one file are several captions. Files without a split are dealt out by a hash of their name: 80 %
    train, 10 % val, 10 % test.

    Raises:
        UsageError: there are several caption files to choose from.
        DiffATRError: no caption file, a missing column, a full disk.
    """
    if not source.is_dir():
        raise DiffATRError(f"{source}: no such folder")
    table = captions or _only_table(source)
    with claim(out, "folder"):
        plan = Plan()
        texts: dict[str, list[str]] = {}
        splits: dict[str, str] = {}
        for row in caption_rows(table, plan, _ALL, files=True):
            file, named = next(iter(row.names), ""), row.split
            split = _SPLIT_NAMES.get(named.strip().lower(), "")
            known = splits.get(file, split)
            fresh = [caption for caption in dict.fromkeys(row.captions) if caption not in texts.get(file, [])]
            reason = None
            if not file:
                reason = "no file name"
            elif named.strip() and not split:
                reason = f"unknown split {named.strip()!r}"
            elif split and split != known:
                reason = f"the file is already in {known or 'no split'}"
            elif not fresh:
                reason = "duplicate row"
            if reason:
                plan.skipped.append(Skip(_ALL, row.place, reason))
                continue
            splits.setdefault(file, split)
            texts.setdefault(file, []).extend(fresh)
        dealt = _deal([file for file, split in splits.items() if not split])
        for file, some in texts.items():
            split = splits[file] or dealt[file]
            # The whole name stays, ending included: a.wav and a.flac are two sounds.
            plan.items.append(Item(f"{split}/{file}", split, tuple(some), file, _locate(file, source, table.parent)))
        return prepare(out, "folder", plan, None, None, resampler, workers, progress)


def _only_table(source: Path) -> Path:
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    # Beside another table, a .json file is more likely something else.
    tables = [path for path in found if path.suffix.lower() != ".json"] or found
    if not tables:
        raise DiffATRError(f"{source}: no CSV or JSON file of captions here; name one with --captions FILE.")
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UsageError(f"{source}: several caption files ({names}); choose one with --captions FILE.")
    return tables[0]


def _deal(files: list[str]) -> dict[str, str]:
    """A split for each file, by a hash of its name, so that new files do not move the others; none empty if three are there."""
    position = {file: int.from_bytes(hashlib.sha256(file.encode()).digest()[:8]) / 2**64 for file in files}
    dealt = {file: "train" if at < 0.8 else "val" if at < 0.9 else "test" for file, at in position.items()}
    for split in SPLITS:
        if len(files) >= 3 and split not in dealt.values():
            most = max(SPLITS, key=list(dealt.values()).count)
            dealt[min((file for file in files if dealt[file] == most), key=position.__getitem__)] = split
    return dealt


def _locate(file: str, *folders: Path) -> str | None:
    for folder in folders:
        for form in ("NFC", "NFD"):  # some systems take accented letters apart when they write names
            path = folder / unicodedata.normalize(form, file)
            if path.is_file():
                return str(path.absolute())
    return None
