"""The manifest: what is written is read back, and what is wrong with it is said."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest

from diffatr_cli.data.manifest import MANIFEST, Clip, Dataset, Record, load_dataset, read_manifest, write_manifest
from diffatr_cli.errors import DiffATRError

RECORDS = [
    Record("train/ a.wav", "train", ("A dog, barking", 'a "dog" 🐕'), "train/ a.wav", "/x/ a.wav", 100, 17, 48_000, "0a", "CC0"),
    Record("train/b.wav", "train", ("gone",), "train/b.wav", skipped="missing"),
    Record("test/ a.wav", "test", ("rain",), "test/ a.wav", "/y/ a.wav", 90, 18, 16_000, "0b"),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_manifest(tmp_path / "set", RECORDS, {"kind": "folder"})
    records, info = read_manifest(tmp_path / "set")
    assert records == RECORDS
    assert info["kind"] == "folder"
    data = load_dataset(tmp_path, "set")
    assert (data.name, data.root) == ("set", tmp_path / "set")
    assert data.clips == (
        Clip("train/ a.wav", "train", "train/ a.wav", 1.5, ("A dog, barking", 'a "dog" 🐕')),
        Clip("test/ a.wav", "test", "test/ a.wav", 0.5, ("rain",)),
    )
    assert [clip.clip_id for clip in data.split("test")] == ["test/ a.wav"]
    with pytest.raises(DiffATRError, match="val"):
        data.split("val")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_the_folder_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    data = tmp_path / os.fsdecode(b"da\xffta")
    name = os.fsdecode(b"\xfe\ned a:b?\x80")
    write_manifest(data / name, RECORDS, {"kind": "folder"})
    assert read_manifest(data / name)[0] == RECORDS
    assert load_dataset(data, name).name == name
    (data / name / MANIFEST).write_bytes(b"PAR1")
    with pytest.raises(DiffATRError, match="damaged"):
        read_manifest(data / name)


def test_the_fingerprint_changes_with_anything_that_training_sees(tmp_path: Path) -> None:
    def fingerprint(records: list[Record]) -> str:
        write_manifest(tmp_path / "set", records, {"kind": "folder"})
        return load_dataset(tmp_path, "set").fingerprint

    first = fingerprint(RECORDS)
    assert fingerprint(list(RECORDS)) == first
    changes = {"captions": ("a cat",), "md5": "ff", "frames": 5, "split": "val", "clip_id": "z", "skipped": "silent"}
    changed = {fingerprint([RECORDS[0]._replace(**{name: value}), *RECORDS[1:]]) for name, value in changes.items()}
    assert len(changed | {first}) == 1 + len(changes)
    # Where the audio came from and when is no part of it.
    assert fingerprint([RECORDS[0]._replace(source="/z", source_mtime_ns=1, license=None), *RECORDS[1:]]) == first


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("clotho", "diffatr prepare clotho --data"),
        ("audiocaps", "diffatr prepare audiocaps --from DIR"),
        ("mine", "--name mine"),
    ],
)
def test_a_data_set_that_is_not_there_names_the_command_that_makes_it(tmp_path: Path, name: str, command: str) -> None:
    write_manifest(tmp_path / "other", RECORDS, {"kind": "folder"})
    with pytest.raises(DiffATRError) as caught:
        load_dataset(tmp_path, name)
    assert command in str(caught.value)
    assert "Prepared there: other" in str(caught.value)


def test_a_damaged_foreign_or_empty_manifest_is_an_error_in_words(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "set" / "manifest.parquet"
    write_manifest(tmp_path / "set", RECORDS, {})
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DiffATRError, match="not a manifest"):
            load_dataset(tmp_path, "set")
    pq.write_table(pa.table({"file": ["a.wav"]}), path)
    with pytest.raises(DiffATRError, match="not a manifest"):
        load_dataset(tmp_path, "set")
    write_manifest(tmp_path / "set", [RECORDS[1]], {})
    with pytest.raises(DiffATRError, match="no clips"):
        load_dataset(tmp_path, "set")


def test_facts_that_are_none_are_damage(tmp_path: Path) -> None:
    write_manifest(tmp_path, RECORDS, {})
    table = pq.read_table(tmp_path / MANIFEST)
    pq.write_table(table.replace_schema_metadata({b"diffatr": b"[1]"}), tmp_path / MANIFEST)  # as earlier ones, with no digest
    with pytest.raises(DiffATRError, match="damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"frames": -1}, {"source_size": -1}, {"frames": None}, {"clip_id": None}, {"captions": ("a", None)}, {"captions": None}],
)
def test_values_that_no_clip_has_are_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_manifest(tmp_path, [RECORDS[0], RECORDS[2]._replace(**wrong)], {})
    with pytest.raises(DiffATRError, match="damaged"):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, RECORDS, {})

    def full(table: object, file: IO[bytes], **options: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffatr_cli.data.manifest.pq.write_table", full)
    with pytest.raises(DiffATRError, match="full"):
        write_manifest(tmp_path, RECORDS[:1], {})
    assert read_manifest(tmp_path)[0] == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_the_fingerprint_of_a_set_built_by_hand_works() -> None:
    clip = Clip("a", "train", "train/a.wav", 1.0, ("a",))
    one, other = (Dataset("x", Path("x"), (some,), {}) for some in (clip, replace(clip, seconds=2.0)))
    assert one.fingerprint != other.fingerprint
