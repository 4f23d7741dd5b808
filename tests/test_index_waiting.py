"""Two who want to update one index at once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus.index import CannotUpdate, FolderIndex


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for i in range(4):
        write_tone(root / f"{i}.wav", 200 + 300 * i, 0.5, seed=i)
    return root


class Held(FakeRetriever):
    """A model that embeds when it is told to."""

    def __init__(self):
        super().__init__()
        self.inside, self.release = threading.Event(), threading.Event()

    def embed_audio(self, waveforms):
        self.inside.set()
        assert self.release.wait(60)
        return super().embed_audio(waveforms)


@pytest.fixture
def busy(corpus):
    """An update that is under way, by another user of the same folder."""
    model = Held()
    thread = threading.Thread(target=FolderIndex(corpus).update, args=(model,))
    thread.start()
    assert model.inside.wait(60)
    yield model
    model.release.set()
    thread.join()


def test_who_does_not_wait_is_refused(corpus, busy):
    with pytest.raises(CannotUpdate, match="another process is indexing this folder now"):
        FolderIndex(corpus).update(FakeRetriever())


def test_who_waits_is_told_once_and_finds_everything_done(corpus, busy, monkeypatch):
    told, model = [], FakeRetriever()

    def wait(sentence):
        told.append(sentence)
        threading.Timer(1.0, busy.release.set).start()

    report = FolderIndex(corpus).update(model, wait=wait)
    assert len(told) == 1
    assert str(corpus) in told[0]
    assert "Waiting" in told[0]
    assert (report.unchanged, report.embedded, model.embedded) == (4, 0, 0)


def test_what_changed_while_waiting_is_seen(corpus, busy):
    def wait(sentence):
        write_tone(corpus / "late.wav", 4000, 0.5)
        busy.release.set()

    report = FolderIndex(corpus).update(FakeRetriever(), wait=wait)
    assert (report.files, report.embedded, report.unchanged) == (5, 1, 4)


def test_nobody_is_waited_for_where_nothing_is_to_be_done(corpus):
    index = FolderIndex(corpus)
    index.update(FakeRetriever())
    with index.place.locked(None):
        assert FolderIndex(corpus).update(FakeRetriever(), wait=lambda _: pytest.fail("waited")).unchanged == 4


def test_a_waiting_update_can_be_interrupted(corpus, busy, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("filelock._api.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            FolderIndex(corpus).update(FakeRetriever(), wait=lambda _: None)


HOLDER = """
import sys, time
from pathlib import Path
from diffatr_cli.corpus.index import FolderIndex
with FolderIndex(Path(sys.argv[1])).place.locked(None):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_frees_the_lock(corpus):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, corpus], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CannotUpdate):
            FolderIndex(corpus).update(FakeRetriever())
        report = FolderIndex(corpus).update(FakeRetriever(), wait=lambda _: holder.kill())
        assert (report.files, report.embedded) == (4, 4)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_many_at_once_embed_everything_once(corpus):
    model, reports, failures = FakeRetriever(), [], []

    def work():
        try:
            reports.append(FolderIndex(corpus).update(model, wait=lambda _: None))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {report.files for report in reports} == {4}
    assert model.embedded == 4
