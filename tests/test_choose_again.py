"""What validation chooses of trained denoisers done anew (`--denoisers`), and by more data sets (`evaluation.domains`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import typed
from conftest import Workshop
from safetensors.torch import load_file

from diffatr_cli.checkpoint import load_weights
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.model import load_retriever
from diffatr_cli.runs import BEST, LAST, RECORD
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Runs with `tiny`, which has both phases."""
    shutil.copytree(trained, tmp_path / "runs" / "tiny" / "seed-0")
    return tmp_path / "runs"


def again(workshop: Workshop, runs: Path, *overrides: str, name: str = "again", **options: object) -> Path:
    options = {"denoisers": runs / "tiny" / "seed-0"} | options
    job = train_diffusion(name, workshop.recipe(*overrides), data=workshop.data, runs=runs, device="cpu", **options)  # type: ignore[arg-type]
    return job.folder


def test_the_same_settings_choose_the_same(workshop: Workshop, runs: Path) -> None:
    """Where both directions' best is of one epoch; validation of that epoch is then what is done again."""
    tensors, facts = load_weights(runs / "tiny" / "seed-0" / "diffusion" / BEST)
    folder = again(workshop, runs)
    same, chosen = load_weights(folder / BEST)
    assert same.keys() == tensors.keys()
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)
    for direction in DIRECTIONS:
        for name, value in facts["best"][direction].items():
            assert chosen["best"][direction][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))
    assert chosen["calibration"].keys() == facts["calibration"].keys()
    assert not (folder / LAST).exists()
    found = [evaluate("tones", "tones2", data=workshop.data, runs=runs, recipe=name, device="cpu") for name in ("tiny", "again")]
    for direction in DIRECTIONS:
        results = [each.get("diff", direction) for each in found]
        assert results[0] is not None
        assert results[1] is not None
        assert results[0].per_seed == results[1].per_seed


def test_other_weights_are_chosen_from(workshop: Workshop, runs: Path) -> None:
    folder = again(workshop, runs, "evaluation.fusion_weights=[3.0]", "evaluation.fusion_shapes=[sum]")
    reranker = load_retriever(folder.parent, "cpu").reranker
    assert reranker is not None
    assert reranker.fusion_weights == {"t2a": 3.0, "a2t": 3.0}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["t2a_weight"], row["a2t_weight"]) for row in rows] == [(1, 3.0, 3.0)]


def test_it_is_recorded_and_done_once(workshop: Workshop, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = again(workshop, runs)
    record = json.loads((folder / RECORD).read_text())
    for what in ("encoders", "denoisers"):
        assert (folder.parent / record[what]["run"]).resolve() == (runs / "tiny" / "seed-0").resolve()
    before = (folder / BEST).read_bytes()
    again(workshop, runs, denoisers=None)  # the record knows
    assert (folder / BEST).read_bytes() == before
    best = runs / "tiny" / "seed-0" / "diffusion" / BEST
    shutil.copy(runs / "tiny" / "seed-0" / "pretrain" / BEST, best)
    with pytest.raises(DiffATRError, match="holds other denoisers now"):
        again(workshop, runs, denoisers=None)


def test_wrong_use(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"diffusion\.lr: the denoisers of .* were trained with another value"):
        again(workshop, runs, "diffusion.lr=0.5")
    with pytest.raises(DiffATRError, match="there is no such run"):
        again(workshop, runs, denoisers=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="another --name"):
        again(workshop, runs, name="tiny")
    shutil.rmtree(runs / "tiny" / "seed-0" / "diffusion")
    with pytest.raises(DiffATRError, match="no trained denoisers"):
        again(workshop, runs)
    assert not (runs / "again").exists()


def test_another_data_set_chooses_too(workshop: Workshop, runs: Path) -> None:
    """Its validation split is embedded; the run knows it again, and does not go on with another choice."""
    domains = "evaluation.domains=[tones2]"
    folder = again(workshop, runs, domains)
    assert (runs / "tiny" / "seed-0" / "pretrain" / "embeddings-tones2-val.safetensors").is_file()
    again(workshop, runs, domains)
    with pytest.raises(UsageError, match=r"another recipe \(evaluation\.domains\)"):
        again(workshop, runs)
    with pytest.raises(UsageError, match=r"evaluation\.domains: choose in phase two"):
        workshop.recipe(domains, "model.strategy=joint")
    with pytest.raises(DiffATRError, match="nowhere"):
        again(workshop, runs, "evaluation.domains=[nowhere]", name="third")
    whole = again(workshop, runs, domains, name="whole", denoisers=None, encoders=runs / "tiny" / "seed-0")
    assert load_file(whole / BEST).keys() == load_file(folder / BEST).keys()


def test_from_the_command_line(workshop: Workshop, runs: Path) -> None:
    recipe = runs / "tiny.yaml"
    recipe.write_text((runs / "tiny" / "seed-0" / "diffusion" / "recipe.yaml").read_text())
    what = ["train-diffusion", recipe, "evaluation.fusion_weights=[0.5]", "--name", "half", "--device", "cpu", "--json"]
    done = typed([*what, "--denoisers", runs / "tiny" / "seed-0", "--data", workshop.data, "--runs", runs])
    assert done.code == 0, done.err
    assert json.loads(done.out)["best"]["t2a_weight"] == 0.5
    record = json.loads((runs / "half" / "seed-0" / "diffusion" / RECORD).read_text())
    assert "--denoisers" in record["resume"]
