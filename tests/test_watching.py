"""Folders that are followed: changes are noticed by themselves, and come into the index when files are at rest."""

import os
import signal
import sys
import threading
import time

import pytest
import soundfile
from command_line import start
from fake_retriever import RATE, FakeRetriever, tone, write_tone
from serving import client_of, make_session, until

from diffatr_cli.cli import answering
from diffatr_cli.cli.watch import following, watcher_of
from diffatr_cli.corpus import watching
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
from diffatr_cli.corpus.library import open_corpora
from diffatr_cli.corpus.subfolder import through_ancestor
from diffatr_cli.corpus.watching import Pace, Watcher, is_remote

FAST = Pace(quiet=0.2, patience=0.5, poll=0.1, net=0.5, retry=0.1)
PACE = Pace(quiet=2, patience=10)


@pytest.fixture
def clips(tmp_path):
    for hz in (200, 900):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 1)
    return tmp_path / "clips"


class Follower:
    """A folder with its index, followed in a thread."""

    def __init__(self, folder, events=None, pace=FAST, model=None):
        self.folder, self.model, self.told, self.updates = folder, model or FakeRetriever(), [], []
        self.folder.update(self.model)
        self.watcher = Watcher(folder.watched(), self._update, self.told.append, pace, events)

    def _update(self):
        self.updates.append(self.folder.update(self.model))
        return True

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.watcher.stop()
        assert not self.watcher._thread.is_alive()

    @property
    def paths(self):
        return self.folder.read(self.model.model_id).paths


@pytest.mark.parametrize("events", [True, False])
def test_what_changes_is_indexed_by_itself(clips, events):
    with Follower(FolderIndex(clips), events) as follower:
        write_tone(clips / "deep" / "new.wav", 3000, 1)
        until(lambda: "deep/new.wav" in follower.paths)
        (clips / "200.wav").unlink()
        until(lambda: "200.wav" not in follower.paths)
        (clips / "deep").rename(clips / "other")
        until(lambda: follower.paths == ["900.wav", "other/new.wav"])
        assert follower.updates[-1].embedded == 0  # its content is known
        write_tone(clips / "900.wav", 950, 2)
        until(lambda: follower.updates[-1].embedded == 1)
    assert bool(follower.told) == (not events)
    assert all("events" in line for line in follower.told)


def test_events_bring_the_look_and_nothing_else(clips):
    """With looks by the clock out of the way, what is noticed is noticed by events; hidden files and the index bring none."""
    pace = FAST._replace(net=3600)
    with Follower(FolderIndex(clips, clips / "index"), pace=pace) as follower:
        looks = []
        look = follower.watcher._look
        follower.watcher._look = lambda now: (looks.append(now), look(now))
        time.sleep(0.5)  # the system's ear is open by then, or the test would pass for another reason
        (clips / ".hidden").mkdir()
        (clips / ".hidden" / "x.wav").write_bytes(b"x")
        (clips / "index" / "x.wav").write_bytes(b"x")
        (clips / "notes.txt").write_text("no sound")
        time.sleep(0.5)
        assert looks == []
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: follower.updates)
        time.sleep(0.7)
        assert len(follower.updates) == 1  # its own writing stirs nothing


def followed(clips, **options):
    follower = Follower(FolderIndex(clips), events=False, pace=PACE, **options)
    (part,) = follower.watcher._followed

    def look(now):
        follower.watcher._look(now)
        moving = {os.fsdecode(path) for path in part.moving(now, PACE.quiet)}
        return follower.watcher._is_time(now), moving

    return follower, look


def test_a_file_that_is_being_written_is_waited_for(clips):
    _, look = followed(clips)
    assert look(0) == (False, set())
    (clips / "growing.wav").write_bytes(b"1")
    assert look(1) == (False, {"growing.wav"})
    (clips / "growing.wav").write_bytes(b"12")
    assert look(2.5) == (False, {"growing.wav"})
    assert look(4) == (False, {"growing.wav"})
    assert look(4.6) == (True, set())


def test_others_wait_for_it_only_so_long(clips):
    follower, look = followed(clips)
    write_tone(clips / "whole.wav", 3000, 1)
    growing = clips / "growing.wav"
    for second in range(13):
        growing.write_bytes(b"x" * (second + 1))
        assert look(second) == (second >= 12, {"growing.wav"} | ({"whole.wav"} if second < 2 else set()))
    growing.write_bytes(b"x" * 100)
    assert look(14) == (True, {"growing.wav"})
    follower.watcher._followed[0].watched.leave({b"growing.wav"})
    report = follower.folder.update(follower.model)
    assert (report.embedded, report.skipped) == (1, [])  # what is being written is not looked into
    assert look(15) == (False, {"growing.wav"})  # and still counts as new
    growing.unlink()
    assert look(16) == (False, set())


def test_a_file_that_is_rewritten_stays_as_it_was_until_it_is_whole(clips):
    follower, _ = followed(clips)
    before = follower.folder.read("model-a")
    (clips / "200.wav").write_bytes(b"half")
    follower.folder.watched()[0].leave({b"200.wav"})
    write_tone(clips / "new.wav", 3000, 1)
    assert follower.folder.update(follower.model).files == 3
    assert set(before.hashes) < set(follower.folder.read("model-a").hashes)
    follower.folder.watched()[0].leave(set())
    report = follower.folder.update(follower.model)
    assert (report.files, len(report.skipped)) == (2, 1)


def test_a_recording_that_grows_for_long_comes_in_when_it_ends(clips):
    """A recorder appends to a file; meanwhile others come and go."""
    stop = threading.Event()

    def record():
        with soundfile.SoundFile(clips / "recorder.wav", "w", RATE, 1) as file:
            while not stop.wait(0.05):
                file.write(tone(500, 0.1))
                file.flush()

    recorder = threading.Thread(target=record)
    with Follower(FolderIndex(clips)) as follower:
        recorder.start()
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: "new.wav" in follower.paths)
        assert "recorder.wav" not in follower.paths
        stop.set()
        recorder.join()
        until(lambda: "recorder.wav" in follower.paths)
    assert all(not report.skipped for report in follower.updates)


def test_a_flood_is_one_update(clips):
    with Follower(FolderIndex(clips), pace=FAST._replace(quiet=1.0)) as follower:
        for number in range(300):
            write_tone(clips / "many" / f"{number}.wav", 300 + number, 0.1)
        until(lambda: len(follower.paths) == 302, seconds=60)
        assert len(follower.updates) < 10


def test_a_drive_that_is_gone_takes_nothing_with_it(clips, tmp_path):
    with Follower(FolderIndex(clips, tmp_path / "index")) as follower:
        clips.rename(tmp_path / "away")
        until(lambda: any("is gone" in line for line in follower.told))
        assert follower.paths == ["200.wav", "900.wav"]
        clips.mkdir()  # where it was mounted
        time.sleep(0.5)
        assert follower.paths == ["200.wav", "900.wav"]
        clips.rmdir()
        (tmp_path / "away").rename(clips)
        until(lambda: any("is back" in line for line in follower.told))
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: "new.wav" in follower.paths)


def test_an_update_that_fails_is_tried_again_and_told_once(clips, monkeypatch, capsys):
    folder, model, failures = FolderIndex(clips), FakeRetriever(), []
    folder.update(model)
    monkeypatch.setattr(watching.Watcher.__init__, "__defaults__", (lambda text: None, FAST, None))

    def update():
        if len(failures) < 3:
            failures.append(None)
            raise CannotUpdate("the disk is full")
        return folder.update(model)

    with following(folder, update):
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: "new.wav" in folder.read("model-a").paths)
    err = capsys.readouterr().err
    assert err.count("the disk is full") == 1
    assert "files: 1 indexed" in err


def test_where_the_system_gives_no_events_it_looks(clips, monkeypatch):
    def refuse(*_, **__):
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr("watchfiles.watch", refuse)
    with Follower(FolderIndex(clips)) as follower:
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: "new.wav" in follower.paths)
        until(lambda: follower.told)
    assert follower.told == ["The system gives no events of changes here; looking every 0.1 seconds."]


def test_several_folders_and_a_part_of_one(clips, tmp_path):
    write_tone(tmp_path / "b" / "x.wav", 700, 1)
    with Follower(open_corpora([clips, tmp_path / "b"])) as follower:
        write_tone(clips / "new.wav", 3000, 1)
        write_tone(tmp_path / "b" / "new.wav", 3100, 1)
        until(lambda: len(follower.paths) == 5)
    write_tone(clips / "part" / "y.wav", 800, 1)
    FolderIndex(clips).update(follower.model)
    part = through_ancestor(FolderIndex(clips / "part"), "model-a", tmp_path / "home")
    with Follower(part) as follower:
        write_tone(clips / "part" / "new.wav", 3200, 1)
        write_tone(clips / "elsewhere.wav", 3300, 1)
        until(lambda: follower.paths == ["new.wav", "y.wav"])
        assert "elsewhere.wav" not in FolderIndex(clips).read("model-a").paths


@pytest.mark.parametrize(
    ("folder", "remote"),
    [
        ("/", False),
        ("/mnt/nas/clips", True),
        ("/mnt/nas x/clips", True),
        ("/mnt/nas/local", False),
        ("/home/u", False),
        ("/f", True),
    ],
)
def test_file_systems_of_others(tmp_path, folder, remote):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "30 22 0:40 / /mnt/nas rw shared:2 - nfs4 server:/x rw\n"
        "31 22 0:41 / /mnt/nas\\040x rw shared:2 - cifs //server/x rw\n"
        "32 30 8:2 / /mnt/nas/local rw shared:3 - fuseblk /dev/sdb1 rw\n"
        "33 22 0:50 / /f rw - fuse.sshfs host: rw\n"
    )
    assert is_remote(folder, mounts) is remote
    assert is_remote(folder, tmp_path / "none") is False


def test_this_machine_tells_of_local_folders(tmp_path):
    assert is_remote(tmp_path) in (True, False)


def test_the_page_finds_what_was_put_into_the_folder(clips, monkeypatch, capsys):
    monkeypatch.setattr(watching.Watcher.__init__, "__defaults__", (lambda text: None, FAST, None))
    session = make_session(clips)
    session.start()
    client = client_of(session)
    with following(session.folder, session.update):
        until(lambda: client.get("/api/state").json()["files"] == 2)
        write_tone(clips / "new.wav", 3000, 1)
        until(lambda: client.get("/api/state").json()["files"] == 3)
        assert client.get("/api/search", params={"q": "3000 Hz"}).json()["hits"][0]["name"] == "new.wav"
        session.stop()
    assert "files: 1 indexed" in capsys.readouterr().err


@pytest.mark.parametrize(("watch", "worker", "follows"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_one_process_follows_where_it_is_asked_to(clips, tmp_path, monkeypatch, watch, worker, follows):
    monkeypatch.setattr(answering, "load_model", lambda *_: FakeRetriever(phase_two=True))
    seen = []
    monkeypatch.setattr(Watcher, "start", lambda watcher: seen.append(watcher))
    monkeypatch.setattr(Watcher, "stop", lambda *_: None)
    (tmp_path / "place").mkdir()
    settings = answering.Settings(
        corpora=[str(clips)],
        index_place=None,
        run=None,
        runs=None,
        model_name=None,
        device="cpu",
        weight=None,
        steps=None,
        shortlist=None,
        seed=0,
        hosts=None,
        token=None,
        approximate=None,
        began=0.0,
        watch=watch,
        workers=2 if worker else 1,
        worker=worker,
        place=str(tmp_path / "place"),
    )
    with answering.answering(settings):
        pass
    assert bool(seen) == follows


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from fake_retriever import FakeRetriever
from diffatr_cli.cli import index, signals
from diffatr_cli.corpus import watching
signals.install()
watching.Watcher.__init__.__defaults__ = (lambda text: None, watching.Pace(0.2, 0.5, 0.1, 0.5, 0.1), None)
index.load_model = lambda *_: FakeRetriever()
from diffatr_cli.cli.main import main
sys.argv = ["diffatr", "index", *sys.argv[1:], "--watch"]
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_index_goes_on_until_it_is_ended(clips, tmp_path, number, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__)))
    process = start([sys.executable, script, clips])
    try:
        assert process.stderr.readline() == f"{clips}: followed. Ctrl-C ends this.\n"
        write_tone(clips / "new.wav", 3000, 1)
        assert process.stderr.readline() == "files: 1 indexed\n"
        assert "new.wav" in FolderIndex(clips).read("model-a").paths
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "files" in out
    (line,) = err.splitlines()
    assert line.startswith("diffatr: ")


def test_the_watcher_of_a_command_says_what_it_did(clips, capsys):
    folder, model = FolderIndex(clips), FakeRetriever()
    watcher = watcher_of(folder, lambda: folder.update(model))
    assert watcher._update()
    assert capsys.readouterr().err == "files: 2 indexed\n"
    assert watcher_of(folder, lambda: None)._update() is False
