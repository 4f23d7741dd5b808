"""Strategy `joint`: encoders and denoisers under both losses at once, kept and used as a model of two phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import typed
from conftest import Workshop
from pydantic import ValidationError
from safetensors.torch import load_file
from test_features import make, typed_features
from test_features import recipe as features_recipe

from diffatr_cli.core.losses import nt_xent
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.paper import paper_result
from diffatr_cli.model import load_retriever
from diffatr_cli.progress import silent
from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.runs import BEST, RECORD, newest_run, recipe_of
from diffatr_cli.training import pretrain as module
from diffatr_cli.training.batches import Batch, TrainSplit, overlapped_batches
from diffatr_cli.training.pretrain import PhaseOne, pretrain
from diffatr_cli.training.train_diffusion import train_diffusion

JOINT = "model.strategy=joint"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def joint(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed folder of a joint training, trained in one go."""
    runs = tmp_path_factory.mktemp("joint")
    return pretrain("j", workshop.recipe(JOINT), data=workshop.data, runs=runs, device="cpu").folder.parent


def batch(workshop: Workshop, *overrides: str) -> tuple[PhaseOne, TrainSplit, Batch, Any]:
    phase = PhaseOne(workshop.recipe(*overrides), 0, torch.device("cpu"))
    train = phase.read(load_dataset(workshop.data, "tones"), silent)
    _, captions, crops = next(overlapped_batches(train, phase.section, 0, 1, 0))
    return phase, train, captions, crops


def test_the_loss_is_both_losses(workshop: Workshop) -> None:
    def loss(*overrides: str) -> float:
        phase, train, captions, crops = batch(workshop, *overrides)
        torch.manual_seed(1)
        return float(phase.eval().loss(train, captions, crops).detach())

    generation, contrast = loss("model.strategy=gen"), loss("model.strategy=dis")
    assert loss(JOINT) == pytest.approx(contrast + generation, rel=1e-5)
    assert loss(JOINT, "pretrain.generation_weight=0.25") == pytest.approx(contrast + generation / 4, rel=1e-5)


def test_both_losses_reach_the_encoders_and_only_one_the_denoisers(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        phase, train, captions, crops = batch(workshop, JOINT)
        torch.manual_seed(1)
        phase.eval().loss(train, captions, crops).backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in phase.named_parameters() if p.grad is not None}

    both = gradients()
    monkeypatch.setattr(module, "nt_xent", lambda *arguments: 0 * nt_xent(*arguments))
    generation = gradients()
    assert both.keys() == generation.keys()
    for name in both:
        assert torch.allclose(both[name], generation[name], atol=1e-7) == name.startswith("denoisers."), name
        assert generation[name].any() or name.endswith(("bias", "pre.weight")) or "running" in name, name


def test_the_denoisers_have_phase_twos_rate(workshop: Workshop) -> None:
    phase, train, captions, crops = batch(workshop, JOINT, "diffusion.lr=0.003", "diffusion.clip_norm=0.5")
    phase.step(train, captions, crops, 0.005, 0)
    towers, denoisers = phase.optimizer.param_groups
    assert towers["lr"] == pytest.approx(0.005)
    assert denoisers["lr"] == pytest.approx(0.005 * 0.003 / 0.01)
    assert {id(p) for p in denoisers["params"]} == {id(p) for p in phase.denoisers.parameters()}  # type: ignore[union-attr]
    norms = [torch.stack([p.grad.norm() for p in group["params"]]).norm() for group in (towers, denoisers)]
    assert norms[1] <= 0.5 + 1e-4
    assert norms[0] <= 2 + 1e-4
    plain, *others = batch(workshop)[0].optimizer.param_groups
    assert not others
    assert not {"rate", "clip"} & plain.keys()


def test_it_learns_and_is_a_model_of_two_phases(workshop: Workshop, joint: Path) -> None:
    log = [json.loads(line) for line in (joint / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["loss"] < log[0]["loss"]
    best = max(log, key=lambda row: row["score"])
    assert best["score"] == pytest.approx(sum(best[f"{d}_{key}"] for d in ("t2a", "a2t") for key in ("r1", "r5", "r10")))
    model = load_retriever(joint, "cpu")
    assert model.reranker is not None
    assert model.reranker.fusion_weights == {d: best[f"{d}_weight"] for d in ("t2a", "a2t")}
    assert model.calibration is not None
    assert model.bank is not None
    kept, whole = load_file(joint / "diffusion" / BEST), load_file(joint / "pretrain" / BEST)
    assert all(torch.equal(tensor, whole[f"denoisers.{name}"]) for name, tensor in kept.items())
    assert recipe_of(joint) == workshop.recipe(JOINT)
    assert newest_run(joint.parents[1]) == joint


def test_it_is_evaluated_by_cosine_and_by_both(workshop: Workshop, joint: Path) -> None:
    found = evaluate("tones", "tones2", data=workshop.data, runs=joint.parents[1], recipe="j", weight=0.5, device="cpu")
    assert found.strategy == "joint"
    assert {(each.system, each.direction) for each in found.systems} == {
        (system, direction) for system in ("baseline", "diff") for direction in ("t2a", "a2t")
    }
    shown = typed(["query", "a low tone", "--run", joint, "--corpus", workshop.data / "tones" / "val", "--index", joint / "i"])
    assert shown.code == 0, shown.err


@pytest.mark.parametrize("moment", [2, 9, "calibrating scores"])
def test_killed_it_resumes_to_the_same(workshop: Workshop, joint: Path, tmp_path: Path, moment: int | str) -> None:
    recipe = workshop.recipe(JOINT)

    def run(*, dies: bool) -> Path:
        def progress(done: int, total: int, note: str) -> None:
            if dies and (note == moment or (note.startswith("epoch") and done == moment)):
                raise Killed

        return pretrain("j", recipe, data=workshop.data, runs=tmp_path, device="cpu", progress=progress).folder.parent

    with pytest.raises(Killed):
        run(dies=True)
    again = run(dies=False)
    for phase in ("pretrain", "diffusion"):
        one, other = load_file(joint / phase / BEST), load_file(again / phase / BEST)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (joint / "pretrain" / "metrics.jsonl").read_text() == (again / "pretrain" / "metrics.jsonl").read_text()
    calibrations = [load_retriever(each, "cpu").calibration for each in (joint, again)]
    assert calibrations[0] == calibrations[1]


def test_wrong_use_is_told(workshop: Workshop, joint: Path) -> None:
    options = {"data": workshop.data, "runs": joint.parents[1], "device": "cpu"}
    with pytest.raises(UsageError, match=r"model\.strategy: `joint` has no phase two"):
        train_diffusion("j", workshop.recipe(JOINT), **options)
    with pytest.raises(UsageError, match=r"model\.strategy: the run of pretrain is of `joint`"):
        train_diffusion("k", workshop.recipe(), encoders=joint, **options)
    with pytest.raises(UsageError, match=r"another recipe \(diffusion\.steps\)"):
        pretrain("j", workshop.recipe(JOINT, "diffusion.steps=7"), **options)
    text = {"finetune": False}
    for sections in (
        {"pretrain": {"head_steps": 5}, "text": text},
        {"diffusion": {"conditioning": "frames"}},
        {"diffusion": {"folds": 2}},
        {"pretrain": {"generation_weight": 0.0}},
    ):
        with pytest.raises(ValidationError, match=r"head_steps=0|gen-dis|greater than 0"):
            Recipe.model_validate({"model": {"strategy": "joint"}, **sections})


def test_the_paper_has_no_such_row() -> None:
    for system in ("diff", "baseline"):
        assert paper_result("audiocaps", "audiocaps", "resnet38", system, "t2a", strategy="joint") is None
    assert paper_result("audiocaps", "audiocaps", "resnet38", "diff", "t2a") is not None


def test_the_command_trains_it(workshop: Workshop, tmp_path: Path) -> None:
    what = [workshop.recipe_file, JOINT, "pretrain.epochs=1", "--data", workshop.data, "--runs", tmp_path, "--device", "cpu"]
    done = typed(["pretrain", *what, "--json"])
    assert done.code == 0, done.err
    best = json.loads(done.out)["best"]
    assert {"t2a_r1", "t2a_weight", "t2a_cosine_r1", "score"} <= best.keys()
    record = json.loads((tmp_path / "tiny" / "seed-0" / "diffusion" / RECORD).read_text())
    assert record["resume"].startswith("diffatr pretrain")


def test_it_learns_on_vectors_of_ones_own(tmp_path: Path) -> None:
    """Without heads there are denoisers alone to train."""
    assert typed_features(make(text_size=12, shared=True).write(tmp_path), tmp_path / "data").code == 0
    for name, heads in (("a", ()), ("b", ("model.heads=none", "model.dim=12"))):
        chosen = features_recipe(JOINT, *heads)
        run = pretrain(name, chosen, data=tmp_path / "data", runs=tmp_path / "runs", device="cpu").folder.parent
        tensors = load_file(run / "pretrain" / BEST)
        assert any(key.startswith("towers.") for key in tensors) == (not heads)
        assert any(key.startswith("denoisers.") for key in tensors)
        found = evaluate("features", "features", data=tmp_path / "data", runs=tmp_path / "runs", recipe=name, device="cpu")
        assert {each.system for each in found.systems} == {"baseline", "diff"}
