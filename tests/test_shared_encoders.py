"""Phase two on another run's phase one: found again, checked by hash, the same figures as in that run's own folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from command_line import DIFFATR, typed
from conftest import Workshop
from safetensors.torch import load_file

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.evaluate import compare, evaluate
from diffatr_cli.model import load_encoders, load_retriever
from diffatr_cli.models_there import models_there
from diffatr_cli.runs import BEST, RECORD, encoders_of, find_runs, newest_run, recipe_of, seeds_of
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def built(workshop: Workshop, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `tiny` with both phases, and `other` on its encoders with another chain."""
    runs = tmp_path_factory.mktemp("shared") / "runs"
    shutil.copytree(trained, runs / "tiny" / "seed-0")
    other(workshop, runs, runs / "tiny" / "seed-0")
    return runs


@pytest.fixture
def runs(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "runs")


def other(workshop: Workshop, runs: Path, encoders: Path | None = None, *, seed: int = 3, **options: object) -> Path:
    recipe = workshop.recipe("diffusion.steps=6", "diffusion.epochs=2")
    job = train_diffusion("other", recipe, data=workshop.data, runs=runs, seed=seed, device="cpu", encoders=encoders, **options)  # type: ignore[arg-type]
    return job.folder.parent


def test_it_equals_phase_two_in_the_encoders_own_folder(workshop: Workshop, runs: Path) -> None:
    shared = runs / "other" / "seed-3"
    assert not (shared / "pretrain").exists()
    shutil.rmtree(runs / "tiny" / "seed-0" / "diffusion")
    shutil.move(runs / "tiny", runs / "plain")
    (runs / "plain" / "seed-0").rename(runs / "plain" / "seed-3")
    recipe = workshop.recipe("diffusion.steps=6", "diffusion.epochs=2")
    plain = train_diffusion("plain", recipe, data=workshop.data, runs=runs, seed=3, device="cpu").folder
    one, same = load_file(plain / BEST), load_file(shared / "diffusion" / BEST)
    assert one.keys() == same.keys()
    assert all(torch.equal(one[key], same[key]) for key in one)


def test_the_runs_are_found_and_told_apart(workshop: Workshop, runs: Path) -> None:
    shared, base = runs / "other" / "seed-3", runs / "tiny" / "seed-0"
    record = json.loads((shared / "diffusion" / RECORD).read_text())
    assert record["encoders"]["run"] == os.path.join("..", "..", "tiny", "seed-0")
    assert encoders_of(shared).run == base.resolve()
    assert find_runs(runs, "tones", recipe="other") == shared.parent
    with pytest.raises(UsageError, match=r"other, tiny.*--recipe"):
        find_runs(runs, "tones")
    assert seeds_of(shared.parent) == [3]
    os.utime(shared / "diffusion" / BEST, (2e9, 2e9))
    assert newest_run(runs) == shared
    assert recipe_of(shared) == workshop.recipe("diffusion.steps=6", "diffusion.epochs=2")
    model, plain = load_retriever(shared, "cpu"), load_retriever(base, "cpu")
    assert model.model_id == plain.model_id
    assert model.reranker is not None
    assert len(model.reranker.schedule) == 6
    notes: list[str] = []
    there = {Path(each.name).parent.name: each for each in models_there(runs, notes) if each.kind == "run"}
    assert set(there) == {"tiny", "other"}
    assert there["other"].calibrated
    assert not notes


def test_evaluation_takes_the_encoders_cache(workshop: Workshop, runs: Path) -> None:
    base = runs / "tiny" / "seed-0"
    for cache in (base / "pretrain").glob("embeddings-*"):
        cache.unlink()
    results = [
        evaluate("tones", "tones2", data=workshop.data, runs=runs, recipe=name, device="cpu") for name in ("tiny", "other")
    ]
    cosine = [result.get("baseline", "t2a") for result in results]
    assert cosine[0] is not None
    assert cosine[1] is not None
    assert cosine[0].per_seed == cosine[1].per_seed
    assert [result.chain for result in results] == [10, 6]
    assert (base / "pretrain" / "embeddings-tones2-test.safetensors").is_file()
    assert not list((runs / "other").rglob("embeddings-*"))


def test_such_a_run_is_compared(workshop: Workshop, runs: Path) -> None:
    result = compare(runs / "tiny" / "seed-0", runs / "other" / "seed-3", "tones2", data=workshop.data, device="cpu")
    alone = evaluate("tones", "tones2", data=workshop.data, runs=runs, recipe="other", device="cpu", seeds=(3,))
    for direction in DIRECTIONS:
        assert result.second.get("diff", direction) == alone.get("diff", direction)


def test_runs_moved_together_work_and_alone_are_told(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    moved = runs.rename(tmp_path / "elsewhere")
    load_retriever(moved / "other" / "seed-3", "cpu")
    (moved / "other").rename(tmp_path / "alone")
    alone = tmp_path / "alone" / "seed-3"
    for job in (load_retriever, load_encoders, recipe_of):
        with pytest.raises(DiffATRError, match=r"tiny/seed-0, which are not there\. .*--encoders RUN") as told:
            job(alone)
        assert ".." not in str(told.value).replace("...", "")
    notes: list[str] = []
    assert not [each for each in models_there(tmp_path, notes) if each.kind == "run" and "alone" in each.name]
    assert any("alone" in note for note in notes)
    # Told where they are now, the run is whole again; nothing is trained anew.
    (tmp_path / "alone").rename(moved / "other")
    (moved / "tiny").rename(moved / "base")
    before = (moved / "other" / "seed-3" / "diffusion" / BEST).read_bytes()
    other(workshop, moved, moved / "base" / "seed-0")
    assert load_retriever(moved / "other" / "seed-3", "cpu").reranker is not None
    assert (moved / "other" / "seed-3" / "diffusion" / BEST).read_bytes() == before


def change(checkpoint: Path) -> None:
    tensors, facts = load_weights(checkpoint)
    save_weights(checkpoint, {name: tensor + 1 for name, tensor in tensors.items()}, facts)


def test_changed_encoders_are_noticed_wherever_the_run_is_used(workshop: Workshop, runs: Path) -> None:
    shared = runs / "other" / "seed-3"
    change(runs / "tiny" / "seed-0" / "pretrain" / BEST)
    with pytest.raises(DiffATRError, match="other encoders now"):
        load_retriever(shared, "cpu")
    with pytest.raises(DiffATRError, match="other encoders now"):
        load_encoders(shared, "cpu")
    with pytest.raises(DiffATRError, match="other encoders now"):
        evaluate("tones", "tones", data=workshop.data, runs=runs, recipe="other", device="cpu")
    with pytest.raises(DiffATRError, match="other encoders now"):
        other(workshop, runs)
    with pytest.raises(UsageError, match="trained on other encoders"):
        other(workshop, runs, runs / "tiny" / "seed-0")
    notes: list[str] = []
    assert "other/seed-3" not in " ".join(each.name for each in models_there(runs, notes))
    assert any("other encoders now" in note for note in notes)


def test_a_cut_off_run_goes_on_with_and_without_the_option(workshop: Workshop, runs: Path) -> None:
    whole = runs / "other" / "seed-3" / "diffusion"
    kept = load_file(whole / BEST)
    shutil.rmtree(runs / "other")

    def stop(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        other(workshop, runs, runs / "tiny" / "seed-0", progress=stop)
    assert seeds_of(runs / "other") == [3]  # one epoch is there
    other(workshop, runs)
    resumed = load_file(whole / BEST)
    assert all(torch.equal(kept[key], resumed[key]) for key in kept)


def test_a_run_on_a_run_on_encoders_stands_on_those(workshop: Workshop, runs: Path) -> None:
    recipe = workshop.recipe("diffusion.epochs=1")
    job = train_diffusion(
        "third", recipe, data=workshop.data, runs=runs, seed=0, device="cpu", encoders=runs / "other" / "seed-3"
    )
    assert encoders_of(job.folder.parent).run == (runs / "tiny" / "seed-0").resolve()


def test_wrong_use_is_told(workshop: Workshop, runs: Path) -> None:
    base = runs / "tiny" / "seed-0"
    with pytest.raises(DiffATRError, match="no such run"):
        other(workshop, runs, runs / "nothing" / "seed-0")
    with pytest.raises(DiffATRError, match="not a run folder"):
        other(workshop, runs, runs)
    with pytest.raises(DiffATRError, match=r"--encoders RUN"):
        other(workshop, runs, seed=9)
    pretrain("own", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=runs, seed=0, device="cpu")
    with pytest.raises(UsageError, match="encoders of its own"):
        train_diffusion("own", workshop.recipe(), data=workshop.data, runs=runs, seed=0, device="cpu", encoders=base)
    with pytest.raises(UsageError, match="on other encoders"):
        other(workshop, runs, runs / "own" / "seed-0")
    with pytest.raises(UsageError, match="encoders of another"):
        pretrain("other", workshop.recipe(), data=workshop.data, runs=runs, seed=3, device="cpu")
    record = runs / "other" / "seed-3" / "diffusion" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"encoders": ["x"]}))
    with pytest.raises(DiffATRError, match="does not say which encoders"):
        load_retriever(runs / "other" / "seed-3", "cpu")
    record.write_text("{")
    notes: list[str] = []
    assert "other" not in {Path(each.name).parent.name for each in models_there(runs, notes) if each.kind == "run"}
    assert any("other/seed-3" in note for note in notes)


def test_a_damaged_record_of_phase_two_does_not_hide_a_run(workshop: Workshop, runs: Path) -> None:
    shutil.rmtree(runs / "other")
    (runs / "tiny" / "seed-0" / "diffusion" / RECORD).write_text("{")
    notes: list[str] = []
    assert find_runs(runs, "tones", notes=notes) == runs / "tiny"
    assert not notes
    shutil.rmtree(runs / "tiny" / "seed-0" / "pretrain")  # what is left is no run
    with pytest.raises(UsageError, match="diffatr pretrain"):
        find_runs(runs, "tones")


@pytest.mark.slow
def test_the_command_records_how_to_go_on(workshop: Workshop, runs: Path) -> None:
    base = runs / "tiny" / "seed-0"
    where = ["--data", workshop.data, "--runs", runs]
    change = ["diffusion.epochs=1", "diffusion.steps=4"]
    command = ["train-diffusion", workshop.recipe_file, *change, "--name", "short", "--encoders", base, *where, "--json"]
    done = subprocess.run([*DIFFATR, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((runs / "short" / "seed-0" / "diffusion" / RECORD).read_text())
    assert f"--name short --encoders {base}" in record["resume"]
    again = subprocess.run([*DIFFATR, *shlex.split(record["resume"])[1:]], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    wrong = subprocess.run([*DIFFATR, *map(str, command[:7]), runs / "no", *map(str, where)], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no such run" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_a_folder_is_searched_by_such_a_run(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    clips = workshop.data / "tones" / "val"
    where = ["--corpus", clips, "--index", tmp_path / "index", "--json"]
    answers = [typed(["query", "a low tone", "--run", runs / name, *where]) for name in ("tiny/seed-0", "other/seed-3")]
    assert [each.code for each in answers] == [0, 0], answers
    own, borrowing = ({hit["path"] for hit in json.loads(each.out)["results"]} for each in answers)
    assert own == borrowing
    assert "files:" not in answers[1].err  # the index of those encoders serves both
