"""Run folders: what their logs hold, how runs are found, and what keeps two of them apart."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Workshop
from safetensors.torch import load_file

from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.progress import Progress, silent
from diffatr_cli.runs import BEST, FIRST_PHASE, LAST, RECORD, find_runs, newest_run, recipe_of, seeds_of
from diffatr_cli.training.phase_folder import MetricsLog, PhaseFolder, open_phase, resume_command
from diffatr_cli.training.pretrain import PhaseOne, pretrain
from diffatr_cli.training.train_diffusion import train_diffusion


def test_a_log_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for epoch in (1, 2, 3):
        log.append({"epoch": epoch, "loss": 1 / epoch})
    resumed = MetricsLog(tmp_path, 1)
    resumed.append({"epoch": 2, "loss": 7.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 7.0}]
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["1.0", "7.0"]


def test_tensorboard_gets_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path)
    for epoch in (1, 2):
        log.append({"epoch": epoch, "loss": 1 / epoch})
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_what_is_no_number_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    class Writer:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

        def add_scalar(self, name: str, value: float, step: int) -> None:
            drawn.append((name, float(value), step))

        def flush(self) -> None:
            pass

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    MetricsLog(tmp_path).append({"epoch": 3, "loss": 0.5, "t2a_shape": "sum"})
    assert drawn == [("loss", 0.5, 3)]


def test_a_field_that_the_schema_gained_is_no_other_recipe(workshop: Workshop, tmp_path: Path) -> None:
    def opened(*overrides: str, data: str = "data") -> AbstractContextManager[PhaseFolder]:
        return open_phase(tmp_path, "pretrain", workshop.recipe(*overrides), FIRST_PHASE, 0, "c", data)

    with opened() as folder:
        folder.record_start(torch.device("cpu"), "fp32", 0)
        folder.keep_best({"x": torch.zeros(1)}, {})
    path = tmp_path / "pretrain" / RECORD
    record = json.loads(path.read_text())
    del record["recipe"]["pretrain"]["head_jitter"]
    path.write_text(json.dumps(record))
    with opened() as folder:
        assert folder.path == tmp_path / "pretrain"
    with opened("diffusion.jitter=0.1"):  # none of this phase's business
        pass
    with pytest.raises(UsageError, match=r"pretrain\.head_jitter"), opened("pretrain.head_jitter=0.1"):
        pass
    with pytest.raises(UsageError, match="other data"), opened(data="changed"):
        pass
    with opened(), pytest.raises(UsageError, match="another process"), opened():
        pass


def test_a_start_that_failed_before_training_leaves_nothing_in_the_way(workshop: Workshop, tmp_path: Path) -> None:
    nowhere = workshop.recipe(f"text.encoder={tmp_path / 'no-such-folder'}")
    with pytest.raises(DiffATRError, match=r"text\.encoder"):
        pretrain("r", nowhere, data=workshop.data, runs=tmp_path / "runs", device="cpu")
    assert not list((tmp_path / "runs").rglob("*.*"))

    # Stopped after the record was written and before anything was learnt: the corrected recipe takes its place.
    def stop(done: int, total: int, note: str) -> None:
        if note.startswith("epoch"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain("r", workshop.recipe("pretrain.lr=0.5"), data=workshop.data, runs=tmp_path / "runs", device="cpu", progress=stop)
    result = pretrain("r", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=tmp_path / "runs", device="cpu")
    record = json.loads((result.folder / RECORD).read_text())
    assert record["recipe"]["pretrain"]["lr"] == 0.01
    assert len(record["starts"]) == 1
    assert recipe_of(result.folder.parent).pretrain.lr == 0.01


def test_the_record_is_written_once_and_each_start_is_added(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    recipe = workshop.recipe("pretrain.epochs=2")

    def run(die_at: int | None = None) -> bytes:
        def progress(done: int, total: int, note: str) -> None:
            if note.startswith("epoch") and done == die_at:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            pretrain("r", recipe, data=workshop.data, runs=tmp_path, seed=0, device="cpu", progress=progress)
        return (tmp_path / "r" / "seed-0" / "pretrain" / RECORD).read_bytes()

    first, second = json.loads(run(die_at=8)), run()
    assert [set(start) for start in json.loads(second)["starts"]] == [
        {"time", "revision", "device", "precision", "threads", "processes", "epochs_done", "versions"}
    ] * 2
    assert json.loads(second) | {"starts": None} == first | {"starts": None}
    assert json.loads(second)["starts"][0] == first["starts"][0]
    assert run() == second  # finished: nothing was started
    record = json.loads((trained / "diffusion" / RECORD).read_text())
    assert record["starts"][0]["precision"] == "fp32"
    before = (trained / "diffusion" / RECORD).read_bytes()
    train_diffusion("tiny", workshop.recipe(), data=workshop.data, runs=workshop.runs, seed=0, device="cpu")
    assert (trained / "diffusion" / RECORD).read_bytes() == before


def test_a_state_of_the_version_before_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    """`last.pt` held what `last.safetensors` holds, as torch writes it."""
    recipe = workshop.recipe("pretrain.epochs=2")

    def stop(done: int, total: int, note: str) -> None:
        if note.startswith("epoch") and done == 8:
            raise KeyboardInterrupt

    def run(name: str, progress: Progress = silent) -> Path:
        return pretrain("r", recipe, data=workshop.data, runs=tmp_path / name, seed=0, device="cpu", progress=progress).folder

    whole = run("a")
    with pytest.raises(KeyboardInterrupt):
        run("b", stop)
    folder = tmp_path / "b" / "r" / "seed-0" / "pretrain"
    phase = PhaseOne(recipe, 0, torch.device("cpu"))
    with open_phase(
        folder.parent, "pretrain", recipe, FIRST_PHASE, 0, "", load_dataset(workshop.data, "tones").fingerprint
    ) as opened:
        facts = opened.resume(phase, phase.optimizer)
    torch.save(facts | {"model": phase.kept(), "optimizer": phase.optimizer.state_dict()}, folder / "last.pt")
    (folder / LAST).unlink()
    assert load_file(run("b") / BEST).keys() == load_file(whole / BEST).keys()
    assert not (folder / "last.pt").exists()
    for name, value in load_file(whole / BEST).items():
        assert torch.equal(load_file(folder / BEST)[name], value)


def test_runs_are_found_by_what_they_learnt_from(workshop: Workshop, trained: Path) -> None:
    assert find_runs(workshop.runs, "tones") == find_runs(workshop.runs, "tones", "small", "tiny") == trained.parent
    assert seeds_of(trained.parent) == [0]
    assert newest_run(workshop.runs) == trained
    assert recipe_of(trained) == workshop.recipe()
    for missing in (("tones", "cnn14"), ("other", None)):
        with pytest.raises(UsageError, match="diffatr pretrain"):
            find_runs(workshop.runs, *missing)
    with pytest.raises(DiffATRError, match="not a run folder"):
        recipe_of(workshop.root)


def test_the_resume_command_survives_a_shell() -> None:
    assert resume_command("pretrain", ["my recipe.yaml", "a.b=1"], seed=3) == "diffatr pretrain 'my recipe.yaml' a.b=1 --seed 3"
