"""What an evaluation writes for other programs, what it keeps beside a run, and runs compared query by query."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import typed
from conftest import Workshop
from tiny import make_data

from diffatr_cli.core.metrics import mean_metrics
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation import evaluate as evaluate_module
from diffatr_cli.evaluation import export
from diffatr_cli.evaluation.evaluate import compare, evaluate, kept_queries
from diffatr_cli.evaluation.evaluation_set import EvaluationSet, clip_file, load_evaluation_set
from diffatr_cli.evaluation.query_results import read_query_results
from diffatr_cli.evaluation.results import EvaluationResult
from diffatr_cli.evaluation.scores import evaluate_scores
from diffatr_cli.files import replacing_folder
from diffatr_cli.model import load_retriever, sampling_of
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion
from diffatr_cli.types import DIRECTIONS

SYSTEMS = ("baseline", "diff")


@pytest.fixture(scope="module")
def runs(workshop: Workshop, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` with two seeds, whose diffusion counts for something, and `other` with one."""
    root = tmp_path_factory.mktemp("runs")
    recipe = workshop.recipe("evaluation.fusion_weights=[0.7]", "diffusion.epochs=1")
    for seed in (0, 1):
        if seed == 0:
            shutil.copytree(trained / "pretrain", root / "tiny" / "seed-0" / "pretrain")
        else:
            pretrain("tiny", recipe, data=workshop.data, runs=root, seed=seed, device="cpu")
        train_diffusion("tiny", recipe, data=workshop.data, runs=root, seed=seed, device="cpu")
    pretrain("other", workshop.recipe("pretrain.epochs=1"), data=workshop.data, runs=root, seed=0, device="cpu")
    return root


def run(workshop: Workshop, runs: Path, **options: Any) -> EvaluationResult:
    options = {"recipe": "tiny", **options}
    return evaluate("tones", "tones2", data=workshop.data, runs=runs, device="cpu", **options)


@pytest.fixture(scope="module")
def exported(workshop: Workshop, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationResult]:
    folder = tmp_path_factory.mktemp("out") / "deep" / "export"
    return folder, run(workshop, runs, export=folder, matrices=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_follows_from_the_scores(exported: tuple[Path, EvaluationResult]) -> None:
    """Ranks, best candidates and the challenge's rows are those that sorting the exported matrices gives."""
    folder, _ = exported
    captions, clips = rows_of(folder / "captions.csv"), rows_of(folder / "clips.csv")
    of_clip = np.array([int(row["clip"]) for row in captions])
    own = of_clip[:, None] == np.arange(len(clips))
    for system in SYSTEMS:
        ranks = rows_of(folder / system / "ranks.csv")
        best = pq.read_table(folder / system / "top100.parquet").to_pylist()
        assert len(ranks) == 2 * (24 + 12)
        assert len(best) == 2 * (24 * 12 + 12 * 24)  # fewer than 100 candidates: all of them
        for seed in (0, 1):
            with np.load(folder / system / f"scores-seed-{seed}.npz", allow_pickle=False) as arrays:
                matrices = {direction: arrays[direction] for direction in DIRECTIONS}
            for direction, good in (("t2a", own), ("a2t", own.T)):
                scores = matrices[direction]  # type: ignore[index]
                assert scores.dtype == np.float16
                mine = [r for r in ranks if (r["direction"], int(r["seed"])) == (direction, seed)]
                assert [int(row["query"]) for row in mine] == list(range(len(good)))
                table = [r for r in best if (r["direction"], r["seed"]) == (direction, seed)]
                for query, (row, values) in enumerate(zip(mine, scores, strict=True)):
                    listed = [r for r in table if r["query"] == query]
                    assert [r["place"] for r in listed] == list(range(1, len(values) + 1))
                    exact = np.array([r["score"] for r in listed])
                    candidates = [r["candidate"] for r in listed]
                    assert sorted(candidates) == list(range(len(values)))
                    assert (np.diff(exact) <= 0).all()
                    assert exact.astype(np.float16).tolist() == values[candidates].tolist()
                    assert [r["relevant"] for r in listed] == good[query][candidates].tolist()
                    top = exact[[r["relevant"] for r in listed]].max()
                    tied = [r["relevant"] for r in listed if r["score"] == top]
                    rank = 1 + (exact > top).sum() + tied.count(False) / 2
                    assert float(row["rank"]) == rank
                    assert float(row["reciprocal_rank"]) == pytest.approx(1 / rank)
                    clip = of_clip[query] if direction == "t2a" else query
                    assert row["clip_id"] == clips[clip]["clip_id"]
                    assert row["caption"] == (captions[query]["caption"] if direction == "t2a" else "")
            challenge = rows_of(folder / system / f"challenge-seed-{seed}.csv")
            assert list(challenge[0]) == ["caption", *(f"fname_{i}" for i in range(1, 17))]
            for query, row in enumerate(challenge):
                listed = [r for r in best if (r["direction"], r["seed"], r["query"]) == ("t2a", seed, query)]
                assert row["caption"] == captions[query]["caption"]
                names = [clips[r["candidate"]]["fname"] for r in listed[:16]]
                assert list(row.values())[1:] == names + [""] * (16 - len(names))
    shown = [pq.read_table(folder / system / "top100.parquet").column("score").to_pylist() for system in SYSTEMS]
    assert shown[0] != shown[1]


def test_metrics_of_the_table_are_means_of_the_rows(exported: tuple[Path, EvaluationResult]) -> None:
    folder, result = exported
    for each in result.systems:
        rows = [r for r in rows_of(folder / each.system / "ranks.csv") if r["direction"] == each.direction]
        for metric in ("r1", "r5", "r10", "map10"):
            assert np.mean([float(row[metric]) for row in rows]) == pytest.approx(each.mean(metric))
    assert json.loads((folder / "export.json").read_text())["result"] == json.loads(json.dumps(result.to_json()))


def test_exported_scores_are_measured_as_our_own(workshop: Workshop, exported: tuple[Path, EvaluationResult]) -> None:
    folder, result = exported
    measured = [evaluate_scores(folder / "diff" / f"scores-seed-{s}.npz", "tones2", data=workshop.data) for s in (0, 1)]
    for direction in DIRECTIONS:
        own = result.get("diff", direction)
        assert own is not None
        for metric in ("r1", "r5", "r10", "map10"):  # but for the ties that float16 makes
            mean = np.mean([each.directions[direction][metric].mean for each in measured])
            assert mean == pytest.approx(own.mean(metric), abs=5)


def test_without_matrices_and_for_one_direction(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    run(workshop, runs, export=tmp_path / "out", seeds=(1,), protocol="dcase2024", steps=2, shortlist=3)
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    kinds = ("ranks.csv", "top100.parquet", "challenge-seed-1.csv")
    assert files == {"export.json", "clips.csv", "captions.csv", *(f"{s}/{kind}" for s in SYSTEMS for kind in kinds)}


def test_the_same_export_again_replaces_and_another_is_refused(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    run(workshop, runs, export=folder, matrices=True)
    assert (folder / "diff/scores-seed-1.npz").is_file()
    before = (folder / "diff/ranks.csv").read_bytes()
    run(workshop, runs, export=folder, seeds=(0,))
    assert not (folder / "diff/scores-seed-0.npz").exists()
    assert 0 < len((folder / "diff/ranks.csv").read_bytes()) < len(before)
    with pytest.raises(UsageError, match=r"another evaluation .*protocol paper"):
        run(workshop, runs, export=folder, protocol="shared")
    with pytest.raises(UsageError, match="another evaluation"):
        run(workshop, runs, export=folder, recipe="other")
    (folder / "diff" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"diff/notes\.txt, which no export wrote"):
        run(workshop, runs, export=folder)
    assert (folder / "diff" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"export": {}}', '{"export": {}, "files": 3}', '{"export": 1, "files": []}']
)
def test_a_folder_of_something_else_is_refused(workshop: Workshop, runs: Path, tmp_path: Path, content: str | None) -> None:
    (tmp_path / ("thesis.tex" if content is None else "export.json")).write_text(content or "")
    with pytest.raises(UsageError, match="holds no earlier export"):
        run(workshop, runs, export=tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        run(workshop, runs, export=next(tmp_path.iterdir()))


def test_an_export_that_fails_leaves_the_earlier_one(
    workshop: Workshop, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    run(workshop, runs, export=folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export.Exporter, "_write_best", full)
    with pytest.raises(DiffATRError, match=r"out: the disk is full"):
        run(workshop, runs, export=folder, seeds=(0,))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_take_its_place_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    replace = os.replace

    def refusing(source: Path, target: Path) -> None:
        if source.name.endswith(".tmp"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(DiffATRError, match="out: no permission"), replacing_folder(folder) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["old"]


def kept_of(run: Path, asked: EvaluationSet, **settings: int) -> dict[Any, dict[str, np.ndarray]] | None:
    model = load_retriever(run, "cpu")
    return kept_queries(run, model, sampling_of(model, **{"seed": 0} | settings), asked)


def test_what_each_query_got_is_kept_beside_the_run(workshop: Workshop, runs: Path) -> None:
    result = run(workshop, runs)
    asked = load_evaluation_set(workshop.data, "tones2")
    for number, seed in enumerate(result.seeds):
        folder = runs / "tiny" / f"seed-{seed}"
        kept = kept_of(folder, asked)
        assert kept is not None
        assert set(kept) == {(system, direction) for system in SYSTEMS for direction in DIRECTIONS}
        for each in result.systems:
            columns = kept[each.system, each.direction]
            assert columns["clip"].tolist() == asked.query_clips[each.direction].tolist()
            assert columns["query"].tolist() == list(range(len(columns["clip"])))
            for name, values in each.queries[number].items():
                assert columns[name].tolist() == values.tolist()
            assert mean_metrics(each.queries[number]) == each.per_seed[number]


def test_what_is_kept_is_used_where_it_is_asked_for(
    workshop: Workshop, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(copied / "tiny" / "seed-0" / "evaluation", ignore_errors=True)
    ranked = []
    rank = evaluate_module._rank_run
    monkeypatch.setattr(
        evaluate_module, "_rank_run", lambda run, *rest, **how: ranked.append(run.name) or rank(run, *rest, **how)
    )
    first = run(workshop, copied, reuse=True)
    assert ranked[0] == "seed-0"
    ranked.clear()
    again = run(workshop, copied, reuse=True)
    assert ranked == []
    assert [each.per_seed for each in again.systems] == [each.per_seed for each in first.systems]
    for one, other in zip(again.systems, first.systems, strict=True):
        assert set(one.queries[0]) == set(other.queries[0])
    run(workshop, copied, reuse=True, rivals=True)  # which were not asked for before
    assert ranked == ["seed-0", "seed-1"]
    ranked.clear()
    with_rivals = run(workshop, copied, reuse=True, rivals=True)
    assert ranked == []
    assert {each.system for each in with_rivals.systems} > set(SYSTEMS)
    # Of one seed more is kept now than of the other; what was not asked for stays away.
    run(workshop, copied, seeds=(0,), walk=True, rivals=True, reuse=True)
    for asked in ({}, {"rivals": True}):
        some = run(workshop, copied, reuse=True, **asked)
        assert {each.system for each in some.systems} == {each.system for each in (with_rivals if asked else first).systems}
    ranked.clear()
    run(workshop, copied)
    assert ranked == ["seed-0", "seed-1"]


def test_results_of_other_settings_models_and_data_are_told_apart(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    copied, asked = shutil.copytree(runs, tmp_path / "runs"), load_evaluation_set(workshop.data, "tones2")
    folder = copied / "tiny" / "seed-0"
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    assert kept_of(folder, asked) is None
    run(workshop, copied, seeds=(0,))
    run(workshop, copied, seeds=(0,), steps=2)
    run(workshop, copied, seeds=(0,), protocol="all-captions")
    assert kept_of(folder, asked) is not None  # each setting has its own
    assert kept_of(folder, asked, steps=2) is not None
    assert kept_of(folder, asked, steps=3) is None
    assert kept_of(folder, asked, seed=1) is None
    assert kept_of(folder, load_evaluation_set(workshop.data, "tones")) is None
    assert kept_of(folder, load_evaluation_set(workshop.data, "tones2", protocol="shared")) is None
    kept = kept_of(folder, load_evaluation_set(workshop.data, "tones2", protocol="all-captions"))
    assert kept is not None
    assert "map" in kept["diff", "a2t"]
    files = list((folder / "evaluation").iterdir())
    assert len(files) == 3
    make_data(tmp_path / "data", "tones2", sizes=(4, 4, 12), seed=7)
    assert kept_of(folder, load_evaluation_set(tmp_path / "data", "tones2")) is None
    shutil.rmtree(folder / "diffusion")
    train_diffusion("tiny", workshop.recipe("diffusion.epochs=2"), data=workshop.data, runs=copied, device="cpu")
    assert kept_of(folder, asked) is None
    for path in files:
        path.write_bytes(path.read_bytes()[:-50])
        assert read_query_results(path, {}) is None


def test_a_query_gets_the_same_whoever_else_is_asked(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    """The noise of a caption is its own: with some of the captions asked, each gets what it gets among all."""
    asked = load_evaluation_set(workshop.data, "tones2")
    chosen = [5, 6, 17]
    with (tmp_path / "relevance.csv").open("w", newline="") as file:
        rows = [(asked.captions.texts[i], clip_file(asked.clips[asked.captions.clip_index[i]])) for i in chosen]
        csv.writer(file).writerows([("caption", "fname"), *rows])
    few = run(workshop, runs, protocol="dcase2025", relevance=tmp_path / "relevance.csv", export=tmp_path / "few")
    run(workshop, runs, protocol="dcase2024", export=tmp_path / "all")
    best = [pq.read_table(tmp_path / name / "diff" / "top100.parquet").to_pylist() for name in ("few", "all")]
    listed = [{(r["seed"], r["query"], r["candidate"]): r["score"] for r in rows} for rows in best]
    asked_now = sorted({query for _, query, _ in listed[0]})
    assert set(chosen) <= set(asked_now)
    assert len(asked_now) < 24
    assert len(few.systems[0].queries[0]["rank"]) == len(asked_now)
    assert listed[0] == pytest.approx({key: score for key, score in listed[1].items() if key[1] in asked_now}, abs=1e-6)


def test_a_run_that_can_only_be_read_is_evaluated_all_the_same(
    workshop: Workshop, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object) -> None:
        raise DiffATRError(f"{path}: no permission.")

    monkeypatch.setattr("diffatr_cli.evaluation.evaluate.write_query_results", refused)
    result = run(workshop, runs, seeds=(0,))
    (note,) = result.notes
    assert "not kept" in note
    assert "no permission" in note


def test_differences_are_of_means_and_stay_small_in_json(workshop: Workshop, runs: Path) -> None:
    document = run(workshop, runs).to_json()
    assert set(document["difference"]) == {"diff"}
    for direction in DIRECTIONS:
        for metric, difference in document["difference"]["diff"][direction].items():
            means = [document["systems"][system][direction][metric]["mean"] for system in SYSTEMS]
            assert difference["mean"] == pytest.approx(means[1] - means[0], abs=1e-9)
            assert difference["low"] <= difference["high"]
    assert len(json.dumps(document)) < 8000
    assert run(workshop, runs, recipe="other").to_json()["difference"] == {}


def test_two_runs_compared(workshop: Workshop, runs: Path) -> None:
    """`second` minus `first` in each system that both have; a recipe's folder stands for all its seeds."""
    result = compare(runs / "tiny", runs / "other" / "seed-0", "tones2", data=workshop.data, device="cpu")
    assert (result.first.seeds, result.second.seeds) == ((0, 1), (0,))
    assert set(result.differences) == {"baseline"}
    both = run(workshop, runs), run(workshop, runs, recipe="other")
    for direction in DIRECTIONS:
        first, second = (each.get("baseline", direction) for each in both)
        assert first is not None
        assert second is not None
        for metric, interval in result.differences["baseline"][direction].items():
            assert interval.mean == pytest.approx(second.mean(metric) - first.mean(metric), abs=1e-9)
    itself = compare(runs / "tiny", runs / "tiny", "tones2", data=workshop.data, device="cpu", protocol="dcase2024")
    assert set(itself.differences) == set(SYSTEMS)
    for of in itself.differences.values():
        assert list(of) == ["t2a"]
        assert all((i.mean, i.low, i.high) == (0, 0, 0) for i in of["t2a"].values())


def test_comparing_by_command(workshop: Workshop, runs: Path, tmp_path: Path) -> None:
    line = ["evaluate", "--compare", runs / "tiny/seed-0", runs / "tiny/seed-1", "--target", "tones2", "--data", workshop.data]
    code, out, err = typed([*line, "--device", "cpu", "--json"])
    assert code == 0, err
    document = json.loads(out)
    assert list(document["difference"]) == list(SYSTEMS)
    assert [document[run]["seeds"] for run in ("first", "second")] == [[0], [1]]
    code, out, _ = typed([*line, "--device", "cpu"])
    assert code == 0
    value = document["difference"]["diff"]["a2t"]["meanr"]
    for key in ("mean", "low", "high"):
        assert f"{value[key]:+.1f}" in out
    code, out, err = typed([*line[:2], tmp_path, *line[3:]])
    assert (code, out) == (2, "")
    assert "neither a run" in err
    code, out, err = typed([*line, "--export", tmp_path / "out"])
    assert (code, out) == (2, "")
    assert "--export: not with --compare" in err
