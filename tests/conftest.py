"""Fixtures: the tiny data set and BERT, and one trained run that tests only read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import make_bert, make_data, recipe_text

from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import Recipe

settings.register_profile("diffatr", deadline=None)  # no test fails because the machine is busy
settings.load_profile("diffatr")


@dataclass(frozen=True)
class Workshop:
    """A folder with `data/tones`, `data/tones2` (another domain), a BERT, and `tiny.yaml`."""

    root: Path
    recipe_file: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def recipe(self, *overrides: str) -> Recipe:
        return load_recipe(str(self.recipe_file), overrides)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny work; threads would only wait for one another


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The test runs once with one thread of torch and once with two."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Made once; tests write runs elsewhere (`tmp_path`)."""
    root = tmp_path_factory.mktemp("workshop")
    make_data(root / "data", "tones")
    make_data(root / "data", "tones2", sizes=(16, 4, 12), seed=1)
    recipe_file = root / "tiny.yaml"
    recipe_file.write_text(recipe_text(make_bert(root / "bert")), encoding="utf-8")
    return Workshop(root, recipe_file)


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Path:
    """The seed folder of a run of both phases on `tones`, seed 0."""
    from diffatr_cli.training.pretrain import pretrain
    from diffatr_cli.training.train_diffusion import train_diffusion

    recipe = workshop.recipe()
    for job in (pretrain, train_diffusion):
        job("tiny", recipe, data=workshop.data, runs=workshop.runs, seed=0, device="cpu")
    return workshop.runs / "tiny" / "seed-0"
