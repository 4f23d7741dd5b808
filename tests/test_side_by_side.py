"""Recordings that are read side by side for a GPU leave the index that comes of one after the other."""

import shutil
import threading

import pytest
from fake_retriever import FakeRetriever, contents, write_tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_index_frames import FramedRetriever

from diffatr_cli.corpus import batches, commits, findings, reading_processes, update
from diffatr_cli.corpus.examine import Failure, examine
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.windows import Window

BY_PROCESSES = pytest.mark.skipif(not reading_processes._POSSIBLE, reason="this system has not what it takes")


class OnGPU(FakeRetriever):
    device = "cuda"


class FramedOnGPU(FramedRetriever):
    device = "cuda"


def patched(monkeypatch, change):
    """Have threads find what `change` makes of a file's name and what is found in it."""
    monkeypatch.setattr(findings, "examine", lambda path, *rest: change(path.name, examine(path, *rest)))


def test_a_recording_is_read_beside_a_long_one(tmp_path, monkeypatch):
    """One by one, the first would wait for the second in vain."""
    write_tone(tmp_path / "clips/a.wav", 300, 40)
    write_tone(tmp_path / "clips/b.wav", 400, 40)
    second = threading.Event()

    def change(name, found):
        for finding in found:
            yield finding
            if name == "a.wav" and isinstance(finding, Window):
                assert second.wait(60)
        if name == "b.wav":
            second.set()

    patched(monkeypatch, change)
    monkeypatch.setattr(findings, "READ_AHEAD", 1)  # so that what is read was wanted
    assert FolderIndex(tmp_path / "clips").update(OnGPU(), workers=2).embedded == 2


@pytest.mark.parametrize("retriever", [OnGPU, FramedOnGPU])
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=BY_PROCESSES)])
def test_a_content_is_taken_in_once(tmp_path, monkeypatch, retriever, processes):
    """However many files that are read side by side have it."""
    monkeypatch.setattr(update, "pay", lambda workers, stamps: processes)
    for number in range(3):
        write_tone(tmp_path / f"clips/{number} a.wav", 300 + 50 * number, 200)
        for copy in "bcd":
            shutil.copy(tmp_path / f"clips/{number} a.wav", tmp_path / f"clips/{number} {copy}.wav")
    here, there = FolderIndex(tmp_path / "clips", tmp_path / "here"), FolderIndex(tmp_path / "clips", tmp_path / "there")
    on_processor, on_gpu = retriever(), retriever()
    on_processor.device = "cpu"
    expected, report = here.update(on_processor, workers=4), there.update(on_gpu, workers=4)
    assert (report.files, report.embedded, report.reused) == (12, 3, 9)
    assert report == expected
    assert on_gpu.embedded == on_processor.embedded
    assert contents(here) == contents(there)
    assert there.update(on_gpu).unchanged == 12


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("retriever", [OnGPU, FramedOnGPU])
def test_a_copy_is_read_where_the_one_that_was_taken_in_fails(tmp_path, monkeypatch, lasting, retriever):
    write_tone(tmp_path / "clips/a.wav", 300, 40)
    shutil.copy(tmp_path / "clips/a.wav", tmp_path / "clips/b.wav")
    first, second = threading.Event(), threading.Event()

    def change(name, found):
        if name == "b.wav":
            assert first.wait(60)
        for number, finding in enumerate(found):
            yield finding
            if name == "a.wav" and number == 1:
                first.set()
            if name == "a.wav" and number == 3:
                assert second.wait(60)
                yield Failure("at odds with the world", lasting=lasting)
                return
        if name == "b.wav":
            second.set()

    patched(monkeypatch, change)
    monkeypatch.setattr(batches, "GPU_BATCH", 2)
    monkeypatch.setattr(findings, "READ_AHEAD", 1)  # what is found next was put where what was found before is taken
    index, model = FolderIndex(tmp_path / "clips", tmp_path / "index"), retriever()
    report = index.update(model, workers=2)
    assert [(each.path, each.reason) for each in report.skipped] == [("a.wav", "at odds with the world")]
    assert (report.files, report.embedded) == (1, 1)
    found = index.read(model.model_id, frames=model.sees_frames)
    assert found.paths == ["b.wav"]
    assert len(found.spans) == 7
    fresh = FolderIndex(tmp_path / "clips", tmp_path / "fresh")
    monkeypatch.undo()
    (tmp_path / "clips/a.wav").unlink()
    index.update(model)
    fresh.update(model)
    assert contents(fresh) == contents(index)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["whole", "lasting", "for now"])), min_size=1, max_size=12))
def test_whatever_fails_and_whatever_are_copies(tmp_path_factory, plan):
    """`plan`: the content of each file, and how reading it ends. An update after it, in which nothing fails, leaves the index
    that a processor makes, where files come one after the other."""
    folder = tmp_path_factory.mktemp("any")
    for number, (content, _) in enumerate(plan):
        write_tone(folder / f"clips/{number:02d}.wav", 300 + 100 * content, 1 + 12 * (content % 3), seed=content)
    ends = {f"{number:02d}.wav": end for number, (_, end) in enumerate(plan)}

    def change(name, found):
        for finding in found:
            yield finding
            if isinstance(finding, Window) and ends[name] != "whole":
                yield Failure("unheard of", lasting=ends[name] == "lasting")
                return

    here, there = FolderIndex(folder / "clips", folder / "here"), FolderIndex(folder / "clips", folder / "there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "GPU_BATCH", 2)
        patch.setattr(commits, "_COMMIT_SECONDS", 0.0)
        patched(patch, change)
        report = there.update(OnGPU(), workers=3)
        whole = {content for content, end in plan if end == "whole"}
        usable = [name for name, (content, _) in zip(sorted(ends), plan, strict=True) if content in whole]
        assert there.read("model-a").paths == [name for name in usable if ends[name] == "whole" or name not in skipped(report)]
        assert (report.embedded, report.files + len(report.skipped)) == (len(whole), len(plan))
    for number in range(len(plan)):  # a file that cannot be used is looked at again when it changed
        write_tone(folder / f"clips/{number:02d}.wav", 300 + 100 * plan[number][0], 1.5, seed=number)
    here.update(FakeRetriever())
    there.update(OnGPU())
    assert contents(here) == contents(there)


def skipped(report):
    return {each.path for each in report.skipped}
