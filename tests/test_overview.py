"""What there is in a folder before anybody asks: its kinds of sound, and a map that is kept beside the index."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_retriever import DIM, FakeRetriever, make_reranker, tone, write_tone
from serving import client_of, until

from diffatr_cli.core.bank import CaptionBank, LearntSounds
from diffatr_cli.core.calibration import Calibration, Logistic, distribution_of_cosines, presence_features, presence_of_cosines
from diffatr_cli.corpus import kinds_found, some_contents, sound_map
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.kinds_found import find_kinds
from diffatr_cli.corpus.library import Library
from diffatr_cli.corpus.overview import Overview
from diffatr_cli.corpus.session import SearchSession
from diffatr_cli.corpus.some_contents import fair_sample, in_blocks
from diffatr_cli.corpus.sound_map import kept_map, make_map
from diffatr_cli.corpus.subfolder import Subfolder
from diffatr_cli.data.vocabulary import read_vocabulary

pytest_plugins = ["serving_fixtures"]
FITS = Logistic((30.0, 1.0), -28.0)  # of a cosine: 0.88 at 1, 0.06 at 0.84
PRESENT = Logistic((20.0, 0.0, 0.1, 0.3, 0.0), -17.0)


def teach(model, folder, *hz):
    """Kinds of sound that the model was taught, and what its cosines are worth."""
    folder.mkdir(exist_ok=True)
    (folder / "kinds.csv").write_text("label,caption\n" + "".join(f"about {each},{each} Hz\n" for each in hz))
    model.kinds = folder / "kinds.csv"
    model.calibration = Calibration(FITS, FITS, None, None, captions=PRESENT, captions_told_below=0.4)
    return model


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    for hz in (300, 300, 301, 900, 4000):
        write_tone(folder / f"{hz}-{len(list(folder.glob('*'))) if folder.is_dir() else 0}.wav", hz, 1, seed=hz)
    write_tone(folder / "deep" / "long.wav", 900, 25)
    (folder / "deep" / "copy.wav").write_bytes((folder / "deep" / "long.wav").read_bytes())
    return folder


@pytest.fixture
def taught(tmp_path, clips):
    model = teach(FakeRetriever(), tmp_path / "model", 300, 900, 2000, 4000)
    index = FolderIndex(clips)
    index.update(model)
    return model, index, index.read(model.model_id)


def one_by_one(model, recordings, least):
    """Which captions fit each file, by `describe`: the probabilities of those that reach what the calibration states."""
    captions = [label.caption for label in read_vocabulary(model.kinds).labels]
    for file in range(len(recordings)):
        found = describe(model, recordings.vectors[recordings.rows_of(file)], captions, top=len(captions))
        yield [captions.index(hit.caption) for hit in found.hits if hit.score >= least]


@pytest.mark.parametrize("weight", [0.0, 0.7], ids=["by cosine", "with diffusion"])
def test_the_kinds_are_those_that_describe_finds(taught, weight):
    model, _, recordings = taught
    model.reranker = make_reranker(model.dim, weight)
    found = find_kinds(model, recordings)
    fitting = list(one_by_one(model, recordings, 0.4))
    assert any(fitting)
    assert found.files.tolist() == [sum(kind in each for each in fitting) for kind in range(4)]
    assert found.best[recordings.content].tolist() == [each[0] if each else -1 for each in fitting]
    assert (found.looked, found.total) == (7, 7)
    assert found.in_order() == sorted(found.in_order(), key=lambda each: -each[1])
    assert all(files for _, files in found.in_order())
    if not weight:
        assert {label.name for label, _ in found.in_order()} == {"about 300", "about 900", "about 4000"}


@pytest.mark.parametrize("weight", [0.0, 0.7], ids=["by cosine", "with diffusion"])
def test_what_learnt_sounds_tell_counts_for_kinds_as_for_one_sound(taught, weight):
    model, _, recordings = taught
    model.reranker = make_reranker(model.dim, weight)
    before = find_kinds(model, recordings)
    texts = ("300 hz", "900 hz", "4000 hz")
    called = model.pool_text([text.replace("hz", "Hz") for text in texts])
    sounds = model.embed_audio([tone(hz, 1, 99) for hz in (300, 900)])  # the model never heard 4000 Hz
    model.bank = CaptionBank(texts, called, 0.9, sounds=LearntSounds(sounds, np.array([[0, 0], [1, 1]], np.int32)))
    # Sounds that lie near to none learnt, or to some of another name, are of no kind.
    strict = Logistic((*PRESENT.weights, 0, 0, 0, 60.0, 60.0), PRESENT.bias - 110)
    model.calibration = replace(model.calibration, captions=strict)
    found = find_kinds(model, recordings)
    fitting = list(one_by_one(model, recordings, 0.4))
    assert found.best[recordings.content].tolist() == [each[0] if each else -1 for each in fitting]
    assert found.files.tolist() == [sum(kind in each for each in fitting) for kind in range(4)]
    if not weight:
        assert {label.name for label, _ in before.in_order()} == {"about 300", "about 900", "about 4000"}
        assert {label.name for label, _ in found.in_order()} == {"about 300", "about 900"}


def test_learnt_sounds_are_asked_of_the_window_that_a_caption_fits_best(taught):
    model, _, _ = taught
    vectors = model.embed_audio([tone(hz, 1, 7) for hz in (4000, 900, 301)])
    recordings = Recordings(["both.wav", "one.wav"], np.arange(2), np.array([0, 2, 3]), np.zeros((3, 2)), vectors)
    sounds = model.embed_audio([tone(hz, 1, 99) for hz in (4000, 900, 300)])
    called = np.eye(3, DIM, dtype=np.float32)  # three names, nothing like one another; what is asked is the second
    model.bank = CaptionBank(("a", "b", "c"), called, 0.9, sounds=LearntSounds(sounds, np.array([[0], [1], [2]])))
    model.pool_text = lambda texts: np.stack([called[1] for _ in texts])
    (model.kinds.parent / "kinds.csv").write_text("label,caption\nabout 900,900 Hz\n")
    of_sounds = Logistic((0.0,) * 8 + (0.0, 40.0), -20.0)  # sure where what the window is like is called b
    model.calibration = replace(model.calibration, captions=of_sounds, captions_told_below=0.5)
    found = [describe(model, recordings.vectors[recordings.rows_of(file)], ["900 Hz"]) for file in range(2)]
    assert [each.present for each in found] == pytest.approx([1, 0], abs=1e-3)
    assert find_kinds(model, recordings).best.tolist() == [0, -1]


def test_the_features_of_many_are_those_of_each():
    rng = np.random.default_rng(0)
    cosine, heard = rng.uniform(-1, 1, (6, 9)), rng.uniform(size=(6, 2))
    each = [presence_features(row, distribution_of_cosines(row), candidates=30) for row in cosine]
    assert presence_of_cosines(cosine, 30) == pytest.approx(np.stack(each))
    pairs = zip(cosine, heard, strict=True)
    each = [presence_features(row, distribution_of_cosines(row), candidates=30, heard=own) for row, own in pairs]
    assert presence_of_cosines(cosine, 30, heard) == pytest.approx(np.stack(each))


def test_a_model_that_cannot_tell_has_no_kinds(taught):
    model, _, recordings = taught
    calibration = model.calibration
    for without in (None, replace(calibration, captions=None), replace(calibration, audio_to_text=None)):
        model.calibration = without
        assert find_kinds(model, recordings) is None
    model.calibration, model.kinds = calibration, None
    assert find_kinds(model, recordings) is None


def test_of_very_many_a_fair_sample_is_looked_at(taught, monkeypatch):
    model, _, recordings = taught
    monkeypatch.setattr(kinds_found, "MOST", 3)
    found = find_kinds(model, recordings)
    (looked,) = np.nonzero(found.best != -2)
    assert looked.tolist() == fair_sample(len(recordings.offsets) - 1, 3).tolist()
    assert found.looked == np.isin(recordings.content, looked).sum() < found.total == 7


def test_a_sample_is_fair_and_lies_within_a_larger_one():
    assert fair_sample(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert fair_sample(0, 5).tolist() == []
    small, large = fair_sample(10_000, 500), fair_sample(10_000, 5000)
    assert (len(small), len(large), len(np.unique(large))) == (500, 5000, 5000)
    assert np.isin(small, large).all()
    assert large.mean() == pytest.approx(5000, rel=0.03)


@pytest.mark.parametrize("windows", [1, 3, 4096])
def test_blocks_hold_every_window_once(taught, monkeypatch, windows):
    _, _, recordings = taught
    monkeypatch.setattr(some_contents, "_WINDOWS", windows)
    contents = np.arange(len(recordings.offsets) - 1)[::2]
    blocks = list(in_blocks(recordings, contents))
    assert np.concatenate([block.contents for block in blocks]).tolist() == contents.tolist()
    for block in blocks:
        assert np.array_equal(block.vectors, recordings.vectors[block.rows])
        for i, content in enumerate(block.contents):
            own = block.rows[block.offsets[i] : block.offsets[i + 1]]
            assert own.tolist() == list(range(*recordings.offsets[content : content + 2]))
    assert windows > 1 or len(blocks) == len(contents)


def test_a_map_has_each_content_once_by_the_window_nearest_to_its_mean(taught):
    _, _, recordings = taught
    made = make_map(recordings)
    assert made.contents.tolist() == list(range(len(recordings.offsets) - 1))
    for content, row in zip(made.contents, made.rows, strict=True):
        first, end = recordings.offsets[content : content + 2]
        vectors = recordings.vectors[first:end]
        assert row == first + int((vectors @ vectors.mean(0)).argmax())


def test_a_map_is_kept_and_made_anew_when_it_is_of_another_version_or_damaged(taught, tmp_path, monkeypatch):
    _, _, recordings = taught
    path, made = tmp_path / "map.npz", []
    monkeypatch.setattr(sound_map, "lay_out", lambda vectors: made.append(1) or np.zeros((len(vectors), 2), np.float32))
    for _ in range(2):
        assert len(kept_map(path, "a", recordings).places) == len(recordings.offsets) - 1
    assert len(made) == 1
    kept_map(path, "b", recordings)
    assert len(made) == 2
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    for damaged in (bytes(content), content[:100], b""):
        path.write_bytes(damaged)
        before = len(made)
        kept_map(path, "b", recordings)
        assert len(made) == before + 1
    kept_map(tmp_path / "nowhere" / "map.npz", "b", recordings)  # a disk that takes nothing


def test_what_is_kept_lies_beside_the_index_and_each_corpus_has_its_own(clips, tmp_path):
    index, other = FolderIndex(clips), FolderIndex(clips / "deep", tmp_path / "index")
    files = [
        index.kept_file("map"),
        other.kept_file("map"),
        FolderIndex(clips, tmp_path / "index").kept_file("map"),
        Subfolder(clips / "deep", index).kept_file("map"),
        Library([index, other]).kept_file("map"),
    ]
    assert len(set(files)) == len(files)
    assert files[0].parent == clips / ".diffatr"
    assert {files[1].parent, files[2].parent} == {tmp_path / "index"}


def test_an_overview_is_made_in_the_background_and_anew_for_another_version(taught):
    model, index, _ = taught
    session = SearchSession(model, index)
    session.update()
    overview = Overview(session)
    assert overview.map() is None
    until(lambda: overview.map() is not None, 120)
    first = overview.map()
    assert overview.map() is first
    assert first.kinds.total == 7
    kept = list(index.folder.glob("map-v1*.npz"))
    assert len(kept) == 1
    write_tone(index.corpus / "new.wav", 5000, 1)
    session.update()
    assert overview.map() is first  # until there is another
    until(lambda: len(overview.map().map.contents) == len(first.map.contents) + 1, 120)
    assert list(index.folder.glob("map-v1*.npz")) == kept
    again = Overview(SearchSession(model, index))
    assert again.kinds() is None  # of an index that was not read yet there is nothing to wait for
    until(lambda: again.kinds() is not None)


def test_what_goes_wrong_is_told_once_and_tried_again(taught):
    model, index, _ = taught
    session = SearchSession(model, index)
    session.update()
    overview, kinds = Overview(session), model.kinds
    model.kinds = Path("gone.csv")
    assert overview.kinds() is None
    with pytest.raises(Exception, match=r"gone\.csv"):
        until(lambda: overview.kinds() is not None)
    model.kinds = kinds
    until(lambda: overview.kinds() is not None)


def test_the_page_asks_for_kinds_and_a_map(taught):
    model, index, recordings = taught
    session = SearchSession(model, index)
    session.update()
    client = client_of(session)
    until(lambda: client.get("/api/kinds").json()["ready"])
    kinds = client.get("/api/kinds").json()
    assert kinds["version"] == client.get("/api/state").json()["version"] == session.version[0]
    assert (kinds["looked"], kinds["total"]) == (7, 7)
    assert {"label": "about 300", "caption": "300 Hz", "files": 3} in kinds["kinds"]
    until(lambda: client.get("/api/map").json()["ready"], 120)
    drawn = client.get("/api/map").json()
    assert drawn["contents"] == len(drawn["dots"]) == len(recordings.offsets) - 1
    by_path = {dot[1]: dot for dot in drawn["dots"]}
    key, path, start, end, kind, x, y, number = by_path["300-0.wav"]
    assert client.get(f"/take/{key}", params={"start": start, "end": end}).status_code == 200
    assert (path, kind, drawn["kinds"][number]) == ("300-0.wav", "audio/wav", "about 300")
    assert max(abs(x), abs(y)) <= 1
    assert sum(os.sep in path for path in by_path) == 1  # of two copies the first
    model.kinds = None
    other = client_of(session)
    until(lambda: other.get("/api/kinds").json()["ready"])
    assert other.get("/api/kinds").json()["kinds"] is None


def test_more_like_this_and_sounds_take_the_filters_of_the_search_field(own):
    own.update()
    client = client_of(own)
    write_tone(own.corpus / "near" / "210.wav", 210, 2)
    own.update()
    key = client.get("/api/search", params={"q": "200 Hz"}).json()["hits"][0]["key"]
    assert len(client.get(f"/api/like/{key}").json()["hits"]) == 2
    within = {"within": "200 Hz in:near"}
    liked = client.get(f"/api/like/{key}", params=within).json()
    assert ([hit["name"] for hit in liked["hits"]], liked["filters"], liked["files"]) == (["210.wav"], ["in:near"], 1)
    content = (own.corpus / "200.wav").read_bytes()
    sent = client.post("/api/sound", params=within, content=content).json()
    assert ([hit["name"] for hit in sent["hits"]], sent["filters"]) == (["210.wav"], ["in:near"])
    for answer in (
        client.get(f"/api/like/{key}", params={"within": "length:x"}),
        client.post("/api/sound", params={"within": "length:x"}, content=content),
    ):
        assert answer.status_code == 400
        assert answer.json()["at"]
