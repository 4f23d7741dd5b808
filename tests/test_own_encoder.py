"""The encoder that docs/encoders.md shows: in twenty lines, by either way to give it a name, from training to a query."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import DIFFATR, ROOT, Result, start
from conftest import Workshop

from diffatr_cli import encoders
from diffatr_cli.api import load_model
from diffatr_cli.core.audio_encoder import SmallCnn
from diffatr_cli.core.wave_encoder import Inputs, WaveEncoder
from diffatr_cli.encoders import build_audio_encoder, register_audio_encoder
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.model import build_towers
from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import AudioSection
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion

DOCUMENT = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
CHANGES = ("audio.encoder=spectra", "audio.pooling=mean")


@pytest.fixture
def spectra(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The document's module, registered as the document's script does it."""
    monkeypatch.setattr(encoders, "_registered", {})
    module = types.ModuleType("spectra")
    exec(BLOCKS[0], module.__dict__)
    monkeypatch.setitem(sys.modules, "spectra", module)
    exec(BLOCKS[1], {})
    return module


def test_it_takes_twenty_lines() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_documents_command_fits_the_documents_recipe(spectra: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)[0])
    (command,) = re.findall(r"^diffatr pretrain mine\.yaml (.* )?(?=.*spectra)(.*)$", DOCUMENT, re.MULTILINE)
    recipe = load_recipe(tmp_path / "mine.yaml", "".join(command).split())
    text = recipe.text.model_copy(update={"encoder": "minilm", "pooling": "mean"})  # there without a network
    assert isinstance(build_towers(recipe.audio, text, recipe.model).audio, spectra.Spectra)


def test_by_registering(workshop: Workshop, spectra: types.ModuleType, tmp_path: Path) -> None:
    recipe = workshop.recipe(*CHANGES)
    for job in (pretrain, train_diffusion):
        job("own", recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu")
    rows = (tmp_path / "own" / "seed-0" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert losses[-1] < losses[0]
    model = load_model(tmp_path / "own" / "seed-0")
    assert isinstance(model._retriever._audio, spectra.Spectra)
    hits = model.search(workshop.data / "tones" / "test", "a low tone plays", top=3, index=tmp_path / "index")
    assert len(hits) == 3


def test_it_learns_from_composed_recordings(workshop: Workshop, spectra: types.ModuleType, tmp_path: Path) -> None:
    recipe = workshop.recipe(*CHANGES, "pretrain.compose=0.5", "data.seconds=2")
    result = pretrain("composed", recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu")
    losses = [json.loads(row)["loss"] for row in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_a_frozen_one_is_kept_whole_and_not_mixed_up(workshop: Workshop, spectra: types.ModuleType, tmp_path: Path) -> None:
    """Its weights come from code, perhaps at random as here: no name leads back to them, so that nothing may be left out."""
    frozen = workshop.recipe(*CHANGES, "audio.finetune=false")
    for seed in (0, 1):
        pretrain("frozen", frozen, data=workshop.data, runs=tmp_path, seed=seed, device="cpu")
    waves = [np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)]
    torch.manual_seed(5)
    first, again, other = (load_model(tmp_path / "frozen" / f"seed-{seed}")._retriever for seed in (0, 0, 1))
    assert torch.equal(first.pool_audio(waves), again.pool_audio(waves))
    assert not torch.equal(first.pool_audio(waves), other.pool_audio(waves))


@pytest.mark.slow
def test_by_an_entry_point(workshop: Workshop, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "spectra-1.0.dist-info").mkdir(parents=True)
    (site / "spectra.py").write_text(BLOCKS[0])
    table = re.search(r'^```toml\n\[project\.entry-points\."(.*?)"\]\n(\w+) = "(.*?)"\n```', DOCUMENT, re.MULTILINE)
    assert table
    (site / "spectra-1.0.dist-info" / "entry_points.txt").write_text(f"[{table[1]}]\n{table[2]} = {table[3]}\n")
    (site / "spectra-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: spectra\nVersion: 1.0\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str | Path, **more: Any) -> Result:
        process = start([*DIFFATR, *arguments], **({"env": environment} | more))
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    trained = run("pretrain", workshop.recipe_file, *CHANGES, "--data", workshop.data, "--runs", tmp_path, "--name", "own")
    assert trained.code == 0, trained.err
    folder = tmp_path / "own" / "seed-0"
    clips = workshop.data / "tones" / "test"
    ask = ["query", "a low tone", "--corpus", clips, "--index", tmp_path / "index", "--run", folder, "--json"]
    found = run(*ask)
    assert found.code == 0, found.err
    assert len(json.loads(found.out)["results"]) == 8
    without = run(*ask[:4], "--index", tmp_path / "other", "--run", folder, env=environment | {"PYTHONPATH": str(ROOT)})
    assert without.code == 2
    assert "audio.encoder: there is no encoder spectra" in without.err
    (site / "spectra.py").write_text("import nothing_of_that_name\n")
    broken = run("pretrain", workshop.recipe_file, *CHANGES, "--data", workshop.data, "--runs", tmp_path, "--name", "broken")
    assert broken.code == 1
    assert broken.err.count("\n") == 1
    assert "audio.encoder: spectra: the package that offers it, spectra, cannot be loaded (ModuleNotFoundError" in broken.err
    assert not (tmp_path / "broken" / "seed-0" / "pretrain").exists()


class Sum(WaveEncoder):
    """The sum of the samples and their number: exact, and without parameters."""

    features, rate, longest = 2, 8000, 2.0

    def pooled(self, inputs: Inputs) -> torch.Tensor:
        return torch.stack([inputs.arrays["waveforms"].sum(1), inputs.lengths.float()], 1)


def test_the_base_embeds_each_sound_alone_and_long_ones_in_windows() -> None:
    rng = np.random.default_rng(0)
    waves = [rng.integers(-9, 9, size).astype(np.float32) for size in (1, 16000, 700, 700, 16001, 48000)]
    windows = [[wave] if len(wave) <= 16000 else [] for wave in waves]
    windows[4] = [waves[4][:16000], waves[4][1:]]
    windows[5] = [waves[5][:16000], waves[5][16000:32000], waves[5][32000:]]
    expected = [[np.mean([part.sum() for part in parts]), np.mean([len(part) for part in parts])] for parts in windows]
    for seconds in (0.1, 3.0, 320.0):
        assert torch.equal(Sum().embed(waves, seconds), torch.tensor(expected, dtype=torch.float32))


def test_faults_of_an_encoder_are_told_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(section: AudioSection) -> WaveEncoder:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(encoders, "_registered", {})
    with pytest.raises(UsageError, match=r"audio\.encoder: small is an encoder of this package"):
        register_audio_encoder("small", fails)
    register_audio_encoder("fails", fails)
    with pytest.raises(DiffATRError, match=r"audio\.encoder: fails: its own code failed \(ZeroDivisionError: division by zero\)"):
        build_audio_encoder(AudioSection(encoder="fails"))
    register_audio_encoder("of-logmels", lambda section: SmallCnn())
    with pytest.raises(UsageError, match=r"a SmallCnn, lacks rate, longest, inputs, embed\. Derive it from .*WaveEncoder"):
        build_audio_encoder(AudioSection(encoder="of-logmels"))
