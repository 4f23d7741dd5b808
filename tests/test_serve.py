"""What the page of `diffatr serve` asks, and what it is answered."""

import base64
import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from fake_retriever import DIM, FakeRetriever, make_reranker, write_tone
from fastapi.testclient import TestClient
from serving import client_of, make_session, refusal, until

from diffatr_cli.core.calibration import Calibration, Logistic
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.corpus.asking import ask_texts
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.search import embed_texts, search, search_texts
from diffatr_cli.corpus.session import SearchSession, key_of
from diffatr_cli.corpus.trajectory import trajectory
from diffatr_cli.errors import UsageError
from diffatr_cli.model import load_retriever, sampling_of
from diffatr_cli.web.app import make_app

pytest_plugins = ["serving_fixtures"]


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
    expected = ask_texts(model, session.folder.read(model.model_id), ["900 Hz"], sampling, top=5)
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
    for number in ("9" * 5000, "-1", "1e999", "x"):  # Python reads no number of more than 4300 digits
        refusal(client.get("/api/search", params={"q": "900 Hz", "top": number}), 400, "top: ")
        refusal(client.get("/spectrogram/x", params={"start": number, "end": 1}), 400, "start: ")
    refusal(client.get("/api/search", params={"q": "900 Hz", "by": "name", "not": "200 Hz"}), 400, "by name alone")
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
    expected = search_texts(
        model,
        made.folder.read(model.model_id),
        ["a low tone"],
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
