"""A folder that is searched while its index keeps up with it."""

import contextlib
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone
from serving import client_of, make_session, until

from diffatr_cli.corpus import session as session_module
from diffatr_cli.corpus.index import FolderIndex, IndexReport, Recordings
from diffatr_cli.corpus.priority_lock import PriorityLock
from diffatr_cli.errors import DiffATRError

pytest_plugins = ["serving_fixtures"]


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
        until(lambda: lock.waiting == 1)
    for thread in threads:
        thread.join()
    assert order == ["search", "indexing"]


def test_the_lock_is_taken_in_the_order_of_asking_by_one_at_a_time():
    lock, order, inside, most, threads = PriorityLock(), [], 0, 0, []

    def work(name, patient):
        nonlocal inside, most
        with lock.take(patient=patient):
            inside += 1
            most = max(most, inside)
            order.append(name)
            time.sleep(0.001)
            inside -= 1

    with lock.take():
        for name in range(20):
            patient = name % 3 == 0
            threads.append(threading.Thread(target=work, args=(name, patient)))
            threads[-1].start()
            until(lambda name=name: sum(map(len, lock._turns.values())) == name + 1)
    for thread in threads:
        thread.join()
    assert order == [*(n for n in range(20) if n % 3), *range(0, 20, 3)]
    assert most == 1
    with lock.take(patient=True):  # it is free again
        pass


def test_who_waits_and_is_interrupted_leaves_the_lock_to_the_others(monkeypatch):
    lock = PriorityLock()

    class Interrupted:
        """A turn that a signal interrupts, before it has come or just after."""

        def __init__(self, come):
            self.come, self.calls = come, 0

        def acquire(self):
            self.calls += 1
            if self.calls == 2:
                if self.come:
                    lock._hand_on()
                raise KeyboardInterrupt

        def release(self):
            pass

    for come in (False, True):
        taken = contextlib.ExitStack()
        taken.enter_context(lock.take())
        with monkeypatch.context() as patched:
            patched.setattr("diffatr_cli.corpus.priority_lock.threading.Lock", lambda come=come: Interrupted(come))
            with pytest.raises(KeyboardInterrupt):
                lock._wait(False)
        assert lock.waiting == 0
        if come:  # it had been handed on, and was handed on again
            assert not lock._taken
            taken.pop_all()
        else:
            taken.close()
        with lock.take():
            pass


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
    until(lambda: own._lock.waiting == 1)
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


def test_vectors_that_stay_in_the_tables_count_for_the_version_too():
    recordings = Recordings(["a"], np.zeros(1, int), np.array([0, 1]), np.zeros((1, 2)), np.zeros((0, 4), np.float32))
    versions = {session_module._version(replace(recordings, sums=np.array([number], np.uint32))) for number in (1, 1, 2)}
    assert len(versions) == 2
