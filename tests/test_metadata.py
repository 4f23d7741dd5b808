"""What files say of themselves: written here chunk by chunk, as the standards have them, read back, and damaged."""

import struct
from datetime import date

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffatr_cli.corpus.examine import note_of
from diffatr_cli.corpus.scan import Stamp
from diffatr_cli.data.metadata import MOST_LETTERS, clean, read_metadata
from diffatr_cli.data.riff import MOST_BYTES, chunks

IXML = b"""<?xml version="1.0" encoding="UTF-8"?><BWFXML><PROJECT>Harbour</PROJECT><SCENE>12a</SCENE>
<NOTE>gulls &amp; ropes</NOTE>
<FILE_UID>ABC123</FILE_UID><USER><LOCATION>Bergen pier</LOCATION></USER></BWFXML>"""
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmpDM="http://ns.adobe.com/xmp/1.0/DynamicMedia/"
 xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/" xmpDM:scene="dock" xmpMM:DocumentID="xmp.did:1">
<dc:subject><rdf:Bag><rdf:li>seagull</rdf:li><rdf:li>harbour</rdf:li></rdf:Bag></dc:subject>
<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Pier in the morning</rdf:li></rdf:Alt></dc:title>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def bext(description, day="2023-07-14"):
    fields = (description.encode("latin-1"), 256), (b"Recorder X", 32), (b"REF1", 32), (day.encode(), 10), (b"10:11:12", 8)
    return chunk(b"bext", b"".join(text.ljust(size, b"\0") for text, size in fields) + b"\0" * 254)


def info(**entries):
    return chunk(b"LIST", b"INFO" + b"".join(chunk(name.encode(), text + b"\0") for name, text in entries.items()))


def wav(*extra, before=(), rate=22050, channels=2):
    samples = np.zeros(200, "<i2").tobytes()
    head = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    body = b"WAVE" + b"".join(before) + chunk(b"fmt ", head) + chunk(b"data", samples) + b"".join(extra)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.fixture
def told(tmp_path):
    def tell(content, name="x.wav"):
        path = tmp_path / name
        path.write_bytes(content)
        return read_metadata(path)

    return tell


def test_all_that_a_broadcast_wave_says(told):
    got = told(
        wav(
            chunk(b"iXML", IXML),
            chunk(b"_PMX", XMP),
            info(INAM=b"Pier", IKEY="m\xe5ke".encode("latin-1")),
            before=[bext("Gulls")],
        )
    )
    assert (got.channels, got.rate, got.recorded) == (2, 22050, date(2023, 7, 14))
    assert got.fields == {
        "bext description": "Gulls",
        "bext originator": "Recorder X",
        "bext reference": "REF1",
        "bext date": "2023-07-14",
        "ixml project": "Harbour",
        "ixml scene": "12a",
        "ixml note": "gulls & ropes",
        "ixml user location": "Bergen pier",
        "xmp xmpDM:scene": "dock",
        "xmp dc:subject": "seagull; harbour",
        "xmp dc:title": "Pier in the morning",
        "title": "Pier",
        "keywords": "måke",
    }


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.mp3"])
def test_tags_of_other_formats(told, tmp_path, name):
    path = tmp_path / name
    with soundfile.SoundFile(path, "w", 44100, 1, format=name[2:].upper()) as file:
        file.title, file.comment, file.artist = "Old gate", "creaks in the wind", "JK"
        file.write(np.zeros(4000))
    got = read_metadata(path)
    assert (got.channels, got.rate) == (1, 44100)
    assert got.fields["title"] == "Old gate"
    assert (got.fields["artist"], got.fields.get("comment")) == ("JK", "creaks in the wind")


@pytest.mark.parametrize(
    ("name", "kind"), [("x.aiff", "AIFF"), ("x.w64", "W64"), ("x.caf", "CAF"), ("x.au", "AU"), ("x.rf64", "RF64")]
)
def test_channels_and_rate_of_every_format(tmp_path, name, kind):
    path = tmp_path / name
    soundfile.write(path, np.zeros((100, 3)), 48000, format=kind)
    assert read_metadata(path)[:2] == (3, 48000)


def test_a_day_that_is_none_is_no_day(told):
    assert told(wav(before=[bext("x", "0000-00-00")])).recorded is None
    assert told(wav(before=[bext("x", "2023-99-99")])).recorded is None
    assert told(wav(info(ICRD=b"2021:03:04"))).recorded == date(2021, 3, 4)


@pytest.mark.parametrize(
    "xml",
    [
        b"<BWFXML><NOTE>open",
        b"\0\0\0",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><BWFXML><NOTE>&b;</NOTE></BWFXML>',
        b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><BWFXML><NOTE>&f;</NOTE></BWFXML>',
        b"<a>" * 100_000 + b"</a>" * 100_000,
        b"<USER>" * 3000 + b"deep" + b"</USER>" * 3000,
    ],
)
def test_broken_or_hostile_xml_costs_itself_alone(told, xml):
    got = told(wav(chunk(b"iXML", xml), chunk(b"_PMX", xml), info(INAM=b"still here")))
    assert got.fields == {"title": "still here"}
    assert (got.channels, got.rate) == (2, 22050)


def test_sizes_that_lie_end_the_reading(tmp_path, told):
    assert (
        told(wav(b"LIST" + struct.pack("<I", 2**31) + b"INFOINAM" + struct.pack("<I", 2**30) + b"Gate\0")).fields["title"]
        == "Gate"
    )
    path = tmp_path / "long.wav"
    path.write_bytes(wav(chunk(b"iXML", b"<" * (2 * MOST_BYTES)), info(INAM=b"after")))
    with path.open("rb") as stream:
        found = dict(chunks(stream, {b"iXML", b"LIST"}))
    assert len(found[b"iXML"]) == MOST_BYTES
    assert read_metadata(path).fields == {"title": "after"}


def test_what_is_kept_can_be_shown(told):
    got = told(wav(info(INAM="Ga\x1bte\r\n‮x".encode(), ICMT=b"y" * 10_000)))
    assert got.fields["title"] == "Ga te x"
    assert len(got.fields["comment"]) == MOST_LETTERS


@given(st.text(max_size=300))
def test_clean_text_can_be_printed_and_written(text):
    got = clean(text)
    assert all(letter.isprintable() for letter in got)
    assert got.encode() is not None
    assert clean(got) == got


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_raises(tmp_path, data):
    whole = bytearray(wav(chunk(b"iXML", IXML), chunk(b"_PMX", XMP), info(INAM=b"Pier"), before=[bext("Gulls")]))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.wav"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    got = note_of(path, Stamp(1, 0, 0, 0))
    assert 0 <= got.channels < 2**15
    assert 0 <= got.rate < 2**31
    assert isinstance(got.fields, str)


def test_no_file_and_no_sound_say_nothing(tmp_path):
    (tmp_path / "text.mp3").write_text("no sound at all")
    for name in ("missing.wav", "text.mp3"):
        assert read_metadata(tmp_path / name) == (0, 0, None, {})
