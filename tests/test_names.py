"""Searching by sound and by name at once, among the files that filters leave; in memory, in the tables, and after changes."""

import json
import os
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from fake_retriever import RATE, FakeRetriever, as_the_last_version_wrote_it, tone, write_tone
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus import noting, selection
from diffatr_cli.corpus.asking import ask_sound, ask_texts, read_words, select
from diffatr_cli.corpus.board import Board
from diffatr_cli.corpus.filtering import Columns
from diffatr_cli.corpus.filters import FilterError
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.notes import UNKNOWN, Notes
from diffatr_cli.corpus.search import embed_texts, search, search_texts
from diffatr_cli.corpus.selection import Selection, spread
from diffatr_cli.corpus.session import IndexState
from diffatr_cli.corpus.snapshot import Recordings
from diffatr_cli.errors import UsageError


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for hz, name in ((200, "untitled_01"), (450, "DogBark02"), (900, "field/rain on tin"), (2000, "field/dogs_03"), (4000, "x")):
        write_tone(root / f"{name}.wav", hz, 2)
    write_tone(root / "field" / "long dog.flac", 6000, 12)
    return root


def read(index, model):
    index.update(model)
    return index.read(model.model_id)


def paths(found):
    return [hit.path for hit in found.hits]


def made_up(names, vectors, seconds=2.0):
    """An index of one window a file, without a folder."""
    count = len(names)
    spans = np.tile([0.0, seconds], (count, 1))
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Recordings(names, np.arange(count), np.arange(count + 1), spans, vectors, notes=Notes.of(names, [UNKNOWN] * count))


class Listener(FakeRetriever):
    """One that also takes texts without a frequency."""

    def embed_text(self, captions):
        return super().embed_text([each if each.split()[0].isdecimal() else f"1000 {each}" for each in captions])


class Cosines:
    """All that a search by cosine asks of a model; its text is the first direction."""

    reranker = calibration = bank = None
    sees_frames = False

    def embed_and_pool_text(self, texts):
        return np.eye(8, dtype=np.float32)[np.zeros(len(texts), int)], np.zeros((len(texts), 1))


def test_names_and_sounds_are_searched_together(corpus):
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    (both,) = ask_texts(model, recordings, ["200 Hz dog"])
    by = {hit.path: hit.by for hit in both.hits}
    assert paths(both)[0] == "untitled_01.wav"  # the sound fits far better than any name
    assert by["untitled_01.wav"] == by["x.wav"] == by[os.path.join("field", "rain on tin.wav")] == "sound"
    assert {path for path, each in by.items() if each == "both"} == {
        "DogBark02.wav",
        os.path.join("field", "dogs_03.wav"),
        os.path.join("field", "long dog.flac"),
    }
    (name,) = ask_texts(model, recordings, ["200 Hz dog"], by="name")
    assert set(paths(name)) == {path for path, each in by.items() if each == "both"}
    assert [hit.by for hit in name.hits] == ["name"] * 3
    assert all(0 < hit.score <= 1 for hit in name.hits)
    (sound,) = ask_texts(model, recordings, ["200 Hz dog"], by="sound")
    assert [replace(hit, facts=None) for hit in sound.hits] == search_texts(model, recordings, ["200 Hz dog"])[0].hits


def test_what_only_its_name_brings_into_the_list_is_by_name(corpus):
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    (sound,) = ask_texts(model, recordings, ["200 Hz rain"], by="sound", top=2)
    (both,) = ask_texts(model, recordings, ["200 Hz rain"], top=2)
    rain = os.path.join("field", "rain on tin.wav")
    assert rain not in paths(sound)
    assert {hit.path: hit.by for hit in both.hits}.get(rain, "name") == "name"
    (alone,) = ask_texts(model, recordings, ["rain on tin"], by="name", top=1)
    assert (paths(alone), alone.hits[0].score, alone.calibrated, alone.verdict) == ([rain], pytest.approx(1), False, None)


vectors = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(12, 8)))


@given(vectors, st.integers(1, 12))
def test_where_no_name_has_a_word_nothing_changes(values, top):
    recordings = made_up([f"untitled_{i:02d}.wav" for i in range(12)], values)
    (both,) = ask_texts(Cosines(), recordings, ["a dog barks"], top=top)
    (sound,) = ask_texts(Cosines(), recordings, ["a dog barks"], by="sound", top=top)
    assert both == sound


@given(vectors, st.lists(st.sampled_from(["dog", "dog bark", "cat", "untitled"]), min_size=12, max_size=12), st.integers(1, 12))
def test_the_order_is_that_of_cosine_and_name_added_in_a_plain_loop(values, called, top):
    recordings = made_up([f"{i:02d} {name}.wav" for i, name in enumerate(called)], values)
    cosine = recordings.vectors[:, 0].astype(float)
    share = recordings.notes.names.scores("a dog barks")
    total = [
        float(c) + selection.WEIGHT * float(np.std(recordings.vectors[:, 0])) * float(n)
        for c, n in zip(cosine, share, strict=True)
    ]
    want = sorted(range(12), key=lambda i: -total[i])[:top]
    (found,) = ask_texts(Cosines(), recordings, ["a dog barks"], top=top)
    assert [recordings.number_of[hit.path] for hit in found.hits] == want
    first = set(np.argsort(-cosine, kind="stable")[:top].tolist())
    for hit in found.hits:
        i = recordings.number_of[hit.path]
        assert hit.by == ("sound" if not share[i] else "both" if i in first else "name")
        assert hit.score == pytest.approx(cosine[i])


@given(vectors)
def test_a_lying_name_never_beats_a_sound_that_fits_far_better(values):
    recordings = made_up([f"dog bark {i}.wav" if i % 2 else f"untitled {i}.wav" for i in range(12)], values)
    (found,) = ask_texts(Cosines(), recordings, ["dog bark"], top=12)
    far = selection.WEIGHT * spread(recordings, np.eye(8, dtype=np.float32)[0])
    scores = [hit.score for hit in found.hits]
    assert all(later - earlier <= far + 1e-6 for i, earlier in enumerate(scores) for later in scores[i:])


def test_copies_of_one_content_have_each_their_own_name(tmp_path):
    root = tmp_path / "clips"
    write_tone(root / "a.wav", 300, 1)
    for name in ("b dog.wav", "c dog bark.wav"):
        shutil.copy(root / "a.wav", root / name)
    write_tone(root / "d.wav", 301, 1, seed=1)
    model = Listener()
    recordings = read(FolderIndex(root), model)
    assert paths(ask_texts(model, recordings, ["dog bark 300 Hz"], top=2)[0]) == ["c dog bark.wav", "b dog.wav"]
    assert paths(ask_texts(model, recordings, ["300 Hz -dog"])[0]) == ["a.wav", "d.wav"]


def test_filters_come_before_the_list(corpus):
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    (found,) = ask_texts(model, recordings, ["200 Hz in:field length:<5"], top=1)
    assert len(found.hits) == 1
    assert (found.filters, found.fitting) == (("in:field", "length:<5"), 2)
    (none,) = ask_texts(model, recordings, ["200 Hz format:mp3"])
    assert (none.hits, none.fitting, none.remark) == ([], 0, "no file here fits format:mp3.")
    (long,) = ask_texts(model, recordings, ["200 Hz"], only="length:>5 format:flac")
    assert paths(long) == [os.path.join("field", "long dog.flac")]
    sound = ask_sound(model, recordings, embed_texts(model, ["200 Hz"])[0], only="-in:field", top=2)
    assert paths(sound) == ["untitled_01.wav", "DogBark02.wav"]
    assert (sound.hits[0].by, sound.fitting) == ("sound", 3)


@given(vectors, st.integers(0, 2**12 - 1), st.integers(1, 12))
def test_a_search_among_some_files_is_the_search_of_an_index_of_those(values, bits, top):
    recordings = made_up([f"{i:02d}.wav" for i in range(12)], values)
    kept = [i for i in range(12) if bits >> i & 1]
    mask = np.isin(np.arange(12), kept)
    query = np.eye(8, dtype=np.float32)[:1]
    (got,) = search(Cosines(), recordings, query, selections=[Selection(mask)], top=top)
    (want,) = search(Cosines(), made_up([f"{i:02d}.wav" for i in kept], values[kept].reshape(-1, 8)), query, top=top)
    assert [(hit.path, hit.score) for hit in got.hits] == [(hit.path, pytest.approx(hit.score, abs=1e-6)) for hit in want.hits]


@pytest.mark.parametrize("text", ["200 Hz dog", "200 Hz dog in:field", "dog length:<5 -tin", "200 Hz dog format:mp3"])
@pytest.mark.parametrize("by", ["sound", "name", "both"])
def test_vectors_that_stay_in_the_tables_give_the_same(corpus, tmp_path, text, by):
    model = Listener()
    exact = read(FolderIndex(corpus, tmp_path / "ix", approximate=False), model)
    near = read(FolderIndex(corpus, tmp_path / "ix", approximate=True), model)
    assert near.store is not None
    for top in (1, 3, 10):
        (want,), (got,) = (ask_texts(model, each, [text], by=by, top=top) for each in (exact, near))
        assert [(hit.path, hit.by) for hit in got.hits] == [(hit.path, hit.by) for hit in want.hits]
        assert [hit.score for hit in got.hits] == pytest.approx([hit.score for hit in want.hits], abs=1e-6)
        assert (got.fitting, got.filters) == (want.fitting, want.filters)


def test_facts_and_metadata_come_with_the_hits(corpus):
    chunk = b"INFO" + b"ICMT" + struct.pack("<I", 6) + b"wolf!\0"
    with (corpus / "x.wav").open("r+b") as file:
        content = file.read()
        file.write(b"LIST" + struct.pack("<I", len(chunk)) + chunk)
        file.seek(4)
        file.write(struct.pack("<I", len(content) + len(chunk)))
    os.utime(corpus / "x.wav", (1_700_000_000, 1_700_000_000))
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    (found,) = ask_texts(model, recordings, ["wolf"], by="name")
    (hit,) = found.hits
    assert hit.path == "x.wav"
    assert hit.facts._asdict() == {
        "format": "wav",
        "channels": 1,
        "rate": RATE,
        "date": "2023-11-14",
        "metadata": {"comment": "wolf!"},
    }
    assert "x.wav" not in paths(ask_texts(model, recordings, ["dog -wolf"])[0])
    assert paths(ask_texts(model, recordings, ["dog date:2023-11"])[0]) == ["x.wav"]


def test_a_rename_or_a_new_tag_is_taken_up_without_embedding(corpus, tmp_path, monkeypatch):
    model, index = Listener(), FolderIndex(corpus, tmp_path / "ix")
    read(index, model)
    embedded, looked = model.embedded, []
    real = noting.note_of
    monkeypatch.setattr(noting, "note_of", lambda path, stamp: looked.append(path.name) or real(path, stamp))
    (corpus / "x.wav").rename(corpus / "wolf howl.wav")
    recordings = read(index, model)
    assert looked == ["wolf howl.wav"]
    assert paths(ask_texts(model, recordings, ["wolf"], by="name")[0]) == ["wolf howl.wav"]
    assert ask_texts(model, recordings, ["x"], by="name")[0].hits == []
    (corpus / "field").rename(corpus / "forest")
    recordings = read(index, model)
    assert model.embedded == embedded
    assert len(ask_texts(model, recordings, ["200 Hz in:forest"])[0].hits) == 3
    looked.clear()
    assert index.update(model).unchanged == 6
    assert looked == []


def test_an_index_of_the_last_version_gets_its_notes_without_embedding(corpus):
    model, index = Listener(), FolderIndex(corpus)
    read(index, model)
    embedded = model.embedded
    as_the_last_version_wrote_it(index)
    old = index.read(model.model_id)  # where it cannot be brought up to date, names are searched all the same
    assert paths(ask_texts(model, old, ["rain tin"], by="name")[0]) == [os.path.join("field", "rain on tin.wav")]
    assert ask_texts(model, old, ["dog channels:1"])[0].hits == []
    recordings = read(index, model)
    assert model.embedded == embedded
    assert len(ask_texts(model, recordings, ["dog channels:1"])[0].hits) == 6
    shutil.rmtree(next(index.folder.glob("notes-*.lance")))
    assert len(ask_texts(model, read(index, model), ["dog channels:1"])[0].hits) == 6
    assert model.embedded == embedded


@pytest.mark.parametrize("way", ["flip", "cut", "empty"])
def test_damaged_notes_are_made_again_and_cost_no_vectors(corpus, way):
    model, index = Listener(), FolderIndex(corpus)
    want = read(index, model)
    embedded = model.embedded
    for path in next(index.folder.glob("notes-*.lance")).rglob("*.lance"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}[way])
    for path in index.folder.glob("snapshot-*"):
        path.unlink()
    got = read(index, model)
    assert model.embedded == embedded
    assert got.paths == want.paths
    for name, array in want.notes.arrays().items():
        assert (got.notes.arrays()[name] == array).all(), name


def test_broken_metadata_costs_no_file_its_sound(corpus):
    soundfile.write(corpus / "bad.wav", tone(777, 1), RATE)
    with (corpus / "bad.wav").open("ab") as file:
        file.write(b"iXML" + struct.pack("<I", 2**31 - 1) + b"<a>" * 10 + b"\xff\xfe")
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    assert "bad.wav" in recordings.paths
    assert paths(ask_texts(model, recordings, ["777 Hz"])[0])[0] == "bad.wav"


def test_names_that_are_no_text(corpus):
    try:
        write_tone(corpus / os.fsdecode(b"dog\xff\xfe bark.wav"), 1000, 1)
    except (OSError, soundfile.LibsndfileError):
        pytest.skip("this file system takes text alone")
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    (found,) = ask_texts(model, recordings, ["bark 1000 Hz"], by="name", top=1)
    assert json.dumps(found.hits[0].facts._asdict())
    assert os.fsencode(found.hits[0].path) == b"dog\xff\xfe bark.wav"


def test_notes_are_shared_by_the_processes_of_a_service(corpus, tmp_path):
    model = Listener()
    recordings = read(FolderIndex(corpus), model)
    board = Board(tmp_path)
    board.publish(IndexState.of(recordings, {}, "1", 0.0))
    other = board.published().recordings
    for text in ("dog", "dog in:field length:<5 channels:1"):
        assert ask_texts(model, other, [text]) == ask_texts(model, recordings, [text])


def test_queries_that_say_nothing_of_a_sound():
    with pytest.raises(UsageError, match="Say beside them what it sounds like"):
        read_words("length:<5 in:field")
    with pytest.raises(FilterError):
        read_words("dog length:x")
    with pytest.raises(UsageError, match="sound, name, both"):
        ask_texts(Cosines(), made_up(["a.wav"], [[1] * 8]), ["dog"], by="ear")


def test_filters_are_worked_out_once_for_an_index():
    recordings = made_up(["dog.wav"], [[1] * 8])
    assert Columns.of(recordings) is Columns.of(recordings)
    assert select(recordings, "dog", (), "both").files is None
