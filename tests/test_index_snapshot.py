"""The snapshot beside an index's tables: used where it fits, never where it does not, and never needed."""

import os
import random
import shutil

import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus import examine, snapshot
from diffatr_cli.corpus import index as module
from diffatr_cli.corpus.index import FolderIndex


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for i in range(6):
        write_tone(root / f"{'ab'[i % 2]}/{i}.wav", 200 + 300 * i, (1, 12)[i == 3])
    write_tone(root / os.fsdecode(b"l\xe9.wav"), 4000, 0.5)
    (root / "bad.wav").write_text("no sound")
    return root


def snapshot_of(index):
    (path,) = index.folder.glob("snapshot-*")
    return path


def from_tables(index):
    """What the tables hold, read without the snapshot."""
    return index._read_tables("model-a")


def assert_equal(a, b):
    assert a.paths == b.paths
    for name in ("offsets", "spans", "vectors"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def no_tables(monkeypatch):
    """Call it to make any use of the tables fail."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the tables were used")

    def forbid():
        monkeypatch.setattr("diffatr_cli.corpus.table.StoredTable.__init__", refuse)

    return forbid


def test_an_unchanged_folder_needs_no_tables(corpus, no_tables):
    index, model = FolderIndex(corpus), FakeRetriever()
    first = index.update(model)
    slow, want = index.update(model), from_tables(index)
    assert (first.embedded, first.newly_skipped) == (7, 1)
    no_tables()
    fast = FolderIndex(corpus).update(model)
    assert fast == slow
    assert (fast.files, fast.windows, fast.unchanged, fast.newly_skipped, len(fast.skipped)) == (7, 8, 7, 0, 1)
    assert_equal(FolderIndex(corpus).read("model-a"), want)
    write_tone(corpus / "new.wav", 100, 1)
    with pytest.raises(AssertionError, match="tables were used"):
        index.update(model)


def test_it_follows_every_change(corpus, monkeypatch):
    """The same changes with and without snapshots give the same reports and recordings."""
    index, other, model = FolderIndex(corpus), FolderIndex(corpus, corpus.parent / "other"), FakeRetriever()
    rng = random.Random(0)
    for step in range(12):
        files = sorted(corpus.glob("?/*.wav"))
        change = rng.choice(["add", "remove", "rewrite", "touch", "rename", "nothing"])
        if change == "add":
            write_tone(corpus / f"a/new{step}.wav", 150 + 100 * step, 0.5)
        elif change == "remove":
            rng.choice(files).unlink()
        elif change == "rewrite":
            write_tone(rng.choice(files), 120 + 100 * step, 1)
        elif change == "touch":
            os.utime(rng.choice(files))
        elif change == "rename":
            rng.choice(files).rename(corpus / f"b/moved{step}.wav")
        with monkeypatch.context() as patch:
            patch.setattr(module, "read_snapshot", lambda *_: None)
            expected = other.update(model)
            recordings = other.read("model-a")
        assert index.update(model) == expected
        assert_equal(index.read("model-a"), recordings)


def test_what_changed_the_tables_alone_is_seen(corpus, tmp_path, monkeypatch, no_tables):
    """As by an update that was killed before it wrote the snapshot, or of a version that writes none."""
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    shutil.copytree(corpus, tmp_path / "before")
    (corpus / "a/0.wav").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_snapshot", lambda *_: None)
        index.update(model)
    assert "a/0.wav" not in index.read("model-a").paths
    shutil.copy2(tmp_path / "before/a/0.wav", corpus / "a/0.wav")  # the folder is again as the snapshot has it
    assert "a/0.wav" not in index.read("model-a").paths
    assert index.update(model).files == 7
    assert_equal(index.read("model-a"), from_tables(index))
    no_tables()
    assert index.update(model).unchanged == 7


def test_a_table_that_is_gone_takes_its_snapshot_along(corpus):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    shutil.rmtree(index.folder / "windows-v1-model-a.lance")
    assert index.read("model-a").paths == []
    assert index.update(model).embedded == 7


def test_a_damaged_or_missing_snapshot_is_passed_over_and_written_anew(corpus):
    index, model, rng = FolderIndex(corpus), FakeRetriever(), random.Random(1)
    index.update(model)
    want, whole = index.read("model-a"), snapshot_of(index).read_bytes()
    for damage in range(60):
        content = bytearray(whole)
        if damage % 2:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        snapshot_of(index).write_bytes(content)
        assert_equal(index.read("model-a"), want)
        if damage % 20 == 0:
            assert index.update(model).unchanged == 7
    snapshot_of(index).unlink()
    assert_equal(index.read("model-a"), want)
    index.update(model)
    snapshot_of(index)


def test_a_file_that_could_not_be_read_for_now_is_tried_again(corpus, monkeypatch):
    index, model = FolderIndex(corpus), FakeRetriever()
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        patch.setattr(examine.hashlib, "file_digest", refuse)
        assert index.update(model).newly_skipped == 8
    assert index.read("model-a").paths == []
    assert index.update(model).embedded == 7


def test_leftovers_of_a_kill_are_removed_and_a_disk_that_is_full_does_no_harm(corpus, monkeypatch):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.folder.mkdir()
    (index.folder / ".snapshot-v1-model-a.npz.123.tmp").write_bytes(b"half")
    with monkeypatch.context() as patch:

        def full(*_args, **_kwargs):
            raise OSError(28, "No space left on device")

        patch.setattr(snapshot.np, "savez", full)
        assert index.update(model).embedded == 7
    assert not list(index.folder.glob("*snapshot*"))
    assert not list(index.folder.glob(".snapshot*"))
    assert index.update(model).unchanged == 7
    assert_equal(index.read("model-a"), from_tables(index))


def test_a_folder_without_one_usable_file(tmp_path, no_tables):
    (tmp_path / "bad.wav").write_text("no sound")
    index, model = FolderIndex(tmp_path), FakeRetriever()
    index.update(model)
    no_tables()
    assert [each.path for each in index.update(model).skipped] == ["bad.wav"]
    assert index.read("model-a").paths == []
