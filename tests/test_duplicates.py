"""`diffatr duplicates`: what it lists of a folder, what it remembers, and how well it does on real recordings."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import bad_files, write
from command_line import typed
from fake_retriever import FakeRetriever
from test_fingerprint import effect

from diffatr_cli.cli import duplicates as module
from diffatr_cli.core.fingerprint import RATE
from diffatr_cli.corpus import fingerprints
from diffatr_cli.corpus.duplicates import find_duplicates
from diffatr_cli.corpus.fingerprints import read_fingerprints
from diffatr_cli.corpus.index import FolderIndex

EFFECTS = Path(__file__).parents[2] / "shared" / "data" / "effects"


def sound(seed: int, seconds: float = 4.0, rate: int = 32_000) -> np.ndarray:
    return np.asarray(soxr.resample(effect(seed, seconds), RATE, rate))


def folder(path: Path) -> Path:
    """A recording in several forms, two that are nothing like it, and silence."""
    samples = sound(1)
    write(path / "whole.wav", samples, 32_000)
    write(path / "quiet.flac", samples * 10 ** (-12 / 20), 32_000)
    write(path / "coded.ogg", samples, 32_000)
    write(path / "coded.mp3", samples, 32_000)
    write(path / "rate.wav", soxr.resample(samples, 32_000, 44_100), 44_100)
    write(path / "cut.wav", np.stack([samples[32_000:96_000]] * 2, 1), 32_000)
    (path / "below").mkdir()
    (path / "below" / "copy.wav").write_bytes((path / "whole.wav").read_bytes())
    write(path / "other.wav", sound(2), 32_000)
    write(path / "another.wav", sound(3), 32_000)
    write(path / "still.wav", np.zeros(32_000), 32_000)
    write(path / "still too.wav", np.zeros(64_000), 32_000)
    return path


def listed(*arguments: str | Path) -> dict:
    result = typed(["duplicates", *arguments, "--json"])
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_the_same_sound_is_listed_with_how_it_relates(tmp_path: Path) -> None:
    clips = folder(tmp_path / "clips")
    before = {path: path.read_bytes() for path in clips.rglob("*") if path.is_file()}
    document = listed(clips, "--same-only")
    (group,) = document["same"]
    files = {Path(each["path"]).name: each for each in group["files"]}
    first = group["files"][0]
    assert first["relation"] == "first"
    assert first["to"] is None
    assert set(files) == {"whole.wav", "copy.wav", "quiet.flac", "coded.ogg", "coded.mp3", "rate.wav", "cut.wav"}
    assert {name for name, each in files.items() if each["relation"] == "identical"} <= {"whole.wav", "copy.wav"}
    assert {files[name]["relation"] for name in ("coded.ogg", "coded.mp3", "quiet.flac")} <= {"same", "first"}
    assert files["cut.wav"]["relation"] == "cut"
    assert files["cut.wav"]["spans"] == [pytest.approx([1, 3], abs=0.05)]
    assert files["quiet.flac"]["level_db"] == pytest.approx(-12, abs=0.5)
    assert document["alike"] is None
    assert {Path(each).name for each in document["silent"]} == {"still.wav", "still too.wav"}
    assert document["files"] == document["read"] == 11
    assert {path: path.read_bytes() for path in before} == before
    table = typed(["duplicates", clips, "--same-only"])
    assert table.code == 0
    assert "cut from 00:01.0-00:03.0" in table.out
    assert "-12.0 dB" in table.out
    rows = list(csv.DictReader(io.StringIO(typed(["duplicates", clips, "--same-only", "--csv"]).out)))
    assert [(row["path"], row["relation"]) for row in rows] == [(each["path"], each["relation"]) for each in group["files"]]


def test_a_second_time_nothing_is_read_and_damage_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = folder(tmp_path / "clips")
    first = listed(clips, "--same-only")
    opened: list[Path] = []
    real = fingerprints.open_sound
    monkeypatch.setattr(fingerprints, "open_sound", lambda path, **options: opened.append(path) or real(path, **options))
    again = listed(clips, "--same-only")
    assert (opened, again.pop("read")) == ([], 0)
    assert again == {name: value for name, value in first.items() if name != "read"}
    (clips / "quiet.flac").rename(clips / "renamed.flac")  # known by content
    write(clips / "cut.wav", sound(9), 32_000)
    (changed,) = listed(clips, "--same-only")["same"]
    assert [path.name for path in opened] == ["cut.wav"]
    assert "cut.wav" not in {Path(each["path"]).name for each in changed["files"]}
    kept = clips / ".diffatr" / "fingerprints-v1.sqlite"
    with sqlite3.connect(kept) as database:  # a bit of one fingerprint
        of_one_file = "(SELECT hash FROM files GROUP BY hash HAVING COUNT(*) = 1)"
        (content, bits), *_ = database.execute(f"SELECT hash, bits FROM fingerprints WHERE hash IN {of_one_file}")
        database.execute("UPDATE fingerprints SET bits = ? WHERE hash = ?", (bytes([bits[0] ^ 1]) + bits[1:], content))
    opened.clear()
    assert listed(clips, "--same-only")["same"] == [changed]
    assert len(opened) == 1
    kept.write_bytes(b"\0" * kept.stat().st_size)
    opened.clear()
    assert listed(clips, "--same-only")["same"] == [changed]
    assert len(opened) in (10, 11)  # of eleven files two are equal, and may be read at the same time


def test_broken_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    clips = folder(tmp_path / "clips")
    bad = bad_files(clips / "bad")
    unreadable = {"empty.wav": "empty file", "mislabelled.wav": "not audio", "header only.wav": "no samples", "nan.wav": "NaN"}
    assert set(unreadable) <= set(bad)
    document = listed(clips, "--same-only")
    reasons = {Path(each["path"]).name: each["reason"] for each in document["skipped"]}
    assert set(reasons) == set(unreadable)
    assert all(reasons[name].startswith(why) for name, why in unreadable.items())
    assert [Path(each["path"]).name for each in document["partial"]] == ["truncated.wav"]
    assert listed(clips, "--same-only") == document | {"read": 0}
    told = typed(["duplicates", clips, "--same-only"]).err
    assert "skipped: 4" in told
    assert "nan.wav: NaN" in told


def test_what_sounds_alike_is_listed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = folder(tmp_path / "clips")
    samples = sound(2)
    write(clips / "faster.wav", soxr.resample(samples, 32_000, 32_000 / 1.05), 32_000)
    monkeypatch.setattr(module, "load_model", lambda *_: FakeRetriever())
    document = listed(clips, "--alike", "0.995")
    pairs = [{Path(each["path"]).name for each in group["files"]} for group in document["alike"]]
    assert any({"other.wav", "faster.wav"} <= pair for pair in pairs)
    group = next(group for group in document["alike"] if "faster" in str(group))
    assert group["files"][1]["cosine"] >= 0.995
    same = {Path(each["path"]).name for each in document["same"][0]["files"]}
    assert all(len(pair & same) <= 1 for pair in pairs)
    assert not (same & {"other.wav", "faster.wav"})


def test_a_folder_that_can_only_be_read_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a patch, because whoever may do everything is refused nothing."""
    clips = tmp_path / "clips"
    write(clips / "a.wav", sound(1), 32_000)
    make = Path.mkdir

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if path.is_relative_to(clips):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(module, "load_model", lambda *_: FakeRetriever())
    for options in (["--same-only"], []):
        result = typed(["duplicates", clips, *options])
        assert result.code == 1
        assert result.err.splitlines()[-1].endswith(
            f"{clips / '.diffatr'}: the index cannot be read and written there (Read-only file system). Name a place for it: "
            "--index DIR"
        )
    assert typed(["duplicates", clips, "--index", tmp_path / "index"]).code == 0


def test_below_an_indexed_folder_nothing_is_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, model = folder(tmp_path / "clips"), FakeRetriever()
    FolderIndex(tmp_path / "clips").update(model)
    monkeypatch.setattr(module, "load_model", lambda *_: model)
    before = model.embedded
    result = typed(["duplicates", clips / "below", "--json"])
    assert (result.code, json.loads(result.out)["files"], model.embedded) == (0, 1, before)
    assert [path.suffix for path in (clips / "below" / ".diffatr").iterdir()] == [".sqlite"]  # of fingerprints alone


def test_wrong_use_ends_with_two(tmp_path: Path) -> None:
    folder(tmp_path / "clips")
    clips = tmp_path / "clips"
    for arguments in (["nowhere"], [clips, "--json", "--csv"], [clips, "--same-only", "--alike", "0.9"], [clips, "--alike", "2"]):
        result = typed(["duplicates", *arguments])
        assert (result.code, result.out) == (2, "")
    (tmp_path / "empty").mkdir()
    assert typed(["duplicates", tmp_path / "empty", "--same-only"]).code == 1


@pytest.mark.slow
@pytest.mark.skipif(not EFFECTS.is_dir(), reason="the real recordings are not here")
def test_real_effects_are_found_in_all_forms_and_not_confused(tmp_path: Path) -> None:
    """Sixty effects of 0.5 s and more, in six forms each, among as many others: recall, and precision, of pairs of one source."""
    random.seed(5)
    paths = [path for path in sorted(EFFECTS.glob("*/*.ogg")) if soundfile.info(path).duration >= 0.5]
    chosen = random.sample(paths, 120)
    for number, path in enumerate(chosen):
        samples, rate = soundfile.read(path)
        place = tmp_path / f"{number:03d}"
        write(place / "whole.wav", samples, rate)
        if number < 60:
            write(place / "coded.mp3", samples, rate)
            write(place / "coded.ogg", samples, rate)
            write(place / "quiet.flac", samples * 10**-1.5, rate)
            write(place / "slow.wav", soxr.resample(samples, rate, 16_000), 16_000)
            write(place / "around.wav", np.pad(samples, rate), rate)
            if len(samples) > 3 * rate:
                write(place / "cut.wav", samples[rate // 2 : rate // 2 + 2 * rate], rate)
    found = find_duplicates(read_fingerprints(FolderIndex(tmp_path))).same
    owner = [{Path(member.path).parts[0] for member in group} for group in found]
    mixed = [sorted(chosen[int(each)].parent.name for each in owners) for owners in owner if len(owners) > 1]
    names_of = [path.name for path in tmp_path.glob("*/*.*")]
    expected = len(names_of) - names_of.count("whole.wav")
    got = 0
    for group in found:
        names = {tuple(Path(member.path).parts) for member in group}
        got += sum(name[1] != "whole.wav" and (name[0], "whole.wav") in names for name in names)
    print(f"recall {got / expected:.3f} of {expected}; groups {len(found)}, of several sources {mixed}")
    assert got >= 0.97 * expected
    assert len(mixed) <= 1
