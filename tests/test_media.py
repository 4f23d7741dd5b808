"""m4a, aac and the sound of videos, by PyAV (extra `audio`): indexed and found like any other file."""

import json

import numpy as np
import pytest
import typer
from fake_retriever import FakeRetriever
from typer.testing import CliRunner

av = pytest.importorskip("av")

from media_files import write_media, write_picture  # noqa: E402

from diffatr_cli.cli import query as module  # noqa: E402
from diffatr_cli.data.audio import load_audio  # noqa: E402

RATE = 44_100
app = typer.Typer()
module.register(app)


def sines(*parts):
    """Tones one after the other, of (Hz, seconds) each, at 44.1 kHz."""
    return np.concatenate([0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE) for hz, seconds in parts])


@pytest.fixture
def diffatr(monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda run, runs, device: FakeRetriever())

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
