"""Every recipe of the repository, found by looking: it loads, explains itself, and says what the paper's tables need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from diffatr_cli.recipe import SECTIONS, load_recipe
from diffatr_cli.recipe_schema import Recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names have to be found from any directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestEach:
    def test_it_loads_by_name_from_anywhere(self, path: Path) -> None:
        assert load_recipe(path.stem) == load_recipe(path)

    def test_it_opens_with_the_command_that_runs_it(self, path: Path) -> None:
        head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
        assert head
        commands = re.findall(r"^#   diffatr (?:pretrain|train-diffusion) (\S+)", head.group(), re.MULTILINE)
        assert commands
        if not path.stem.endswith("base"):
            assert set(commands) == {path.stem}
        for name in commands:
            assert (path.parent / f"{name}.yaml").is_file()

    def test_it_states_only_what_differs_unless_a_table_is_named_after_it(self, path: Path) -> None:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = stated.pop("extends", None)
        assert (base is None) == (path.stem == "base")
        if base is None or re.search(r"gen-dis$|steps50$|batch24$", path.stem):
            return  # rows of the paper's tables that are its own setting
        inherited, own = load_recipe(base), load_recipe(path.stem)
        named = {f"{section}.{name}" for section, fields in stated.items() for name in fields}
        assert named - differing(own, inherited) <= {"data.name", "data.seconds"}  # which a reader looks for in every file


def test_no_recipe_is_out_of_place() -> None:
    assert len(RECIPES) > 15
    assert {path for path in (ROOT / "recipes").rglob("*") if path.is_file()} == set(RECIPES)


@pytest.mark.parametrize("model", ["resnet38", "cnn14"])
@pytest.mark.parametrize(("data", "batch", "seconds"), [("audiocaps", 32, 10), ("clotho", 24, 30)])
def test_the_papers_configurations(data: str, batch: int, seconds: float, model: str) -> None:
    recipe = load_recipe(f"{data}-{model}")
    assert recipe.data.name == data
    assert recipe.data.seconds == seconds
    assert recipe.audio.encoder == model
    assert model in (recipe.audio.weights or "").lower()
    assert recipe.text.encoder == "bert-base-uncased"
    assert recipe.pretrain.batch_size == recipe.diffusion.batch_size == batch
    assert (recipe.model.dim, recipe.diffusion.steps, recipe.model.strategy) == (512, 50, "gen-dis")
    assert recipe.evaluation.steps is recipe.evaluation.shortlist is None


def differing(recipe: Recipe, other: Recipe) -> set[str]:
    return {
        f"{s}.{f}"
        for s, fields in SECTIONS.items()
        for f in fields
        if getattr(getattr(recipe, s), f) != getattr(getattr(other, s), f)
    }


@pytest.mark.parametrize("strategy", ["gen", "dis", "gen-dis"])
def test_table_5_varies_the_strategy_alone(strategy: str) -> None:
    recipe = load_recipe(f"audiocaps-resnet38-{strategy}")
    assert recipe.model.strategy == strategy
    assert differing(recipe, load_recipe("audiocaps-resnet38")) <= {"model.strategy"}


@pytest.mark.parametrize("steps", [10, 50, 100, 200])
def test_table_6_varies_the_steps_alone(steps: int) -> None:
    recipe = load_recipe(f"audiocaps-resnet38-steps{steps}")
    assert recipe.diffusion.steps == steps
    assert differing(recipe, load_recipe("audiocaps-resnet38")) <= {"diffusion.steps"}


@pytest.mark.parametrize("batch", [16, 24, 32])
def test_table_7_varies_the_batch_size_alone(batch: int) -> None:
    recipe = load_recipe(f"clotho-resnet38-batch{batch}")
    assert recipe.pretrain.batch_size == recipe.diffusion.batch_size == batch
    assert differing(recipe, load_recipe("clotho-resnet38")) <= {"pretrain.batch_size", "diffusion.batch_size"}


@pytest.mark.parametrize("name", ["scenes-audiocaps", "scenes-clotho", "demo"])
def test_recipes_for_two_cores_need_no_download(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.audio.encoder, recipe.audio.weights) == ("small", None)
    assert (recipe.text.encoder, recipe.text.finetune) == ("minilm", False)


def test_every_field_named_in_the_paper_notes_exists() -> None:
    """And every field that shapes the method is in the notes."""
    notes = (ROOT / "docs/paper-notes.md").read_text(encoding="utf-8")
    known = {f"{section}.{name}" for section, names in SECTIONS.items() for name in names}
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)", notes))
    assert named <= known
    method = {f"{s}.{f}" for s in ("model", "diffusion", "evaluation") for f in SECTIONS[s]}
    assert method <= named


@pytest.mark.parametrize("base", ["scenes-audiocaps", "scenes-clotho", "audiocaps-resnet38", "clotho-resnet38"])
def test_frames_vary_phase_two_alone(base: str) -> None:
    """So they stand on the encoders of the recipe that they are compared with."""
    recipe = load_recipe(f"{base}-frames")
    assert {name.partition(".")[0] for name in differing(recipe, load_recipe(base))} == {"diffusion", "evaluation"}
    assert (recipe.diffusion.conditioning, recipe.diffusion.output) == ("frames", "add_logit")
    assert (recipe.diffusion.steps, recipe.evaluation.shortlist) == (50, 64)
