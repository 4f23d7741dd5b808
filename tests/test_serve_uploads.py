"""Searching by a sound that is sent."""

import io
import os
import socket
import struct
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_retriever import RATE, tone, write_tone
from serving import LOCAL, Running, answer_on, client_of, make_session, refusal, until, wav_bytes

from diffatr_cli.corpus.search import embed_sound, search
from diffatr_cli.data.audio import AudioError, Sound, load_audio
from diffatr_cli.data.sound import MOST_SAMPLES
from diffatr_cli.web import uploads
from diffatr_cli.web.app import make_app
from diffatr_cli.web.uploads import TooLarge, read_upload

pytest_plugins = ["serving_fixtures"]


@pytest.mark.parametrize(("name", "kind"), [("x.wav", "WAV"), ("x.flac", "FLAC"), ("no suffix", "FLAC"), ("odd.xyz", "OGG")])
def test_a_dropped_sound_finds_its_like(client, session, name, kind):
    content = wav_bytes(tone(900, 2), kind)
    document = client.post("/api/sound", params={"name": name, "top": 2}, content=content).json()
    assert document["hits"][0]["name"] == "900.wav"
    if kind == "WAV":
        model, waveform = session.model, load_audio(session.corpus / "900.wav")
        document = client.post("/api/sound", params={"top": 3}, content=(session.corpus / "900.wav").read_bytes()).json()
        recordings = session.folder.read(model.model_id)
        expected = search(model, recordings, embed_sound(model, waveform)[None], refine=False, top=3)[0].hits
        assert [hit["path"] for hit in document["hits"]] == [str(session.corpus / hit.path) for hit in expected]


def test_a_dropped_sound_of_a_video(client, tmp_path):
    pytest.importorskip("av", reason="the extra `audio` is not installed")
    from media_files import write_media

    path = write_media(tmp_path / "x.m4a", tone(900, 2), RATE)
    found = client.post("/api/sound", params={"name": "a.M4A"}, content=path.read_bytes()).json()
    assert found["hits"][0]["name"] == "900.wav"


@pytest.mark.parametrize(
    ("name", "content", "status", "words"),
    [
        ("letter.wav", b"Dear all, this is no sound.", 422, "letter.wav: not audio"),
        ("../../etc/evil.mp3", b"Dear all", 422, "evil.mp3: not audio"),
        ("empty.wav", b"", 422, "empty.wav: empty file"),
        ("silent.wav", wav_bytes(np.zeros(0)), 422, "silent.wav: no samples"),
        ("\x1b[31m.wav", b"x", 422, "\N{REPLACEMENT CHARACTER}[31m.wav: not audio"),
        ("long.flac", wav_bytes(np.zeros(11 * 60 * RATE, np.int16), "FLAC"), 413, "long.flac: longer than 10 minutes"),
    ],
)
def test_a_dropped_file_that_is_no_use_is_told_by_name(client, name, content, status, words):
    error = refusal(client.post("/api/sound", params={"name": name}, content=content), status, words)
    assert "tmp" not in error


def test_what_is_too_large_is_not_taken(session):
    small = client_of(session, upload=100_000)
    assert small.get("/api/state").json()["upload"] == 100_000
    sound = wav_bytes(tone(900, 2))
    refusal(small.post("/api/sound", params={"name": "big.wav"}, content=sound), 413, "big.wav: larger than")
    pieces = (sound[i : i + 5000] for i in range(0, len(sound), 5000))  # without its size in the header
    refusal(small.post("/api/sound", params={"name": "big.wav"}, content=pieces), 413, "big.wav: larger than")
    assert small.post("/api/sound", content=wav_bytes(tone(900, 1))).status_code == 200


def nothing():
    """A check that never ends the work."""


def test_what_there_is_of_a_cut_file_is_searched_for_and_that_is_said(client):
    cut = wav_bytes(tone(900, 2))[:64_000]
    document = client.post("/api/sound", params={"name": "cut.wav"}, content=cut).json()
    assert document["hits"][0]["name"] == "900.wav"
    assert document["note"] == "cut.wav: truncated; what there is of it was searched for."
    assert client.post("/api/sound", params={"name": "cut.wav"}, content=wav_bytes(tone(900, 2))).json()["note"] is None


@pytest.mark.parametrize("announced", ["9" * 5000, "1" + "0" * 30])
def test_a_length_of_any_size_is_too_large(client, announced):
    refusal(client.post("/api/sound", content=b"x", headers={"Content-Length": announced}), 413, "larger than 64 MB")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_an_upload_is_read_as_any_other_file(tmp_path, kind, rate):
    path = tmp_path / "sound"
    stereo = np.stack([tone(300, 0.7), tone(1200, 0.7)], 1)
    soundfile.write(path, stereo[: int(0.5 * rate)], rate, format=kind)
    upload = read_upload(path, "x", 600, nothing)
    assert upload.note is None
    np.testing.assert_allclose(upload.samples, load_audio(path), atol=1e-4)


def announcing_days(kind):
    """A quarter of a second of sound whose header announces days of it."""
    if kind == "WAV":
        content = bytearray(wav_bytes(tone(900, 0.25)))
        place = content.index(b"data") + 4
        content[place : place + 4] = struct.pack("<I", 0x7FFE_0000)
    else:
        content = bytearray(wav_bytes(tone(900, 0.25), "FLAC"))
        # STREAMINFO follows "fLaC" and its own head of 4 bytes: 13 bytes, 4 bits, then 36 bits for the number of samples.
        content[21] |= 0x0F
        content[22:26] = b"\xff" * 4
    return bytes(content)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_small_file_that_announces_days_costs_what_it_holds(client, tmp_path, kind):
    (tmp_path / "sound").write_bytes(announcing_days(kind))
    read_upload_or_not(tmp_path / "sound")  # so that what is loaded once is loaded
    tracemalloc.start()
    try:
        samples = read_upload_or_not(tmp_path / "sound")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # a block with its channels and its mean
    answer = client.post("/api/sound", params={"name": "x.wav"}, content=(tmp_path / "sound").read_bytes())
    if samples is None:  # as it is with FLAC: libsndfile reads nothing of it
        refusal(answer, 422, "x.wav: ")
    else:
        assert len(samples) == RATE // 4
        assert answer.json()["hits"][0]["name"] == "900.wav"


def read_upload_or_not(path):
    try:
        return read_upload(path, "x", 600, nothing).samples
    except AudioError:
        return None


def test_what_comes_before_a_damaged_place_is_searched_for(client):
    sound = bytearray(wav_bytes(np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32), "FLAC"))
    sound[-100_000:] = np.random.default_rng(1).bytes(100_000)
    document = client.post("/api/sound", params={"name": "x.flac"}, content=bytes(sound)).json()
    assert document["hits"]
    assert document["note"].startswith("x.flac: truncated or damaged")


def test_a_file_that_holds_a_lot_of_silence_is_read_up_to_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "sound"
    with soundfile.SoundFile(path, "w", RATE, 1, format="FLAC") as out:
        for _ in range(60):
            out.write(np.zeros(60 * RATE, np.int16))
    assert path.stat().st_size < 1_000_000
    decoded = []
    read = soundfile.SoundFile.read

    def counted(file, *arguments, **options):
        block = read(file, *arguments, **options)
        decoded.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(TooLarge, match=r"x: longer than 0\.5 minutes"):
        read_upload(path, "x", 30, nothing)
    assert 30 * RATE < sum(decoded) <= 30 * RATE + 2 * MOST_SAMPLES


def test_a_long_video_is_read_up_to_the_limit(tmp_path):
    pytest.importorskip("av", reason="the extra `audio` is not installed")
    from media_files import write_media

    path = write_media(tmp_path / "sound.m4a", np.zeros(60 * RATE, np.float32), RATE)
    looks = []
    with pytest.raises(TooLarge, match=r"x: longer than 0\.05 minutes"):
        read_upload(path, "x", 3, lambda: looks.append(1))
    assert looks  # between blocks
    assert len(read_upload(path, "x", 61, nothing).samples) == pytest.approx(60 * RATE, abs=3000)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_a_rate_at_which_nobody_records_is_refused_before_anything_is_decoded(client, tmp_path, monkeypatch, rate):
    soundfile.write(tmp_path / "x.wav", np.zeros(100, np.int16), rate)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    content = (tmp_path / "x.wav").read_bytes()
    refusal(client.post("/api/sound", params={"name": "x.wav"}, content=content), 422, f"x.wav: a sample rate of {rate} Hz")


def test_samples_that_are_no_numbers_are_refused(client):
    samples = tone(900, 1)
    samples[-100:] = np.nan
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, subtype="FLOAT", format="WAV")
    refusal(client.post("/api/sound", params={"name": "x.wav"}, content=out.getvalue()), 422, "x.wav: NaN or infinite samples")


def test_a_sound_for_which_there_is_no_memory_costs_only_itself(client, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("diffatr_cli.data.sound.resampling_stream", fail)
        refusal(
            client.post("/api/sound", params={"name": "x.wav"}, content=wav_bytes(tone(900, 1))), 422, "x.wav: not enough memory"
        )
    assert client.post("/api/sound", params={"name": "x.wav"}, content=wav_bytes(tone(900, 1))).status_code == 200


@pytest.fixture
def served(tmp_path):
    """A session of one's own, and a real server of it."""
    write_tone(tmp_path / "clips" / "900.wav", 900, 2)
    session = make_session(tmp_path / "clips")
    session.update()
    with Running(make_app(session, hosts=LOCAL)) as server:
        yield session, server


def send(server, content, length=None):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST /api/sound?name=x.flac HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length or len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def let_go(server, connection):
    """Close a connection, and wait until the server has seen it."""
    connection.close()
    until(lambda: not server.connections)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as other:  # its loop goes round
        other.sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_on(other)[0] == 200


def test_an_upload_that_breaks_off_leaves_nothing(served, scratch):
    _, server = served
    connection = send(server, b"x" * 100_000, 200_000)
    until(lambda: os.listdir(scratch))
    let_go(server, connection)
    until(lambda: not os.listdir(scratch))


def test_decoding_stops_when_nobody_waits_for_it(served, scratch, monkeypatch):
    _, server = served
    begun, ended = threading.Event(), threading.Event()

    def endless(decoding):
        try:
            while True:
                begun.set()
                threading.Event().wait(0.002)
                yield np.zeros(1, np.float32)
        finally:
            ended.set()

    sound = wav_bytes(tone(900, 1), "FLAC")
    with monkeypatch.context() as patched:
        patched.setattr(Sound, "blocks", endless)
        connection = send(server, sound)
        assert begun.wait(10)
        assert os.listdir(scratch)
        assert not ended.is_set()
        connection.close()
        assert ended.wait(10)
        until(lambda: not os.listdir(scratch))
    with send(server, sound) as connection:
        assert answer_on(connection)[0] == 200


def test_embedding_stops_when_nobody_waits_for_it(served, scratch, monkeypatch):
    session, server = served
    begun, go, windows = threading.Event(), threading.Event(), []
    embed = session.model.embed_audio

    def slow(waveforms):
        windows.append(len(waveforms))
        begun.set()
        go.wait(10)
        return embed(waveforms)

    sound = wav_bytes(tone(900, 100), "FLAC")  # 19 windows
    with monkeypatch.context() as patched:
        patched.setattr(session.model, "embed_audio", slow)
        connection = send(server, sound)
        assert begun.wait(10)
        let_go(server, connection)
        go.set()
        until(lambda: not os.listdir(scratch))
    assert windows == [uploads._PIECE]
    with send(server, sound) as connection:  # and the model is free
        assert answer_on(connection)[1]["hits"][0]["name"] == "900.wav"


def test_a_server_that_stops_does_not_wait_for_an_upload(session, scratch, monkeypatch, capfd):
    begun = threading.Event()

    def endless(decoding):
        while True:
            begun.set()
            threading.Event().wait(0.002)
            yield np.zeros(1, np.float32)

    monkeypatch.setattr(Sound, "blocks", endless)
    with Running(make_app(session, hosts=LOCAL)) as server:
        connection = send(server, wav_bytes(tone(900, 1), "FLAC"))
        assert begun.wait(10)
    assert answer_on(connection) == (503, {"error": "The server is being stopped."})
    until(lambda: not any(thread.name == "AnyIO worker thread" for thread in threading.enumerate()))
    assert not os.listdir(scratch)
    connection.close()
    assert capfd.readouterr() == ("", "")


def test_a_few_sounds_are_decoded_at_a_time_and_all_are_answered(served, monkeypatch):
    _, server = served
    decoding, most, go = [], [], threading.Event()
    read = uploads.read_upload

    def watched(*arguments):
        decoding.append(1)
        most.append(len(decoding))
        go.wait(10)
        decoding.pop()
        return read(*arguments)

    monkeypatch.setattr(uploads, "read_upload", watched)
    sound = wav_bytes(tone(900, 1), "FLAC")
    connections = [send(server, sound) for _ in range(5)]
    until(lambda: len(most) == uploads._AT_ONCE)
    go.set()
    assert [answer_on(connection)[0] for connection in connections] == [200] * 5
    assert max(most) == uploads._AT_ONCE
    for connection in connections:
        connection.close()


def test_a_folder_that_cannot_be_written_is_told(client, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    refusal(client.post("/api/sound", params={"name": "x.wav"}, content=b"x"), 400, "x.wav: could not be kept for a moment")


def test_what_pyav_cannot_read_is_told_by_name(tmp_path):
    pytest.importorskip("av", reason="the extra `audio` is not installed")
    (tmp_path / "sound.m4a").write_bytes(b"Dear all")
    with pytest.raises(AudioError, match=r"^x\.m4a: not audio"):
        read_upload(tmp_path / "sound.m4a", "x.m4a", 600, nothing)
