import base64
import hashlib
import io
import json
import os
import re
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch
import typer
from fake_retriever import DIM, RATE, FakeRetriever, make_reranker, tone, write_tone
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from diffatr_cli.cli import serve as command
from diffatr_cli.core.calibration import Calibration, Logistic
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.core.scoring import query_noise
from diffatr_cli.corpus.index import FolderIndex, IndexReport
from diffatr_cli.corpus.search import embed_sound, embed_texts, search
from diffatr_cli.corpus.session import PriorityLock, SearchSession, key_of
from diffatr_cli.corpus.trajectory import trajectory
from diffatr_cli.data.audio import AudioError, load_audio
from diffatr_cli.data.excerpt import duration, read_excerpt
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.model import load_retriever, sampling_of
from diffatr_cli.web import app as module
from diffatr_cli.web import server
from diffatr_cli.web.app import make_app, view
from diffatr_cli.web.server import listen
from diffatr_cli.web.spectrogram import levels, outline, png

LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]"))


def make_clips(folder):
    for hz in (200, 450, 900, 2000, 4000):
        write_tone(folder / f"{hz}.wav", hz, 2)
    write_tone(folder / "deep" / "long.flac", 6000, 12)
    samples = np.concatenate([tone(300, 70), tone(5000, 10), tone(300, 40)])
    soundfile.write(folder / "deep" / "very long.wav", samples, RATE)
    return folder


def make_session(folder, sampling=None):
    return SearchSession(FakeRetriever(phase_two=True), FolderIndex(folder), sampling)


def client_of(session, **options):
    return TestClient(make_app(session, **{"hosts": LOCAL} | options), base_url="http://127.0.0.1:8765")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A folder that tests only read."""
    made = make_session(make_clips(tmp_path_factory.mktemp("clips")))
    made.update()
    return made


@pytest.fixture(scope="module")
def client(session):
    return client_of(session)


@pytest.fixture
def own(tmp_path):
    """A small folder of one's own, not indexed yet."""
    for hz in (200, 900):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
    return make_session(tmp_path / "clips")


def refusal(answer, status, words):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert words in answer.json()["error"]
    return answer.json()["error"]


def test_the_page_brings_everything_itself(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag in ("script", "style"):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert set(re.findall(r"https?://[^'\"\s)]+", answer.text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"\son\w+=|\sstyle=", answer.text.partition("<script>")[0])  # which the policy would not let run


@pytest.mark.parametrize("address", ["/", "/api/state", "/nowhere", "/clip/0", "/api/search?q=900+Hz"])
def test_every_answer_is_guarded(client, address):
    headers = client.get(address).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("address", ["/docs", "/redoc", "/openapi.json"])
def test_fastapi_adds_no_pages(client, address):
    refusal(client.get(address), 404, "nothing at this address")


def test_a_text_finds_what_search_finds(client, session):
    model = session.model
    recordings = session.folder.read(model.model_id)
    expected = search(model, recordings, embed_texts(model, ["900 Hz"]), top=3)[0].hits
    document = client.get("/api/search", params={"q": "900 Hz", "top": 3}).json()
    assert [(hit["rank"], hit["start"], hit["end"]) for hit in document["hits"]] == [(h.rank, h.start, h.end) for h in expected]
    assert [hit["path"] for hit in document["hits"]] == [str(session.corpus / h.path) for h in expected]
    assert [hit["score"] for hit in document["hits"]] == pytest.approx([h.score for h in expected], abs=1e-4)
    assert (document["present"], document["calibrated"], document["files"]) == (None, False, 7)
    found = client.get("/api/search", params={"q": "5000 Hz", "top": 7}).json()["hits"]
    (hit,) = [hit for hit in found if hit["name"] == "very long.wav"]
    assert (hit["folder"], hit["start"], hit["end"], hit["seconds"], hit["view"]) == ("deep", 70, 80, 120, [45, 105])


def test_settings_reach_the_search(session):
    model = session.model
    sampling = sampling_of(model, folder=True, shortlist=2, steps=3, seed=7)
    other = SearchSession(model, session.folder, sampling)
    other.update()
    expected = search(model, session.folder.read(model.model_id), embed_texts(model, ["900 Hz"]), sampling, top=5)
    assert other.by_text("900 Hz", 5) == expected[0]
    assert session.by_text("900 Hz", 5) != expected[0]
    with pytest.raises(UsageError, match="steps must lie between"):
        sampling_of(model, folder=True, steps=11)


def test_probabilities_are_passed_on(session):
    class Calibrated(FakeRetriever):
        calibration = Calibration(*[Logistic((1.0,), 0.0)] * 3, Logistic((0.0,) * 5, -2.0))

    made = SearchSession(Calibrated(phase_two=True), session.folder)
    made.update()
    document = client_of(made).get("/api/search", params={"q": "900 Hz"}).json()
    assert document["calibrated"]
    assert document["present"] == pytest.approx(1 / (1 + np.exp(2)))
    assert all(0 < hit["score"] < 1 for hit in document["hits"])


def test_mistakes_are_told_in_words(client):
    refusal(client.get("/api/search", params={"q": "?!"}), 400, "describe a sound")
    refusal(client.get("/api/search"), 400, "q: ")
    refusal(client.get("/api/search", params={"q": "900 Hz", "top": 0}), 400, "top: ")
    refusal(client.get("/spectrogram/x", params={"start": "nan", "end": 1}), 400, "start: ")
    refusal(client.get("/api/like/0000"), 404, "no such clip")
    refusal(client.post("/api/search"), 405, "Method Not Allowed")


def test_an_unexpected_error_is_told_too(session, monkeypatch):
    monkeypatch.setattr(session, "by_text", lambda *_: 1 / 0)
    quiet = TestClient(make_app(session), raise_server_exceptions=False)
    refusal(quiet.get("/api/search", params={"q": "x"}), 500, "ZeroDivisionError")


def test_more_like_this_leaves_out_this(client, session):
    key = key_of("deep/very long.wav")
    found = client.get(f"/api/like/{key}", params={"start": 70.0, "top": 3}).json()["hits"]
    recordings = session.folder.read(session.model.model_id)
    place = recordings.paths.index("deep/very long.wav")
    rows = range(len(recordings.vectors))[recordings.rows_of(place)]
    (row,) = [row for row in rows if recordings.spans[row, 0] == 70]
    expected = [
        hit
        for hit in search(session.model, recordings, recordings.vectors[row][None], refine=False, top=4)[0].hits
        if hit.path != "deep/very long.wav"
    ][:3]
    assert [hit["path"] for hit in found] == [str(session.corpus / hit.path) for hit in expected]
    assert [hit["rank"] for hit in found] == [1, 2, 3]
    assert found[0]["name"] == "long.flac"
    assert client.get(f"/api/like/{key}", params={"start": 0.0, "top": 3}).json()["hits"] != found  # another window of it


def test_a_recording_is_served_whole_and_in_ranges(client, session):
    content = (session.corpus / "900.wav").read_bytes()
    address = f"/clip/{key_of('900.wav')}"
    whole = client.get(address)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, content, "audio/wav")
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (("bytes=100-199", content[100:200]), ("bytes=100-", content[100:]), ("bytes=-50", content[-50:])):
        answer = client.get(address, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"].endswith(f"/{len(content)}")
    assert client.get(address, headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    assert client.get(f"/clip/{key_of('deep/long.flac')}").headers["content-type"] == "audio/flac"


def test_a_part_comes_as_wav_whole_and_in_ranges(client, session):
    address = f"/wav/{key_of('deep/long.flac')}"
    whole = client.get(address, params={"start": 1, "end": 3})
    assert whole.headers["content-type"] == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(whole.content), dtype="float32")
    assert (len(samples), rate) == (2 * RATE, RATE)
    np.testing.assert_allclose(samples, load_audio(session.corpus / "deep" / "long.flac")[RATE : 3 * RATE], atol=1e-4)
    for asked, part in (
        ("bytes=10-19", whole.content[10:20]),
        ("bytes=10-", whole.content[10:]),
        ("bytes=-7", whole.content[-7:]),
        ("bytes=0-99999999", whole.content),
    ):
        answer = client.get(address, params={"start": 1, "end": 3}, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, part)
    for nonsense in ("bytes=-", "lines=1-2", "bytes=0-1,4-5"):
        assert client.get(address, params={"start": 1, "end": 3}, headers={"Range": nonsense}).content == whole.content
    assert client.get(address, params={"start": 1, "end": 3}, headers={"Range": "bytes=99999999-"}).status_code == 416
    hours = client.get(f"/wav/{key_of('deep/very long.wav')}", params={"start": 0, "end": 1e6}).content
    assert len(hours) <= (module.VIEW + 1) * RATE * 2 + 44


def test_pictures_of_a_sound(client):
    from PIL import Image

    address = f"/spectrogram/{key_of('deep/very long.wav')}"
    bright = {}
    for theme in ("light", "dark"):
        answer = client.get(address, params={"start": 45, "end": 105, "theme": theme})
        assert answer.headers["content-type"] == "image/png"
        image = np.array(Image.open(io.BytesIO(answer.content)).convert("RGBA")).astype(int)
        assert image.shape == (64, 720, 4)
        strongest = image[..., 3].argmax(0)  # the row of the tone: low notes at the bottom
        assert strongest[360] < strongest[30]
        assert strongest[30] == strongest[700]
        bright[theme] = image[strongest[30], 30, :3].sum()
        assert image[..., 3].min() < 60  # the page shows through
    assert bright["light"] < bright["dark"]
    document = client.get(f"/api/outline/{key_of('900.wav')}", params={"start": 0, "end": 2}).json()
    assert len(document["outline"]) == 720
    assert 400 < max(high for _, high in document["outline"]) < 600
    assert -600 < min(low for low, _ in document["outline"]) < -400


def test_pictures_of_hardly_any_sound():
    assert levels(np.zeros(0, np.float32), 100).shape == (64, 5)  # the frames of one window
    assert not levels(np.zeros(RATE, np.float32), 100).any()
    assert levels(tone(440, 1), 100).max() == 255
    assert outline(np.zeros(0, np.float32), 10).tolist() == [[0, 0]]
    assert outline(np.array([0.5, -0.5], np.float32), 10).tolist() == [[0.5, 0.5], [-0.5, -0.5]]
    assert png(np.zeros((1, 1), np.uint8), "dark").startswith(b"\x89PNG")


def test_excerpts_are_parts_of_the_whole(session, tmp_path):
    for path in (session.corpus / "deep" / "long.flac", session.corpus / "900.wav"):
        whole = load_audio(path)
        np.testing.assert_allclose(read_excerpt(path, 0.5, 1.25), whole[RATE // 2 : RATE * 5 // 4], atol=1e-4)
        assert duration(path) == len(whole) / RATE
        assert len(read_excerpt(path, 0, 1e6)) == len(whole)
        assert len(read_excerpt(path, 1e6, 2e6)) == 0
    (tmp_path / "broken.wav").write_text("no sound")
    for call in (duration, lambda path: read_excerpt(path, 0, 1)):
        with pytest.raises(AudioError, match="not audio"):
            call(tmp_path / "broken.wav")
        with pytest.raises(AudioError, match="missing"):
            call(tmp_path / "missing.wav")


@pytest.mark.parametrize("suffix", [".m4a", ".aac"])
def test_excerpts_of_what_pyav_reads(tmp_path, suffix):
    pytest.importorskip("av", reason="the extra `audio` is not installed")
    from media_files import write_media

    samples = np.concatenate([tone(300, 6), tone(3000, 2), tone(300, 4)])
    path = write_media(tmp_path / f"x{suffix}", samples, RATE)
    assert duration(path) == (None if suffix == ".aac" else pytest.approx(12, abs=0.1))
    part = read_excerpt(path, 5, 9)
    assert len(part) == 4 * RATE
    crossings = (np.diff(np.signbit(part.reshape(8, -1))) != 0).sum(1)  # of each half second; the high tone lasts from 6 to 8
    assert set(np.argsort(crossings)[-4:].tolist()) == {2, 3, 4, 5}


def test_views():
    assert view(0, 2, 2) == (0, 2)
    assert view(30, 40, 60) == (0, 60)
    assert view(0, 10, 3600) == (0, 60)
    assert view(1000, 1010, 3600) == (975, 1035)
    assert view(3590, 3600, 3600) == (3540, 3600)


def test_names_that_are_not_text(tmp_path):
    name = os.fsdecode(b"9\xe9.wav")
    write_tone(tmp_path / "clips" / name, 900, 2)
    made = make_session(tmp_path / "clips")
    made.update()
    client = client_of(made)
    answer = client.get("/api/search", params={"q": "900 Hz"})
    (hit,) = json.loads(answer.text)["hits"]
    assert os.fsencode(hit["name"]) == b"9\xe9.wav"
    assert client.get(f"/clip/{hit['key']}").content == (tmp_path / "clips" / name).read_bytes()
    assert client.get(f"/spectrogram/{hit['key']}?start=0&end=2").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/clip/../secret.txt",
        "/clip/..%2Fsecret.txt",
        "/clip/%2e%2e/%2e%2e/secret.txt",
        "/clip/900.wav",
        "/clip/deep",
        "/clip/",
        "/clip/.diffatr",
        "//etc/passwd",
        "/web/page.html",
        "/spectrogram/..%2Fsecret.txt?start=0&end=1",
        "/wav/%2Fetc%2Fpasswd?start=0&end=1",
        "/api/outline/..%5C..%5Csecret.txt?start=0&end=1",
    ],
)
def test_no_address_spells_a_path(client, session, path):
    (session.corpus.parent / "secret.txt").write_text("secret")
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "secret" not in answer.text.replace("secret.txt", "")


def test_links_are_served_where_the_index_took_them_in(own, tmp_path):
    corpus = tmp_path / "clips"
    write_tone(tmp_path / "elsewhere" / "450.wav", 450, 2)
    (tmp_path / "elsewhere" / "secret.wav").write_text("secret")
    (corpus / "link.wav").symlink_to(tmp_path / "elsewhere" / "450.wav")
    (corpus / "inside.wav").symlink_to(corpus / "200.wav")
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    own.update()
    client = client_of(own)
    for name in ("link.wav", "folder/450.wav"):
        assert client.get(f"/clip/{key_of(name)}").content == (tmp_path / "elsewhere" / "450.wav").read_bytes()
    assert client.get(f"/clip/{key_of('inside.wav')}").content == (corpus / "200.wav").read_bytes()
    refusal(client.get(f"/clip/{key_of('folder/secret.wav')}"), 404, "no such clip")  # is no sound, so is not in the index

    for name in ("link.wav", "900.wav"):  # something else in the place of what was indexed
        (corpus / name).unlink()
        (corpus / name).symlink_to(tmp_path / "elsewhere" / "secret.wav")
        for address in ("/clip/{}", "/wav/{}?start=0&end=1", "/spectrogram/{}?start=0&end=1", "/api/outline/{}?start=0&end=1"):
            refusal(client.get(address.format(key_of(name))), 403, "a link leads out of the folder")
    (corpus / "200.wav").unlink()
    refusal(client.get(f"/clip/{key_of('200.wav')}"), 404, "the file is gone")
    refusal(client.get(f"/clip/{key_of('inside.wav')}"), 404, "the file is gone")
    own.update()
    refusal(client.get(f"/clip/{key_of('900.wav')}"), 404, "no such clip")


def test_an_index_of_before_vouches_for_no_link(own, tmp_path):
    write_tone(tmp_path / "450.wav", 450, 2)
    (tmp_path / "clips" / "link.wav").symlink_to(tmp_path / "450.wav")
    own.update()
    again = make_session(tmp_path / "clips")
    again._load(settled=False)  # as at the start, while the update has not seen every file yet
    client = client_of(again)
    assert client.get(f"/clip/{key_of('900.wav')}").status_code == 200
    refusal(client.get(f"/clip/{key_of('link.wav')}"), 403, "a link leads out of the folder")
    again.update()
    assert client.get(f"/clip/{key_of('link.wav')}").status_code == 200


def wav_bytes(samples, kind="WAV"):
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()


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
        ("cut.wav", wav_bytes(tone(900, 2))[:9000], 422, "cut.wav: truncated"),
        ("\x1b[31m.wav", b"x", 422, "\N{REPLACEMENT CHARACTER}[31m.wav: not audio"),
        ("long.flac", wav_bytes(np.zeros(11 * 60 * RATE, np.int16), "FLAC"), 413, "long.flac: 11 minutes long"),
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


def test_only_its_own_name_is_answered_to(client, session):
    for host in ("127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765"):
        assert client.get("/api/state", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:8765", ""):
        refusal(client.get("/api/state", headers={"Host": host}), 403, "own name only")
    assert client_of(session, hosts=None, token="k").get("/?token=k", headers={"Host": "studio.lan"}).status_code == 200


def test_other_pages_may_not_ask(client):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        refusal(client.post("/api/refresh", headers=headers), 403, "Other pages")
        refusal(client.get(f"/clip/{key_of('900.wav')}", headers=headers), 403, "Other pages")
    assert (
        client.get("/api/state", headers={"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}).status_code == 200
    )
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_a_token_opens_the_page_once_and_a_cookie_from_then_on(session):
    guarded = client_of(session, hosts=None, token="s3cret-ключ".encode().hex())
    token = "s3cret-ключ".encode().hex()
    for address in ("/", "/api/state", f"/clip/{key_of('900.wav')}", "/?token=wrong", "/?token=", f"/api/state?token={token}"):
        answer = guarded.get(address)
        refusal(answer, 401, "needs its key")
        assert "set-cookie" not in answer.headers
        assert "content-security-policy" in answer.headers
    refusal(guarded.get("/", headers={"Cookie": "diffatr-0=x; token=" + token}), 401, "needs its key")
    refusal(guarded.get("/?token=%C3%A4"), 401, "needs its key")
    refusal(guarded.post(f"/?token={token}"), 401, "needs its key")
    opened = guarded.get(f"/?token={token}")
    assert opened.status_code == 200
    cookie = opened.headers["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert cookie.partition("=")[2].startswith(token)
    assert guarded.get("/api/state").status_code == 200  # the client keeps the cookie
    assert guarded.get("/").headers.get("set-cookie") is None


def test_the_trajectory_is_that_of_the_plain_sampler(client, session):
    model, recordings = session.model, session.folder.read(session.model.model_id)
    query = embed_texts(model, ["900 Hz"])[0]
    way = trajectory(model, recordings, query, sampling_of(model, folder=True, shortlist=4, steps=6, seed=3))
    assert (len(way.paths), len(way.levels), way.x.shape, way.x0_hat.shape) == (4, 6, (6, 4), (6, 4))
    of_file = [recordings.paths.index(path) for path in way.paths]
    assert all(rows.start <= row < rows.stop for row, rows in zip(way.windows, map(recordings.rows_of, of_file), strict=True))
    cosine = recordings.vectors[way.windows] @ query
    assert (np.diff(cosine) <= 0).all()
    seen = []
    last = ddim_sample(
        model.reranker.denoisers["t2a"],
        torch.from_numpy(query[None]),
        torch.from_numpy(recordings.vectors[way.windows]),
        model.reranker.schedule,
        steps=6,
        eta=0.5,
        noise=query_noise(3, [0], 4),
        on_step=lambda level, x, x0_hat: seen.append((level, x[0].numpy().copy(), x0_hat[0].numpy().copy())),
    )
    assert way.levels == [level for level, _, _ in seen]
    np.testing.assert_allclose(way.x, [x for _, x, _ in seen], atol=1e-4)
    np.testing.assert_allclose(way.x0_hat, [x0_hat for _, _, x0_hat in seen], atol=1e-5)
    np.testing.assert_allclose(way.x0_hat[-1], last[0], atol=1e-5)

    document = client.get("/api/trajectory", params={"q": "900 Hz"}).json()
    whole = trajectory(model, recordings, query)
    assert document["levels"] == whole.levels == list(range(9, -1, -1))
    assert [clip["key"] for clip in document["clips"]] == [key_of(path) for path in whole.paths]
    np.testing.assert_allclose(document["x"], whole.x, atol=1e-4)
    np.testing.assert_allclose(document["x0_hat"], whole.x0_hat, atol=1e-4)
    # The last step is what the search ranks by: score = cosine + 0.7 x0_hat.
    scores = {hit.path: hit.score for hit in session.by_text("900 Hz", 7).hits}
    ranked = recordings.vectors[whole.windows] @ query + 0.7 * whole.x0_hat[-1]
    np.testing.assert_allclose([scores[path] for path in whole.paths], ranked, atol=1e-5)


def test_the_trajectory_ends_at_the_mean_over_the_draws_that_a_search_fuses(session, monkeypatch):
    model, recordings = session.model, session.folder.read(session.model.model_id)
    query = embed_texts(model, ["900 Hz"])[0]
    monkeypatch.setattr(model, "reranker", make_reranker(draws=3))
    way = trajectory(model, recordings, query)
    candidates = torch.from_numpy(recordings.vectors[way.windows])
    denoiser, schedule = model.reranker.denoisers["t2a"], model.reranker.schedule
    arguments = denoiser, torch.from_numpy(query[None]), candidates, schedule, None, 0.5
    apart = [ddim_sample(*arguments, noise=query_noise(0, [0], len(candidates), draw))[0].numpy() for draw in range(3)]
    np.testing.assert_allclose(way.x0_hat[-1], np.mean(apart, 0), rtol=1e-3)
    assert (abs(apart[0] / way.x0_hat[-1] - 1) > 0.01).any()  # noise makes a difference
    np.testing.assert_allclose(way.x[0], query_noise(0, [0], len(candidates))(0)[0])
    ranked = dict(zip(way.paths, recordings.vectors[way.windows] @ query + 0.7 * way.x0_hat[-1], strict=True))
    hits = search(model, recordings, query[None], top=7)[0].hits
    assert [hit.score for hit in hits] == pytest.approx([ranked[hit.path] for hit in hits], abs=1e-5)


def test_no_trajectory_without_a_denoiser(session):
    model, query = session.model, np.eye(DIM, dtype=np.float32)[0]
    recordings = session.folder.read(model.model_id)
    with pytest.raises(UsageError, match="no diffusion phase"):
        trajectory(FakeRetriever(), recordings, query)
    assert trajectory(model, recordings.none(), query).levels == []


def test_a_trained_model_is_served(workshop, trained, tmp_path):
    shutil.copytree(workshop.data / "tones" / "test", tmp_path / "clips")
    model = load_retriever(trained, "cpu")
    made, outcomes = SearchSession(model, FolderIndex(tmp_path / "clips"), sampling_of(model, folder=True, seed=1)), []
    made.start(told=outcomes.append)
    until(lambda: outcomes, 60)
    client = client_of(made)
    document = client.get("/api/search", params={"q": "a low tone", "top": 3}).json()
    expected = search(
        model,
        made.folder.read(model.model_id),
        embed_texts(model, ["a low tone"]),
        sampling_of(model, folder=True, seed=1),
        top=3,
    )[0]
    assert [hit["path"] for hit in document["hits"]] == [str(made.corpus / hit.path) for hit in expected.hits]
    assert document["present"] == (None if expected.present is None else pytest.approx(expected.present, abs=1e-5))
    assert document["calibrated"] == (model.calibration is not None)
    way = client.get("/api/trajectory", params={"q": "a low tone"}).json()
    assert way["levels"][-1] == 0
    assert sum(way["x0_hat"][-1]) == pytest.approx(1, abs=0.01)
    first = document["hits"][0]
    same = client.post("/api/sound", content=(made.corpus / os.path.relpath(first["path"], made.corpus)).read_bytes()).json()
    assert first["path"] in [hit["path"] for hit in same["hits"]]


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def test_patience():
    lock, order, started = PriorityLock(), [], threading.Event()

    def work(name, patient):
        started.set()
        with lock.take(patient=patient):
            order.append(name)

    with lock.take():
        threads = []
        for name, patient in (("indexing", True), ("search", False)):
            started.clear()
            threads.append(threading.Thread(target=work, args=(name, patient)))
            threads[-1].start()
            started.wait()
        until(lambda: lock._waiting == 1)
    for thread in threads:
        thread.join()
    assert order == ["search", "indexing"]


def test_searches_go_on_while_the_folder_is_indexed(own, tmp_path, monkeypatch):
    own.update()
    for hz in range(1000, 1200, 10):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 1)
    held, go = threading.Event(), threading.Event()
    embed = own.model.embed_audio

    def slow(waveforms):
        assert len(waveforms) <= 8
        if len(waveforms) > 1 and not held.is_set():  # one alone makes the model warm
            held.set()
            go.wait(10)
        return embed(waveforms)

    monkeypatch.setattr(own.model, "embed_audio", slow)
    outcomes = []
    own.start(told=outcomes.append)
    held.wait(10)
    client = client_of(own)
    assert client.get("/api/state").json()["indexing"][1] == 20
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/api/search", params={"q": "900 Hz"}).json()))
    asking.start()
    until(lambda: own._lock._waiting == 1)
    own.start()  # one update at a time
    assert own.update() is None
    go.set()
    asking.join(10)
    assert answers[0]["files"] == 2  # what was known, before the update ended
    assert answers[0]["hits"][0]["name"] == "900.wav"
    until(lambda: outcomes)
    (report,) = outcomes
    assert isinstance(report, IndexReport)
    state = client.get("/api/state").json()
    assert (state["files"], state["indexing"], state["problem"]) == (22, None, None)
    own.stop()


def test_a_refresh_takes_in_what_is_new(own, tmp_path):
    own.update()
    client = client_of(own)
    write_tone(tmp_path / "clips" / "4000.wav", 4000, 2)
    (tmp_path / "clips" / "broken.wav").write_text("no sound")
    assert client.post("/api/refresh").status_code == 200
    until(lambda: client.get("/api/state").json()["indexing"] is None and own.status.files == 3)
    assert client.get("/api/state").json()["skipped"] == 1
    assert client.get("/api/search", params={"q": "4000 Hz"}).json()["hits"][0]["name"] == "4000.wav"
    own.stop()


def test_a_folder_without_sounds_says_so_and_can_be_filled(tmp_path):
    (tmp_path / "clips").mkdir()
    made, outcomes = make_session(tmp_path / "clips"), []
    made.start(told=outcomes.append)
    until(lambda: outcomes)
    assert isinstance(outcomes[0], DiffATRError)
    client = client_of(made)
    assert "no sound files" in client.get("/api/state").json()["problem"]
    assert client.get("/api/search", params={"q": "900 Hz"}).json()["hits"] == []
    assert client.get("/api/trajectory", params={"q": "900 Hz"}).json()["levels"] == []
    until(lambda: not made._thread.is_alive())
    write_tone(tmp_path / "clips" / "900.wav", 900, 1)
    made.start(told=outcomes.append)
    until(lambda: len(outcomes) == 2)
    assert (made.status.problem, made.status.files) == (None, 1)
    made.stop()


def test_stopping_ends_an_update_between_two_files(own, tmp_path, monkeypatch):
    for hz in range(300, 320):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 0.1)
    reached = threading.Event()

    @contextmanager
    def watch():
        def progress(done, total, note):
            if done == 3:
                reached.set()
                own._stopping.wait(10)

        yield progress

    outcomes = []
    own.start(watch, outcomes.append)
    reached.wait(10)
    own.stop(10)
    assert not own._thread.is_alive()
    assert outcomes == []
    assert FolderIndex(tmp_path / "clips").update(FakeRetriever()).files == 22  # nothing is locked or damaged


def test_ports():
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, pytest.raises(DiffATRError, match="--port 0"):
        listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as one, listen("127.0.0.1", None) as other:  # any that is free, if 8765 is not
        assert one.getsockname()[1] != other.getsockname()[1]
    with pytest.raises(DiffATRError, match="no address of this machine"):
        listen("nowhere.invalid", 0)


app = typer.Typer()
command.register(app)


@app.command("other")
def other():
    """With a second command, `serve` is written out as it is in diffatr."""


@pytest.fixture
def started(own, monkeypatch):
    """What the command line builds and opens, without serving."""
    seen = {"opened": []}
    monkeypatch.setattr(command, "load_model", lambda run, runs, device: FakeRetriever(phase_two=True))
    monkeypatch.setattr("webbrowser.open", seen["opened"].append)

    def run(app, listener):
        seen["client"] = TestClient(app, base_url="http://localhost")
        listener.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run", run)

    def call(*arguments):
        seen["result"] = CliRunner().invoke(app, ["serve", "--corpus", str(own.folder.corpus), *arguments])
        return seen

    return call


def test_the_command_prints_the_address_and_ends_clean(started):
    seen = started("--port", "0")
    result = seen["result"]
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", result.stdout)
    assert "Ctrl-C" in result.stderr
    assert "stopped" in result.stderr
    assert seen["opened"] == []  # stdout is no terminal
    assert seen["client"].get("/").status_code == 200
    refusal(seen["client"].get("/", headers={"Host": "evil.example"}), 403, "own name")
    seen = started("--port", "0", "--open")
    assert seen["opened"] == [seen["result"].stdout.strip()]


def test_beyond_this_machine_a_key_is_needed(started):
    seen = started("--host", "0.0.0.0", "--port", "0")
    address = seen["result"].stdout.strip()
    token = re.fullmatch(r"http://[^/]+:\d+/\?token=([\w-]{32})", address)[1]
    refusal(seen["client"].get("/"), 401, "needs its key")
    assert seen["client"].get("/", params={"token": token}).status_code == 200
    assert "not encrypted" in seen["result"].stderr
    again = re.search("token=(.*)", started("--host", "0.0.0.0", "--port", "0")["result"].stdout)[1]
    assert again != token


def test_wrong_use_is_told_before_any_work(started, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "load_model", lambda *_: pytest.fail("the model was loaded"))
    find = command.importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(command.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
        error = started()["result"].exception
        assert isinstance(error, UsageError)
        assert "pip install 'diffatr[serve]'" in str(error)
    error = CliRunner().invoke(app, ["serve", "--corpus", str(tmp_path / "nowhere")]).exception
    assert isinstance(error, UsageError)
    with listen("127.0.0.1", 0) as taken:
        error = started("--port", str(taken.getsockname()[1]))["result"].exception
        assert isinstance(error, DiffATRError)
