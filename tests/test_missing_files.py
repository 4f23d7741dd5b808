"""A table is read quickly by listings and dictionaries; what comes of it is what a plain look for each row's file finds."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import posixpath
import random
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest
from audio_files import tone

from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.manifest import read_manifest

LETTERS = "Caf\u00e9.wav"
FOUND = [
    *("sub/dog.wav", "./sub/dog.wav", "sub//dog.wav", "sub\\dog.wav", "sub/../sub/./dog.wav", "hard.wav", "soft.wav"),
    *("cat.wav", "cat.flac", "beside.wav", LETTERS, unicodedata.normalize("NFD", LETTERS)),
]
MISSING = ["gone{}.wav", "./gone{}.wav", "sub/gone{}.wav", "sub\\gone{}.wav", "no/such/gone{}.wav", "no\\such/gone{}.wav"]
NONE = {"": "no file name", "..": "not the name of a file", "/": "not the name of a file", "sub/": "not the name of a file"}
SPLITS = {"": "", "train": "train", "Dev": "val", " test ": "test"}
CELLS = {"a dog": ["a dog"], "rain": ["rain"], "": [], "['rain', 'wind']": ["rain", "wind"], "nan": ["nan"], "...": ["..."]}
NO_CAPTION = {"nan": "'nan' is no caption", "...": "a caption without a letter or digit"}


class Row(NamedTuple):
    file: str
    caption_1: str
    caption_2: str
    split: str


class Clip(NamedTuple):
    name: str
    there: bool
    written: str
    captions: list[str]
    splits: list[str]
    """One, or none as long as no row names one."""


def random_rows(rng: random.Random, root: Path) -> list[Row]:
    """Rows of files that are there, that are not, and of no files, in many spellings; few captions, so that some come twice."""
    files = [*FOUND, str(root / "in" / "cat.wav"), *NONE] + [
        name.format(rng.randrange(60)) for name in MISSING for _ in range(40)
    ]
    splits = [*[""] * 20, *SPLITS, "nonsense"]
    texts = [*CELLS, *[f"caption {number}" for number in range(20)]]
    return [Row(rng.choice(files), rng.choice(texts), rng.choice(texts), rng.choice(splits)) for _ in range(500)]


def look(root: Path, file: str) -> tuple[str, object] | None:
    """The name of the file that a row names and what it is on the disk, by asking the system for one spelling after another."""
    for base in (root / "in", root / "table"):
        for slashed in (file, file.replace("\\", "/")):
            for form in ("NFC", "NFD"):
                path = os.path.join(base, unicodedata.normalize(form, slashed))
                if os.path.isfile(path):
                    status = os.stat(path)
                    return os.path.relpath(os.path.normpath(path), base), (status.st_dev, status.st_ino)
    return None


def expected(root: Path, table: str, begin: int, rows: list[Row]) -> tuple[list[Clip], list[tuple[str, str]], list[str]]:
    """The clips that rows come to, the rows that are skipped and why, and the notes; by the rules as the documents tell them."""
    clips: dict[object, Clip] = {}
    skipped, notes, joined = [], [], []
    for number, row in enumerate(rows, begin):
        place = f"{table}:{number}"
        cells = [text for cell in row[1:3] for text in CELLS.get(cell, [cell])]
        captions = [text for text in cells if text not in NO_CAPTION]
        bad = [NO_CAPTION[text] for text in cells if text in NO_CAPTION]
        if not captions:
            skipped.append((place, bad[0] if bad else "empty caption"))
            continue
        notes += [f"{place}: {problem}; it is left out" for problem in bad]
        if row.file in NONE:
            skipped.append((place, NONE[row.file]))
            continue
        if row.split not in SPLITS:
            skipped.append((place, f"unknown split {row.split!r}"))
            continue
        found = look(root, row.file)
        name, key = found or (posixpath.normpath(row.file.replace("\\", "/")),) * 2
        clip = clips.setdefault(key, Clip(name, found is not None, row.file, [], []))
        split = SPLITS[row.split]
        if split and clip.splits and split not in clip.splits:
            skipped.append((place, f"the file is already in {clip.splits[0]}"))
            continue
        if row.file != clip.written:
            joined.append(f"{place}: {row.file} is the file {clip.name}")
        clip.splits[:] = clip.splits or ([split] if split else [])
        new = [text for text in dict.fromkeys(captions) if text not in clip.captions]
        clip.captions.extend(new)
        if not new:
            skipped.append((place, "duplicate row"))
    for clip in clips.values():
        at = int(hashlib.sha256(clip.name.encode()).hexdigest()[:16], 16) / 2**64
        clip.splits[:] = clip.splits or ["train" if at < 0.8 else "val" if at < 0.9 else "test"]
    more = f", and {len(joined) - 1} more rows like this: their captions are joined"
    return list(clips.values()), skipped, [*notes, joined[0] + more]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_rows_come_to_what_a_plain_look_for_each_file_finds(tmp_path: Path, ending: str, seed: int) -> None:
    for number, name in enumerate(("in/sub/dog.wav", "in/cat.wav", "in/cat.flac", "table/beside.wav", f"in/{LETTERS}")):
        tone(tmp_path / name, 500 + 100 * number)
    os.link(tmp_path / "in/sub/dog.wav", tmp_path / "in/hard.wav")
    (tmp_path / "in/soft.wav").symlink_to("cat.wav")
    rows = random_rows(random.Random(seed), tmp_path)
    table = tmp_path / "table" / f"t.{ending}"
    with table.open("w", newline="", encoding="utf-8") as file:
        if ending == "csv":
            csv.writer(file).writerows([Row._fields, *rows])
        else:
            file.writelines(json.dumps(row._asdict()) + "\n" for row in rows)
    clips, skipped, notes = expected(tmp_path, table.name, 2 if ending == "csv" else 1, rows)
    report = prepare_folder(tmp_path / "data", tmp_path / "in", table, workers=1)

    ids = [f"{clip.splits[0]}/{unicodedata.normalize('NFC', clip.name)}" for clip in clips]
    missing = [(name, "missing") for name, clip in zip(ids, clips, strict=True) if not clip.there]
    assert len(missing) > 100
    assert [(skip.what, skip.reason) for skip in report.skipped] == [*skipped, *missing]
    assert report.notes == notes
    records, _ = read_manifest(tmp_path / "data")
    assert [(record.clip_id, record.split, list(record.captions), record.skipped) for record in records] == [
        (name, clip.splits[0], clip.captions, None if clip.there else "missing") for name, clip in zip(ids, clips, strict=True)
    ]
    assert [record.path for record in records] == [name.removesuffix(".wav") + ".wav" for name in ids]
    for split, count in report.splits.items():
        mine = [clip.there for clip in clips if clip.splits == [split]]
        assert (count.clips, count.listed) == (sum(mine), len(mine))
