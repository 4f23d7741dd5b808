"""One process publishes an index and others follow: both in this one."""

import gc
import os
import threading

import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone
from hypothesis import given
from hypothesis import strategies as st
from serving import client_of, refusal, until

from diffatr_cli.corpus.board import Board
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import IndexState, IndexStatus, key_of
from diffatr_cli.corpus.shared_session import FollowingSession, PublishingSession
from diffatr_cli.corpus.snapshot import Recordings
from diffatr_cli.errors import DiffATRError

ARRAYS = ("content", "offsets", "spans", "vectors", "hashes")


@pytest.fixture
def board(tmp_path):
    (tmp_path / "board").mkdir()
    return Board(tmp_path / "board")


@pytest.fixture
def both(tmp_path, board):
    """A session that publishes and one that follows."""
    for hz in (200, 900):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
    folder = FolderIndex(tmp_path / "clips")
    first = PublishingSession(FakeRetriever(phase_two=True), folder, None, print, board)
    second = FollowingSession(FakeRetriever(phase_two=True), folder, None, print, board)
    yield first, second
    first.stop()
    second.stop()


def mapped_from(array):
    """Whether memory of an array is that of a file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def a_state(paths, seed, version="v"):
    rng = np.random.default_rng(seed)
    count = len(paths)
    vectors = rng.normal(size=(count, 4)).astype(np.float32)
    recordings = Recordings(list(paths), np.arange(count), np.arange(count + 1), rng.random((count, 2)), vectors)
    return IndexState.of(recordings, {}, version, 12.5)


NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name).map(os.fsdecode)


@given(paths=st.lists(NAMES, unique=True, max_size=5), seed=st.integers(0, 99))
def test_what_is_published_is_what_is_read(tmp_path_factory, paths, seed):
    board = Board(tmp_path_factory.mktemp("board"))
    state = a_state(sorted(paths), seed)._replace(outside=dict.fromkeys(paths[:2], "/elsewhere/\udcff"))
    shared = board.publish(state)
    for got in (shared, board.published()):
        assert got.recordings.paths == state.recordings.paths
        assert got[1:] == state[1:]
        for name in ARRAYS:
            want, have = getattr(state.recordings, name), getattr(got.recordings, name)
            assert (have.dtype, have.shape) == (want.dtype, want.shape)
            assert have.tobytes() == want.tobytes()


def test_the_arrays_are_in_shared_memory_that_nobody_can_write_to(board):
    board.publish(a_state(["a", "b"], 0))
    vectors = board.published().recordings.vectors
    assert mapped_from(vectors)
    assert type(vectors) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        vectors[0] = 0


def test_old_versions_go_and_stay_with_those_who_have_them(board):
    board.publish(a_state(["a"], 1, "one"))
    old = board.published()
    want = old.recordings.vectors.tobytes()
    board.publish(a_state(["a", "b"], 2, "two"))
    gc.collect()
    assert [path.name for path in board.place.glob("index-*")] == ["index-two"]
    assert old.recordings.vectors.tobytes() == want


def test_readers_meet_whole_versions_while_others_are_published(board):
    board.publish(a_state(["0"], 0, "0"))
    ended = threading.Event()
    troubles, seen = [], set()

    def read():
        while not ended.is_set():
            try:
                state = board.published()
                assert state.recordings.paths == [state.version]
                want = a_state([state.version], int(state.version)).recordings.vectors
                assert state.recordings.vectors.tobytes() == want.tobytes()
                seen.add(state.version)
            except Exception as error:
                troubles.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        board.publish(a_state([str(number)], number, str(number)))
    until(lambda: "59" in seen or troubles)
    ended.set()
    for reader in readers:
        reader.join()
    assert not troubles


def test_a_place_that_is_gone_is_one_sentence(board):
    board.place.rmdir()
    with pytest.raises(DiffATRError, match=str(board.place)):
        board.publish(a_state(["a"], 0))


def test_those_who_follow_search_what_is_published_from_the_next_request_on(both, tmp_path):
    first, second = both
    client = client_of(second)
    assert client.get("/api/state").json()["files"] == 0
    assert second.by_text("900 Hz", 1).hits == []
    first.update()
    assert client.get("/api/state").json()["files"] == 2
    assert second.by_text("900 Hz", 1) == first.by_text("900 Hz", 1)
    assert all(mapped_from(session._state.recordings.vectors) for session in both)
    assert first.version == second.version
    before = first.version
    write_tone(tmp_path / "clips" / "4000.wav", 4000, 2)
    first.update()
    assert second.by_text("4000 Hz", 1).hits[0].path == "4000.wav"
    assert first.version == second.version != before
    later = first.version
    first.update()
    assert first.version == second.version == later  # nothing changed: the same version, of the same age


def test_links_are_given_out_by_those_who_follow_where_the_update_saw_them(both, tmp_path):
    first, second = both
    write_tone(tmp_path / "elsewhere.wav", 450, 2)
    (tmp_path / "clips" / "link.wav").symlink_to(tmp_path / "elsewhere.wav")
    first.update()
    client = client_of(second)
    assert client.get(f"/clip/{key_of('link.wav')}").content == (tmp_path / "elsewhere.wav").read_bytes()
    (tmp_path / "clips" / "link.wav").unlink()
    (tmp_path / "clips" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "secret.wav").write_text("secret")
    refusal(client.get(f"/clip/{key_of('link.wav')}"), 403, "a link leads out of the folder")


def test_a_refresh_asked_of_any_is_done_by_one_and_never_seems_done_before(both, tmp_path):
    first, second = both
    client = client_of(second)
    assert client.get("/api/state").json()["indexing"] == [0, 0]  # until anything is told
    first.start()
    second.start()
    until(lambda: client.get("/api/state").json()["indexing"] is None)
    (tmp_path / "clips" / "broken.wav").write_text("no sound")
    write_tone(tmp_path / "clips" / "4000.wav", 4000, 2)
    assert client.post("/api/refresh").json()["indexing"] == [0, 0]
    while (state := client.get("/api/state").json())["indexing"] is not None:
        pass
    assert (state["files"], state["skipped"], state["problem"]) == (3, 1, None)
    assert second.update() is None  # is asked for as well
    until(lambda: not Board(tmp_path / "board").is_wanted())


def test_what_is_asked_for_while_an_update_ends_is_done_too(both, tmp_path):
    """Whoever asks for an update finds afterwards what was there when it was asked for."""
    first, second = both
    first.start()
    second.start()
    client = [client_of(session) for session in both]
    for number in range(10):
        write_tone(tmp_path / "clips" / f"{1000 + number}.wav", 1000 + number, 0.1)
        assert client[number % 2].post("/api/refresh").json()["indexing"] is not None
        until(lambda: client[1].get("/api/state").json()["indexing"] is None)
        assert client[1].get("/api/state").json()["files"] == 3 + number


def test_of_a_status_that_nobody_tells_any_more_nothing_is_left(board):
    board.tell(IndexStatus(3, 4, 1, None, "why"))
    assert board.status() == (3, 4, 1, None, "why")
    board.want_update()
    assert board.status().indexing == (0, 0)
    board.update_began()
    assert board.status().indexing is None
    board.forget_status()
    assert board.status() == (0, 0, 0, (0, 0), None)


def test_a_trouble_of_the_update_shows_at_those_who_follow(both, tmp_path):
    first, second = both
    for path in (tmp_path / "clips").iterdir():
        path.write_text("no sound")
    first.start()
    until(lambda: second.status.problem)
    assert "can be searched" in second.status.problem
