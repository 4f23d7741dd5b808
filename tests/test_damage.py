"""Damage on the disk: whatever bit is flipped in what `prepare` and training wrote, it is noticed, and mended where it can be."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audio_files import sine, table, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.core.logmel import N_MELS
from diffatr_cli.data import earlier, logmels, manifest, write_wav
from diffatr_cli.data.clotho import prepare_clotho
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.logmels import cached_logmels
from diffatr_cli.data.manifest import MANIFEST, Record, load_dataset, read_manifest, write_manifest
from diffatr_cli.data.prepare import claim
from diffatr_cli.errors import DiffATRError

RECORDS = [
    Record(
        f"train/{n}.wav",
        "train",
        (f"caption {n}", "é 🐕"),
        f"train/{n}.wav",
        f"/x/{n}.wav",
        9 * n,
        n,
        32_000 + n,
        f"{n:032x}",
        "CC0",
    )
    for n in range(20)
] + [Record("val/x.wav", "val", ("gone",), "val/x.wav", skipped="missing")]


def flipped(content: bytes, byte: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def flip_and_read(root: Path, whole: bytes, flips: Iterator[tuple[int, int]]) -> int:
    """Read the manifest after each flip; how many were noticed. Nothing but an error or the same content may come of one."""
    expected, noticed = read_manifest(root), 0
    for byte, bit in flips:
        (root / MANIFEST).write_bytes(flipped(whole, byte, bit))
        try:
            assert read_manifest(root) == expected, (byte, bit)
        except DiffATRError:
            noticed += 1
    return noticed


def test_a_flipped_bit_in_the_manifest_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    write_manifest(tmp_path, RECORDS, {"kind": "folder"})
    whole = (tmp_path / MANIFEST).read_bytes()
    drawn = random.Random(0)
    flips = ((drawn.randrange(len(whole)), drawn.randrange(8)) for _ in range(300))
    assert flip_and_read(tmp_path, whole, flips) > 200


@pytest.mark.slow
def test_a_flipped_bit_in_any_byte_of_the_manifest_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    write_manifest(tmp_path, RECORDS, {"kind": "folder"})
    whole, drawn = (tmp_path / MANIFEST).read_bytes(), random.Random(1)
    assert flip_and_read(tmp_path, whole, ((byte, drawn.randrange(8)) for byte in range(len(whole)))) > len(whole) // 2


def write_as_before(root: Path, records: list[Record], info: dict[str, str]) -> None:
    """A manifest as the last revision wrote it: without checksums and digest."""
    rows = [{name: getattr(record, name) for name in manifest._SCHEMA.names} for record in records]
    schema = manifest._SCHEMA.with_metadata({"diffatr": json.dumps(info)})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / MANIFEST)


def test_a_manifest_of_the_last_revision_is_read(tmp_path: Path) -> None:
    write_as_before(tmp_path / "set", RECORDS, {"kind": "folder", "audio_md5": "x"})
    assert read_manifest(tmp_path / "set") == (RECORDS, {"kind": "folder", "audio_md5": "x"})
    assert len(load_dataset(tmp_path, "set").clips) == 20


@pytest.mark.parametrize("change", [{"frames": 1}, {"captions": ("other",)}, {"md5": None}, {"clip_id": "other"}, None])
def test_a_manifest_that_says_something_else_than_was_written(tmp_path: Path, change: dict[str, object] | None) -> None:
    """Whole pages in their places, as no flip of a bit makes them: only the digest tells."""
    write_manifest(tmp_path, RECORDS, {"kind": "folder"})
    schema = pq.read_schema(tmp_path / MANIFEST)
    changed = [RECORDS[0]._replace(**change), *RECORDS[1:]] if change else RECORDS[1:]
    columns = {name: [getattr(record, name) for record in changed] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), tmp_path / MANIFEST, write_page_checksum=True)
    with pytest.raises(DiffATRError, match="not what was written"):
        read_manifest(tmp_path)


# --- prepared data sets ----------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder `in` of six sounds with a table, and what `prepare` makes of it."""
    rows = []
    for number in range(6):
        write(tmp_path / "in" / f"{number}.flac", sine(0.2 + 0.1 * number, 44_100, 500 + 100 * number), 44_100)
        rows.append([f"{number}.flac", f"tone {number}"])
    table(tmp_path / "in" / "captions.csv", "file,caption", rows)
    prepare_folder(tmp_path / "data" / "set", tmp_path / "in", workers=1)
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_header_is_the_one_that_is_written(tmp_path: Path) -> None:
    for frames in (0, 1, 32_000):
        write_wav.write_wav(tmp_path / "a.wav", np.arange(frames, dtype=np.int16))
        content = (tmp_path / "a.wav").read_bytes()
        assert earlier._header(frames) == content[: len(content) - 2 * frames]
        assert earlier.read_content(tmp_path / "a.wav") is not None
    assert struct.unpack_from("<I", earlier._header(2**40), 40)[0] < 2**32


@given(st.integers(0, 5), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_prepared_file_is_mended(prepared: Path, clip: int, place: float, bit: int) -> None:
    out = prepared / "data" / "set"
    whole = files(out)
    path = next(out.glob(f"*/{clip}.flac.wav"))
    status = path.stat()
    for byte in (int(place * status.st_size), int(place * 44)):  # anywhere, and in the header
        path.write_bytes(flipped(path.read_bytes(), byte, bit))
        report = prepare_folder(out, prepared / "in", workers=1)
        assert (report.kept, report.converted) == (5, 1)
        assert report.notes[0].startswith("1 clip found damaged is prepared again, such as ")
        assert files(out) == whole


def test_a_damaged_manifest_is_made_anew_from_the_files(prepared: Path) -> None:
    out = prepared / "data" / "set"
    whole = files(out)
    for content in (b"", b"nonsense", whole[MANIFEST][:-100], flipped(whole[MANIFEST], 60, 3)):
        (out / MANIFEST).write_bytes(content)
        with pytest.raises(DiffATRError, match=r"manifest\.parquet: damaged.*Prepare again; finished clips are kept"):
            load_dataset(prepared / "data", "set")
        report = prepare_folder(out, prepared / "in", workers=1)
        assert (report.kept, report.converted) == (6, 0)
        assert report.notes[0] == "manifest.parquet was damaged and is made anew; 6 clips are taken over as found"
        assert files(out) == whole


def test_of_a_damaged_manifest_only_whole_files_younger_than_their_source_are_kept(prepared: Path) -> None:
    out = prepared / "data" / "set"
    whole = files(out)
    (out / MANIFEST).write_bytes(b"")
    next(out.glob("*/1.flac.wav")).write_bytes(b"RIFF")
    next(out.glob("*/2.flac.wav")).unlink()
    (prepared / "in" / "3.flac").touch()
    report = prepare_folder(out, prepared / "in", workers=1)
    assert (report.kept, report.converted) == (3, 3)
    assert {name: content for name, content in files(out).items() if name != MANIFEST} == {
        name: content for name, content in whole.items() if name != MANIFEST
    }


def test_the_journal_tells_of_a_damaged_manifest_s_clips_too(prepared: Path) -> None:
    """What the journal knows is compared with its md5, damaged manifest or not."""
    out = prepared / "data" / "set"
    records, _ = read_manifest(out)
    with (out / earlier.JOURNAL).open("w") as journal:
        for record in records[:2]:
            earlier.append(journal, record)
    (out / MANIFEST).write_bytes(b"")
    path = out / records[0].path
    path.write_bytes(flipped(path.read_bytes(), 1000, 0))
    report = prepare_folder(out, prepared / "in", workers=1)
    assert (report.kept, report.converted) == (5, 1)
    assert report.notes[1] == f"1 clip found damaged is prepared again, such as {records[0].path}"
    assert not (out / earlier.JOURNAL).exists()


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_the_journal_costs_a_clip_at_most(prepared: Path, place: float, bit: int) -> None:
    out = prepared / "data" / "set"
    whole = files(out)
    records, _ = read_manifest(out)
    with (out / earlier.JOURNAL).open("w") as journal:
        for record in records:
            earlier.append(journal, record)
    content = (out / earlier.JOURNAL).read_bytes()
    (out / earlier.JOURNAL).write_bytes(flipped(content, int(place * len(content)), bit))
    (out / MANIFEST).unlink()
    report = prepare_folder(out, prepared / "in", workers=1)
    assert report.kept >= 4  # a newline that is damaged costs the clips on both sides of it
    assert files(out) == whole


@pytest.mark.parametrize(
    "line",
    [
        *("null", "[]", "{}", "7", "[" * 100_000),
        '{"clip_id": 1, "split": 2, "captions": 3, "path": 4, "source": 5, "source_size": 6, "source_mtime_ns": 7, "frames": 8, '
        '"md5": 9, "license": 10, "skipped": 11}',
    ],
)
def test_a_journal_of_nonsense_is_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / earlier.JOURNAL).write_text(line + "\n")
    assert earlier.Earlier(tmp_path)._records == {}


def test_another_kind_is_refused_only_while_the_manifest_tells_it(prepared: Path) -> None:
    out = prepared / "data" / "set"
    with pytest.raises(DiffATRError, match="prepare folder"), claim(out, "clotho"):
        pass
    (out / MANIFEST).write_bytes(b"damaged")
    with claim(out, "clotho") as found:
        assert found.damage


def test_clotho_whose_raw_files_are_deleted_needs_no_download_for_a_damaged_manifest(tmp_path: Path) -> None:
    out = tmp_path / "data" / "clotho"
    heading = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    rows = [[f"{n}.wav", *(f"caption {n} {k}" for k in range(5))] for n in range(3)]
    table(tmp_path / "in" / "clotho_captions_development.csv", heading, rows)
    for n in range(3):
        write(out / "raw" / "development" / f"{n}.wav", sine(0.3, 44_100, 500 + 100 * n), 44_100)
    assert prepare_clotho(out, tmp_path / "in", workers=1).clips == 3
    shutil.rmtree(out / "raw")
    clips = load_dataset(tmp_path / "data", "clotho").clips
    (out / MANIFEST).write_bytes(b"damaged")
    for kept in (3, 3):
        report = prepare_clotho(out, tmp_path / "in", workers=1)
        assert (report.clips, report.kept) == (3, kept)
        assert load_dataset(tmp_path / "data", "clotho").clips == clips


# --- cached log-mels -------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(prepared: Path) -> tuple[Path, Path]:
    """The cache of the training split: its values and its index."""
    cached_logmels(load_dataset(prepared / "data", "set"), "train", 640)
    (values,) = (prepared / "data" / "set" / ".cache").glob("*.i16")
    return values, values.with_suffix(".json")


@pytest.fixture
def whole_clips(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The clips whose log-mels are computed from now on."""
    made: list[Path] = []
    compute = logmels._content
    monkeypatch.setattr(logmels, "_content", lambda clip, log_mel: (made.append(clip), compute(clip, log_mel))[1])
    return made


def reopen(prepared: Path) -> np.ndarray:
    found = cached_logmels(load_dataset(prepared / "data", "set"), "train", 640)
    return np.concatenate([found.offsets.view(np.int64), found.values.ravel().astype(np.int64)])


def test_a_whole_cache_is_not_made_again(prepared: Path, cached: tuple[Path, Path], whole_clips: list[Path]) -> None:
    before = [path.read_bytes() for path in cached]
    reopen(prepared)
    assert whole_clips == []
    assert [path.read_bytes() for path in cached] == before


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_the_cache_is_mended(
    prepared: Path, cached: tuple[Path, Path], place: float, bit: int, in_index: bool
) -> None:
    expected, before = reopen(prepared), [path.read_bytes() for path in cached]
    content = before[in_index]
    cached[in_index].write_bytes(flipped(content, int(place * len(content)), bit))
    assert np.array_equal(reopen(prepared), expected)
    assert np.array_equal(reopen(prepared), expected)
    assert cached[0].read_bytes() == before[0]


def test_only_the_damaged_clips_of_a_cache_are_made_again(
    prepared: Path, cached: tuple[Path, Path], whole_clips: list[Path]
) -> None:
    expected, content = reopen(prepared), cached[0].read_bytes()
    offsets = json.loads(cached[1].read_text())[0]
    start, end = (2 * N_MELS * offset for offset in offsets[1:3])
    cached[0].write_bytes(content[:start] + bytes(end - start) + content[end:])
    assert np.array_equal(reopen(prepared), expected)
    assert len(whole_clips) == 1
    for damaged in (bytes(len(content)), content[:-1], b"", content + b"xx"):
        whole_clips.clear()
        cached[0].write_bytes(damaged)
        assert np.array_equal(reopen(prepared), expected)
        assert len(whole_clips) == len(offsets) - 1
    for damaged_index in (b"", b"[]", b"null", b"[0]", b"[[0, 1], [5]]", b"{" * 100_000, b"[[0], [], 0]"):
        cached[1].write_bytes(damaged_index)
        assert np.array_equal(reopen(prepared), expected)


def test_a_cache_of_the_last_revision_is_read_and_gets_its_checksums(
    prepared: Path, cached: tuple[Path, Path], whole_clips: list[Path]
) -> None:
    expected, index = reopen(prepared), cached[1].read_text()
    cached[1].write_text(json.dumps(json.loads(index)[0]))  # the offsets alone
    assert np.array_equal(reopen(prepared), expected)
    assert whole_clips == []
    assert cached[1].read_text() == index
