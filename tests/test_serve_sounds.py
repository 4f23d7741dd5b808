"""Recordings as the page plays and shows them."""

import http.client
import io
import re
from decimal import Decimal

import numpy as np
import pytest
import soundfile
from fake_retriever import RATE, tone
from fastapi import Request
from fastapi.testclient import TestClient
from hypothesis import example, given
from hypothesis import strategies as st
from serving import LOCAL, Running
from starlette.datastructures import Headers

from diffatr_cli.corpus.session import NotServed, key_of
from diffatr_cli.data.audio import AudioError, load_audio
from diffatr_cli.data.excerpt import duration, read_excerpt
from diffatr_cli.web.app import make_app
from diffatr_cli.web.excerpts import VIEW, view
from diffatr_cli.web.ranges import send_file
from diffatr_cli.web.spectrogram import levels, outline, png

pytest_plugins = ["serving_fixtures"]


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
    assert len(hours) <= (VIEW + 1) * RATE * 2 + 44


@pytest.mark.parametrize("address", ["/wav/{}", "/spectrogram/{}", "/api/outline/{}"])
def test_a_part_without_sound_is_refused(client, session, address):
    """As `/take` does: 400 for one that ends before it starts, 422 for one behind the end."""
    where = address.format(key_of("900.wav"))
    for start, end, status in ((5, 1, 400), (1, 1, 400), (100, 200, 422), (0, 1, 200)):
        answer = client.get(where, params={"start": start, "end": end})
        taken = client.get(f"/take/{key_of('900.wav')}", params={"start": start, "end": end})
        assert (answer.status_code, taken.status_code) == (status, status)
        if status != 200:
            assert answer.json() == {"error": answer.json()["error"]}


NUMBERS = st.one_of(
    st.just(""), st.integers(0, 200_000).map(str), st.integers(0, 30).map(str), st.integers(1, 5000).map(lambda n: "9" * n)
)
SPACES = st.sampled_from(["", "", " ", "\t "])


class Contents(dict):
    """The addresses of a real server at which a file lies, and a part of one as WAV, with what each holds."""

    def __init__(self, server):
        self._server = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self.close = self._server.close

    def __repr__(self):
        return "Contents()"

    def ask(self, address, **headers):
        self._server.request("GET", address, headers={name: text.encode("latin-1") for name, text in headers.items()})
        answer = self._server.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.fixture(scope="module")
def contents(session):
    with Running(make_app(session, hosts=LOCAL)) as server:
        made = Contents(server)
        made[f"/clip/{key_of('900.wav')}"] = (session.corpus / "900.wav").read_bytes()
        excerpt = f"/wav/{key_of('deep/long.flac')}?start=1&end=1.5"
        made[excerpt] = made.ask(excerpt)[2]
        yield made
        made.close()


def expected(first, last, content):
    """What a range is answered by RFC 9110: status and bytes. By Decimal, which reads numbers of any length."""
    size = len(content)
    if not first and not last:
        return 200, content
    if not first:
        length = min(int(min(Decimal(last), Decimal(size))), size)
        return (206, content[size - length :]) if length else (416, b"")
    if last and Decimal(last) < Decimal(first):
        return 200, content
    if Decimal(first) >= size:
        return 416, b""
    return 206, content[int(first.lstrip("0") or "0") : int(min(Decimal(last or size), Decimal(size))) + 1]


@given(first=NUMBERS, last=NUMBERS, zeros=st.integers(0, 5000), spaces=SPACES, unit=st.sampled_from(["bytes", "Bytes"]))
@example(first="9" * 5000, last="", zeros=0, spaces="", unit="bytes")
@example(first="", last="9" * 5000, zeros=0, spaces="", unit="bytes")
@example(first="0", last="9" * 5000, zeros=5000, spaces="", unit="bytes")
def test_a_range_of_any_length_is_answered(contents, first, last, zeros, spaces, unit):
    asked = f"{unit}={spaces}{'0' * zeros if first else ''}{first}-{last}"
    for address, content in contents.items():
        status, headers, part = contents.ask(address, Range=asked)
        assert (status, part) == expected(first, last, content)
        size = len(content)
        if status == 416:
            assert headers["content-range"] == f"bytes */{size}"
        elif status == 206:
            start = int(first) if first else size - len(part)
            assert headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{size}"


@given(
    st.one_of(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=60),
        st.from_regex(
            r"\A(bytes|lines|none| bytes )?[= ]?(-?[0-9]{0,6}-?[0-9]{0,6}[, ]{0,2}){0,200}\Z",
            alphabet=st.characters(codec="ascii"),
        ),
        st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40).map(
            lambda parts: "bytes=" + ",".join(f"{a[:40]}-{b[:40]}" for a, b in parts)
        ),
    )
)
@example("bytes=" + "0-," * 2000)
@example("bytes=--5")
@example("bytes=-5-")
@example("bytes=\u00b2-\u00b3")
@example("bytes=+1-2")
@example("bytes=1_0-2_0")
def test_whatever_a_range_says_the_answer_is_the_content_or_a_part_of_it(contents, asked):
    for address, content in contents.items():
        status, headers, part = contents.ask(address, Range=asked)
        if status == 206:
            first, last = map(int, re.fullmatch(rf"bytes (\d+)-(\d+)/{len(content)}", headers["content-range"]).groups())
            assert part == content[first : last + 1]
        else:
            assert (status, part) in ((200, content), (416, b""))


def test_an_empty_file_has_no_ranges(tmp_path):
    (tmp_path / "x").touch()

    async def app(scope, receive, send):
        await send_file(tmp_path / "x", Request(scope).headers, "audio/wav")(scope, receive, send)

    client = TestClient(app)
    assert (client.get("/").status_code, client.get("/").content) == (200, b"")
    for asked in ("bytes=0-", "bytes=-1", "bytes=-0", "bytes=0-0"):
        assert client.get("/", headers={"Range": asked}).status_code == 416


def test_a_file_that_grows_while_it_is_sent_is_sent_as_it_was(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 1000)
    answer = send_file(path, Headers({}), "audio/wav")
    with path.open("ab") as out:
        out.write(b"y" * 1000)
    whole = TestClient(answer).get("/")
    assert (whole.headers["content-length"], whole.content) == ("1000", b"x" * 1000)


def test_a_file_that_went_away_is_no_fault_of_the_server(tmp_path):
    with pytest.raises(NotServed, match="x: cannot be read") as error:
        send_file(tmp_path / "x", Headers({}), "audio/wav")
    assert error.value.gone


def test_a_part_is_not_sent_for_what_a_client_kept_of_another_content(client):
    headers = {"Range": "bytes=0-9", "If-Range": '"of before"'}
    assert client.get(f"/clip/{key_of('900.wav')}", headers=headers).status_code == 200


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
