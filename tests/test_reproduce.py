"""The paper's tables at one command: plans that share what can be shared, and tables from tiny sets."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from command_line import typed
from safetensors.torch import load_file
from tiny import make_bert, make_data, tiny_fields

from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.paper import paper_tables
from diffatr_cli.recipe import differing_fields, load_recipe
from diffatr_cli.report.reproduction import plan_json
from diffatr_cli.reproduce.plan import STUDIES, TABLES, Training, World, needed, plan
from diffatr_cli.reproduce.reproduce import reproduce
from diffatr_cli.reproduce.state import Step, seconds_an_epoch, steps_of
from diffatr_cli.runs import LAST
from diffatr_cli.types import DIRECTIONS


def trainings(*numbers: str, **options: object) -> set[str]:
    return {each.name for table in plan(numbers, **options) for each in table.trainings}  # type: ignore[arg-type]


def test_every_row_of_the_paper_is_there_and_by_its_recipe() -> None:
    rows = {row.paper for table in plan(TABLES) for row in table.rows if row.paper}
    assert rows == {(table, name) for table, cells in paper_tables().items() for name in cells}
    assert not [row.departs for table in plan(TABLES) for row in table.rows if row.departs]


def test_what_can_be_shared_is_shared() -> None:
    assert (
        trainings("1")
        == trainings("4")
        == {f"audiocaps-{name}" for name in ("resnet38", "cnn14", "resnet38-no-diffusion", "cnn14-no-diffusion")}
    )
    assert trainings("5") == {"audiocaps-resnet38", "audiocaps-resnet38-gen"}
    chains = {f"audiocaps-resnet38-steps{steps}" for steps in (10, 100, 200)}
    assert trainings("6") == {"audiocaps-resnet38"} | chains
    assert trainings("7") == {"clotho-resnet38", "clotho-resnet38-batch16", "clotho-resnet38-batch32"}
    everything = needed(each for table in plan(TABLES) for each in table.trainings)
    assert len(everything) == len({each.name for each in everything}) == 4 + 4 + 1 + 3 + 2
    # Only these train encoders; all others stand on theirs.
    assert {each.name for each in everything if each.encoders is None} == {
        *(f"{data}-{encoder}" for data in ("audiocaps", "clotho") for encoder in ("resnet38", "cnn14")),
        "audiocaps-resnet38-gen", "clotho-resnet38-batch16", "clotho-resnet38-batch32",
    }  # fmt: skip
    order = [each.name for each in everything]
    assert all(order.index(each.encoders) < order.index(each.name) for each in everything if each.encoders)


def test_a_batch_size_that_phase_one_has_anyway_shares_it() -> None:
    small, middle, large = (row.training for row in plan(["7"], "scenes")[0].rows)
    assert (small.encoders, middle.encoders, large.encoders) == (None, None, "scenes-clotho")
    recipe = large.resolved()
    assert (recipe.pretrain.batch_size, recipe.diffusion.batch_size) == (32, 32)


def test_the_stand_ins_say_where_they_depart() -> None:
    table = plan(["1"], "scenes")[0]
    assert (table.source, table.target) == ("scenes-audiocaps", "scenes-audiocaps")
    baseline, *_, diff = table.rows[:5]
    assert {"audio.encoder", "text.encoder"} <= set(baseline.departs)
    assert "diffusion.output" in diff.departs
    assert table.rows[5].training.resolved().audio.channels == (16, 32, 64, 128)


def test_quick_runs_are_runs_of_their_own() -> None:
    slow, quick = (needed(e for t in plan(["6"], "scenes", quick=quick) for e in t.trainings) for quick in (False, True))
    assert not {each.name for each in slow} & {each.name for each in quick}
    for before, after in zip(slow, quick, strict=True):
        assert after.resolved().pretrain.epochs == -(-before.resolved().pretrain.epochs // 4)
        assert after.resolved().diffusion.steps == before.resolved().diffusion.steps
        assert (after.encoders is None) == (before.encoders is None)


@pytest.mark.parametrize("world", ["paper", "scenes"])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_trains_phase_two_alone_and_in_full(study: str, quick: bool, world: World) -> None:
    tables = plan([study], world, quick=quick)
    pairs = {(table.source, table.target) for table in tables}
    assert len(tables) == 4
    assert len(pairs) == 4
    for table in tables:
        cosine, *rows = table.rows
        rivals = [row.system for row in rows if row.system != "diff"]
        assert rivals == ["qbnorm", "walk"]
        rows = rows[len(rivals) :]
        if study == "levers":  # its last row alone trains encoders
            joint = rows.pop().training
            assert (joint.encoders, joint.diffusion, joint.resolved().model.strategy) == (None, False, "joint")
            assert differing_fields(cosine.training.resolved(), joint.resolved()) == ["model.strategy"]
        recipes = [row.training.resolved() for row in rows]
        changed = [recipe.diffusion for recipe in recipes]
        assert {row.training.encoders for row in rows} == {cosine.training.name}
        assert len({recipe.model_dump_json() for recipe in recipes}) == len(rows)
        recipe = load_recipe(rows[0].training.recipe)
        assert {diffusion.epochs for diffusion in changed} == {recipe.diffusion.epochs}
        assert changed[0] == recipe.diffusion  # the first row is the recipe as it is
        assert {diffusion.conditioning for diffusion in changed} == {"frames" if study == "frames" else "none"}
        for row in rows:
            before, after = cosine.training.resolved(), row.training.resolved()
            assert {field.partition(".")[0] for field in differing_fields(before, after)} <= {"diffusion", "evaluation"}


def test_trainings_of_folds_are_counted_once_and_estimated(tmp_path: Path) -> None:
    base = Training("base", "scenes-audiocaps")
    one, two = (Training(name, "scenes-audiocaps", ("diffusion.folds=3",), encoders="base") for name in ("one", "two"))

    def log(folder: Path, epochs: int, seconds: float) -> None:
        folder.mkdir(parents=True)
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        starts = [{"time": begun.isoformat(), "epochs_done": 0}]
        (folder / "run.json").write_text(json.dumps({"recipe": {}, "starts": starts}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": i + 1}) + "\n" for i in range(epochs)))
        os.utime(folder / "metrics.jsonl", (0, begun.timestamp() + seconds))
        (folder / LAST).write_bytes(bytes(7))

    def folds(*wanted: Training) -> list[Step]:
        steps = steps_of([(training, 0) for training in wanted], tmp_path)
        assert [step.label for step in steps if step.fold is None] == ["pretrain", *["diffusion"] * len(wanted)]
        return [step for step in steps if step.fold is not None]

    assert [(step.fold, step.training.name, step.seconds) for step in folds(base, one, two)] == [
        ((number, 3), "one", None) for number in range(3)
    ]
    log(tmp_path / "base" / "seed-0" / "pretrain", 33, 330)
    assert [step.seconds for step in folds(base, one, two)] == pytest.approx([33 * 10 * 2 / 3] * 3)
    (whole,) = steps_of([(replace(base, diffusion=False), 0)], tmp_path)
    assert {step.size for step in folds(base, one, two)} == {whole.size}
    log(tmp_path / "base" / "seed-0" / "folds" / "1-of-3" / "pretrain", 11, 44)
    found = folds(base, one, two)
    assert [step.done for step in found] == [0, 11, 0]
    assert [step.seconds for step in found] == pytest.approx([33 * 4, 22 * 4, 33 * 4])
    assert found[1].label == "pretrain, fold 2 of 3"
    assert plan_json(found)[1]["fold"] == {"number": 1, "of": 3}
    # A phase two that is done needs no folds any more, another one does.
    log(tmp_path / "one" / "seed-0" / "diffusion", one.resolved().diffusion.epochs, 1)
    assert {step.training.name for step in folds(base, one, two)} == {"two"}
    assert not folds(base, one)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_data(root / "data", "scenes-audiocaps")
    make_data(root / "data", "scenes-clotho", sizes=(16, 4, 12), seed=1)
    make_bert(root / "bert")
    return root


def command(root: Path, *what: str) -> list[str]:
    where = ["--data-folder", str(root / "data"), "--runs", str(root / "runs"), "--device", "cpu"]
    return ["reproduce", *what, *tiny_fields(root), "--data", "scenes", "--seeds", "0,1", *where]


@pytest.mark.parametrize("source", ["audiocaps", "clotho"])
def test_tables_of_one_source_need_its_runs_alone(world: Path, source: str) -> None:
    planned = typed([*command(world, "all", "levers"), "--source", source, "--dry-run", "--json"])
    assert planned.code == 0, planned.err
    names = {step["run"] for step in json.loads(planned.out)}
    assert names
    assert all(name.startswith(f"scenes-{source}") for name in names - {"scenes-audiocaps"})  # of which Figure 3 is


def test_ablations_may_have_fewer_seeds(world: Path) -> None:
    planned = typed([*command(world, "1", "5"), "--ablation-seeds", "1", "--dry-run", "--json"])
    assert planned.code == 0, planned.err
    seeds: dict[str, set[int]] = {}
    for step in json.loads(planned.out):
        seeds.setdefault(step["run"], set()).add(step["seed"])
    assert seeds.pop("scenes-audiocaps-gen") == {1}
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1})}


@pytest.mark.slow
def test_tables_are_trained_and_filled(world: Path) -> None:
    planned = typed([*command(world, "3", "5", "6"), "--dry-run", "--json"])
    assert planned.code == 0, planned.err
    steps = json.loads(planned.out)
    assert all(step["done"] == 0 and step["seconds_left"] is None for step in steps)
    assert not (world / "runs").exists()
    nothing = typed([*command(world, "6"), "--trained"])
    assert (nothing.code, nothing.out) == (1, "")
    assert "no row is trained" in nothing.err
    done = typed([*command(world, "3", "5", "6"), "--ablation-seeds", "1,0", "--json"])
    assert done.code == 0, done.err
    tables = {table["table"]: table for table in json.loads(done.out)}
    assert list(tables) == ["3", "5", "6"]
    again = json.loads(typed([*command(world, "3", "5", "6"), "--dry-run", "--json"]).out)
    assert all(step["done"] == step["epochs"] and step["seconds_left"] == 0 and step["bytes"] > 0 for step in again)
    # The figures are those of `evaluate`, the difference that of the means, and the paper's its own.
    whole = evaluate(
        "scenes-clotho", "scenes-audiocaps", data=world / "data", runs=world / "runs", recipe="scenes-clotho", seeds=(0, 1),
        device="cpu",
    )  # fmt: skip
    rows = {row["label"]: row for row in tables["3"]["rows"]}
    assert len(rows) == 10
    assert (tables["3"]["clips"], tables["3"]["captions"]) == (whole.clips, whole.captions)
    for direction in DIRECTIONS:
        diff, baseline = rows["resnet38 (Diff)"], rows["resnet38 (baseline)"]
        expected = whole.get("diff", direction)
        assert expected is not None
        assert diff["ours"][direction]["r1"]["mean"] == pytest.approx(expected.mean("r1"))
        difference = diff["difference"][direction]["r1"]
        means = [row["ours"][direction]["r1"]["mean"] for row in (diff, baseline)]
        assert difference["mean"] == pytest.approx(means[0] - means[1])
        assert difference["low"] <= difference["mean"] <= difference["high"]
        papers = {"t2a": {"mean": 17.2, "std": 0.2}, "a2t": {"mean": 19.4, "std": 0.3}}
        assert diff["paper"][direction]["r1"] == papers[direction]
    assert "difference" in rows["resnet38, QB-Norm"]
    chains = {row["label"]: row for row in tables["6"]["rows"]}
    assert chains["50"]["run"] == "scenes-audiocaps"
    record = json.loads((world / "runs" / "scenes-audiocaps-steps10" / "seed-1" / "diffusion" / "run.json").read_text())
    assert record["encoders"]["run"].endswith("scenes-audiocaps/seed-1")
    assert not (world / "runs" / "scenes-audiocaps-steps10" / "seed-1" / "pretrain").exists()
    # With --trained, the rows that are there are the same, and the others are left out and stay untrained.
    looked = typed([*command(world, "6", "levers"), "--ablation-seeds", "1,0", "--source", "audiocaps", "--trained", "--json"])
    assert looked.code == 0, looked.err
    chain, *levers = json.loads(looked.out)
    assert chain == tables["6"]
    assert [[row["label"] for row in table["rows"]] for table in levers] == [["cosine", "cosine, QB-Norm", "cosine, walk"]] * 2
    assert "rows are not trained yet" in looked.err
    assert not list((world / "runs").glob("*-flat"))


@pytest.mark.slow
def test_the_levers_have_the_corpus_as_context(world: Path) -> None:
    """The walk beside the encoders' cosine, and the feedback that a phase two of its own has learned."""
    table = plan(["levers"], "scenes", overrides=tiny_fields(world))[0]
    rows = [
        row for row in table.rows if row.system in ("baseline", "walk") or row.training.resolved().diffusion.feedback != "none"
    ]
    assert [row.system for row in rows] == ["baseline", "walk", "diff", "diff"]
    [filled] = reproduce([replace(table, rows=tuple(rows))], (0,), data=world / "data", runs=world / "runs-levers", device="cpu")
    assert [set(row.results) for row in filled.rows] == [set(DIRECTIONS)] * 4
    _, walk, *learnt = filled.rows
    assert set(walk.difference) == set(DIRECTIONS)
    assert [each.row.training.resolved().diffusion.folds for each in learnt] == [0, 2]
    for each in learnt:
        assert each.row.training.resolved().diffusion.x0_scale == 14
        assert set(each.difference) == set(DIRECTIONS)
        kept = load_file(world / "runs-levers" / each.row.training.name / "seed-0" / "diffusion" / "best.safetensors")
        assert all(float(kept[f"{direction}.neighbour_gain"]) for direction in DIRECTIONS)


@pytest.mark.slow
def test_the_same_figures_in_four_forms(world: Path) -> None:
    forms = {form: typed([*command(world, "6"), form]) for form in ("--json", "--markdown", "--latex", "--csv")}
    assert all(each.code == 0 for each in forms.values()), forms
    (table,) = json.loads(forms["--json"].out)
    rows = list(csv.DictReader(io.StringIO(forms["--csv"].out)))
    assert len(rows) == 4 * 2 * 5
    for row in rows:
        ours = next(each for each in table["rows"] if each["label"] == row["row"])["ours"][row["direction"]][row["metric"]]
        assert float(row["mean"]) == pytest.approx(ours["mean"], abs=1e-3)
        shown = f"{ours['mean']:.1f}±{ours['std']:.1f}"
        assert shown in forms["--markdown"].out
        assert shown.replace("±", r"$\pm$") in forms["--latex"].out
    document = forms["--markdown"].out
    assert document.startswith("# The paper's tables, and ours\n\nThis document is made whole by\n\n```sh\ndiffatr ")
    assert f"torch {torch.__version__}" in document
    assert "### Table 6. Diffusion steps" in document
    assert "departs from the recipe" in forms["--markdown"].out
    lines = sum(1 + bool(each["difference"]) + bool(each["paper"]) for each in table["rows"])
    assert forms["--latex"].out.count(r"\\") == 2 + lines
    shown = typed(command(world, "6"))
    assert shown.code == 0
    assert "Table 6. Diffusion steps" in shown.out
    assert "the paper*" in shown.out


@pytest.mark.slow
def test_figure_3_is_drawn_of_the_main_setting(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = typed([*command(world, "figure3"), "--figure", str(tmp_path / "f.svg"), "--json"])
    assert done.code == 0, done.err
    (document,) = json.loads(done.out)
    assert document["recipe"] == "scenes-audiocaps"
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    done = typed([*command(world, "figure3"), "--figure", str(tmp_path / "f.svg"), "--markdown"])
    assert done.code == 0, done.err
    assert "### Figure 3. From noise to the answer\n\n![One query's distribution over the candidates](f.svg)\n\n| k |" in done.out
    (levels,) = (part for part in done.out.split("\n\n") if part.startswith("| k |"))
    rows = [line.strip("| ").split(" | ") for line in levels.splitlines()[2:]]
    measured = {str(at["level"]): f"{at['r1_final']:.1f}" for at in document["measures"]}
    assert len(rows) > 5
    assert all(measured[row[0]] == row[-1] for row in rows)


@pytest.mark.parametrize(("given", "seeds"), [((), {0, 1, 2}), (("--quick",), {0}), (("--quick", "--seeds", "1,2"), {1, 2})])
def test_quick_takes_one_seed_unless_told(tmp_path: Path, given: tuple[str, ...], seeds: set[int]) -> None:
    planned = typed(["reproduce", "1", "--data", "scenes", "--runs", str(tmp_path), "--dry-run", "--json", *given])
    assert {step["seed"] for step in json.loads(planned.out)} == seeds


@pytest.mark.slow
def test_a_plan_goes_on_where_it_was_cut_off(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffatr_cli.reproduce.reproduce as module

    genuine, begun = module.train_diffusion, []

    def cut(name: str, *arguments: object, **options: object) -> object:
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return genuine(name, *arguments, **options)  # type: ignore[arg-type]

    arguments = [*command(world, "6")[:-2], "--runs", str(tmp_path / "runs"), "--device", "cpu", "--json"]
    arguments[arguments.index("0,1")] = "1"
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_diffusion", cut)
        assert typed(arguments).code == 130
    done = typed(arguments)
    assert done.code == 0, done.err
    assert "scenes-audiocaps, seed 1: pretrain" not in done.err
    ours = json.loads(done.out)[0]["rows"]
    both = json.loads(typed([*command(world, "6"), "--json"]).out)[0]["rows"]
    for one, two in zip(ours, both, strict=True):
        for direction in DIRECTIONS:
            assert one["ours"][direction]["r1"]["per_seed"] == two["ours"][direction]["r1"]["per_seed"][1:]


@pytest.mark.slow
def test_time_left_is_what_epochs_took(world: Path) -> None:
    (training,) = (
        each for each in needed(plan(["6"], "scenes", overrides=tiny_fields(world))[0].trainings) if each.encoders is None
    )
    folder = world / "runs" / training.name / "seed-0" / "pretrain"
    assert 0 < (seconds_an_epoch(folder) or 0) < 600
    steps = steps_of([(training, 0), (training, 7)], world / "runs")
    left = {(step.seed, step.phase): step for step in steps}
    assert left[0, "pretrain"].seconds == 0
    assert left[7, "pretrain"].seconds == pytest.approx(2 * (seconds_an_epoch(folder) or 0))
    assert left[7, "pretrain"].size == left[0, "pretrain"].size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["8"], "no table 8"),
        (["1", "--data", "ours"], "neither paper nor scenes"),
        (["1", "--json", "--csv"], "exclude each other"),
        (["1", "pretrain.epoch=2"], "pretrain.epoch"),
        (["1", "--seeds", "a"], "--seeds"),
        (["1", "--source", "scenes"], "--source"),
    ],
)
def test_wrong_use(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = typed(["reproduce", *arguments, "--runs", tmp_path / "runs", "--data-folder", tmp_path])
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_a_data_set_that_is_missing_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    result = typed(["reproduce", "1", "--runs", tmp_path / "runs", "--data-folder", tmp_path / "data"])
    assert result.code == 1
    assert "audiocaps" in result.err
    assert not (tmp_path / "runs").exists()
