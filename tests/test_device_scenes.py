"""Data sets composed as log-mels, without a waveform: what they hold is what waveforms mixed would give."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from diffatr_cli.core.level import LEVEL, levelled
from diffatr_cli.core.logmel import LogMel
from diffatr_cli.data.logmels import STEPS_PER_DB, cached_logmels
from diffatr_cli.data.manifest import load_dataset

TOOLS = Path(__file__).parents[1] / "tools"
COMPOSER = TOOLS.parents[1] / "shared" / "tools" / "make_scenes.py"
sys.path.insert(0, str(TOOLS))

import device_scenes  # noqa: E402

there = pytest.mark.skipif(not COMPOSER.is_file(), reason="the composer of scenes is not here")


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, TOOLS / "device_scenes.py", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "pack"
    run("pack", "--composer", COMPOSER, "--audiocaps", 12, "--clotho", 6, "--out", path)
    return path


def test_powers_add_up_at_their_places() -> None:
    rng = np.random.default_rng(0)
    power, level = rng.random((30, 64)).astype(np.float32), rng.random(30).astype(np.float32)
    # row, samples, place, span, gain, speed: 7 frames repeated over 20, and 5 of twice the speed from the 12th on
    events = [(0, 7 * 640, 0, 20, 0, 1000), (10, 11 * 640, 12, 5, -6000, 2000)]
    found = device_scenes.compose(
        torch.from_numpy(power), torch.from_numpy(level), torch.tensor(events), torch.tensor([0, 0]), torch.tensor([22])
    )[0].numpy()
    mixed, squares = np.zeros((22, 64)), np.zeros(22)
    for t in range(20):
        mixed[t] += power[t % 7]
        squares[t] += level[t % 7]
    for t in range(12, 17):
        mixed[t] += power[10 + 2 * (t - 12)] * 10**-0.6
        squares[t] += level[10 + 2 * (t - 12)] * 10**-0.6
    loudest = squares[:20].reshape(4, 5).mean(1).max()
    expected = 10 * np.log10(np.maximum(mixed * 10 ** (LEVEL / 10) / loudest, 1e-10))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@there
def test_scenes_are_those_of_the_composer_as_an_encoder_would_hear_them(packed: Path) -> None:
    arrays, captions = device_scenes.read_pack(packed)
    composer, log_mel = device_scenes.read_composer(COMPOSER), LogMel(device_scenes.HOP)
    for layout, count in (("audiocaps", 12), ("clotho", 6)):
        name, off = f"scenes-{layout}", []
        made = list(islice(device_scenes.composed(arrays, name, torch.device("cpu")), count))
        for i, (steps, said) in enumerate(zip(made, captions[name], strict=True)):
            rng = random.Random(f"{layout}/{i}/device-0")
            wave, caption, _ = getattr(composer, f"{layout}_scene")(rng, "train")
            assert said[0] == caption()
            for _ in range(4 * (1 if layout == "audiocaps" else 5) - 1):
                caption()
            noise = np.random.default_rng(i).standard_normal(len(wave)) * 10 ** rng.uniform(*device_scenes.NOISE_LEVELS)
            heard = log_mel(torch.from_numpy(levelled((wave + noise).astype(np.float32)))[None])[0].numpy()
            assert steps.shape == heard.shape
            off.append(steps / STEPS_PER_DB - heard)
        # The waveforms' cross terms are missing, so single values differ by some dB; in the middle nothing does.
        assert np.median([np.median(np.abs(each)) for each in off]) < 2
        assert np.abs([np.median(each) for each in off]).max() < 1.5


@there
def test_what_is_unpacked_trains_without_recordings(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "val" / "scenes-clotho"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.ogg", 0.1 * np.random.default_rng(0).standard_normal(32000), 32000)
    (folder / "captions.json").write_text(json.dumps({"a.ogg": ["a hiss"]}))
    run("unpack", packed, "--data", tmp_path / "data", "--val", tmp_path / "val")
    dataset = load_dataset(tmp_path / "data", "scenes-clotho")
    assert [len(dataset.split(split)) for split in ("train", "val")] == [6, 1]
    assert all(4 < len(clip.captions) < 6 and 15 <= clip.seconds <= 20 for clip in dataset.split("train"))
    logmels = cached_logmels(dataset, "train", device_scenes.HOP)  # of no file: only the cache is there
    arrays, _ = device_scenes.read_pack(packed)
    made = list(device_scenes.composed(arrays, "scenes-clotho", torch.device("cpu")))
    np.testing.assert_array_equal(logmels.values, np.concatenate(made))
    assert len(cached_logmels(dataset, "val", device_scenes.HOP)) == 1
