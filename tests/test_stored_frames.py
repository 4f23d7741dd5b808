"""Frames in object storage: those that an index in a folder has, of the shortlist alone, whole or made again."""

import lancedb
import numpy as np
import pytest
from fake_retriever import write_tone
from test_index_frames import NAMES, FramedRetriever, assert_whole, corpus  # noqa: F401 (a fixture)

from diffatr_cli.corpus import stored_frames
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.place import place_of
from diffatr_cli.corpus.report import Damaged
from diffatr_cli.corpus.search import embed_texts, search, token_states
from diffatr_cli.corpus.stored_frames import StoredFrameTable

pytest_plugins = ["storage_fixtures"]
NAME = "frames-v1-model-a"


def rows(uri):
    return lancedb.connect(uri).open_table(NAME).to_arrow().to_pylist()


def test_a_search_finds_what_it_finds_in_a_folder(corpus, tmp_path, uri):  # noqa: F811
    model = FramedRetriever()
    there, here = FolderIndex(corpus, uri), FolderIndex(corpus, tmp_path / "here")
    there.update(model)
    here.update(model)
    assert_whole(corpus, there, model)
    found = []
    for index in (there, here):
        recordings = index.read("model-a", frames=True)
        (one,) = search(model, recordings, embed_texts(model, ["900 Hz"]), top=5, tokens=token_states(model, ["900 Hz"]))
        found.append([(hit.path, round(hit.score, 5)) for hit in one.hits])
    assert found[0] == found[1]


@pytest.mark.slow
def test_it_follows_the_folder(corpus, uri):  # noqa: F811
    index, model = FolderIndex(corpus, uri), FramedRetriever()
    index.update(model)
    before = {row["hash"] for row in rows(uri)}
    write_tone(corpus / "a.wav", 5000, 6)
    (corpus / "e.wav").rename(corpus / "moved.wav")
    index.update(model)
    after = {row["hash"] for row in rows(uri)}
    assert (len(before - after), len(after - before)) == (1, 1)
    assert index.update(model).unchanged == 6
    recordings = index.read("model-a", frames=True)
    assert sorted(recordings.paths) == sorted({*NAMES, "copy of b.wav", "moved.wav"} - {"e.wav"})
    assert len(recordings.frames(np.arange(len(recordings.spans)))) == len(recordings.spans)


@pytest.mark.slow
def test_an_index_that_had_no_frames_gets_them(corpus, uri):  # noqa: F811
    plain = FramedRetriever()
    plain.sees_frames = False
    FolderIndex(corpus, uri).update(plain)
    told, model = [], FramedRetriever()
    FolderIndex(corpus, uri).update(model, tell=told.append)
    assert len(told) == 1
    assert uri in told[0]
    assert_whole(corpus, FolderIndex(corpus, uri), model)


@pytest.mark.slow
def test_what_a_killed_update_left_is_made_again(corpus, uri, monkeypatch):  # noqa: F811
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stored_frames, "_PENDING", 0)
        patch.setattr(StoredFrameTable, "complete", die)
        with pytest.raises(KeyboardInterrupt):
            FolderIndex(corpus, uri).update(FramedRetriever())
    assert rows(uri)
    model = FramedRetriever()
    assert FolderIndex(corpus, uri).update(model).files == 6
    assert_whole(corpus, FolderIndex(corpus, uri), model)


def table_of(uri, windows=40, length=1000):
    """Some contents with much in each window."""
    rng = np.random.default_rng(0)
    held = {
        f"{i:032x}": [rng.normal(size=(length, 64)).astype(np.float16) for _ in range(1 + i % 3)] for i in range(windows // 2)
    }
    table = StoredFrameTable(place_of(uri), NAME)
    assert table.mend() == (set(), set())
    for content, frames in held.items():
        table.add(content, 0, frames[:1])
        table.add(content, 1, frames[1:])
    table.complete({content: len(frames) for content, frames in held.items()})
    table.keep(set(held))
    return held


@pytest.mark.parametrize("indexed", [False, True])
def test_no_more_is_fetched_than_is_asked_for(uri, storage, monkeypatch, indexed):
    monkeypatch.setattr(stored_frames, "_INDEXED", 1 if indexed else 10**9)
    held = table_of(uri)
    assert bool(lancedb.connect(uri).open_table(NAME).list_indices()) == indexed
    size = sum(each.nbytes for frames in held.values() for each in frames)
    table, content = StoredFrameTable(place_of(uri), NAME), f"{7:032x}"
    table.open()
    before = storage.sent
    got = table.read([(content, 1), (content, 0)])
    assert np.array_equal(got.values, np.concatenate(held[content][1::-1]))
    assert storage.sent - before < size / 8
    assert table.contents() == set(held)


def test_incomplete_contents_do_not_count_and_are_removed(uri):
    held = table_of(uri)
    table = StoredFrameTable(place_of(uri), NAME)
    table.mend()
    table.add("half", 0, [np.zeros((3, 64), np.float16)])
    table._write()
    assert StoredFrameTable(place_of(uri), NAME).contents() == set(held)
    assert StoredFrameTable(place_of(uri), NAME).mend() == (set(held), set())
    assert {row["hash"] for row in rows(uri)} == set(held)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checksum", "gone", "length"])
def test_damage_that_a_search_meets_is_mended_by_the_next_update(corpus, uri, what):  # noqa: F811
    index, model = FolderIndex(corpus, uri), FramedRetriever()
    index.update(model)
    (damaged,) = {row["hash"] for row in rows(uri) if row["number"] == 2}  # the longest recording
    table = lancedb.connect(uri).open_table(NAME)
    if what == "gone":
        table.delete(f"hash = '{damaged}' AND number = 1")
    else:
        table.update(where=f"hash = '{damaged}' AND number = 1", values={what: 1})
    index = FolderIndex(corpus, uri)
    recordings = index.read("model-a", frames=True)
    with pytest.raises(Damaged):
        recordings.frames(np.arange(len(recordings.spans)))
    report = index.update(model)
    assert (report.repaired, report.embedded) == (1, 1)
    assert_whole(corpus, index, model)


def test_a_table_is_written_anew_with_what_is_whole(uri):
    held = table_of(uri)
    bad = f"{5:032x}"
    lancedb.connect(uri).open_table(NAME).update(where=f"hash = '{bad}'", values={"checksum": 0})
    table = StoredFrameTable(place_of(uri), NAME)
    assert table.mend(anew=True) == (held.keys() - {bad}, {bad})
    for content in held.keys() - {bad}:
        assert np.array_equal(table.read([(content, 0)]).values, held[content][0])


def test_a_search_goes_on_in_what_it_opened(uri):
    held = table_of(uri)
    searching, content = StoredFrameTable(place_of(uri), NAME), f"{3:032x}"
    searching.open()
    table = StoredFrameTable(place_of(uri), NAME)
    table.mend()
    table.keep(held.keys() - {content})
    assert StoredFrameTable(place_of(uri), NAME).contents() == held.keys() - {content}
    assert np.array_equal(searching.read([(content, 0)]).values, held[content][0])
