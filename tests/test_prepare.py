"""`prepare`: what becomes of caption files and recordings, good and bad, and of runs that are cut off."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
import wave
from pathlib import Path

import numpy as np
import pytest
from audio_files import bad_files, sine, table, tone, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.data import audio, prepare
from diffatr_cli.data.audiocaps import prepare_audiocaps
from diffatr_cli.data.clotho import prepare_clotho
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.manifest import load_dataset, read_manifest, read_piece
from diffatr_cli.data.plan import Item, Plan
from diffatr_cli.data.prepare import Report, claim
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.types import SAMPLE_RATE

SHARED = Path(__file__).parents[2] / "shared" / "data" / "captions"
CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption"


def hertz(path: Path) -> float:
    """The strongest frequency of a prepared file: which source it was made from."""
    samples = read_piece(path)
    return float(np.abs(np.fft.rfft(samples)).argmax() * 32_000 / len(samples))


def reasons(report: Report) -> dict[str, list[str]]:
    """what -> reasons"""
    found: dict[str, list[str]] = {}
    for skip in report.skipped:
        found.setdefault(Path(skip.what).name, []).append(skip.reason)
    return found


def five(name: str) -> list[str]:
    return [name, *(f"{name} caption {n}" for n in range(5))]


def make_clotho(root: Path) -> Path:
    """Two clips a split; one name in two splits, one that begins with a space; a licence table in Latin-1."""
    names = {"development": [" Café.wav", "same.wav"], "validation": ["v.wav", "w.wav"], "evaluation": ["same.wav", "-e.wav"]}
    for number, (split, files) in enumerate(names.items()):
        table(root / f"clotho_captions_{split}.csv", CLOTHO, [five(name) for name in files], "\n" if number == 2 else "\r\n")
        for position, name in enumerate(files):
            write(root / split / name, sine(0.5, 44_100, 500 + 1000 * number + 200 * position), 44_100)
    rows = [[" Café.wav", "rain", "1", "x", "y", "z", "CC-BY é"]]
    heading = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    table(root / "clotho_metadata_development.csv", heading, rows, "\n", "latin-1")
    return root


def test_clotho_from_folders(tmp_path: Path) -> None:
    report = prepare_clotho(tmp_path / "data" / "clotho", make_clotho(tmp_path / "given"))
    assert not report.skipped
    assert {split: (c.clips, c.captions, c.official) for split, c in report.splits.items()} == {
        "train": (2, 10, (3839, 19_195)),
        "val": (2, 10, (1045, 5225)),
        "test": (2, 10, (1045, 5225)),
    }
    assert report.splits["train"].hours == pytest.approx(1 / 3600)
    data = load_dataset(tmp_path / "data", "clotho")
    found = {clip.clip_id: hertz(data.root / clip.path) for clip in data.clips}
    assert found == {
        "train/ Café.wav": 500,
        "train/same.wav": 700,
        "val/v.wav": 1500,
        "val/w.wav": 1700,
        "test/same.wav": 2500,
        "test/-e.wav": 2700,
    }
    assert data.clips[0].captions == tuple(f"Café.wav caption {n}" for n in range(5))
    assert [record.license for record in read_manifest(data.root)[0]][:2] == ["CC-BY é", None]


def test_audiocaps_in_its_three_namings(tmp_path: Path) -> None:
    given = tmp_path / "given"
    train = [["1", "-abc", "30", "a dog"], ["2", "xyz", "0", "a cat"], ["3", "Qq_1", "10", "a cow"], ["4", "gone", "5", "nobody"]]
    table(given / "audiocaps_train.csv", AUDIOCAPS, train, "\r\n")
    # Two writers of one clip may agree to the letter: only a row with a known id is a duplicate.
    test = [["7", "tt", "1", "rain"], ["8", "tt", "1", "rain"], ["9", "tt", "1", "wind"], ["9", "tt", "1", "wind"]]
    table(given / "test.csv", AUDIOCAPS, test)
    tone(given / "deep" / "down" / "-abc_30.flac", 500)
    tone(tmp_path / "elsewhere" / "Yxyz.wav", 700)
    tone(tmp_path / "elsewhere" / "3.ogg", 900)
    tone(given / "8.wav", 1100)
    report = prepare_audiocaps(tmp_path / "data" / "ac", given, tmp_path / "elsewhere")
    data = load_dataset(tmp_path / "data", "ac")
    assert {clip.clip_id: hertz(data.root / clip.path) for clip in data.clips} == {
        "train/-abc_30": 500,
        "train/xyz_0": 700,
        "train/Qq_1_10": 900,
        "test/tt_1": 1100,
    }
    assert data.split("test")[0].captions == ("rain", "rain", "wind")
    assert reasons(report) == {"gone_5": ["missing"], "test.csv:5": ["duplicate row"]}
    assert (report.splits["train"].listed, report.splits["train"].clips) == (4, 3)
    assert any("no val.csv" in note for note in report.notes)


def test_a_clip_of_the_split_s_own_folder_comes_first(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        table(tmp_path / f"{split}.csv", AUDIOCAPS, [[str(number), "same", "0", split]])
        tone(tmp_path / split / "Ysame.wav", 500 + 500 * number)
    prepare_audiocaps(tmp_path / "data" / "ac", tmp_path)
    data = load_dataset(tmp_path / "data", "ac")
    assert [hertz(data.root / clip.path) for clip in data.clips] == [500, 1000]


@pytest.mark.skipif(not SHARED.exists(), reason="the real caption files are not here")
def test_the_real_caption_files_without_audio(tmp_path: Path) -> None:
    clotho = prepare_clotho(tmp_path / "clotho", SHARED)
    audiocaps = prepare_audiocaps(tmp_path / "audiocaps", SHARED)
    for report, counts in ((clotho, (3839, 1045, 1045)), (audiocaps, (49_838, 495, 975))):
        assert tuple(split.listed for split in report.splits.values()) == counts
        assert [*report.reasons().values()] == [{"missing": count} for count in counts]
        assert (report.clips, len(report.notes)) == (0, 1)
        assert report.notes[0].endswith("and there is no sound file at all")
    captions = Plan()
    from diffatr_cli.data.audiocaps import _read_split, _Sounds

    for split in ("val", "test"):
        _read_split(SHARED / f"audiocaps_{split}.csv", split, _Sounds([]), captions)
    assert sum(len(item.captions) for item in captions.items) == 2475 + 4875


def test_bad_files_are_left_out_and_cost_nothing_else(tmp_path: Path) -> None:
    bad = bad_files(tmp_path / "given")
    good = [" a.wav", "-b.wav", 'it\'s "c".wav', "🐕.wav", "a.flac", "d/e.wav", "d.wav", "8ch.wav", "192k.wav", "8k.wav"]
    for name in good[:7]:
        tone(tmp_path / "given" / name)
    write(tmp_path / "given" / "8ch.wav", np.tile(sine(0.5, 44_100)[:, None], 8), 44_100)
    tone(tmp_path / "given" / "192k.wav", rate=192_000)
    tone(tmp_path / "given" / "8k.wav", rate=8000)
    rows = [[name, f"about {name}", "train"] for name in (*bad, *good)]
    table(tmp_path / "given" / "captions.csv", "file,caption,split", rows)
    report = prepare_folder(tmp_path / "data" / "set", tmp_path / "given")
    data = load_dataset(tmp_path / "data", "set")
    assert [clip.captions for clip in data.clips] == [(f"about {name}",) for name in good]
    assert {clip.clip_id for clip in data.clips} == {f"train/{name}" for name in good}
    assert all(hertz(data.root / clip.path) == 1000 and clip.seconds == 0.5 for clip in data.clips)
    assert len({clip.path for clip in data.clips}) == len(good)
    found = reasons(report)
    assert found.keys() == bad.keys()
    assert all(found[name][0].startswith(reason) for name, reason in bad.items())
    records = {record.clip_id: record for record in read_manifest(data.root)[0]}
    assert records["train/silent.wav"].skipped == "silent"


def test_bad_rows_are_left_out_by_file_and_line(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "é.wav"):
        tone(tmp_path / name)
    text = b"\xef\xbb\xbffile_name , caption_1,caption_2,split\r\na.wav,one,,train\r\na.wav,one,,train\r\nb.wav,,  ,\r\n"
    text += b"\xe9.wav,caf\xe9,two,test\r\nb.wav,short\r\n,no name,,\r\n\r\n"
    text += b"b.wav,three,,weekend\r\na.wav,four,,test\r\nb.wav,five,,val\r\n"
    (tmp_path / "c.csv").write_bytes(text)
    report = prepare_folder(tmp_path / "data" / "set", tmp_path)
    assert {clip.clip_id: clip.captions for clip in load_dataset(tmp_path / "data", "set").clips} == {
        "train/a.wav": ("one",),
        "test/é.wav": ("café", "two"),
        "val/b.wav": ("five",),
    }
    assert reasons(report) == {
        "c.csv:3": ["duplicate row"],
        "c.csv:4": ["empty caption"],
        "c.csv:6": ["2 cells where the heading has 4"],
        "c.csv:7": ["no file name"],
        "c.csv:9": ["unknown split 'weekend'"],
        "c.csv:10": ["the file is already in train"],
    }
    assert report.notes == [
        "c.csv:5: not UTF-8, read as Latin-1 (Windows-1252)",
        "2 clips sound exactly like one of another split, such as train/a.wav and test/é.wav",
    ]


@pytest.mark.parametrize(
    ("maker", "heading", "named"),
    [
        (prepare_clotho, "file_name,text", "'caption_1'"),
        (prepare_audiocaps, "youtube_id,caption", "'start_time'"),
        (prepare_folder, "caption,split", "file, file_name, path or audio"),
        (prepare_folder, "file,words", "caption, captions, caption_1 or text"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, maker: object, heading: str, named: str) -> None:
    name = {prepare_clotho: "clotho_captions_validation.csv", prepare_audiocaps: "val.csv"}.get(maker, "x.csv")  # type: ignore[call-overload]
    table(tmp_path / name, heading, [["x"] * len(heading.split(","))])
    with pytest.raises(DiffATRError) as caught:
        maker(tmp_path / "data" / "set", tmp_path)  # type: ignore[operator]
    assert named in str(caught.value)
    assert f"{name}:1" in str(caught.value)
    assert heading in str(caught.value)


def test_more_bad_rows(tmp_path: Path) -> None:
    rows = [["1", "", "0", "no id"], ["2", "x", "soon", "no number"], ["3", "x", "0", "  "], ["4", "y", "0.0", 'a "line\nbreak"']]
    table(tmp_path / "train.csv", AUDIOCAPS, rows)
    tone(tmp_path / "y_0.wav")
    report = prepare_audiocaps(tmp_path / "data" / "set", tmp_path)
    assert reasons(report) == {
        "train.csv:2": ["no youtube_id"],
        "train.csv:3": ["start_time is not a number"],
        "train.csv:4": ["empty caption"],
    }
    assert report.notes[0] == "train.csv:5: this row goes on over 2 lines; is a quote missing?"
    rows = [five("a.wav"), five("a.wav"), ["b.wav", "b", "", "", "", ""], five("")]
    table(tmp_path / "c" / "clotho_captions_development.csv", CLOTHO, rows)
    tone(tmp_path / "c" / "development" / "a.wav")
    tone(tmp_path / "c" / "clotho_audio_development" / "b.wav")
    report = prepare_clotho(tmp_path / "data" / "c", tmp_path / "c")
    assert reasons(report) == {
        "clotho_captions_development.csv:3": ["duplicate row"],
        "clotho_captions_development.csv:4": ["empty caption"] * 4,
        "clotho_captions_development.csv:5": ["no file_name"],
    }
    assert [clip.captions[0] for clip in load_dataset(tmp_path / "data", "c").clips] == ["a.wav caption 0", "b"]


def test_jsonl_and_a_choice_of_caption_files(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.wav"):
        tone(tmp_path / name)
    lines = [
        '{"audio": "a.wav", "captions": ["one", "two", ""], "split": "valid"}',
        '{"audio": "sub/b.wav", "caption": "three", "split": null}',
        "{broken",
        '["a.wav"]',
        '{"audio": 7, "caption": "x"}',
        '{"caption": "x"}',
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    report = prepare_folder(tmp_path / "data" / "set", tmp_path)
    clips = load_dataset(tmp_path / "data", "set").clips
    assert {clip.path.split("/", 1)[1]: (clip.split == "val", clip.captions) for clip in clips}["a.wav"] == (True, ("one", "two"))
    assert "sub/b.wav" in clips[1].path
    assert [skip.what for skip in report.skipped] == ["c.jsonl:3", "c.jsonl:4", "c.jsonl:5", "c.jsonl:6"]
    table(tmp_path / "d.csv", "path,captions", [["a.wav", '["x", "y"]'], ["sub/b.wav", "[a bracket"]])
    with pytest.raises(UsageError, match=r"c\.jsonl, d\.csv.*--captions"):
        prepare_folder(tmp_path / "data" / "set", tmp_path)
    prepare_folder(tmp_path / "data" / "set", tmp_path, tmp_path / "d.csv")
    assert {clip.captions for clip in load_dataset(tmp_path / "data", "set").clips} == {("x", "y"), ("[a bracket",)}
    (tmp_path / "none").mkdir()
    with pytest.raises(DiffATRError, match="--captions"):
        prepare_folder(tmp_path / "data" / "other", tmp_path / "none")


def test_files_without_a_split_are_dealt_out_for_good() -> None:
    from diffatr_cli.data.folder import deal

    files = [f"{number}.wav" for number in range(1000)]
    dealt = deal(files)
    shares = [list(dealt.values()).count(split) for split in ("train", "val", "test")]
    assert abs(shares[0] - 800) < 50
    assert abs(shares[1] - 100) < 40
    assert abs(shares[2] - 100) < 40
    assert all(deal(files[:500])[file] == dealt[file] for file in files[:500])
    assert all(set(deal(files[start : start + 3]).values()) == {"train", "val", "test"} for start in range(0, 60, 3))
    assert set(deal(["a"]).values()) == {deal(["a"])["a"]}
    # As a share of all 64-bit numbers, the first eight bytes of a hash say it.
    position = {file: int(hashlib.sha256(file.encode()).hexdigest()[:16], 16) / 2**64 for file in files}
    assert dealt == {file: "train" if at < 0.8 else "val" if at < 0.9 else "test" for file, at in position.items()}


def test_prepared_names_stay_inside_and_apart() -> None:
    names = [
        "../../etc/x.wav",
        "/abs/x.wav",
        "A.wav",
        "a.WAV",
        "a.wav",
        "a",
        "n" * 300,
        "m/../n.flac",
        "..",
        ".",
        "/",
        "",
        "d/" * 900,
    ]
    paths = prepare._paths([Item(str(n), "train", (), name, None) for n, name in enumerate(names)])
    assert paths[:2] == ["train/etc/x.wav", "train/abs/x.wav"]
    assert len({path.casefold() for path in paths}) == len(names)
    assert all(path.startswith("train/") and ".." not in path and path.endswith(".wav") for path in paths)
    assert all(len(part) < 255 - 20 for path in paths for part in path.split("/"))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def big_folder(root: Path, count: int = 60) -> Path:
    rows = []
    for number in range(count):
        write(root / f"{number}.flac", sine(0.3, 44_100, 300 + 10 * number), 44_100)
        rows.append([f"{number}.flac", f"tone {number}"])
    (root / "bad.flac").write_text("bad")
    table(root / "captions.csv", "file,caption", [*rows, ["bad.flac", "bad"]])
    return root


@pytest.mark.slow
def test_a_run_killed_anywhere_is_completed_to_the_same_files(tmp_path: Path) -> None:
    given = big_folder(tmp_path / "given")
    prepare_folder(tmp_path / "whole" / "set", given, workers=1)
    whole = snapshot(tmp_path / "whole" / "set")
    code = "import sys; from pathlib import Path; from diffatr_cli.data.folder import prepare_folder as p\n"
    code += "if __name__ == '__main__': p(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))"
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    kept = []
    for attempt, workers in enumerate(("1", "1", "2")):
        out = tmp_path / f"killed{attempt}" / "set"
        process = subprocess.Popen([sys.executable, script, out, given, workers], env=environment)
        wanted = random.Random(attempt).randrange(5, 40)
        while process.poll() is None and len(list(out.glob("*/*.wav"))) < wanted:
            time.sleep(0.002)
        process.kill()
        process.wait()
        (out / "train" / ".0.flac.wav.1.tmp").write_bytes(b"left by a kill between writing and renaming")
        with (out / "prepare.journal").open("a") as journal:
            journal.write('\n{"clip_id": "train/0.fl')  # cut off while writing
        finished = {path: path.stat().st_mtime_ns for path in out.glob("*/[!.]*.wav")}
        report = prepare_folder(out, given, workers=1)
        kept.append(report.kept)
        assert report.kept + report.converted == 60
        untouched = sum(path.stat().st_mtime_ns == before for path, before in finished.items())
        assert untouched == report.kept
        assert snapshot(out) == whole
    assert min(kept) > 0


def test_a_second_run_converts_only_what_changed(tmp_path: Path) -> None:
    given = big_folder(tmp_path / "given", 12)
    out = tmp_path / "data" / "set"
    first = prepare_folder(out, given)
    assert (first.converted, first.kept) == (12, 0)
    before = load_dataset(tmp_path / "data", "set").fingerprint
    assert (prepare_folder(out, given).converted, load_dataset(tmp_path / "data", "set").fingerprint) == (0, before)
    write(given / "3.flac", sine(0.4, 44_100, 5000), 44_100)
    damaged = next(out.glob("*/5.flac.wav"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    next(out.glob("*/7.flac.wav")).unlink()
    (given / "9.flac").unlink()
    report = prepare_folder(out, given)
    assert (report.converted, report.kept) == (3, 8)
    assert reasons(report)["9.flac"] == ["missing"]
    assert hertz(next(out.glob("*/3.flac.wav"))) == 5000
    table(given / "captions.csv", "file,caption", [["1.flac", "another caption"]])
    assert prepare_folder(out, given).kept == 1
    assert load_dataset(tmp_path / "data", "set").clips[0].captions == ("another caption",)


def test_a_missing_file_keeps_its_place_free(tmp_path: Path) -> None:
    """What is prepared before and after a missing file is kept when it comes, and so is what a manifest says of it."""
    names = ["first.wav", "A.wav", "a.wav", "sub/x.wav", "sub"]
    rows = [[name, f"about {name}", split] for name, split in zip(names, ("train", *["val"] * 4), strict=True)]
    for number, name in enumerate(("first.wav", "a.wav", "sub/x.wav")):
        tone(tmp_path / "in" / name, 500 + 100 * number)
    table(tmp_path / "table" / "c.csv", "file,caption,split", rows)
    out = tmp_path / "data" / "set"
    report = prepare_folder(out, tmp_path / "in", tmp_path / "table" / "c.csv", workers=1)
    before, _ = read_manifest(out)
    assert [record.clip_id for record in before] == [f"{'train' if n == 0 else 'val'}/{name}" for n, name in enumerate(names)]
    assert [record.skipped for record in before] == [None, "missing", None, None, "missing"]
    assert (report.splits["val"].listed, report.splits["val"].clips) == (4, 2)
    assert [(skip.split, skip.what, skip.reason) for skip in report.skipped] == [
        ("val", "val/A.wav", "missing"),
        ("val", "val/sub", "missing"),
    ]
    tone(tmp_path / "in" / "A.wav", 900)
    tone(tmp_path / "sub.wav", 1000).rename(tmp_path / "table" / "sub")
    report = prepare_folder(out, tmp_path / "in", tmp_path / "table" / "c.csv", workers=1)
    assert (report.converted, report.kept, report.skipped) == (2, 3, [])
    after, _ = read_manifest(out)
    assert [record.path for record in after] == [record.path for record in before]
    assert [hertz(out / record.path) for record in after] == [500, 900, 600, 700, 1000]


def test_a_mistaken_source_does_not_cost_the_manifest(tmp_path: Path) -> None:
    table(tmp_path / "given" / "c.csv", "file,caption", [["a.wav", "a"]])
    tone(tmp_path / "given" / "a.wav")
    prepare_folder(tmp_path / "data" / "set", tmp_path / "given")
    table(tmp_path / "wrong" / "c.csv", "file,caption", [["a.wav", "a"]])
    assert prepare_folder(tmp_path / "data" / "set", tmp_path / "wrong").clips == 0
    assert len(load_dataset(tmp_path / "data", "set").clips) == 1
    with pytest.raises(UsageError, match="prepare folder"), claim(tmp_path / "data" / "set", "clotho"):
        pass


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    with claim(tmp_path / "set", "folder"), pytest.raises(DiffATRError, match="another"), claim(tmp_path / "set", "folder"):
        pass
    with claim(tmp_path / "set", "folder"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffATRError, match="file"), claim(tmp_path / "file", "folder"):
        pass


def test_a_full_disk_is_one_error_and_the_finished_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = big_folder(tmp_path / "given", 12)
    out = tmp_path / "data" / "set"
    writer = wave.Wave_write.writeframes
    written: list[object] = []

    def full(self: object, frames: bytes) -> None:
        written.extend([] if self in written else [self])
        if len(written) > 7:
            raise OSError(28, "No space left on device")
        writer(self, frames)  # type: ignore[arg-type]

    monkeypatch.setattr(wave.Wave_write, "writeframes", full)
    with pytest.raises(DiffATRError, match="disk is full"):
        prepare_folder(out, given, workers=1)
    assert len(list(out.glob("*/*.wav"))) == 7
    assert not list(out.glob("*/.*"))
    monkeypatch.undo()
    report = prepare_folder(out, given, workers=1)
    assert (report.kept, report.converted) == (7, 5)


def only_on_one_thread(source: str) -> audio.Samples:
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise audio.AudioError(source, "products of matrices would take several threads")
    return sine(0.25, SAMPLE_RATE).astype(np.float32)


def test_workers_leave_the_cores_to_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = Plan([Item(f"train/{n}", "train", ("x",), str(n), str(n)) for n in range(40)])
    with claim(tmp_path / "set", "test") as earlier:
        report = prepare.prepare(tmp_path / "set", "test", plan, earlier, only_on_one_thread, workers=2)
    assert (report.clips, report.skipped) == (40, [])
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7"
    assert "OMP_NUM_THREADS" not in os.environ


def suicide(source: str) -> audio.Samples:
    if source == "17":
        os._exit(9)
    return np.full(8000, 0.1, np.float32) * np.arange(8000, dtype=np.float32) / 8000


def test_a_worker_that_dies_is_named_and_the_finished_stay(tmp_path: Path) -> None:
    plan = Plan([Item(f"train/{n}", "train", ("x",), str(n), str(n)) for n in range(40)])
    with (
        claim(tmp_path / "set", "test") as earlier,
        pytest.raises(DiffATRError, match=r"worker process died.* 17[,.].*--workers 1"),
    ):
        prepare.prepare(tmp_path / "set", "test", plan, earlier, suicide, workers=2)
    plan.items.pop(17)
    with claim(tmp_path / "set", "test") as earlier:
        report = prepare.prepare(tmp_path / "set", "test", plan, earlier, suicide, workers=1)
    assert report.clips == 39
    assert not (tmp_path / "set" / "prepare.journal").exists()


NAME_PARTS = st.sampled_from(
    ["x.wav", "X.WAV", "y", "y.wav", "é.wav", "e\u0301.wav", "..", ".", "", "n" * 120, "ö" * 120, "x.wav~2"]
)


@given(st.lists(st.lists(NAME_PARTS, min_size=1, max_size=4).map("/".join), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prepared_paths_can_all_be_made(tmp_path: Path, names: list[str]) -> None:
    """No two are one file where case or composition is ignored, none is a folder of another, and none leaves its split."""
    paths = prepare._paths([Item(str(n), "train", (), name, None) for n, name in enumerate(names)])
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    for path in paths:
        folded = root / unicodedata.normalize("NFC", path).casefold()
        folded.parent.mkdir(parents=True, exist_ok=True)
        assert folded.resolve().is_relative_to(root / "train")
        with folded.open("x"):
            pass
        assert all(len(part.encode()) < 255 - 20 for part in path.split("/"))


def test_a_file_and_a_folder_of_one_name_are_both_prepared(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "x.wav", 700)
    tone(tmp_path / "table" / "x.wav" / "y.ogg", 900)
    tone(tmp_path / "table" / "x.wav" / "z.ogg", 1100)
    rows = [["x.wav", "one", "train"], ["x.wav/y.ogg", "two", "train"], ["x.wav/z.ogg", "three", "train"]]
    for number, order in enumerate((rows, rows[::-1])):
        path = table(tmp_path / "table" / "c.csv", "file,caption,split", order)
        report = prepare_folder(tmp_path / "data" / f"set{number}", tmp_path / "in", path, workers=1)
        assert report.skipped == []
        clips = load_dataset(tmp_path / "data", f"set{number}").clips
        assert {clip.captions[0]: hertz(tmp_path / "data" / f"set{number}" / clip.path) for clip in clips} == {
            "one": 700,
            "two": 900,
            "three": 1100,
        }


def test_each_bad_name_costs_its_row(tmp_path: Path) -> None:
    names = ["..", ".", "/", "sub/..", "sub/", "n" * 300 + ".wav", "a" * 200 + "/" + "é" * 128, "\ud800.wav", "a\0.wav", " "]
    tone(tmp_path / "in" / "good.wav")
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "in" / "pipe.wav").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "in" / "pipe.wav")  # opening it would wait for ever
    lines = "".join(f'"{name}",a caption\r\n' for name in [*names, "sub", "pipe.wav", "good.wav"])
    (tmp_path / "in" / "c.csv").write_bytes(("\ufefffile,caption\r\n" + lines).encode("utf-16-le", "surrogatepass"))
    report = prepare_folder(tmp_path / "data" / "set", tmp_path / "in", workers=1)
    assert report.clips == 1
    found = {skip.what: skip.reason for skip in report.skipped}
    assert {Path(what).name for what, reason in found.items() if reason == "missing"} == {" ", "sub", "pipe.wav"}
    assert {what: reason for what, reason in found.items() if reason != "missing"} == {
        **{f"c.csv:{line}": "not the name of a file" for line in (2, 3, 4, 5, 6)},
        **{f"c.csv:{line}": "a name of more than 255 bytes, which no file has" for line in (7, 8)},
        "c.csv:9": "half a surrogate pair in it, which is no character",
        "c.csv:10": "a NUL character in it",
    }


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", AUDIOCAPS, [["1", "abc", "0", "a dog"]])
    strange = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(strange)
    except OSError:
        pytest.skip("this disk takes no such name")
    os.rename(tone(tmp_path / "abc.wav"), strange + b"/abc.wav")
    for kept in (0, 1):
        report = prepare_audiocaps(tmp_path / "data" / "ac", tmp_path, workers=1)
        assert (report.clips, report.kept) == (1, kept)
