"""The example sounds: what lies in examples/clips is what the script makes, small, and found where it should be."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffatr_cli.data.captions import read_captions
from diffatr_cli.data.sounds import KINDS

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_clips", EXAMPLES / "make_clips.py")
    module = sys.modules["make_clips"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_hold_what_the_seeds_say(script):
    files = {path.stem: path for path in (EXAMPLES / "clips").glob("*.ogg")}
    assert files.keys() == script.SOUNDS.keys()
    for name, sound in script.SOUNDS.items():
        want = script.make(sound)
        got, rate = soundfile.read(files[name])
        assert (rate, got.shape) == (32_000, want.shape), name
        # Vorbis keeps what is heard, of noise not every sample: the loudness by the quarter second and most of the waveform.
        assert np.corrcoef(got, want)[0, 1] > 0.85, name
        np.testing.assert_allclose(*(np.sqrt((x[: len(x) // 8000 * 8000].reshape(-1, 8000) ** 2).mean(1)) for x in (got, want)),
                                   rtol=0.15, atol=2e-3, err_msg=name)  # fmt: skip


def test_they_are_many_short_plainly_named_and_small(script):
    clips = {name: sound for name, sound in script.SOUNDS.items() if len(sound.parts) == 1}
    scenes = [sound for name, sound in script.SOUNDS.items() if name not in clips]
    assert len(clips) == len({sound.parts[0].kind for sound in clips.values()}) == 24
    assert len({sound.seed for sound in script.SOUNDS.values()}) == len(script.SOUNDS)
    assert all(3 <= sound.seconds <= 6 for sound in clips.values())
    assert all(30 <= sound.seconds <= 40 for sound in scenes)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in script.SOUNDS)
    for sound in script.SOUNDS.values():
        assert all(part.kind in KINDS and part.start + part.seconds <= sound.seconds for part in sound.parts)
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*") if path.suffix != ".pyc") < 3e6


def test_the_dog_barks_where_the_script_says(script):
    village = script.SOUNDS["walk_through_a_village"]
    (dog,) = (part for part in village.parts if part.kind == "dog_barking")
    samples, rate = soundfile.read(EXAMPLES / "clips" / "walk_through_a_village.ogg")
    assert (dog.start, dog.seconds) == (21, 7)
    before, barking, after = (samples[a * rate : b * rate].std() for a, b in ((14, 21), (21, 28), (29, 38)))
    assert barking > 2 * max(before, after)


def test_the_script_writes_once_and_prints_what_it_writes(script, tmp_path, monkeypatch, capsys):
    few = {name: script.SOUNDS[name] for name in ("dog_barking", "glass_breaking")}
    monkeypatch.setattr(script, "SOUNDS", few)
    script.write_clips(tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(tmp_path / "out" / f"{name}.ogg") for name in few]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "glass_breaking.ogg").write_bytes(b"damaged")
    script.write_clips(tmp_path / "out")
    assert [line.endswith("(as it was)") for line in capsys.readouterr().out.splitlines()] == [True, False]
    assert (tmp_path / "out" / "dog_barking.ogg").stat().st_mtime_ns == times[tmp_path / "out" / "dog_barking.ogg"]
    assert len(soundfile.read(tmp_path / "out" / "glass_breaking.ogg")[0]) == 3 * 32_000


def test_it_runs_as_a_program(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_clips.py", str(tmp_path)])
    monkeypatch.setattr("diffatr_cli.data.sounds.render", lambda kind, rng, seconds: np.ones(round(seconds * 32_000), np.float32))
    runpy.run_path(str(EXAMPLES / "make_clips.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == len(list(tmp_path.glob("*.ogg"))) == 26


def test_the_captions_can_be_ranked():
    captions, notes = read_captions(EXAMPLES / "captions.txt")
    assert (len(captions), notes) == (30, [])
