"""Sounds taken out of a corpus: parts as WAV, folders and ZIPs of copies, and lists by the rules of their formats."""

import csv
import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus.edit_lists import FRAME_RATES, Listed, edit_lists, playlist, table
from diffatr_cli.corpus.export import Piece, export_folder, lists_of, name_of, numbered
from diffatr_cli.corpus.export_zip import zip_of
from diffatr_cli.data.audio import AudioError
from diffatr_cli.data.cut import cut_wav
from diffatr_cli.errors import DiffATRError

NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, (3 * 44100, 2))


def make(path, kind="PCM_16", samples=NOISE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 44100, subtype=kind)
    return path


# a part as WAV


@pytest.mark.parametrize(
    ("name", "kind", "expected", "dtype"),
    [
        ("a.wav", "PCM_16", "PCM_16", "int16"),
        ("a.flac", "PCM_16", "PCM_16", "int16"),
        ("a.flac", "PCM_24", "PCM_24", "int32"),
        ("a.aiff", "PCM_24", "PCM_24", "int32"),
        ("a.wav", "PCM_U8", "PCM_16", "int16"),
        ("a.wav", "FLOAT", "FLOAT", "float32"),
        ("a.ogg", "VORBIS", "FLOAT", "float32"),
    ],
)
def test_a_part_has_every_bit_of_the_original(tmp_path, name, kind, expected, dtype):
    path = make(tmp_path / name, kind)
    part = io.BytesIO(cut_wav(path, 0.5, 2.25))
    info = soundfile.info(io.BytesIO(part.getvalue()))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", expected, 44100, 2)
    start, stop = 22050, 99225
    original, _ = soundfile.read(path, start=start, stop=stop, dtype=dtype)
    assert np.array_equal(soundfile.read(part, dtype=dtype)[0], original)
    assert cut_wav(path, 0.5, 2.25) == part.getvalue()


def test_a_part_louder_than_full_scale_is_not_clipped(tmp_path):
    path = make(tmp_path / "a.wav", "FLOAT", NOISE * 2)
    part, _ = soundfile.read(io.BytesIO(cut_wav(path, 0, 1)), dtype="float32")
    assert np.abs(part).max() > 1.7


def test_a_part_ends_where_the_file_does(tmp_path):
    path = make(tmp_path / "a.wav")
    assert soundfile.info(io.BytesIO(cut_wav(path, 2.5, 12.5))).frames == 22050
    for start, end in ((3.5, 4), (1, 1), (0, 4000)):
        with pytest.raises(AudioError):
            cut_wav(path, start, end)


# edit decision lists, read by a parser of the format's own rules

EVENT = re.compile(
    r"(\d{3})  ([A-Z0-9]{1,8}) {0,7} (AA) {4}(C) {8}((?:\d\d:\d\d:\d\d:\d\d ){3}\d\d:\d\d:\d\d:\d\d)", re.ASCII
)  # event, reel in 8 columns, track in 5, transition in 8, source in and out, record in and out


def frames_of(code, rate):
    hours, minutes, seconds, frames = map(int, code.split(":"))
    assert hours < 24
    assert minutes < 60
    assert seconds < 60
    assert frames < rate
    return ((hours * 60 + minutes) * 60 + seconds) * rate + frames


def parse(edl, rate):
    """(reel, source in, source out, comments) of each event, in frames; asserts what CMX 3600 asks for."""
    *lines, last = edl.decode().split("\r\n")
    assert last == ""
    assert not any("\n" in line or "\r" in line for line in lines)
    assert re.fullmatch(r"TITLE: [\x20-\x7e]{1,70}", lines[0])
    assert lines[1] == "FCM: NON-DROP FRAME"
    events, record = [], 3600 * rate
    for line in lines[2:]:
        if line.startswith("* "):
            if events:
                events[-1][3].append(line[2:])
            continue
        found = EVENT.fullmatch(line)
        assert found, line
        assert int(found[1]) == len(events) + 1
        assert found[2] not in ("AX", "BL")
        source_in, source_out, record_in, record_out = (frames_of(code, rate) for code in found[5].split())
        assert source_in < source_out
        assert record_in == record  # one behind the other
        assert record_out - record_in == source_out - source_in  # a cut at the same speed
        record = record_out
        events.append((found[2], source_in, source_out, []))
    assert len(events) <= 999
    return events


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.lists(st.tuples(NAMES, st.floats(0, 80_000), st.floats(0.001, 400)), max_size=20),
    st.text(max_size=90),
    st.sampled_from(FRAME_RATES),
)
def test_an_edl_keeps_the_rules_of_cmx_3600(parts, title, rate):
    listed = [Listed(name, Path("/clips", name), start, start + length) for name, start, length in parts]
    (edl,) = edit_lists(listed, title, rate)
    events = parse(edl, rate)
    assert len(events) == len(listed)
    reels = {}
    for (reel, source_in, source_out, comments), (name, start, length) in zip(events, parts, strict=True):
        assert abs(source_in / rate - start) <= 1 / rate + 1e-6
        assert abs((source_out - source_in) / rate - length) <= 1 / rate
        assert comments[0].startswith("FROM CLIP NAME: ")
        assert comments[1].startswith("SOURCE FILE: ")
        assert reels.setdefault(name, reel) == reel
    assert len(set(reels.values())) == len(reels)  # no two files have one reel


def test_an_edl_as_it_is_written():
    (edl,) = edit_lists([Listed("long.flac", Path("/clips/long.flac"), 30.5, 40.5, 0, "rain", 1, 0.5)], "Regen, Dächer")
    assert edl.decode() == (
        "TITLE: Regen, Dacher\r\nFCM: NON-DROP FRAME\r\n* FRAME RATE: 25\r\n"
        "001  LONG     AA    C        00:00:30:12 00:00:40:12 01:00:00:00 01:00:10:00\r\n"
        "* FROM CLIP NAME: long.flac\r\n* SOURCE FILE: /clips/long.flac\r\n"
    )


@pytest.mark.parametrize("start", [0.0, 30.5])
def test_the_timecode_of_a_cut_is_that_of_the_file_which_is_named(start):
    """Also where the part is the recording's beginning: it is the WAV that is meant, not the recording."""
    listed = Listed("long_00m30.5s.wav", Path("/clips/long.flac"), start, start + 10, start, cut=True)
    (edl,) = edit_lists([listed], "cut")
    assert edl.decode().split("\r\n")[3:] == [
        "001  LONG     AA    C        00:00:00:00 00:00:10:00 01:00:00:00 01:00:10:00",
        "* FROM CLIP NAME: long_00m30.5s.wav",
        "* SOURCE FILE: long_00m30.5s.wav",
        f"* CUT FROM: /clips/long.flac AT SECOND {start:.3f}",
        "",
    ]


@pytest.mark.parametrize("cut", [True, False])
def test_each_source_file_of_an_edl_holds_the_sound_at_its_timecode(tmp_path, cut):
    """What an editing program would take: read by the EDL alone, it is the part that was meant."""
    whole = make(tmp_path / "clips" / "a.wav")
    pieces = [Piece("a.wav", whole, 0.0, 1.0), Piece("a.wav", whole, 1.0, 2.0)]
    out = tmp_path / "out"
    export_folder(pieces, out, cut=cut, title="a")
    samples, rate = soundfile.read(whole)
    for piece, (_, source_in, source_out, comments) in zip(pieces, parse((out / "a.edl").read_bytes(), 25), strict=True):
        source = next(each.removeprefix("SOURCE FILE: ") for each in comments if each.startswith("SOURCE FILE: "))
        found, _ = soundfile.read(out / source, start=round(source_in / 25 * rate), stop=round(source_out / 25 * rate))
        np.testing.assert_array_equal(found, samples[round(piece.start * rate) : round(piece.end * rate)])
        assert any(each.startswith("CUT FROM: ") for each in comments) == cut


def test_what_one_edl_cannot_hold_is_in_the_next():
    many = [Listed(f"{i}.wav", Path(f"/{i}.wav"), 0, 10) for i in range(1500)]
    first, second = edit_lists(many, "many")
    assert [len(parse(each, 25)) for each in (first, second)] == [999, 501]
    long = [Listed(f"{i}.wav", Path(f"/{i}.wav"), 0, 6 * 3600) for i in range(5)]
    lists = edit_lists(long, "long")
    assert [len(parse(each, 25)) for each in lists] == [3, 2]  # 23 hours are left of a day
    assert {"many.edl", "many-2.edl"} <= lists_of(many, "many", 25).keys()


def test_what_has_no_timecode_is_a_comment():
    odd = [Listed("a.wav", Path("/a.wav"), 0, None), Listed("b.wav", Path("/b.wav"), 90_000, 90_010)]
    (edl,) = edit_lists(odd, "odd")
    assert parse(edl, 25) == []
    assert edl.decode().count("* WITHOUT TIMECODE: ") == 2


# the other lists


def test_a_playlist_that_players_read():
    listed = [
        Listed("rain.wav", Path("/clips/rain.wav"), 0, 10),
        Listed("/clips/long.flac", Path("/clips/long.flac"), 30, 40),
        Listed("#1 \u00e4.wav", Path("/clips/#1 \u00e4.wav"), 0, 10),
        Listed("/clips/a\nb.wav", Path("/clips/a\nb.wav"), 0, None),
    ]
    lines = playlist(listed).decode().splitlines()
    assert lines[0] == "#EXTM3U"
    assert [line for line in lines if not line.startswith("#")] == [
        "rain.wav",
        "/clips/long.flac",
        "./#1 \u00e4.wav",
        "file:///clips/a%0Ab.wav",
    ]
    assert lines[1] == "#EXTINF:10,rain.wav"
    assert lines[lines.index("/clips/long.flac") - 1] == "#EXTVLCOPT:start-time=30.000"


def test_a_table_says_where_each_came_from():
    listed = [Listed('a "b", c.wav', Path(os.fsdecode(b"/clips/\xff.wav")), 1.23456, 2, 0, "rain\nhail", 3, 0.1234567)]
    content = table(listed)
    assert b"/clips/\xff.wav" in content
    (row,) = csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape")))
    assert row["file"] == 'a "b", c.wav'
    assert (row["query"], row["rank"], row["score"], row["start"], row["end"]) == ("rain\nhail", "3", "0.123457", "1.235", "2")


# copies


@pytest.fixture
def clips(tmp_path):
    make(tmp_path / "clips" / "rain.wav")
    make(tmp_path / "clips" / "deep" / "rain.wav", samples=NOISE[::-1])
    make(tmp_path / "clips" / "deep" / "Rain.wav", samples=NOISE[:4410])
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF")
    return tmp_path / "clips"


def pieces(clips, *names, start=0.5, end=1.5):
    return [Piece(name, clips / name, start, end) for name in names]


ALL = ("rain.wav", "deep/rain.wav", "gone.wav", "deep/Rain.wav")


def test_a_folder_of_files(clips, tmp_path):
    out = tmp_path / "new" / "out"
    done = export_folder(pieces(clips, *ALL), out, cut=False, title="rain")
    assert [name for _, name in done.files] == ["rain.wav", "rain (2).wav", "Rain (3).wav"]
    for piece, name in done.files:
        assert (out / name).read_bytes() == piece.file.read_bytes()
        assert (out / name).stat().st_mtime == pytest.approx(piece.file.stat().st_mtime, abs=0.01)
    assert [(each.path, each.reason) for each in done.skipped] == [("gone.wav", "missing")]
    assert done.lists == ["rain.csv", "rain.m3u8", "rain.edl", "rain skipped.txt"]
    assert {path.name for path in out.iterdir()} == {name for _, name in done.files} | set(done.lists)
    assert [row["file"] for row in csv.DictReader((out / "rain.csv").open())] == [name for _, name in done.files]
    assert [each[1:3] for each in parse((out / "rain.edl").read_bytes(), 25)] == [(12, 37)] * 3


def test_a_folder_of_parts(clips, tmp_path):
    wanted = [*pieces(clips, "rain.wav", "broken.wav"), *pieces(clips, "rain.wav", start=1, end=2)]
    done = export_folder([*wanted, wanted[0]], tmp_path / "out", cut=True, title="rain")
    assert [name for _, name in done.files] == ["rain_00m00.5s.wav", "rain_00m01.0s.wav", "rain_00m00.5s.wav"]
    part, rate = soundfile.read(tmp_path / "out" / "rain_00m00.5s.wav", dtype="int16")
    assert rate == 44100
    assert np.array_equal(part, soundfile.read(clips / "rain.wav", start=22050, stop=66150, dtype="int16")[0])
    assert [each.path for each in done.skipped] == ["broken.wav"]
    assert [each[1:3] for each in parse((tmp_path / "out" / "rain.edl").read_bytes(), 25)] == [(0, 25)] * 3


def test_a_whole_file_is_never_cut(clips, tmp_path):
    done = export_folder([Piece("rain.wav", clips / "rain.wav")], tmp_path / "out", cut=True, title="rain")
    assert (tmp_path / "out" / done.files[0][1]).read_bytes() == (clips / "rain.wav").read_bytes()
    assert [each[1:3] for each in parse((tmp_path / "out" / "rain.edl").read_bytes(), 25)] == [(0, 75)]


def test_nothing_is_written_over(clips, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "rain.wav").write_bytes(b"mine")
    (out / "rain.csv").write_bytes(b"mine too")
    outside = tmp_path / "outside.wav"
    outside.write_bytes(b"not here")
    (out / "rain (2).wav").symlink_to(outside)
    done = export_folder(pieces(clips, "rain.wav"), out, cut=False, title="rain")
    assert done.files[0][1] == "rain (3).wav"
    assert done.lists == ["rain (2).csv", "rain (2).m3u8", "rain (2).edl"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before["rain.wav"] == b"mine"
    assert outside.read_bytes() == b"not here"
    again = export_folder(pieces(clips, "rain.wav"), out, cut=False, title="rain")  # the same once more adds nothing
    assert (again.files, again.lists) == (done.files, done.lists)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["../../evil.wav", "..", ".wav", "a/b\\c:d.wav", "con.wav", "\n.wav", "ä" * 200 + ".wav", "-.wav"]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    for cut in (False, True):
        made = name_of(Piece(name, tmp_path, 1, 2), cut=cut)
        assert not set(made) & set('/\\:*?"<>|\n\0')
        assert made not in (".", "..", "con.wav")
        assert len(numbered(made, 12).encode()) <= 255


def test_a_folder_that_cannot_be_written(clips, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiffATRError, match="a file is where a folder should be"):
        export_folder(pieces(clips, "rain.wav"), tmp_path / "file", cut=False, title="rain")


def test_a_full_disk_says_how_far_it_came(clips, tmp_path, monkeypatch):
    from diffatr_cli.corpus import export as module

    real, count = module.rename_to_new, iter(range(9))

    def full(source, target):
        if next(count) == 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(module, "rename_to_new", full)
    with pytest.raises(DiffATRError, match=r"the disk is full.*before that: 1\."):
        export_folder(pieces(clips, "rain.wav", "deep/rain.wav"), tmp_path / "out", cut=False, title="rain")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rain.wav"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_zip_holds_what_the_folder_does(clips, tmp_path, cut):
    wanted = pieces(clips, *ALL, "broken.wav")
    done = export_folder(wanted, tmp_path / "out", cut=cut, title="rain")
    sent = list(zip_of(wanted, cut=cut, title="rain"))
    assert len(sent) > 3  # it comes by and by
    with zipfile.ZipFile(io.BytesIO(b"".join(sent))) as packed:
        assert packed.testzip() is None
        assert sorted(packed.namelist()) == sorted(path.name for path in (tmp_path / "out").iterdir())
        for name in packed.namelist():
            assert packed.read(name) == (tmp_path / "out" / name).read_bytes()
    assert len(done.skipped) == (3 if cut else 1)  # a whole file is taken as it is
