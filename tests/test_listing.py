"""One file is one clip, however a table spells it, and where nothing is found it is plain why."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from audio_files import table, tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.data import listing
from diffatr_cli.data.audiocaps import prepare_audiocaps
from diffatr_cli.data.clotho import prepare_clotho
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.listing import Listing, file_stem, plain_name
from diffatr_cli.data.manifest import load_dataset, read_manifest
from diffatr_cli.data.prepare import Report

COMPOSED, APART = unicodedata.normalize("NFC", "Caf\u00e9.wav"), unicodedata.normalize("NFD", "Caf\u00e9.wav")


def prepared(root: Path, rows: list[list[str]], heading: str = "file,caption") -> tuple[Report, dict[str, tuple[str, ...]]]:
    """Prepare the sounds below `root`/in by a table of rows; the report, and the captions of each clip."""
    table(root / "in" / "captions.csv", heading, rows)
    report = prepare_folder(root / "data" / "set", root / "in", workers=1)
    if not report.clips:
        return report, {}
    return report, {clip.clip_id.split("/", 1)[1]: clip.captions for clip in load_dataset(root / "data", "set").clips}


def test_all_spellings_of_a_file_are_one_clip(tmp_path: Path) -> None:
    given_ = tmp_path / "in"
    tone(given_ / "sub" / "dog.wav")
    tone(given_ / APART, 700)
    tone(given_ / "other.wav", 900)
    (given_ / "soft.wav").symlink_to("sub/dog.wav")
    os.link(given_ / "sub" / "dog.wav", given_ / "hard.wav")
    (given_ / "folder").symlink_to("sub")
    spellings = ["sub/dog.wav", "./sub/dog.wav", "sub//dog.wav", "folder/dog.wav", "sub/../sub/./dog.wav", "sub\\dog.wav"]
    spellings += ["soft.wav", "hard.wav", "folder/../sub/dog.wav", str(given_ / "sub" / "dog.wav"), "..\\in\\sub\\dog.wav"]
    rows = [[name, f"caption {n}"] for n, name in enumerate(spellings)]
    rows += [[COMPOSED, "one"], [APART, "two"], ["other.wav", "three"], ["gone.wav", "four"], ["./gone.wav", "five"]]
    report, clips = prepared(tmp_path, rows)
    assert clips == {
        "sub/dog.wav": tuple(f"caption {n}" for n in range(len(spellings))),
        COMPOSED: ("one", "two"),
        "other.wav": ("three",),
    }
    assert [(Path(skip.what).name, skip.reason) for skip in report.skipped] == [("gone.wav", "missing")]
    assert report.notes == [
        "captions.csv:3: ./sub/dog.wav is the file sub/dog.wav, and 11 more rows like this: their captions are joined"
    ]


def test_the_system_s_own_meaning_of_a_folder_above(tmp_path: Path) -> None:
    """`link/..` lies above what the link points at, not above the link."""
    tone(tmp_path / "elsewhere" / "dog.wav", 700)
    tone(tmp_path / "in" / "dog.wav", 900)
    (tmp_path / "elsewhere" / "deep").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    names = {"link/../dog.wav": "elsewhere", "dog.wav": "in", "../elsewhere/dog.wav": "elsewhere", "../in/./dog.wav": "in"}
    found = {name: Listing().find([str(tmp_path / "in")], name) for name in names}
    for name, folder in names.items():
        one = found[name]
        assert one is not None
        assert os.path.samefile(one.path, tmp_path / folder / "dog.wav")
    assert len({one.key for one in found.values() if one}) == 2


PARTS = st.lists(st.sampled_from(["a", "b", "..", ".", "", "link", "x.wav", "y.wav"]), min_size=1, max_size=6)


@given(PARTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_found_is_what_the_system_finds(tmp_path: Path, parts: list[str]) -> None:
    base = tmp_path / "a" / "base"
    if not base.exists():
        for path in (base / "a" / "b", base / "b", tmp_path / "a"):
            path.mkdir(parents=True, exist_ok=True)
            (path / "x.wav").write_bytes(b"")
        (base / "link").symlink_to("a/b")
        (base / "a" / "y.wav").symlink_to("../b/x.wav")
        (base / "b" / "y.wav").symlink_to("nowhere")
    name = "/".join(parts).lstrip("/")
    found = Listing().find([str(base)], name)
    there = base / name if name else base
    assert (found is not None) == (os.path.isfile(there) and parts[-1] not in ("", ".", ".."))
    if found:
        assert os.path.samefile(found.path, there)
        assert os.path.realpath(there) == found.key


def test_where_case_means_nothing_two_cases_are_one_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone(tmp_path / "in" / "Sub" / "Dog.wav")
    rows = [["sub/dog.WAV", "one"], ["Sub/Dog.wav", "two"]]
    assert prepared(tmp_path, rows)[1] == {"Sub/Dog.wav": ("two",)}  # this disk tells them apart
    monkeypatch.setattr(listing, "_same", lambda one, other: one.lower() == other.lower())
    assert prepared(tmp_path, rows)[1] == {"Sub/Dog.wav": ("one", "two")}


def test_two_files_whose_names_look_alike_stay_two(tmp_path: Path) -> None:
    tone(tmp_path / "in" / COMPOSED, 700)
    try:
        tone(tmp_path / "in" / APART, 900)
    except OSError:
        pytest.skip("this disk takes no such name")
    if len(list((tmp_path / "in").iterdir())) < 2:
        pytest.skip("this disk takes both for one name")
    _, clips = prepared(tmp_path, [[COMPOSED, "one"], [APART, "two"]])
    assert clips == {COMPOSED: ("one",), f"{COMPOSED}~2": ("two",)}
    assert len({record.path for record in read_manifest(tmp_path / "data" / "set")[0]}) == 2


def test_conflicting_splits_are_skipped_and_the_first_stays(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav")
    rows = [["a.wav", "one", ""], ["./a.wav", "two", "test"], ["a.wav", "three", "train"], ["x/../a.wav", "four", ""]]
    (tmp_path / "in" / "x").mkdir()
    report, clips = prepared(tmp_path, rows, "file,caption,split")
    assert clips == {"a.wav": ("one", "two", "four")}
    assert [(skip.what, skip.reason) for skip in report.skipped] == [("captions.csv:4", "the file is already in test")]
    assert load_dataset(tmp_path / "data", "set").clips[0].split == "test"


@pytest.mark.parametrize("number", ["2219", 2219])
def test_wavcaps_files_are_found_by_their_id_wherever_they_are(tmp_path: Path, number: str | int) -> None:
    tone(tmp_path / "in" / "SoundBible_flac" / "2219.flac")
    tone(tmp_path / "in" / "AudioSet_SL" / "Yb0RFKhbpFJA.flac", 700)
    tone(tmp_path / "in" / "own" / "7.wav", 900)
    rows = [
        {"caption": "An airplane.", "id": number, "audio": "wav_path", "download_link": "x", "file_name": "Airplane.wav"},
        {"caption": "Wind.", "id": "Yb0RFKhbpFJA.wav", "audio": "wav_path", "duration": 10.0},
        {"caption": "A dog.", "id": "gone", "audio": "wav_path", "duration": 10.0},
        {"caption": "Rain.", "id": 7, "file": "rain.wav"},  # an id that numbers rows is no name
    ]
    (tmp_path / "in" / "sb_final.json").write_text(json.dumps({"num_captions_per_audio": 1, "data": rows}))
    report = prepare_folder(tmp_path / "data" / "set", tmp_path / "in", workers=1)
    clips = load_dataset(tmp_path / "data", "set").clips
    assert {clip.captions[0]: clip.clip_id.split("/", 1)[1] for clip in clips} == {
        "An airplane.": "SoundBible_flac/2219.flac",
        "Wind.": "AudioSet_SL/Yb0RFKhbpFJA.flac",
    }
    assert sorted(skip.what.split("/", 1)[1] for skip in report.skipped) == ["gone", "rain.wav"]


AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption"
NAMINGS = [
    *("{id}_30", "{id}", "Y{id}", "Y{id}_30", "{id}_30_40", "Y{id}_30_40", "{id}_30000_40000", "Y{id}_30000_40000"),
    *("{id}_30000", "{id}_030_040", "{id}_000030", "Y{id}_000030_000040", "{id}_30.0_40.0", "{id}_30.000_40.000", "{id}_30-40"),
    *("{id}_0030000_0040000", "123"),
]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("youtube", ["r1nicOVtvkQ", "-a_1_2_3_30", "Ya_10_20_Y_", "__________0"])
def test_audiocaps_clips_in_all_usual_namings(tmp_path: Path, naming: str, youtube: str) -> None:
    table(tmp_path / "train.csv", AUDIOCAPS, [["123", youtube, "30", "a dog"]])
    tone(tmp_path / "clips" / f"{naming.format(id=youtube)}.wav")
    report = prepare_audiocaps(tmp_path / "data" / "ac", tmp_path, workers=1)
    assert (report.clips, report.skipped) == (1, [])


@pytest.mark.parametrize(
    "naming", ["{id}_3", "{id}_300", "{id}_3_13", "X{id}", "{id}_30_4000", "{id}_30000_40", "{id}x", "30", "{id}_"]
)
def test_audiocaps_clips_of_other_times_are_not_taken(tmp_path: Path, naming: str) -> None:
    table(tmp_path / "train.csv", AUDIOCAPS, [["123", "r1nicOVtvkQ", "30", "a dog"]])
    tone(tmp_path / f"{naming.format(id='r1nicOVtvkQ')}.wav")
    report = prepare_audiocaps(tmp_path / "data" / "ac", tmp_path, workers=1)
    assert report.clips == 0
    assert report.notes[0] == (
        "not one of the files was found: the table names the clip r1nicOVtvkQ_30, while there is "
        f"{naming.format(id='r1nicOVtvkQ')}.wav"
    )


def test_two_clips_of_one_video_need_their_times(tmp_path: Path) -> None:
    rows = [["1", "same", "0", "one"], ["2", "same", "10", "two"], ["3", "single", "5", "three"]]
    table(tmp_path / "train.csv", AUDIOCAPS, rows)
    for name in ("same.wav", "Ysame_10_20.wav", "single.wav"):
        tone(tmp_path / name)
    report = prepare_audiocaps(tmp_path / "data" / "ac", tmp_path, workers=1)
    clips = load_dataset(tmp_path / "data", "ac").clips
    assert {clip.clip_id for clip in clips} == {"train/same_10", "train/single_5"}
    assert [skip.what for skip in report.skipped] == ["train/same_0"]


def test_where_nothing_matches_one_name_is_shown_beside_one_sought(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "wavs" / "0001.wav")
    report, _ = prepared(tmp_path, [["dog.wav", "a dog"]])
    assert report.notes == ["not one of the files was found: the table names dog.wav, while there is wavs/0001.wav"]
    clotho = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    table(tmp_path / "c" / "clotho_captions_development.csv", clotho, [["rain.wav", *"abcde"]])
    tone(tmp_path / "c" / "development" / "1_rain.wav")
    report = prepare_clotho(tmp_path / "data" / "c", tmp_path / "c", workers=1)
    assert report.notes[0] == "not one of the files was found: the table names rain.wav, while there is 1_rain.wav"


def test_names_and_stems() -> None:
    assert [plain_name(name) for name in ("..", ".", "/", "", "sub/..", "sub/", "a/./b//c.wav", "a\\..\\b.wav")] == [
        *(None, None, None, None, None, None),
        *("a/b/c.wav", "b.wav"),
    ]
    assert [file_stem(name) for name in ("2219", "Yx.wav", "a.b", "C:\\x\\y.FLAC", "/x/y.mp3", "1.5")] == [
        *("2219", "Yx", "a.b", "y", "y", "1.5"),
    ]
