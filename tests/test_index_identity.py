"""Which file is which: by what the system says of it, and where that differs, by its content."""

import os
import shutil
import sys

import numpy as np
import pytest
from fake_retriever import FakeRetriever, as_the_last_version_wrote_it, write_tone

from diffatr_cli.corpus import examine, windows
from diffatr_cli.corpus.index import FolderIndex

COUNT = 40


@pytest.fixture
def corpus(tmp_path):
    """Numbered files of equal size and time, and one that cannot be used."""
    root = tmp_path / "clips"
    for i in range(COUNT):
        write_tone(root / f"{i:03d}.wav", 100 + 80 * i, 0.2, seed=i)
        os.utime(root / f"{i:03d}.wav", ns=(10**18, 10**18))
    (root / "bad.wav").write_text("no sound")
    return root


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were hashed."""
    calls, real = [], examine.hashlib.file_digest

    def digest(stream, kind):
        calls.append(stream.name)
        return real(stream, kind)

    monkeypatch.setattr(examine.hashlib, "file_digest", digest)
    return calls


def vectors(index):
    recordings = index.read("model-a")
    return dict(zip(recordings.paths, recordings.vectors, strict=True))


def assert_fresh(index, tmp_path):
    """The answers are those of an index made now."""
    fresh = FolderIndex(index.corpus, tmp_path / "fresh")
    fresh.update(FakeRetriever())
    got, want = vectors(index), vectors(fresh)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path])


def swap_by_names(a, b):
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def swap_by_contents(a, b):
    """In place, with the times put back: only the time of the last change of the inode tells."""
    contents = a.read_bytes(), b.read_bytes()
    for path, content in zip((b, a), contents, strict=True):
        stat = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("swap", [swap_by_names, swap_by_contents])
def test_two_files_of_equal_size_and_time_are_swapped(corpus, tmp_path, swap, hashed):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    a, b = corpus / "003.wav", corpus / "017.wav"
    before = a.stat().st_size, a.stat().st_mtime_ns, b.stat().st_size, b.stat().st_mtime_ns
    swap(a, b)
    assert before == (a.stat().st_size, a.stat().st_mtime_ns, b.stat().st_size, b.stat().st_mtime_ns)
    hashed.clear()
    report = index.update(model)
    assert (report.reused, report.embedded, report.unchanged, len(hashed)) == (2, 0, COUNT - 2, 2)
    assert model.embedded == COUNT
    assert_fresh(index, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no inodes")
def test_another_file_in_the_same_place_with_the_same_times(corpus, tmp_path, monkeypatch):
    """As on a file system whose renames leave no time: the inode tells."""
    index, model = FolderIndex(corpus), FakeRetriever()
    monkeypatch.setattr("diffatr_cli.corpus.scan.Stamp.of", classmethod(without_ctime))
    index.update(model)
    swap_by_names(corpus / "003.wav", corpus / "017.wav")
    assert index.update(model).reused == 2
    assert_fresh(index, tmp_path)


def without_ctime(cls, stat):
    return cls(stat.st_size, stat.st_mtime_ns, 0, stat.st_ino)


def test_numbered_files_each_take_the_next_number(corpus, tmp_path, hashed):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    for i in reversed(range(10, COUNT)):
        (corpus / f"{i:03d}.wav").rename(corpus / f"{i + 1:03d}.wav")
    hashed.clear()
    report = index.update(model)
    assert (report.reused, report.embedded, report.unchanged, report.removed) == (COUNT - 10, 0, 10, 1)
    assert (len(hashed), model.embedded) == (COUNT - 10, COUNT)
    assert_fresh(index, tmp_path)
    hashed.clear()
    assert index.update(model).unchanged == COUNT
    assert hashed == []


def test_the_content_decides_and_not_the_time(corpus, hashed):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    for i in range(5):
        os.utime(corpus / f"{i:03d}.wav")
    (corpus / "005.wav").chmod(0o600)  # changes no more than the time of change
    hashed.clear()
    report = index.update(model)
    assert (report.reused, report.embedded, len(hashed), model.embedded) == (6, 0, 6, COUNT)


def test_an_index_that_was_copied_with_its_folder(corpus, tmp_path, hashed, monkeypatch):
    """Other inodes, other times: hashing, no decoding, and no more of it the next time."""
    FolderIndex(corpus).update(FakeRetriever())
    copy = shutil.copytree(corpus, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setattr(windows, "open_sound", lambda path, **options: pytest.fail("decoded"))
    index, model = FolderIndex(copy), FakeRetriever()
    hashed.clear()
    report = index.update(model)
    assert (report.reused, report.newly_skipped, len(report.skipped), model.embedded) == (COUNT, 0, 1, 0)
    assert len(hashed) == COUNT + 1
    assert index.update(model).unchanged == COUNT
    assert len(hashed) == COUNT + 1


def test_an_index_of_the_last_version_is_used(corpus, tmp_path, hashed, monkeypatch):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    want = vectors(index)
    as_the_last_version_wrote_it(index)
    got = vectors(index)  # where it cannot be brought up to date, it can be searched
    assert got.keys() == want.keys()
    decoded = []
    real = windows.open_sound
    monkeypatch.setattr(windows, "open_sound", lambda path, **options: decoded.append(path.name) or real(path, **options))
    hashed.clear()
    report = index.update(model)
    assert (report.reused, report.embedded, report.repaired, len(hashed), model.embedded) == (COUNT, 0, 0, COUNT + 1, COUNT)
    assert decoded == ["bad.wav"]  # which this version may be able to read
    assert_fresh(index, tmp_path)
    hashed.clear()
    assert index.update(model).unchanged == COUNT
    os.utime(corpus / "001.wav")
    assert index.update(model).unchanged == COUNT - 1
    assert len(hashed) == 1


def test_two_folders_and_two_models_in_one_index_of_the_last_version(corpus, tmp_path):
    other = tmp_path / "other"
    write_tone(other / "only.wav", 777, 1)
    first, second = FolderIndex(corpus, tmp_path / "ix"), FolderIndex(other, tmp_path / "ix")
    models = FakeRetriever(), FakeRetriever("other-model", 8)
    for model in models:
        first.update(model)
        second.update(model)
    as_the_last_version_wrote_it(first)
    for model in models:
        before = model.embedded
        assert first.update(model).files == COUNT
        assert second.update(model).files == 1
        assert model.embedded == before
        assert len(second.read(model.model_id)) == 1


def test_reasons_hold_for_the_reader_that_gave_them(corpus, monkeypatch):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    decoded = []
    real = windows.open_sound
    monkeypatch.setattr(windows, "open_sound", lambda path, **options: decoded.append(path.name) or real(path, **options))
    assert index.update(model).unchanged == COUNT
    assert decoded == []
    monkeypatch.setattr(examine, "__version__", "next")
    report = index.update(model)
    assert (report.unchanged, report.newly_skipped, decoded) == (COUNT, 0, ["bad.wav"])
    index.update(model)
    assert decoded == ["bad.wav"]
