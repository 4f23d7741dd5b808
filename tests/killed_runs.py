"""A phase two that is killed in the midst and begun again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Workshop
from safetensors.torch import load_file

from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.training.train_diffusion import train_diffusion


class Killed(Exception):
    pass


def assert_killed_run_resumes_to_the_same(workshop: Workshop, recipe: Recipe, trained: Path, root: Path) -> None:
    """On the encoders of a run, below `root`: the same metrics and the same weights as undisturbed."""

    def run(name: str, die_at: int | None = None) -> Path:
        runs = root / name
        if not runs.exists():
            shutil.copytree(trained / "pretrain", runs / "tiny" / "seed-0" / "pretrain")

        def progress(done: int, total: int, note: str) -> None:
            if note.startswith("epoch") and done == die_at:
                raise Killed

        return train_diffusion("tiny", recipe, data=workshop.data, runs=runs, seed=0, device="cpu", progress=progress).folder

    whole = run("a")
    with pytest.raises(Killed):
        run("b", die_at=9)
    resumed = run("b")
    assert (whole / "metrics.jsonl").read_text() == (resumed / "metrics.jsonl").read_text()
    one, other = load_file(whole / "best.safetensors"), load_file(resumed / "best.safetensors")
    assert all(torch.equal(one[k], other[k]) for k in one)
