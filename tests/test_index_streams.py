"""The index reads long, cut and odd recordings: block by block, what is there of them, and each for itself."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_retriever import RATE, FakeRetriever, tone, write_tone

from diffatr_cli.core.windows import spans
from diffatr_cli.corpus import findings
from diffatr_cli.corpus.index import FolderIndex

GENERATOR = Path(__file__).parents[2] / "shared" / "cases" / "odd_audio.py"


def test_the_windows_of_a_stream_are_those_of_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seconds in (0.5, 10.0, 10.01, 37.3, 70.0):
        write_tone(tmp_path / f"{seconds}.flac", float(rng.integers(200, 2000)), seconds)
    model, index = FakeRetriever(), FolderIndex(tmp_path)
    index.update(model)
    recordings = index.read(model.model_id)
    for file, path in enumerate(recordings.paths):
        wave, _ = soundfile.read(tmp_path / path, dtype="float32")
        rows = recordings.rows_of(file)
        np.testing.assert_allclose(recordings.spans[rows] * RATE, spans(len(wave)))
        expected = np.stack([model._embed(wave[a:b]) for a, b in spans(len(wave))])
        np.testing.assert_allclose(recordings.vectors[rows], expected, atol=2e-3)


def test_memory_does_not_grow_with_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "READ_AHEAD", 8 << 20)  # what may wait is bounded too

    told: list[str] = []

    def peak(minutes: int) -> int:
        folder = tmp_path / str(minutes)
        folder.mkdir()
        with soundfile.SoundFile(folder / "long.flac", "w", 8000, 2) as out:
            for _ in range(minutes):
                out.write(np.random.default_rng(0).normal(0, 0.1, (8000 * 60, 2)))
        tracemalloc.start()
        report = FolderIndex(folder).update(FakeRetriever(), lambda done, total, note: told.append(note), workers=1)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report.windows == 12 * minutes - 1
        return used

    short, long = peak(8), peak(24)
    assert told[-2] == "indexing, 21 min 25 s into a recording"  # every 64 windows of 10 s with a step of 5 s
    assert long < short + (20 << 20)  # 24 minutes take 184 MB as samples


def test_what_is_there_of_a_cut_file_is_searched_and_noted(tmp_path: Path) -> None:
    write_tone(tmp_path / "whole.wav", 900, 25)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[: 44 + 2 * RATE * 15])
    (tmp_path / "score.mid").write_bytes(b"MThd")
    model, index = FakeRetriever(), FolderIndex(tmp_path)
    report = index.update(model)
    assert [(each.path, "truncated" in each.reason) for each in report.partial] == [("cut.wav", True)]
    assert [(each.path, each.reason) for each in report.skipped] == [("score.mid", ".mid files cannot be read")]
    recordings = index.read(model.model_id)
    assert recordings.paths == ["cut.wav", "whole.wav"]
    assert recordings.spans[recordings.rows_of(0)].tolist() == [[0, 10], [5, 15]]
    again = index.update(model)
    assert (again.unchanged, again.newly_skipped, len(again.skipped)) == (2, 0, 1)
    assert (again.partial, again.newly_partial) == (report.partial, 0)


@pytest.mark.skipif(not GENERATOR.exists(), reason="the generator is not here")
def test_odd_recordings_are_indexed_or_skipped_with_a_reason(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GENERATOR, tmp_path / "clips"], check=True, capture_output=True)
    expected = json.loads((tmp_path / "clips" / "expected.json").read_text())
    model, index = FakeRetriever(), FolderIndex(tmp_path / "clips")
    report = index.update(model)
    recordings = index.read(model.model_id)
    found = {path: float(recordings.spans[recordings.rows_of(i).stop - 1, 1]) for i, path in enumerate(recordings.paths)}
    assert found == {name: pytest.approx(seconds, abs=0.06) for name, seconds in expected.items() if seconds is not None}
    assert {each.path for each in report.skipped} == {name for name, seconds in expected.items() if seconds is None}
    assert report.partial == []


def test_a_file_that_takes_the_memory_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffatr_cli.corpus import windows

    write_tone(tmp_path / "good.wav", 900, 2)
    write_tone(tmp_path / "huge.wav", 300, 2)
    plain = windows.open_sound

    def greedy(path: Path, **options: int) -> object:
        if path.name == "huge.wav":
            raise MemoryError
        return plain(path, **options)

    monkeypatch.setattr(windows, "open_sound", greedy)
    report = FolderIndex(tmp_path).update(FakeRetriever())
    assert report.files == 1
    assert "memory" in report.skipped[0].reason
    assert tone(300, 1).dtype == np.float32
