"""One writer at a time in object storage: by a lock that is prolonged while its holder works, and else ends by itself."""

import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import lancedb
import pytest
from command_line import ROOT
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus import batches, commits, object_storage, storage_lock
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
from diffatr_cli.corpus.storage_lock import StorageLock

pytest_plugins = ["storage_fixtures"]


@pytest.fixture
def corpus(tmp_path):
    for i in range(4):
        write_tone(tmp_path / "clips" / f"{i}.wav", 200 + 300 * i, 0.5, seed=i)
    return tmp_path / "clips"


@pytest.fixture
def quick(monkeypatch):
    """A lock of two seconds."""
    monkeypatch.setattr(storage_lock, "LIFE", 2.0)
    monkeypatch.setattr(storage_lock, "RENEWAL", 0.2)
    monkeypatch.setattr(storage_lock, "_MARGIN", 0.5)
    monkeypatch.setattr(object_storage, "_POLL", 0.1)


def row(uri):
    (only,) = lancedb.connect(uri).open_table("lock").to_arrow().to_pylist()
    return only


@pytest.mark.parametrize("refusals", [0, 1, 2, 3])
def test_what_is_refused_for_another_s_sake_is_tried_again(tmp_path, monkeypatch, refusals):
    lock, other, refused = StorageLock(lancedb.connect(tmp_path)), StorageLock(lancedb.connect(tmp_path)), []
    update = lancedb.table.LanceTable.update

    def refusing(self, *arguments, **named):
        if len(refused) < refusals:
            refused.append(self)
            raise RuntimeError("lance error: Incompatible transaction")
        return update(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(lancedb.table.LanceTable, "update", refusing)
        if refusals == 3:
            with pytest.raises(RuntimeError, match="Incompatible"):
                lock.take()
            return
        assert lock.take() is None
    assert len(refused) == refusals
    assert other.take().owner == lock._me == row(tmp_path)["owner"]
    lock.release()
    assert other.take() is None
    other.release()


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_of_many_at_once_one_takes_it(uri, there):
    """...where the table is to be made too."""
    if there:
        first = StorageLock(lancedb.connect(uri))
        assert first.take() is None
        first.release()
    for _ in range(3):
        locks = [StorageLock(lancedb.connect(uri)) for _ in range(6)]
        gate, answers, errors = threading.Barrier(len(locks)), [], []

        def take(lock, gate=gate, answers=answers, errors=errors):
            gate.wait()
            try:
                answers.append((lock, lock.take()))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        (winner,) = [lock for lock, holder in answers if holder is None]
        assert {holder.owner for _, holder in answers if holder} == {winner._me}
        assert winner.is_held()
        winner.release()
        assert row(uri) == {"owner": "", "who": "", "expires": 0.0}


@pytest.mark.slow
def test_it_is_held_beyond_its_life_and_then_free(uri, quick):
    mine, other = StorageLock(lancedb.connect(uri)), StorageLock(lancedb.connect(uri))
    assert mine.take() is None
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert mine.is_held()
        assert other.take().owner == mine._me
    mine.release()
    assert other.take() is None
    other.release()


def test_one_that_nobody_prolongs_ends(uri, quick, monkeypatch):
    dead, other = StorageLock(lancedb.connect(uri)), StorageLock(lancedb.connect(uri))
    monkeypatch.setattr(dead, "_keep", lambda: None)
    dead._thread = threading.Thread(target=dead._keep)
    began = time.time()
    assert dead.take() is None
    assert other.take() is not None
    while other.take() is not None:
        time.sleep(0.1)
    assert time.time() - began >= 2.0
    assert not dead.is_held()
    other.release()


def test_the_versions_of_the_lock_do_not_pile_up(uri, monkeypatch):
    monkeypatch.setattr(storage_lock, "_KEEP_VERSIONS", timedelta(0))
    for _ in range(5):
        lock = StorageLock(lancedb.connect(uri))
        assert lock.take() is None
        lock.release()
    assert len(lancedb.connect(uri).open_table("lock").list_versions()) <= 2


def test_who_does_not_wait_is_refused_and_who_waits_goes_on(corpus, uri, quick):
    with FolderIndex(corpus, uri).place.locked(None):
        with pytest.raises(CannotUpdate, match=r"another process writes this index now \(.*, process \d+\)"):
            FolderIndex(corpus, uri).update(FakeRetriever())
        told, release = [], threading.Event()

        def wait(sentence):
            told.append(sentence)
            release.set()

        done = threading.Thread(target=FolderIndex(corpus, uri).update, args=(FakeRetriever(),), kwargs={"wait": wait})
        done.start()
        assert release.wait(60)
        assert "Waiting" in told[0]
        assert "lock" in told[0]
    done.join()
    assert len(told) == 1
    assert len(FolderIndex(corpus, uri).read("model-a")) == 4


@pytest.mark.slow
def test_a_writer_that_has_lost_the_lock_writes_no_more(corpus, uri, quick, monkeypatch):
    monkeypatch.setattr(batches, "BATCH", 1)
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)

    class Robbed(FakeRetriever):
        def embed_audio(self, waveforms):
            if self.embedded == 2:
                lancedb.connect(uri).open_table("lock").update(where="true", values={"owner": "thief", "expires": 1e12})
                time.sleep(1)
            return super().embed_audio(waveforms)

    with pytest.raises(CannotUpdate, match="the lock on this index was lost"):
        FolderIndex(corpus, uri).update(Robbed())
    assert row(uri)["owner"] == "thief"  # it is not released by another
    assert len(FolderIndex(corpus, uri).read("model-a")) == 2
    lancedb.connect(uri).open_table("lock").update(where="true", values={"expires": 0.0})
    model = FakeRetriever()
    assert FolderIndex(corpus, uri).update(model).files == 4
    assert model.embedded == 2


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_time_that_passes_while_the_machine_sleeps_counts(uri, monkeypatch, clock):
    """One of the two clocks stops while a machine sleeps, the other one may be set."""
    lock = StorageLock(lancedb.connect(uri))
    assert lock.take() is None
    assert lock.is_held()
    now = getattr(time, clock)
    with monkeypatch.context() as patch:
        patch.setattr(storage_lock.time, clock, lambda: now() + storage_lock.LIFE)
        assert not lock.is_held()
    lock.release()


HOLDER = """
import sys, time
from pathlib import Path
from diffatr_cli.corpus.index import FolderIndex
with FolderIndex(Path(sys.argv[1]), sys.argv[2]).place.locked(None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_holder_blocks_for_the_rest_of_its_time_and_an_interrupted_one_not_at_all(corpus, uri, number):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, corpus, uri], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(number)
    holder.wait()
    if number == signal.SIGKILL:
        left = row(uri)["expires"] - time.time()
        assert 0 < left <= storage_lock.LIFE <= 300
        with pytest.raises(CannotUpdate, match=f"process {holder.pid}"):
            FolderIndex(corpus, uri).update(FakeRetriever())
        lancedb.connect(uri).open_table("lock").update(where="true", values={"expires": time.time()})
    assert FolderIndex(corpus, uri).update(FakeRetriever()).files == 4
