"""Clotho v2.1: downloaded from its home, or taken from archives and folders that the user has."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..engines import Engine
from ..errors import DiffATRError
from ..progress import Progress, silent
from .audio import Partial, Resampler
from .caption_rows import caption_problem
from .download import download, unpack_7z
from .listing import has_ending, none_found, walk_files
from .plan import Item, Plan, Skip
from .prepare import Report, claim, prepare
from .tables import read_csv

HOME = "https://zenodo.org/records/4783391/files"
FOLDERS = {"train": "development", "val": "validation", "test": "evaluation"}
OFFICIAL = {"train": (3839, 19195), "val": (1045, 5225), "test": (1045, 5225)}
"""Clips and captions per split."""

FILES: dict[str, tuple[str, int | None]] = {
    "clotho_audio_development.7z": ("c8b05bc7acdb13895bb3c6a29608667e", 4541582263),
    "clotho_audio_validation.7z": ("7dba730be08bada48bd15dc4e668df59", 1260701425),
    "clotho_audio_evaluation.7z": ("4569624ccadf96223f19cb59fe4f849f", None),
    "clotho_captions_development.csv": ("d4090b39ce9f2491908eebf4d5b09bae", 1336762),
    "clotho_captions_validation.csv": ("5879e023032b22a2c930aaa0528bead4", 367649),
    "clotho_captions_evaluation.csv": ("1b16b9e57cf7bdb7f13a13802aeb57e2", 361995),
    "clotho_metadata_development.csv": ("170d20935ecfdf161ce1bb154118cda5", 830797),
    "clotho_metadata_validation.csv": ("2e010427c56b1ce6008b0f03f41048ce", 224803),
    "clotho_metadata_evaluation.csv": ("13946f054d4e1bf48079813aac61bf77", None),
}
"""md5 and size in bytes of every file of version 2.1, where known."""


def prepare_clotho(
    out: Path,
    source: Path | None = None,
    resampler: Resampler = "soxr",
    workers: int | None = None,
    progress: Progress = silent,
    base: str = HOME,
    files: Mapping[str, tuple[str, int | None]] = FILES,
    partial: Partial = "skip",
    engine: Engine | None = None,
) -> Report:
    """Prepare Clotho from `source`, or from the files at `base`, which are downloaded to `out`/download.

    `source` holds, at any depth, clotho_captions_*.csv, clotho_metadata_*.csv (for the licences; may be absent), and the audio:
    folders development, validation, evaluation, or clotho_audio_*.7z, or some of each. Archives are unpacked to `out`/raw.

    Raises:
        DiffATRError: no caption file, a missing column, a damaged archive, a download that fails, a full disk.
    """
    if source is not None and not os.path.isdir(source):
        raise DiffATRError(f"{source}: no such folder")
    with claim(out, "clotho") as earlier:
        plan = Plan()
        if source is None:
            have = {name: out / "download" / name for name in files}
            for name in (name for name in files if name.endswith(".csv")):
                _fetch(have[name], base, files, progress)
        else:
            problems: dict[str, str] = {}
            found = list(walk_files([source], out, problems))
            plan.notes.extend(f"{folder}: cannot be read ({reason})" for folder, reason in problems.items())
            have = {path.name: path for path in reversed(found) if path.name in files}
            if not any(f"clotho_captions_{folder}.csv" in have for folder in FOLDERS.values()):
                raise DiffATRError(
                    f"{source}: no clotho_captions_development.csv (validation, evaluation) here; get them from {base}."
                )
        for split, folder in FOLDERS.items():
            table = have.get(f"clotho_captions_{folder}.csv")
            if table is None:
                plan.notes.append(f"no clotho_captions_{folder}.csv in {source}: the {split} split is left out")
                continue
            captions = _read_captions(table, split, plan)
            raw = out / "raw" / folder
            sounds = _by_name(path for path in found if _is_of(path, folder)) if source else {}
            sounds = _by_name(walk_files([raw], out / "download")) | sounds
            missing = [name for name in captions if _key(name) not in sounds]
            finished = earlier.own_sources([(f"{split}/{name}", f"{split}/{name}", raw / name) for name in missing], progress)
            wanted = {name for name in missing if f"{split}/{name}" not in finished}
            archive = have.get(f"clotho_audio_{folder}.7z")
            if wanted and archive is not None and not raw.exists():
                if source is None:
                    _fetch(archive, base, files, progress)
                unpack_7z(archive, raw, progress)
                sounds = _by_name(walk_files([raw], out / "download")) | sounds
            licenses = _read_licenses(have.get(f"clotho_metadata_{folder}.csv"), split)
            for name, texts in captions.items():
                clip = f"{split}/{name}"
                path = sounds.get(_key(name))
                recording = str(path.absolute()) if path else finished.get(clip)
                plan.items.append(Item(clip, split, texts, name, recording, licenses.get(name)))
        if source is not None and plan.items and not any(item.source for item in plan.items):
            other = next((path.name for path in found if has_ending(path.name)), None)
            plan.notes.insert(0, none_found(plan.items[0].name, other))
        report = prepare(
            out, "clotho", plan, earlier, None, OFFICIAL, resampler, workers, progress, partial=partial, engine=engine
        )
    spare = [str(path) for path in (out / "download", out / "raw") if path.exists()]
    if report.clips and spare:
        report.notes.append(f"{' and '.join(spare)} can be deleted; the prepared clips do not need them")
    return report


def _fetch(target: Path, base: str, files: Mapping[str, tuple[str, int | None]], progress: Progress) -> None:
    md5, size = files[target.name]
    download(f"{base}/{target.name}?download=1", target, md5, size, progress=progress)


def _is_of(path: Path, folder: str) -> bool:
    """Whether a file lies in a folder of one split. The same name occurs in several, with different audio."""
    return folder in path.parts or f"clotho_audio_{folder}" in path.parts


def _key(name: str) -> str:
    # Some systems take accented letters apart when they write names. Nothing else may change: names begin with spaces.
    return unicodedata.normalize("NFC", name)


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    return {_key(path.name): path for path in paths}


def _read_captions(table: Path, split: str, plan: Plan) -> dict[str, tuple[str, ...]]:
    captions: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for place, row in read_csv(table, split, ("file_name", "caption_1"), plan):
        name = row["file_name"]
        texts = [row[column].strip() for column in row if column.startswith("caption_")]
        if not name or _key(name) in seen:
            plan.skipped.append(Skip(split, place, "duplicate row" if name else "no file_name"))
            continue
        seen.add(_key(name))
        problems = [caption_problem(text) for text in texts]
        plan.skipped.extend(Skip(split, place, problem) for problem in problems if problem)
        if None in problems:
            captions[name] = tuple(text for text, problem in zip(texts, problems, strict=True) if not problem)
    return captions


def _read_licenses(table: Path | None, split: str) -> dict[str, str]:
    if table is None:
        return {}
    rows = read_csv(table, split, ("file_name", "license"), Plan(), encoding="latin-1")
    return {row["file_name"]: row["license"] for _, row in rows if row["license"]}
