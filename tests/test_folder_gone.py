"""Folders whose recordings are gone for a while, as with a drive that is pulled: nothing of the work is lost, and nothing is made
in their place."""

import json
import os
import shutil
import time

import filelock
import pytest
from command_line import typed
from fake_retriever import FakeRetriever, contents, write_tone
from serving import client_of, refusal, until

from diffatr_cli.corpus import gone
from diffatr_cli.corpus.collections import Collections
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.library import through_ancestors
from diffatr_cli.corpus.report import FolderGone
from diffatr_cli.corpus.session import SearchSession

MANY = 24  # files on the drive


class Drive:
    """A folder `mp` on which a drive is mounted, and a model that all commands share and that counts what it embeds."""

    def __init__(self, root, model):
        self.root, self.model = root / "mp", model
        self._away = root / ".drive"
        for number in range(MANY):
            write_tone(self.root / ("deep" if number % 3 else "") / f"{number}.wav", 300 + 90 * number, 0.3, number)

    def pull(self):
        """Leave the empty mount point."""
        self.root.rename(self._away)
        self.root.mkdir()

    def plug(self):
        shutil.rmtree(self.root)
        self._away.rename(self.root)

    def embeds(self, *arguments):
        """How many windows a command embeds, and what came of it."""
        before = self.model.embedded
        result = typed(list(arguments))
        return self.model.embedded - before, result


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = FakeRetriever(phase_two=True)
    for command in ("query", "index", "tag", "duplicates"):
        monkeypatch.setattr(f"diffatr_cli.cli.{command}.load_model", lambda *_: model)
    return Drive(tmp_path, model)


QUERY = ("query", "900 Hz", "--corpus", "mp", "--index", "idx", "--json")
INDEX = ("index", "mp", "--index", "idx", "--json")
VOCABULARY = ("--vocabulary", "labels.txt")
TAG = ("tag", "mp", *VOCABULARY, "--index", "idx", "--json")


@pytest.mark.parametrize("command", [QUERY, INDEX, TAG], ids=lambda command: command[0])
def test_an_empty_mount_point_forgets_nothing(drive, tmp_path, command):
    (tmp_path / "labels.txt").write_text("300 Hz\n900 Hz\n")
    count, result = drive.embeds(*command)
    assert (count, result.code) == (MANY, 0), result.err
    drive.pull()
    for _ in range(3):
        result = typed(command)
        assert (result.code, result.out) == (1, "")
        told = result.err.splitlines()[-1]
        assert "mp: no sound files in it now, but the index has some. Is the drive not there? What is indexed stays." in told
        assert "removed" not in told
    assert not list(drive.root.iterdir())
    drive.plug()
    assert drive.embeds(*command)[0] == 0
    assert "known by content" not in typed(command).err  # not even read again


def test_what_is_said_forgets_them(drive, tmp_path):
    drive.embeds(*INDEX)
    write_tone(tmp_path / "other" / "a.wav", 500, 1)
    typed(["index", "other", "--index", "idx"])
    shutil.rmtree(drive.root)
    drive.root.mkdir()
    told = typed(INDEX).err.splitlines()[-1]
    table = told.partition("remove ")[2]
    shutil.rmtree(table)
    for _ in range(2):
        result = typed(INDEX)
        assert result.code == 1
        assert "mp: no sound files in it (" in result.err
    assert len(contents(FolderIndex(tmp_path / "other", tmp_path / "idx"))["windows-v1-model-a"]) == 1  # that of the other folder
    assert json.loads(typed(["index", "other", "--index", "idx", "--json"]).out)["unchanged"] == 1


def test_a_stray_file_in_the_mount_point_costs_no_vector(drive, tmp_path):
    drive.embeds(*INDEX)
    write_tone(tmp_path / "other" / "a.wav", 500, 1)
    typed(["index", "other", "--index", "idx"])
    drive.pull()
    write_tone(drive.root / "stray.wav", 700, 1)
    count, result = drive.embeds(*INDEX)
    document = json.loads(result.out)
    assert (count, document["files"], document["windows"], document["removed"]) == (1, 1, 1, MANY)
    assert [row["path"] for row in json.loads(typed(QUERY).out)["results"]] == ["mp/stray.wav"]
    write_tone(drive.root / "another.wav", 800, 1)  # further updates, of this folder and of another one in the same place
    assert drive.embeds(*INDEX)[0] == 1
    write_tone(tmp_path / "other" / "b.wav", 600, 1)
    typed(["index", "other", "--index", "idx"])
    drive.plug()
    count, result = drive.embeds(*INDEX)
    document = json.loads(result.out)
    assert (count, document["files"], document["reused"], document["removed"]) == (0, MANY, MANY, 2)
    index = FolderIndex(drive.root, tmp_path / "idx")
    assert len(contents(index)["windows-v1-model-a"]) == MANY + 2  # those of the other folder; the stray files' are gone
    assert not list((tmp_path / "idx").glob("files-gone*"))


def test_what_stays_away_is_let_go(drive, tmp_path, monkeypatch):
    drive.embeds(*INDEX)
    drive.pull()
    now = time.time_ns()
    for day, left in ((0, MANY), (gone.DAYS - 1, MANY), (gone.DAYS + 1, 0)):
        monkeypatch.setattr(time, "time_ns", lambda day=day: now + day * 24 * 3600 * 10**9)
        write_tone(drive.root / f"stray-{day}.wav", 700, 1, day)
        typed(INDEX)
        here = len(list(drive.root.glob("*.wav")))
        assert len(contents(FolderIndex(drive.root, tmp_path / "idx"))["windows-v1-model-a"]) == here + left
    assert not list((tmp_path / "idx").glob("files-gone*"))


def test_few_files_are_forgotten_at_once(drive, tmp_path):
    drive.embeds(*INDEX)
    for path in list(drive.root.glob("*.wav"))[: gone.MANY - 1]:
        path.unlink()
    typed(INDEX)
    left = sum(1 for _ in drive.root.rglob("*.wav"))
    assert left < MANY
    assert len(contents(FolderIndex(drive.root, tmp_path / "idx"))["windows-v1-model-a"]) == left


def test_a_damaged_table_of_what_is_gone_is_mended(drive, tmp_path):
    drive.embeds(*INDEX)
    drive.pull()
    write_tone(drive.root / "stray.wav", 700, 1)
    typed(INDEX)
    (table,) = (tmp_path / "idx").glob("files-gone*.lance")
    for path in (table / "data").iterdir():
        path.write_bytes(b"damaged")
    write_tone(drive.root / "another.wav", 800, 1)
    assert typed(INDEX).code == 0
    drive.plug()
    assert json.loads(typed(INDEX).out)["files"] == MANY


def test_a_mount_point_within_an_indexed_folder(drive, tmp_path):
    """Through the index above it, and from above."""
    write_tone(tmp_path / "here.wav", 700, 1)
    assert drive.embeds("index", ".")[0] == MANY + 1
    drive.pull()
    result = typed(["query", "900 Hz", "--corpus", "mp"])
    assert (result.code, result.out) == (1, "")
    told = result.err.splitlines()[-1]
    assert "no sound files in it now" in told
    assert f"index the folder above, diffatr index {tmp_path}" in told
    document = json.loads(typed(["index", ".", "--json"]).out)
    assert (document["files"], document["removed"]) == (1, MANY)
    drive.plug()
    count, result = drive.embeds("index", ".", "--json")
    assert (count, json.loads(result.out)["reused"]) == (0, MANY)


def test_a_folder_that_cannot_be_listed_costs_no_vector(drive, tmp_path, monkeypatch):
    drive.embeds(*INDEX)
    for path in list((drive.root / "deep").iterdir())[5:]:
        path.unlink()
    drive.embeds(*INDEX)
    plain = os.scandir

    def refusing(path):
        if os.fsencode(path).endswith(b"deep"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        result = typed(INDEX)
    assert json.loads(result.out)["removed"] == 5
    assert drive.embeds(*INDEX)[0] == 0


def test_one_of_several_folders_is_left_out(drive, tmp_path):
    write_tone(tmp_path / "other" / "a.wav", 900, 1)
    command = ("query", "900 Hz", "--corpus", "mp", "--corpus", "other", "--index", "idx", "--json", "-n", "30")
    assert len(json.loads(typed(command).out)["results"]) == MANY + 1
    drive.pull()
    result = typed(command)
    document = json.loads(result.out)
    assert [row["path"] for row in document["results"]] == ["other/a.wav"]
    (problem,) = document["index"]["problems"]
    assert (problem["folder"], "no sound files in it now" in problem["reason"]) == ("mp", True)
    drive.plug()
    count, result = drive.embeds(*command)
    assert (count, len(json.loads(result.out)["results"])) == (0, MANY + 1)


def test_a_service_that_starts_or_refreshes_without_the_drive(drive, tmp_path):
    drive.embeds(*INDEX)
    for starts_away in (True, False):
        if starts_away:
            drive.pull()
        session = SearchSession(drive.model, FolderIndex(drive.root, tmp_path / "idx"))
        if not starts_away:
            session.update()
            drive.pull()
        client = client_of(session)
        client.post("/api/refresh")
        until(lambda: client.get("/api/state").json()["indexing"] is None)  # noqa: B023
        state = client.get("/api/state").json()
        assert state["files"] == MANY
        assert "no sound files in it now" in state["problem"]
        assert client.get("/api/search", params={"q": "900 Hz"}).json()["hits"]
        drive.plug()
        before = drive.model.embedded
        report = session.update()
        assert (report.unchanged, session.status.problem) == (MANY, None)
        assert drive.model.embedded == before
        session.stop()


# A folder that goes while it is indexed


class Leaving(FakeRetriever):
    """A model while which embeds the folder goes."""

    def __init__(self, leave, after=0):
        super().__init__(phase_two=True)
        self._leave, self._after = leave, after

    def embed_audio(self, waveforms):
        if self._leave is not None and self.embedded >= self._after:
            leave, self._leave = self._leave, None
            leave()
        return super().embed_audio(waveforms)


@pytest.mark.parametrize("place", [(), ("--index", "idx")], ids=["inside", "elsewhere"])
@pytest.mark.parametrize("command", ["query", "index", "tag"])
@pytest.mark.parametrize("leaves", ["nothing", "a mount point"])
def test_a_folder_that_goes_while_it_is_indexed(drive, tmp_path, monkeypatch, command, place, leaves):
    monkeypatch.setattr("diffatr_cli.corpus.batches.BATCH", 4)
    monkeypatch.setattr("diffatr_cli.corpus.commits._COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("diffatr_cli.corpus.findings.READ_AHEAD", 1)  # files are opened one by one
    (tmp_path / "labels.txt").write_text("300 Hz\n900 Hz\n")

    def leave():
        drive.root.rename(tmp_path / ".drive")
        if leaves == "a mount point":
            drive.root.mkdir()

    model = Leaving(leave, after=8)
    monkeypatch.setattr(f"diffatr_cli.cli.{command}.load_model", lambda *_: model)
    arguments = {"query": ["query", "900 Hz", "--corpus", "mp"], "index": ["index", "mp"], "tag": ["tag", "mp", *VOCABULARY]}
    result = typed([*arguments[command], *place, "--json"])
    assert (result.code, result.out) == (1, ""), result.err
    assert "mp: the folder is gone while it was indexed. What is indexed of it stays." in result.err.splitlines()[-1]
    if leaves == "nothing":
        assert not drive.root.exists()
    else:
        assert not list(drive.root.iterdir())
        drive.root.rmdir()
    (tmp_path / ".drive").rename(drive.root)
    done = model.embedded
    result = typed([*arguments[command], *place, "--json"])
    assert result.code == 0, result.err
    assert "skipped" not in result.err
    assert model.embedded < done + MANY  # what was committed stays
    report = FolderIndex(drive.root, *(tmp_path / each for each in place[1:])).report("model-a")
    assert (report.files, report.skipped) == (MANY, [])


def test_a_part_of_an_indexed_folder_that_goes_while_it_is_indexed(drive, tmp_path, monkeypatch):
    write_tone(tmp_path / "here.wav", 700, 1)
    (tmp_path / "mp").rename(tmp_path / ".later")
    drive.embeds("index", ".")
    (tmp_path / ".later").rename(tmp_path / "mp")
    monkeypatch.setattr("diffatr_cli.corpus.batches.BATCH", 4)
    model = Leaving(lambda: drive.root.rename(tmp_path / ".drive"))
    monkeypatch.setattr("diffatr_cli.cli.query.load_model", lambda *_: model)
    result = typed(["query", "900 Hz", "--corpus", "mp"])
    assert (result.code, result.out) == (1, "")
    assert "mp: the folder is gone while it was indexed" in result.err.splitlines()[-1]
    assert not drive.root.exists()


def test_a_folder_that_goes_while_an_update_waits(drive, tmp_path):
    index = FolderIndex(drive.root)
    index.folder.mkdir()
    with filelock.FileLock(index.folder / "lock"), pytest.raises(FolderGone, match="mp: the folder is gone"):
        index.update(drive.model, wait=lambda text: drive.root.rename(tmp_path / ".drive"))
    assert not drive.root.exists()


def test_fingerprints_of_a_folder_that_goes(drive, tmp_path, monkeypatch):
    from diffatr_cli.corpus import fingerprints

    plain, seen = fingerprints._heard, []

    def leaving(corpus, path):
        seen.append(path)
        if len(seen) == 8:
            drive.root.rename(tmp_path / ".drive")
        return plain(corpus, path)

    monkeypatch.setattr(fingerprints, "_heard", leaving)
    result = typed(["duplicates", "mp", "--same-only", "--json"])
    assert (result.code, result.out) == (1, "")
    assert "mp: the folder is gone while it was indexed" in result.err.splitlines()[-1]
    assert not drive.root.exists()


def test_fingerprints_of_a_drive_that_is_away_are_kept(drive, tmp_path, monkeypatch):
    from diffatr_cli.corpus import fingerprints

    plain, heard = fingerprints._heard, []
    monkeypatch.setattr(fingerprints, "_heard", lambda corpus, path: heard.append(path) or plain(corpus, path))
    command = ("duplicates", "mp", "--same-only", "--index", "idx", "--json")
    now, plain_time = 0, time.time
    monkeypatch.setattr(time, "time", lambda: plain_time() + now)
    assert json.loads(typed(command).out)["files"] == len(heard) == MANY
    drive.pull()
    assert typed(command).code == 1  # without a file
    write_tone(drive.root / "stray.wav", 700, 1)
    for _ in range(2):
        assert json.loads(typed(command).out)["files"] == 1
        write_tone(drive.root / "stray.wav", 800, 1)
    drive.plug()
    heard.clear()
    assert json.loads(typed(command).out)["files"] == MANY
    assert heard == []
    drive.pull()
    for day in (0, gone.DAYS + 1):
        now = day * 24 * 3600
        write_tone(drive.root / f"{day}.wav", 700, 1, day)
        typed(command)
    drive.plug()
    heard.clear()
    typed(command)
    assert len(heard) == MANY


def test_no_collection_is_made_where_the_folder_is_gone(drive, tmp_path):
    session = SearchSession(drive.model, FolderIndex(drive.root))
    session.update()
    client = client_of(session)
    assert client.post("/api/collections", json={"name": "before"}).status_code == 200
    drive.pull()
    refusal(client.post("/api/collections", json={"name": "xx"}), 400, "mp: the folder is gone")
    assert not list(drive.root.iterdir())
    drive.root.rmdir()
    for request in ("", "/favourites/add", "/before/rename", "/before/delete"):
        refusal(client.post(f"/api/collections{request}", json={"name": "xx", "sounds": []}), 400, "mp: the folder is gone")
    assert not drive.root.exists()
    (tmp_path / ".drive").rename(drive.root)
    assert client.post("/api/collections", json={"name": "after"}).status_code == 200
    assert [each.name for each in Collections(FolderIndex(drive.root)).all()] == ["before", "after"]
    session.stop()


def test_the_map_makes_no_folder(drive):
    session = SearchSession(drive.model, FolderIndex(drive.root))
    session.update()
    client = client_of(session)
    drive.pull()
    until(lambda: client.get("/api/map").json()["ready"])
    assert not list(drive.root.iterdir())
    session.stop()


def test_collections_of_a_part_whose_whole_is_gone(drive, tmp_path):
    write_tone(tmp_path / "here.wav", 700, 1)
    FolderIndex(drive.root).update(drive.model)
    part = through_ancestors(FolderIndex(drive.root / "deep"), "model-a")
    session = SearchSession(drive.model, part)
    client = client_of(session)
    drive.root.rename(tmp_path / ".drive")
    refusal(client.post("/api/collections", json={"name": "xx"}), 400, "the folder is gone")
    assert not drive.root.exists()
    session.stop()
