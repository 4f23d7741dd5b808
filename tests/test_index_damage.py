"""Damage in an index: noticed, mended by the next update, and never an answer that a whole index would not give."""

import os
import random
import shutil

import lancedb
import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus import checksums, commits, salvage, snapshot, store
from diffatr_cli.corpus import table as stored_table
from diffatr_cli.corpus.index import FolderIndex, IndexReport, Recordings
from diffatr_cli.corpus.place import Folder
from diffatr_cli.corpus.report import Damaged
from diffatr_cli.corpus.troubles import troubles


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A folder with an index that has seen changes, so that its tables have pieces, deletions and earlier versions."""
    corpus = tmp_path_factory.mktemp("used") / "clips"
    for i in range(16):
        write_tone(corpus / f"{i:02d}.wav", 150 + 97 * i, 12 if i % 6 == 0 else 0.3, seed=i)
    (corpus / "bad.wav").write_text("no sound")
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    (corpus / "03.wav").unlink()
    write_tone(corpus / "07.wav", 999, 11)
    untidy_update(index)
    return corpus


def untidy_update(index):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_table.StoredTable, "tidy", lambda self: None)
        index.update(FakeRetriever())


def copy_of(used, target):
    """The same folder, with an index that knows the copied files."""
    corpus = shutil.copytree(used, target)
    untidy_update(FolderIndex(corpus))
    return corpus


@pytest.fixture
def corpus(used, tmp_path):
    return copy_of(used, tmp_path / "clips")


def answers(index, model_id="model-a"):
    recordings = index.read(model_id)
    return {
        path: [
            (*recordings.spans[row], *recordings.vectors[row]) for row in range(len(recordings.vectors))[recordings.rows_of(i)]
        ]
        for i, path in enumerate(recordings.paths)
    }


def of_a_fresh_index(corpus, folder):
    index = FolderIndex(corpus, folder)
    index.update(FakeRetriever())
    return answers(index)


def files_of(index):
    return sorted(path for path in index.folder.rglob("*") if path.is_file() and path.stat().st_size)


def rewrite(path, content, *, keep_time):
    times = path.stat()
    path.write_bytes(content)
    if keep_time:  # as bits flip on a disk
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(path, rng, bits=1, *, keep_time=False):
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    rewrite(path, content, keep_time=keep_time)


def harm(path, rng):
    """Damage one file in one of the ways in which disks, copies and people do."""
    way = rng.choice(["flip", "flip", "flip", "flips", "cut", "zeros", "garbage", "delete"])
    keep_time = rng.random() < 0.5
    size = path.stat().st_size
    if way == "delete":
        path.unlink()
    elif way in ("flip", "flips"):
        flip(path, rng, 1 if way == "flip" else 20, keep_time=keep_time)
    else:
        content = path.read_bytes()
        at = rng.randrange(size)
        new = {"cut": content[:at], "zeros": content[:at] + bytes(size - at), "garbage": content[:at] + rng.randbytes(size - at)}
        rewrite(path, new[way], keep_time=keep_time)


def check_damage(used, work, seed):
    """Harm an index in some places, change the folder or not, and update: the answers are those of a fresh index."""
    rng = random.Random(seed)
    corpus = copy_of(used, work / "clips")
    index = FolderIndex(corpus)
    victims = files_of(index)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        victim = rng.choice(victims)
        if victim.exists() and victim.stat().st_size:
            harm(victim, rng)
    if rng.random() < 0.5:
        write_tone(corpus / "05.wav", 2000, 0.4)
    if rng.random() < 0.3:
        (corpus / "01.wav").unlink()
    if rng.random() < 0.3:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commits, "_COMMIT_SECONDS", 0.0)
            index.update(FakeRetriever())
    else:
        index.update(FakeRetriever())
    want = of_a_fresh_index(corpus, work / "fresh")
    assert answers(index) == want
    again = index.update(FakeRetriever())
    assert (again.embedded, again.reused, again.repaired) == (0, 0, 0)
    assert answers(FolderIndex(corpus)) == want


@pytest.mark.parametrize("seed", range(6))
def test_after_any_damage_an_update_gives_the_answers_of_a_fresh_index(used, tmp_path, seed):
    check_damage(used, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_after_any_damage_an_update_gives_the_answers_of_a_fresh_index_many_times(used, tmp_path, seed):
    check_damage(used, tmp_path, seed)


def place_of_a_vector(index, name):
    """A file of the tables that holds the first vector of a recording, and where in it."""
    recordings = index.read("model-a")
    vector = recordings.vectors[recordings.offsets[recordings.paths.index(name)]].astype(np.float16).tobytes()
    ((path, at),) = [
        (path, path.read_bytes().find(vector))
        for path in files_of(index)
        if ".lance" in str(path) and vector in path.read_bytes()
    ]
    return path, at


def break_a_vector(index, name, *, keep_time=False):
    path, at = place_of_a_vector(index, name)
    content = bytearray(path.read_bytes())
    content[at + 3] ^= 4
    rewrite(path, content, keep_time=keep_time)


def without_a_snapshot(index):
    for path in index.folder.glob("snapshot-*"):
        path.unlink()


@pytest.mark.parametrize("recorded", [True, False])
def test_one_bad_vector_costs_one_file(corpus, tmp_path, recorded):
    """...and is never searched, whether the files' checksums or the rows' show it."""
    index, model = FolderIndex(corpus), FakeRetriever()
    break_a_vector(index, "04.wav")
    if not recorded:  # as after an update that was killed
        for path in index.folder.glob("*.checksums"):
            path.unlink()
    with pytest.raises(Damaged, match="diffatr index"):
        index.read("model-a")
    report = index.update(model)
    assert (report.repaired, report.embedded, report.reused, report.unchanged) == (1, 1, 0, 14)
    assert model.embedded == 1
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")
    report = index.update(model)
    assert (report.repaired, report.unchanged) == (0, 15)


def test_a_sound_snapshot_is_used_while_the_tables_are_damaged(corpus):
    """Where nothing shows the damage but a look into the file: the answers are right all the same, and the next change mends."""
    index = FolderIndex(corpus)
    want = answers(index)
    break_a_vector(index, "04.wav", keep_time=True)
    assert index.update(FakeRetriever()).repaired == 0
    assert answers(index) == want
    os.utime(corpus / "08.wav")
    assert index.update(FakeRetriever()).repaired == 1
    assert answers(index) == want


def test_a_file_that_changed_since_the_damage_is_embedded_once(corpus, tmp_path):
    index, model = FolderIndex(corpus), FakeRetriever()
    break_a_vector(index, "04.wav")
    write_tone(corpus / "04.wav", 1234, 0.5)
    (corpus / "11.wav").unlink()
    report = index.update(model)
    assert (report.repaired, report.embedded, report.removed) == (1, 1, 1)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")


def destroy(table, way):
    for path in table.rglob("*"):
        if way == "manifests" and path.suffix == ".manifest":
            path.unlink()
        elif way == "garbage" and path.is_file():
            path.write_bytes(b"damage")
        elif way == "cut" and path.is_file():
            os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("way", ["manifests", "garbage", "cut"])
@pytest.mark.parametrize("name", ["files-v1", "windows-v1-model-a"])
def test_a_table_that_cannot_be_read_is_made_anew(corpus, tmp_path, name, way):
    index, model = FolderIndex(corpus), FakeRetriever()
    destroy(index.folder / f"{name}.lance", way)
    if way != "manifests":
        with pytest.raises(Damaged):
            index.read("model-a")
    report = index.update(model)
    assert report.files == 15
    if way != "manifests":  # without them it is no table: one that was never made
        assert report.repaired == (15 if name.startswith("windows") else 16)  # files, and one that cannot be used
    assert (report.embedded, report.reused) == ((15, 0) if name.startswith("windows") else (0, 15))
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")
    assert index.update(model).unchanged == 15


def test_a_lost_manifest(corpus, tmp_path):
    """LanceDB goes on from the one before, under the same name."""
    index, model = FolderIndex(corpus), FakeRetriever()
    for table in index.folder.glob("*.lance"):
        min(table.glob("_versions/*.manifest")).unlink()  # they count down
    write_tone(corpus / "new.wav", 3210, 0.5)
    (corpus / "11.wav").unlink()
    index.update(model)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")
    without_a_snapshot(index)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")


@pytest.mark.slow
def test_damage_that_shows_only_when_the_tables_are_changed(corpus, tmp_path, monkeypatch):
    """The tables are written anew, with all that can be read of them."""
    index, model = FolderIndex(corpus), FakeRetriever()
    write_tone(corpus / "new.wav", 3210, 0.5)
    real = store.FileTable.put

    def fail_once(self, rows):
        monkeypatch.setattr(store.FileTable, "put", real)
        with troubles(self._place):
            raise RuntimeError("lance error: LanceError(IO): file size is too small, /root/x.rs:1:2")

    monkeypatch.setattr(store.FileTable, "put", fail_once)
    report = index.update(model)
    assert model.embedded == 1  # what was committed before the failure stays
    assert (report.files, report.repaired) == (16, 0)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")


def test_a_table_that_cannot_be_written_over_is_made_anew(corpus, tmp_path, monkeypatch):
    real = lancedb.db.LanceDBConnection.create_table

    def create_table(self, *args, mode="create", **options):
        if mode == "overwrite":
            raise RuntimeError("lance error: LanceError(IO): file size is too small, /root/x.rs:1:2")
        return real(self, *args, mode=mode, **options)

    monkeypatch.setattr(lancedb.db.LanceDBConnection, "create_table", create_table)
    index, model = FolderIndex(corpus), FakeRetriever()
    break_a_vector(index, "04.wav")
    for path in index.folder.glob("*.checksums"):
        path.unlink()
    assert (index.update(model).repaired, model.embedded) == (1, 1)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")


@pytest.mark.slow
def test_what_cannot_be_mended_is_said_without_the_words_of_lance(corpus, monkeypatch):
    def fail(self, rows):
        with troubles(self._place):
            raise RuntimeError("lance error: LanceError(IO): file size is too small, /root/x.rs:1:2")

    monkeypatch.setattr(store.FileTable, "put", fail)
    write_tone(corpus / "new.wav", 3210, 0.5)
    with pytest.raises(Damaged, match="remove") as failure:
        FolderIndex(corpus).update(FakeRetriever())
    assert "lance" not in str(failure.value).lower()


def test_damage_in_the_table_of_another_folder_keeps_its_vectors(corpus, tmp_path):
    """The contents that it uses cannot be found out, so none are removed until its own update has mended it."""
    other = shutil.copytree(corpus, tmp_path / "other")
    write_tone(other / "more.wav", 640, 1)
    model = FakeRetriever()
    first, second = FolderIndex(corpus, tmp_path / "ix"), FolderIndex(other, tmp_path / "ix")
    first.update(model)
    second.update(model)
    (table,) = [path for path in (tmp_path / "ix").glob("files-*.lance") if second._suffix in path.name]
    destroy(table, "cut")
    (corpus / "04.wav").unlink()
    first.update(model)
    before = model.embedded
    assert second.update(model).files == 16
    assert model.embedded == before


def test_a_table_over_which_lancedb_ends_the_process_is_made_anew(corpus, tmp_path, monkeypatch):
    """Some damage makes it ask for more memory than there is: the process in which damaged tables are read is another."""
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -ABRT $$\n")
    killer.chmod(0o700)
    index, model = FolderIndex(corpus), FakeRetriever()
    break_a_vector(index, "04.wav")
    monkeypatch.setattr(salvage.sys, "executable", str(killer))
    report = index.update(model)
    assert (report.repaired, report.embedded) == (15, 15)
    assert answers(index) == of_a_fresh_index(corpus, tmp_path / "fresh")


@pytest.mark.slow
def test_salvage_gives_what_is_there(corpus, tmp_path):
    index = FolderIndex(corpus)
    table = salvage.salvage(index.place, "files-v1")
    assert sorted(table["path"].to_pylist())[:2] == [b"00.wav", b"01.wav"]
    destroy(index.folder / "files-v1.lance", "garbage")
    assert salvage.salvage(index.place, "files-v1") is None
    assert salvage.salvage(Folder(tmp_path), "nothing") is None


def test_checksums_of_files(tmp_path):
    table = tmp_path / "x.lance"
    (table / "data").mkdir(parents=True)
    (table / "data/a").write_bytes(b"abc")
    assert not list(checksums.misfits(table))  # none are known
    checksums.record(table)
    (table / "data/b").write_bytes(b"new")
    assert not list(checksums.misfits(table))
    (table / "data/a").write_bytes(b"abd")
    assert list(checksums.misfits(table))
    checksums.record(table)  # never takes damage for what was written
    assert list(checksums.misfits(table))
    (table / "data/a").unlink()
    assert not list(checksums.misfits(table))
    checksums.prune(table)
    (table / "data/a").write_bytes(b"another file of this name")
    assert not list(checksums.misfits(table))
    checksums.record(table)
    (table / "data/b").write_bytes(b"neW")
    assert list(checksums.misfits(table))
    checksums.forget(table)
    assert not list(checksums.misfits(table))
    (tmp_path / "x.checksums").write_bytes(b"\xff[")
    assert not list(checksums.misfits(table))


def test_an_array_whose_own_header_is_damaged_is_not_used(tmp_path):
    """numpy reads as far as that header says, and zipfile looks at the checksum where the reading ends."""
    path, rng = tmp_path / "snapshot.npz", np.random.default_rng(0)
    vectors = rng.normal(size=(1000, 64)).astype(np.float32)
    recordings = Recordings(
        [f"{i}.wav" for i in range(1000)], np.arange(1000), np.arange(1001), rng.uniform(size=(1000, 2)), vectors
    )
    snapshot.write_snapshot(path, "tables", "folder", IndexReport(1000, 1000), recordings)
    assert len(snapshot.read_snapshot(path, "tables").recordings()) == 1000
    assert snapshot.read_snapshot(path, "other tables") is None
    whole = path.read_bytes()
    for name, old, new in (
        ("vectors", b"'shape': (1000, 64)", b"'shape': (0000, 64)"),
        ("spans", b"'shape': (1000, 2)", b"'shape': (1000, 0)"),
        ("offsets", b"'shape': (1001,)", b"'shape': (   1,)"),
    ):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with np.load(path) as file:
            assert file[name].size < 1000 * 64
        assert snapshot.read_snapshot(path, "tables") is None
