"""Run folders: what their logs hold, how runs are found, and what keeps two of them apart."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import Workshop

from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.runs import find_runs, newest_run, recipe_of, seeds_of
from diffatr_cli.training.phase_folder import MetricsLog, open_phase, resume_command


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


def test_a_field_that_the_schema_gained_is_no_other_recipe(workshop: Workshop, tmp_path: Path) -> None:
    folder = open_phase(tmp_path, "pretrain", workshop.recipe(), 0, "c", "data")
    record = json.loads((folder / "run.json").read_text())
    del record["recipe"]["diffusion"]["jitter"]
    (folder / "run.json").write_text(json.dumps(record))
    assert open_phase(tmp_path, "pretrain", workshop.recipe(), 0, "c", "data") == folder
    with pytest.raises(UsageError, match=r"diffusion\.jitter"):
        open_phase(tmp_path, "pretrain", workshop.recipe("diffusion.jitter=0.1"), 0, "c", "data")
    with pytest.raises(UsageError, match="other data"):
        open_phase(tmp_path, "pretrain", workshop.recipe(), 0, "c", "changed")


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
