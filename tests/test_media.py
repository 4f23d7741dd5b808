"""m4a, aac and the sound of videos, by PyAV (extra `audio`): indexed and found like any other file."""

import json
import os
import struct

import numpy as np
import pytest
import typer
from fake_retriever import FakeRetriever
from typer.testing import CliRunner

av = pytest.importorskip("av")

from media_files import write_media, write_picture  # noqa: E402

from diffatr_cli.cli import index as index_module  # noqa: E402
from diffatr_cli.cli import query as module  # noqa: E402
from diffatr_cli.data.audio import AudioError, load_audio, open_sound  # noqa: E402
from diffatr_cli.data.excerpt import read_excerpt  # noqa: E402

RATE = 44_100
app = typer.Typer()
module.register(app)
index_module.register(app)


def sines(*parts):
    """Tones one after the other, of (Hz, seconds) each, at 44.1 kHz."""
    return np.concatenate([0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE) for hz, seconds in parts])


@pytest.fixture
def diffatr(monkeypatch):
    for command in (module, index_module):
        monkeypatch.setattr(command, "load_model", lambda *_: FakeRetriever())

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
        return json.loads(result.stdout)

    return run


def test_containers_and_videos_are_indexed_and_found(tmp_path, diffatr):
    clips = tmp_path / "clips"
    write_media(clips / "a b:c.m4a", sines((300, 3)))
    write_media(clips / "bare.aac", sines((900, 3)))
    write_media(clips / "-film.mp4", sines((500, 20), (2500, 10)), picture=True)
    write_media(clips / "film.mkv", sines((5000, 3)), picture=True)
    with av.open(str(clips / "silent film.mp4"), "w") as out:
        write_picture(out, 10)
    (clips / "text.m4a").write_text("no sound")
    document = diffatr("index", clips)
    assert (document["files"], document["windows"], document["embedded"]) == (4, 1 + 1 + 6 + 1, 4)
    assert {each["path"]: each["reason"].split(",")[0] for each in document["skipped"]} == {
        str(clips / "silent film.mp4"): "no sound in it",
        str(clips / "text.m4a"): "not audio",
    }
    for hz, name in ((300, "a b:c.m4a"), (900, "bare.aac"), (2500, "-film.mp4"), (5000, "film.mkv")):
        hit = diffatr("query", f"{hz} Hz", "--corpus", clips)["results"][0]
        assert hit["path"] == str(clips / name)
        if hz == 2500:  # the last ten seconds of the film, to the encoder's padding
            assert (hit["start"], hit["end"]) == (pytest.approx(20, abs=0.1), pytest.approx(30, abs=0.1))
    found = diffatr("query", "--audio", clips / "film.mkv", "--corpus", clips)["results"]
    assert (found[0]["path"], found[0]["score"]) == (str(clips / "film.mkv"), pytest.approx(1, abs=1e-3))
    assert diffatr("index", clips)["unchanged"] == 4


def test_a_bare_stream_that_begins_quietly_is_whole(tmp_path):
    """FFmpeg guesses the length of bare AAC from its first packets, which silence makes small."""
    loud = np.random.default_rng(0).normal(0, 0.3, 10 * RATE)
    path = write_media(tmp_path / "quiet.aac", np.concatenate([np.zeros(10 * RATE), loud]))
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) > 30  # or this test tests nothing
    assert len(load_audio(path)) == pytest.approx(20 * 32_000, abs=3000)


KINDS = {  # name: container, codec, rate, and what the file is called
    "m4a": ("mp4", "aac", 44_100, "named.wav"),
    "webm": ("webm", "libopus", 48_000, "named.ogg"),
    "mp3 in WAV": ("wav", "libmp3lame", 44_100, "a.wav"),
    "mp2 in WAV": ("wav", "mp2", 44_100, "b.wav"),
    "ac3 in WAV": ("wav", "ac3", 48_000, "c.wav"),
    "Yamaha's ADPCM in WAV": ("wav", "adpcm_yamaha", 44_100, "d.wav"),
    "Microsoft's ADPCM in WAV": ("wav", "adpcm_ms", 44_100, "e.wav"),
    "mp2": ("mp2", "mp2", 44_100, "a.mp3"),
    "Matroska": ("matroska", "libopus", 48_000, "a.mka"),
    "floats in Matroska": ("matroska", "pcm_f32le", 44_100, "b.mka"),
    "3g2": ("3g2", "aac", 44_100, "a.3g2"),
    "transport stream": ("mpegts", "aac", 44_100, "a.ts"),
    "camera": ("mpegts", "ac3", 48_000, "a.mts"),
    "Flash": ("flv", "aac", 44_100, "a.flv"),
    "programme stream": ("mpeg", "mp2", 44_100, "a.mpg"),
    "AVI": ("avi", "libmp3lame", 44_100, "a.avi"),
    "AC-3": ("ac3", "ac3", 48_000, "a.ac3"),
    "WavPack": ("wv", "wavpack", 44_100, "a.wv"),
    "ALAC in CAF": ("caf", "alac", 44_100, "a.caf"),
    "LATM": ("latm", "aac", 44_100, "a.latm"),
}
BY_BOTH = ("mp3 in WAV", "mp2 in WAV", "mp2", "Microsoft's ADPCM in WAV")
"""Which libsndfile reads too."""


@pytest.mark.parametrize("kind", KINDS)
def test_content_decides_whatever_the_name(tmp_path, kind, monkeypatch):
    container, codec, rate, name = KINDS[kind]
    sound = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(3 * rate) / rate)
    path = write_media(tmp_path / name, sound, rate, codec, kind=container)
    samples = load_audio(path)
    assert len(samples) == pytest.approx(3 * 32_000, abs=4000)
    middle = samples[32_000:64_000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 1000
    assert 0.25 < np.abs(middle).max() < 0.6
    part = read_excerpt(path, 1, 2)
    assert np.abs(np.fft.rfft(part)).argmax() == 1000
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if kind in BY_BOTH:
        assert len(load_audio(path)) == pytest.approx(3 * 32_000, abs=4000)
    else:
        with pytest.raises(AudioError, match=r"needs the extra `audio`: pip install 'diffatr\[audio\]'"):
            load_audio(path)


def test_a_rate_that_changes_is_resampled_from_there_on(tmp_path):
    parts = []
    for rate in (44_100, 22_050, 48_000):
        sound = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(3 * rate) / rate)
        parts.append(write_media(tmp_path / f"{rate}.aac", sound, rate, kind="adts", layout="mono").read_bytes())
    path = tmp_path / "a.aac"
    path.write_bytes(b"".join(parts))
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound.blocks()))
    assert len(samples) == pytest.approx(9 * 32_000, abs=9000)
    assert sound.partial is None
    for second in range(9):
        part = samples[round((second + 0.4) * 32_000) :][:16_000]
        assert 2 * np.abs(np.fft.rfft(part)).argmax() == 1000


def test_damaged_packets_cost_only_themselves(tmp_path):
    content = bytearray(write_media(tmp_path / "a.aac", sines((1000, 20)), kind="adts").read_bytes())
    at = content.find(content[:2], len(content) // 2)
    content[at + 9 : at + 60] = b"\xff\xa5" * 25 + b"\0"
    (tmp_path / "a.aac").write_bytes(content)
    with open_sound(tmp_path / "a.aac") as sound:
        assert sum(map(len, sound.blocks())) == pytest.approx(20 * 32_000, abs=9000)
    assert sound.partial is None
    assert len(sound.notes) <= 1
    assert all("damaged and left out" in note for note in sound.notes)


@pytest.mark.parametrize("kind", [("matroska", "libopus", 48_000), ("mp4", "aac", 44_100), ("avi", "libmp3lame", 44_100)])
@pytest.mark.parametrize("picture", [False, True])
def test_a_container_that_is_cut_is_known(tmp_path, kind, picture):
    container, codec, rate = kind
    path = write_media(tmp_path / "a", np.random.default_rng(0).normal(0, 0.2, 10 * rate), rate, codec, picture, container)
    assert len(load_audio(path)) == pytest.approx(10 * 32_000, abs=4000)
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    with pytest.raises(AudioError, match=r"truncated|damaged"):
        load_audio(path)
    if container != "mp4":  # whose table of contents is at the end
        assert 3 * 32_000 < len(load_audio(path, partial="keep")) < 8 * 32_000


def test_a_film_with_two_languages_says_that_one_was_taken(tmp_path):
    with av.open(str(tmp_path / "a.mka"), "w") as out:
        streams = [out.add_stream("libopus", rate=48_000, layout="mono") for _ in range(2)]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
        frame.sample_rate = 48_000
        for stream in streams:
            out.mux([*stream.encode(frame), *stream.encode(None)])
    with open_sound(tmp_path / "a.mka") as sound:
        list(sound.blocks())
    assert sound.notes == ["the first of 2 sound tracks"]


def test_a_file_that_names_others_is_not_followed(tmp_path):
    """Playlists would have FFmpeg open what they name: other files of this machine, or addresses."""
    secret = write_media(tmp_path / "secret.aac", sines((1000, 3)), kind="adts")
    playlists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n",
        "b.wav": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret.name}\n#EXT-X-ENDLIST\n",
        "c.mp4": f"ffconcat version 1.0\nfile {secret.name}\n",
        "d.wav": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="not audio"):
            load_audio(tmp_path / name)


def test_ac3_that_is_said_to_be_samples(tmp_path, monkeypatch):
    """As it travels over a digital cable: a WAV file whose samples are noise, to who believes its header."""
    sound = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(3 * 48_000) / 48_000)
    raw = write_media(tmp_path / "a.spdif", sound, 48_000, "ac3", kind="spdif").read_bytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, 48_000, 192_000, 4, 16) + b"data" + struct.pack("<I", len(raw))
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(head) + len(raw)) + head + raw)
    samples = load_audio(path)
    assert np.abs(np.fft.rfft(samples[32_000:64_000])).argmax() == 1000
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"diffatr\[audio\]"):
        load_audio(path)


def test_tags_in_any_encoding_and_names_that_look_like_addresses(tmp_path):
    for name in ("http:a.m4a", "pipe:0", b"caf\xe9.mka"):
        other = tmp_path / (name if isinstance(name, str) else os.fsdecode(name))
        content = write_media(tmp_path / "b.mka", sines((1000, 1)), 48_000, "libopus").read_bytes()
        assert b"Lavf" in content
        other.write_bytes(content.replace(b"Lavf", b"\xe9\xff\xe9\xff"))
        assert len(load_audio(other)) == pytest.approx(32_000, abs=4000)
