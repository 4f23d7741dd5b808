"""Recordings as people have them, made by a generator that lies beside the repository: each gives what should come of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from audio_files import table

from diffatr_cli.data.audio import AudioError, load_audio, open_sound
from diffatr_cli.data.excerpt import read_excerpt
from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.manifest import load_dataset

GENERATOR = Path(__file__).parents[2] / "shared" / "cases" / "odd_audio.py"
pytestmark = pytest.mark.skipif(not GENERATOR.exists(), reason="the generator is not here")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float | None]]:
    """The folder, and name -> seconds that can be read, or None for a file that is refused."""
    folder = tmp_path_factory.mktemp("odd")
    subprocess.run([sys.executable, GENERATOR, folder], check=True, capture_output=True)
    return folder, json.loads((folder / "expected.json").read_text())


def test_each_is_read_or_refused_as_it_should_be(odd: tuple[Path, dict[str, float | None]]) -> None:
    folder, expected = odd
    assert len(expected) >= 12
    found: dict[str, float | None] = {}
    for name in expected:
        try:
            samples = load_audio(folder / name)
        except AudioError:
            found[name] = None
            continue
        found[name] = len(samples) / 32_000
        assert 0.05 < abs(samples).max() <= 1.1, name
        with open_sound(folder / name) as sound:
            assert sum(map(len, sound.blocks())) == len(samples)
            assert sound.partial is None
        assert len(read_excerpt(folder / name, 1, 2)) == pytest.approx(32_000, abs=2)
    assert found == {name: seconds if seconds is None else pytest.approx(seconds, abs=0.06) for name, seconds in expected.items()}


def test_each_is_prepared_or_skipped_with_a_reason(odd: tuple[Path, dict[str, float | None]], tmp_path: Path) -> None:
    folder, expected = odd
    table(tmp_path / "c.csv", "file,caption,split", [[str(folder / name), "a sound", "train"] for name in expected])
    report = prepare_folder(tmp_path / "data" / "odd", tmp_path, workers=1)
    prepared = {Path(clip.path).name.removesuffix(".wav"): clip.seconds for clip in load_dataset(tmp_path / "data", "odd").clips}
    wanted = {name.removesuffix(".wav"): seconds for name, seconds in expected.items() if seconds is not None}
    assert prepared == {name: pytest.approx(seconds, abs=0.06) for name, seconds in wanted.items()}
    refused = sorted(name for name, seconds in expected.items() if seconds is None)
    assert sorted(Path(skip.what).name for skip in report.skipped) == refused
    assert report.clipped == 0
