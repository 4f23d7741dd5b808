import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import lancedb
import numpy as np
import pytest
import soundfile
import torch
from fake_retriever import RATE, FakeRetriever, as_the_last_version_wrote_it, contents, tone, write_tone
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus import batches, commits, examine, windows
from diffatr_cli.corpus import update as module
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex, Recordings, spans
from diffatr_cli.data.audio import load_audio
from diffatr_cli.errors import DiffATRError, UsageError


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for name, hz, seconds in (
        ("low.wav", 200, 1.5),
        ("high.flac", 3000, 10),
        ("far/down/long.wav", 900, 12.25),
        ("exact.wav", 500, 20),
    ):
        write_tone(root / name, hz, seconds)
    return root


def as_dict(recordings: Recordings):
    return {
        path: [(*recordings.spans[row], recordings.vectors[row]) for row in range(len(recordings.vectors))[recordings.rows_of(i)]]
        for i, path in enumerate(recordings.paths)
    }


def expected(root: Path, model, names):
    """What an index must hold, by plain loops over the files."""
    result = {}
    for name in names:
        waveform = load_audio(root / name)
        starts = (
            [0]
            if len(waveform) <= 10 * RATE
            else sorted({*range(0, len(waveform) - 10 * RATE, 5 * RATE), len(waveform) - 10 * RATE})
        )
        pieces = [(a, min(a + 10 * RATE, len(waveform))) for a in starts]
        result[name] = [(a / RATE, b / RATE, model._embed(waveform[a:b])) for a, b in pieces]
    return result


def assert_same(got, want):
    assert list(got) == sorted(want, key=os.fsencode)
    for name in want:
        assert [window[:2] for window in got[name]] == [window[:2] for window in want[name]]
        np.testing.assert_allclose([w[2] for w in got[name]], [w[2] for w in want[name]], atol=5e-4)  # float16 of at most 1


@given(st.integers(1, 200 * RATE))
def test_spans_cover_the_recording(samples):
    pieces = spans(samples)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == samples
    assert all(0 < b[0] - a[0] <= 5 * RATE for a, b in itertools.pairwise(pieces))
    assert {end - start for start, end in pieces} == {min(samples, 10 * RATE)}


def test_spans_of_known_lengths():
    seconds = {length: [(a / RATE, b / RATE) for a, b in spans(round(length * RATE))] for length in (10, 12, 15, 16)}
    assert seconds == {10: [(0, 10)], 12: [(0, 10), (2, 12)], 15: [(0, 10), (5, 15)], 16: [(0, 10), (5, 15), (6, 16)]}
    assert spans(0) == []


def test_an_index_holds_what_plain_loops_compute(corpus):
    model = FakeRetriever()
    report = FolderIndex(corpus).update(model)
    names = ["low.wav", "high.flac", "far/down/long.wav", "exact.wav"]
    assert_same(as_dict(FolderIndex(corpus).read("model-a")), expected(corpus, model, names))
    assert (report.files, report.windows, report.embedded, report.skipped) == (4, 1 + 1 + 2 + 3, 4, [])


def test_only_what_is_new_is_embedded(corpus):
    model, index = FakeRetriever(), FolderIndex(corpus)

    def update():
        before = model.embedded
        report = index.update(model)
        return model.embedded - before, report.embedded, report.reused, report.unchanged, report.removed

    assert update() == (7, 4, 0, 0, 0)
    assert update() == (0, 0, 0, 4, 0)
    os.utime(corpus / "low.wav", ns=(1, 1))
    assert update() == (0, 0, 1, 3, 0)
    shutil.move(corpus / "far", corpus / "near")
    shutil.copy(corpus / "low.wav", corpus / "copy.wav")
    assert update() == (0, 0, 2, 3, 1)
    write_tone(corpus / "exact.wav", 700, 3)
    (corpus / "high.flac").unlink()
    assert update() == (1, 1, 0, 3, 1)
    want = expected(corpus, model, ["low.wav", "copy.wav", "near/down/long.wav", "exact.wav"])
    assert_same(as_dict(index.read("model-a")), want)
    assert len(contents(index)["windows-v1-model-a"]) == 4  # nothing is left of the old contents; copies share theirs


def test_a_change_that_keeps_size_and_length_is_seen(corpus):
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    write_tone(corpus / "low.wav", 4000, 1.5)
    assert index.update(model).embedded == 1
    assert_same({"low.wav": as_dict(index.read("model-a"))["low.wav"]}, expected(corpus, model, ["low.wav"]))


def test_bad_files_are_named_remembered_and_tried_again_when_they_change(corpus, monkeypatch):
    (corpus / "text.wav").write_text("no sound")
    (corpus / "empty.mp3").touch()
    soundfile.write(corpus / "nan.wav", np.full(100, np.nan, np.float32), RATE, "FLOAT")
    soundfile.write(corpus / "huge.wav", np.full(5000, 1e30, np.float32), RATE, "FLOAT")
    soundfile.write(corpus / "cut.wav", tone(300, 5), RATE)
    os.truncate(corpus / "cut.wav", 9000)
    soundfile.write(corpus / "one.wav", np.zeros(1), RATE)
    soundfile.write(corpus / "wide.wav", np.stack([tone(250, 1)] * 8, 1), 8000)
    index, model = FolderIndex(corpus), FakeRetriever()
    report = index.update(model)
    assert {skipped.path for skipped in report.skipped} == {"text.wav", "empty.mp3", "nan.wav", "huge.wav"}
    assert [each.path for each in report.partial] == ["cut.wav"]
    assert all(skipped.reason and "\n" not in skipped.reason for skipped in report.skipped)
    assert (report.newly_skipped, report.files) == (4, 7)

    def no_decoding(path):
        raise AssertionError(f"{path} was decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(windows, "open_sound", no_decoding)
        os.utime(corpus / "text.wav", ns=(1, 1))
        again = index.update(model)
    assert (len(again.skipped), again.newly_skipped, again.unchanged) == (4, 0, 7)
    write_tone(corpus / "text.wav", 440, 1)
    healed = index.update(model)
    assert (healed.embedded, len(healed.skipped), healed.files) == (1, 3, 8)


def test_files_that_need_pyav_wait_for_it(corpus, monkeypatch):
    pytest.importorskip("av")
    from media_files import write_media

    write_media(corpus / "film.mkv", tone(250, 1, seed=9), RATE)
    monkeypatch.setattr(examine.importlib.util, "find_spec", lambda name: None)
    index, model = FolderIndex(corpus), FakeRetriever()
    report = index.update(model)
    assert [skipped.path for skipped in report.skipped] == ["film.mkv"]
    assert "diffatr[audio]" in report.skipped[0].reason
    assert index.update(model).newly_skipped == 0
    monkeypatch.setattr(examine.importlib.util, "find_spec", lambda name: "found")
    assert index.update(model).embedded == 1


def test_which_files_belong(tmp_path):
    root = tmp_path / "root"
    names = [
        "a.wav",
        "b.WAV",
        "c.ogg",
        "sub/d.mp3",
        "sub/e.opus",
        "f.flac",
        "-n.wav",
        'quo\'te "x".wav',
        " led.wav",
        "🐶.wav",
        os.fsdecode(b"l\xe9.wav"),
    ]
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".opus": ("OGG", "OPUS")}.get(path.suffix, (path.suffix[1:].upper(), None))
        rate = 48000 if path.suffix == ".opus" else RATE
        soundfile.write(os.fsencode(path), tone(300 + 100 * i, 0.5), rate, kind[1], format=kind[0])
    for name in (".hidden/x.wav", "sub/.x.wav", "store/x.wav", "notes.txt"):
        write_tone(root / name, 100, 0.1) if name.endswith("wav") else (root / name).write_text("")
    (root / "dir.wav").mkdir()
    (root / "sub" / "up").symlink_to(root)
    (root / "aa").symlink_to(root / "sub")
    (root / "dead.wav").symlink_to(root / "nowhere.wav")
    outside = tmp_path / "outside"
    write_tone(outside / "g.wav", 5000, 0.5)
    (root / "link").symlink_to(outside)
    (outside / "back").symlink_to(root)
    index = FolderIndex(root, root / "store")
    report = index.update(FakeRetriever())
    assert report.skipped == []
    assert index.read("model-a").paths == sorted([*names, "link/g.wav"], key=os.fsencode)


def test_models_never_mix(corpus):
    index, a, b = FolderIndex(corpus), FakeRetriever(), FakeRetriever("other-model", 8)
    index.update(a)
    assert len(index.read("other-model")) == 0
    assert index.update(b).embedded == 4
    assert index.update(a).embedded == 0
    names = ["low.wav", "high.flac", "far/down/long.wav", "exact.wav"]
    assert_same(as_dict(index.read("model-a")), expected(corpus, a, names))
    assert_same(as_dict(index.read("other-model")), expected(corpus, b, names))


def test_one_folder_may_hold_the_indexes_of_several_corpora(corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    write_tone(other / "more.wav", 640, 1)
    model = FakeRetriever()
    first, second = FolderIndex(corpus, tmp_path / "ix"), FolderIndex(other, tmp_path / "ix")
    assert (first.update(model).embedded, second.update(model).embedded) == (4, 1)
    (corpus / "low.wav").unlink()
    first.update(model)
    assert "low.wav" in second.read("model-a").paths
    assert "low.wav" not in first.read("model-a").paths
    assert second.update(model).unchanged == 5
    assert not (corpus / ".diffatr").exists()


def test_an_index_moves_with_its_folder(corpus, tmp_path):
    FolderIndex(corpus).update(FakeRetriever())
    corpus.rename(tmp_path / "elsewhere")
    assert FolderIndex(tmp_path / "elsewhere").update(FakeRetriever()).unchanged == 4


class Crash(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("form", ["present", "of the last version"])
def test_a_crash_before_or_after_any_write_is_healed_by_the_next_update(corpus, tmp_path, monkeypatch, form):
    """Every write of Lance is atomic, so these are all the states that a kill can leave."""
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    model = FakeRetriever()
    old = tmp_path / "old"
    shutil.copytree(corpus, old)
    FolderIndex(old).update(model)
    (old / "low.wav").unlink()
    write_tone(old / "exact.wav", 777, 11)
    shutil.move(old / "high.flac", old / "moved.flac")
    write_tone(old / "new.wav", 350, 0.5)
    if form == "of the last version":
        as_the_last_version_wrote_it(FolderIndex(old))
    whole = tmp_path / "whole"
    shutil.copytree(old, whole)  # keeps times, so that rows can be compared
    FolderIndex(whole).update(model)
    want = contents(FolderIndex(whole))
    state = SimpleNamespace(calls=0, limit=0, after=False)

    def crashing(real):
        def call(*args, **kwargs):
            state.calls += 1
            if state.calls == state.limit and not state.after:
                raise Crash
            result = real(*args, **kwargs)
            if state.calls == state.limit:
                raise Crash
            return result

        return call

    table, merge, db = lancedb.table.LanceTable, lancedb.merge.LanceMergeInsertBuilder, lancedb.db.LanceDBConnection
    for owner, name in ((table, "add"), (table, "optimize"), (merge, "execute"), (db, "create_table")):
        monkeypatch.setattr(owner, name, crashing(getattr(owner, name)))
    crashes = 0
    for state.limit in range(1, 100):
        crashed = False
        for state.after in (False, True):
            work = tmp_path / "work"
            shutil.copytree(old, work)
            state.calls = model.embedded = 0
            with contextlib.suppress(Crash):
                FolderIndex(work).update(model)
            if state.calls >= state.limit:
                crashed = True
                crashes += 1
                state.calls = state.limit
                FolderIndex(work).update(model)
            assert contents(FolderIndex(work)) == want
            assert model.embedded <= 2 * 3  # the new windows, twice at most; those of before are never lost
            shutil.rmtree(work)
        if not crashed:
            break
    assert crashes >= 12


@pytest.mark.slow
def test_kill_9(tmp_path):
    root = tmp_path / "clips"
    for i in range(60):
        write_tone(root / f"{i}.wav", 100 + 50 * i, 0.2)
    rng, killed = random.Random(0), 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fake_retriever.py"), root, tmp_path / "killed"], stdout=subprocess.PIPE
        )
        child.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.5))
        child.kill()
        killed += child.wait() == -9
        child.stdout.close()
    assert killed
    FolderIndex(root, tmp_path / "killed").update(FakeRetriever())
    FolderIndex(root, tmp_path / "calm").update(FakeRetriever())
    assert contents(FolderIndex(root, tmp_path / "killed")) == contents(FolderIndex(root, tmp_path / "calm"))


def test_a_second_update_is_refused_while_one_runs_and_reading_goes_on(corpus, monkeypatch):
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(batches, "BATCH", 1)
    index, model, seen = FolderIndex(corpus), FakeRetriever(), []
    write_tone(corpus / "zero.wav", 123, 1)
    index.update(model)
    (corpus / "zero.wav").unlink()
    names = ["low.wav", "high.flac", "far/down/long.wav", "exact.wav"] + [f"n{i}.wav" for i in range(6)]
    for i in range(6):
        write_tone(corpus / f"n{i}.wav", 1000 + i * 100, 0.5)
    want = expected(corpus, model, names)
    inside, release = threading.Event(), threading.Event()

    class Held(FakeRetriever):
        def embed_audio(self, waveforms):
            inside.set()
            release.wait(10)
            return super().embed_audio(waveforms)

    writer = threading.Thread(target=index.update, args=(Held(),))
    writer.start()
    try:
        assert inside.wait(10)
        with pytest.raises(CannotUpdate, match="another process"):
            FolderIndex(corpus).update(model)
        assert "zero.wav" in index.read("model-a").paths
    finally:
        release.set()
    while writer.is_alive():
        seen.append(as_dict(index.read("model-a")))
    for got in seen:
        got.pop("zero.wav", None)
        assert_same(got, {name: want[name] for name in got})
    assert_same(as_dict(index.read("model-a")), want)


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_update(corpus, monkeypatch):
    plain = windows.open_sound

    def changing(path, **options):
        sound = plain(path, **options)
        if path.name == "low.wav":
            write_tone(path, 4000, 2)
        return sound

    index, model = FolderIndex(corpus), FakeRetriever()
    with monkeypatch.context() as patch:
        patch.setattr(windows, "open_sound", changing)
        report = index.update(model)
    assert [(skipped.path, skipped.reason) for skipped in report.skipped] == [("low.wav", "changed while it was read")]
    assert index.update(model).embedded == 1
    assert_same({"low.wav": as_dict(index.read("model-a"))["low.wav"]}, expected(corpus, model, ["low.wav"]))


def test_places_that_cannot_be_used(corpus, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        FolderIndex(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a folder"):
        FolderIndex(corpus / "low.wav")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffATRError, match="no sound files"):
        FolderIndex(tmp_path / "empty").update(FakeRetriever())
    assert not (tmp_path / "empty" / ".diffatr").exists()
    (corpus / ".diffatr").write_text("in the way")
    with pytest.raises(CannotUpdate, match="--index DIR"):
        FolderIndex(corpus).update(FakeRetriever())
    assert len(FolderIndex(corpus).read("model-a")) == 0
    assert FolderIndex(corpus, tmp_path / "ix").update(FakeRetriever()).files == 4


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_write_permission(corpus):
    corpus.chmod(0o500)
    try:
        with pytest.raises(CannotUpdate, match="--index DIR"):
            FolderIndex(corpus).update(FakeRetriever())
    finally:
        corpus.chmod(0o700)


def test_a_damaged_index_says_so(corpus):
    FolderIndex(corpus).update(FakeRetriever())
    for path in (corpus / ".diffatr" / "windows-v1-model-a.lance" / "data").iterdir():
        path.write_bytes(b"damage")
    with pytest.raises(DiffATRError, match="the index is damaged"):
        FolderIndex(corpus).read("model-a")


def test_embeddings_that_are_not_finite_are_refused(corpus):
    model = FakeRetriever()
    model.projection[:] = np.nan
    with pytest.raises(DiffATRError, match=r"^fake: its embeddings are not finite"):
        FolderIndex(corpus).update(model)


class OnGPU(FakeRetriever):
    """Says that it is on a GPU, and so is given its windows in a thread, while the next ones are gathered."""

    device = "cuda"


@pytest.mark.parametrize("batch", [1, 2, 5, 256])
def test_an_index_of_a_gpu_is_that_of_the_processor(corpus, tmp_path, monkeypatch, batch):
    (corpus / "broken.wav").write_bytes(b"RIFF")
    write_tone(corpus / "long.wav", 500, 35)
    monkeypatch.setattr(batches, "GPU_BATCH", batch)
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    reports = here.update(FakeRetriever()), there.update(OnGPU())
    assert contents(here) == contents(there)
    assert [each.embedded for each in reports] == [reports[0].embedded] * 2
    assert [each.path for each in reports[1].skipped] == ["broken.wav"]


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_what_is_written_while_a_gpu_is_at_work_is_whole(corpus, tmp_path, monkeypatch, batch):
    for number in range(8):
        write_tone(corpus / f"more {number}.wav", 300 + number, 0.5 if number % 2 else 21, seed=number)
    shutil.copy(corpus / "more 2.wav", corpus / "more 3 of the same.wav")
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    here.update(FakeRetriever())
    whole = as_dict(here.read("model-a"))
    monkeypatch.setattr(batches, "GPU_BATCH", batch)
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    write, counts, threads = commits.Commits._write, [], set()

    def written(self, parts, rows):
        write(self, parts, rows)
        threads.add(threading.current_thread().name.split("_")[0])
        # What is not there is left out of what is read, so this is looked at by itself.
        assert {row.content for row in self._files.rows().values()} <= self._windows.counts().keys()
        found = as_dict(there.read("model-a"))
        assert_same(found, {path: whole[path] for path in found})
        counts.append(len(found))

    monkeypatch.setattr(commits.Commits, "_write", written)
    there.update(OnGPU(), workers=3)
    assert counts == sorted(counts)
    assert len(set(counts)) > (4 if batch < 256 else 0)
    assert threads == {"MainThread", "writing"}
    assert contents(here) == contents(there)


@pytest.mark.parametrize("first_alone", [False, True])
def test_what_cannot_be_written_while_a_gpu_is_at_work_is_told(corpus, monkeypatch, first_alone):
    write, tried = commits.Commits._write, []

    def full(self, parts, rows):
        tried.append(rows)
        if len(tried) > 1 and first_alone:
            write(self, parts, rows)
        else:
            raise CannotUpdate("the disk is full")

    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(commits.Commits, "_write", full)
    with pytest.raises(CannotUpdate, match="the disk is full"):
        FolderIndex(corpus).update(OnGPU())


@pytest.mark.parametrize(("device", "at_once"), [("cuda", 2), ("cuda:1", 2), ("mps", 1)])
def test_a_gpu_has_two_batches_at_a_time_after_the_first(tmp_path, monkeypatch, device, at_once):
    """Where it can have them: a Mac's takes work from one thread at a time, or ends the process."""
    monkeypatch.setattr(batches, "GPU_BATCH", 1)
    lock, second, pair, at_work = threading.Lock(), threading.Event(), threading.Barrier(at_once), []

    class Counting(OnGPU):
        calls = now = 0

        def embed_audio(self, waveforms):
            with lock:
                self.calls += 1
                self.now += 1
                number = self.calls
                at_work.append(self.now)
            if number == 1:
                assert not second.wait(0.3), "the second batch begins while the first compiles what both need"
            else:
                second.set()
                pair.wait(60)
            vectors = super().embed_audio(waveforms)
            with lock:
                self.now -= 1
            return vectors

    for number in range(5):
        write_tone(tmp_path / "clips" / f"{number}.wav", 300 + number, 1)
    model = Counting()
    model.device = device
    FolderIndex(tmp_path / "clips").update(model)
    assert max(at_work) == at_once


@pytest.mark.parametrize("room", [1, 0])
def test_a_gpu_without_room_for_two_batches_has_one_at_a_time(tmp_path, monkeypatch, room):
    monkeypatch.setattr(batches, "GPU_BATCH", 1)
    lock, refused = threading.Lock(), []

    class Small(OnGPU):
        now = 0

        def embed_audio(self, waveforms):
            with lock:
                self.now += 1
                full = self.embedded > 1 and self.now > room
            try:
                time.sleep(0.05)
                if full:
                    refused.append(len(waveforms))
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return super().embed_audio(waveforms)
            finally:
                with lock:
                    self.now -= 1

    for number in range(8):
        write_tone(tmp_path / "clips" / f"{number}.wav", 300 + number, 1, seed=number)
    here, there = FolderIndex(tmp_path / "clips", tmp_path / "here"), FolderIndex(tmp_path / "clips", tmp_path / "there")
    if not room:
        with pytest.raises(torch.OutOfMemoryError):
            there.update(Small())
        return
    there.update(Small())
    here.update(FakeRetriever())
    assert contents(here) == contents(there)
    assert 0 < len(refused) <= batches.AT_ONCE + 1  # which were given to it before the first was refused


def test_windows_are_gathered_while_a_gpu_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "GPU_BATCH", 1)
    taken, gathered = [], threading.Event()
    take = module.Update._take

    def taking(self, path, *rest):
        taken.append(path)
        if len(taken) == 4:
            gathered.set()
        take(self, path, *rest)

    class Waiting(OnGPU):
        def embed_audio(self, waveforms):
            # The first batch is waited for, and then there are two at a time.
            assert not self.embedded or gathered.wait(60), "the fourth file waits until the second or the third is embedded"
            return super().embed_audio(waveforms)

    for number in range(5):
        write_tone(tmp_path / "clips" / f"{number}.wav", 300 + number, 1)
    monkeypatch.setattr(module.Update, "_take", taking)
    FolderIndex(tmp_path / "clips").update(Waiting())
    assert gathered.is_set()


def test_what_goes_wrong_on_a_gpu_is_told(corpus):
    model = OnGPU()
    model.projection[:] = np.nan
    with pytest.raises(DiffATRError, match=r"^fake: its embeddings are not finite"):
        FolderIndex(corpus).update(model)


def test_progress_counts_files(corpus):
    seen = []
    FolderIndex(corpus).update(FakeRetriever(), progress=lambda done, total, note: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(5)]
