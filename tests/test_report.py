"""Results, the paper's numbers and the tables."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from diffatr_cli.core.intervals import Interval
from diffatr_cli.evaluation.paper import PaperValue, paper_result, paper_tables
from diffatr_cli.evaluation.results import METRICS, ComparisonResult, EvaluationResult, ScoresResult, SystemResult
from diffatr_cli.report.tables import comparison_table, cross_domain_tables, evaluation_table, rows_table, scores_table

PAPER = Path(__file__).parents[2] / "shared" / "paper"


def metrics(r1: float) -> dict[str, float]:
    return {"r1": r1, "r5": r1 + 20, "r10": r1 + 30, "map10": r1 + 10, "medr": 3.5, "meanr": 12.25}


def result(
    source: str = "audiocaps", target: str = "audiocaps", model: str = "resnet38", seeds: int = 3, **changed: object
) -> EvaluationResult:
    """t2a before a2t, baseline before diff, with r1 of 30, 40, 50, 60 and up by one a seed."""
    order = [(system, direction) for direction in ("t2a", "a2t") for system in ("baseline", "diff")]
    systems = tuple(
        SystemResult(system, direction, tuple(metrics(30 + 10 * i + seed) for seed in range(seeds)))  # type: ignore[arg-type]
        for i, (system, direction) in enumerate(order)
    )
    fields = {"recipe": "r", "clips": 913, "captions": 4565, "systems": systems, "fusion_weights": {"t2a": (0.5,) * seeds}}
    return EvaluationResult(source=source, target=target, model=model, seeds=tuple(range(seeds)), **(fields | changed))  # type: ignore[arg-type]


def of_queries(given: EvaluationResult, gains: dict[str, float]) -> EvaluationResult:
    """The same with what each of eight queries of four clips got, better by a gain in percent, and by a tenth of it in ranks."""
    rng = np.random.default_rng(0)
    base = [{name: rng.uniform(30, 60, 8) for name in ("rank", "r1", "r5", "r10", "map10")} for _ in given.seeds]

    def of(system: str) -> tuple[dict[str, np.ndarray], ...]:
        gain = gains[system]
        return tuple({k: v + (-gain / 10 if k == "rank" else gain) for k, v in seed.items()} for seed in base)

    systems = tuple(replace(each, queries=of(each.system)) for each in given.systems)
    clips = np.arange(8) // 2
    return replace(given, systems=systems, query_clips={"t2a": clips, "a2t": clips})


def printed(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(table)
    return [line.rstrip() for line in console.export_text().splitlines()]


class TestResults:
    def test_mean_and_sample_deviation(self) -> None:
        system = SystemResult("diff", "t2a", tuple(metrics(value) for value in (1.0, 2.0, 6.0)))
        assert system.mean("r1") == 3.0
        assert system.std("r1") == pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2))
        assert system.std("medr") == 0.0

    def test_one_seed_has_no_deviation(self) -> None:
        assert SystemResult("diff", "t2a", (metrics(1.0),)).std("r1") is None

    def test_what_does_not_fit_together_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one seed"):
            SystemResult("diff", "t2a", ())
        one = SystemResult("diff", "t2a", (metrics(1.0),))
        with pytest.raises(ValueError, match="twice"):
            result(seeds=1, systems=(one, one))
        with pytest.raises(ValueError, match="every seed"):
            result(seeds=2, systems=(one,))

    def test_the_json_document(self) -> None:
        document = json.loads(json.dumps(result(shortlist=32, steps=5).to_json(), allow_nan=False))
        assert document["seeds"] == [0, 1, 2]
        assert (document["clips"], document["captions"]) == (913, 4565)
        assert (document["steps"], document["chain"], document["shortlist"]) == (5, 50, 32)
        for system, direction, r1 in [("baseline", "t2a", 31), ("diff", "t2a", 41), ("baseline", "a2t", 51), ("diff", "a2t", 61)]:
            values = document["systems"][system][direction]
            assert set(values) == set(METRICS)
            assert values["r1"] == {"mean": r1, "std": 1, "per_seed": [r1 - 1, r1, r1 + 1]}
        assert document["paper"]["diff"]["a2t"]["r5"] == {"mean": 74.4, "std": 0.4}
        assert result("mine", "mine").to_json()["paper"] == {}
        assert result(seeds=1).to_json()["systems"]["diff"]["t2a"]["r1"] == {"mean": 40, "std": None, "per_seed": [40]}


class TestPaper:
    @pytest.mark.skipif(not PAPER.is_dir(), reason="the paper is not beside this checkout")
    def test_the_numbers_are_those_of_the_papers_text(self) -> None:
        """Every row of Tables 1-7, read again from the paper's own text."""
        text = (PAPER / "diffatr.txt").read_text(encoding="utf-8").replace(r" \pm ", "±").replace(r"\pm", "±")
        lines = [line.split("\t") for line in text.splitlines()]
        rows = [cells for cells in lines if len(cells) == 7 and cells[1][:1].isdigit()]
        expected = [
            [(value if isinstance(value, list) else [value]) for direction in ("t2a", "a2t") for value in row[direction].values()]
            for table in paper_tables().values()
            for row in table.values()
        ]
        assert [[[float(part) for part in cell.split("±")] for cell in row[1:]] for row in rows] == expected
        assert len(rows) == 4 * 4 + 3 + 4 + 3

    @pytest.mark.parametrize(
        ("arguments", "setting", "r1"),
        [
            (("audiocaps", "audiocaps", "resnet38", "baseline", "t2a"), {}, (33.9, 0.4)),
            (("clotho", "clotho", "cnn14", "diff", "a2t"), {"batch_size": 24}, (17.2, 0.3)),
            (("clotho", "audiocaps", "resnet38", "diff", "t2a"), {"chain": 50}, (17.2, 0.2)),
            (("audiocaps", "clotho", "cnn14", "baseline", "a2t"), {"batch_size": 32}, (9.2, 0.4)),
            (("audiocaps", "audiocaps", "resnet38", "diff", "t2a"), {"strategy": "gen"}, (26.2, None)),
            (("audiocaps", "audiocaps", "resnet38", "diff", "t2a"), {"chain": 200}, (35.9, None)),
            (("audiocaps", "audiocaps", "resnet38", "baseline", "t2a"), {"chain": 200, "strategy": "dis"}, (33.9, 0.4)),
            (("clotho", "clotho", "resnet38", "diff", "t2a"), {"batch_size": 16}, (16.2, None)),
        ],
    )
    def test_a_setting_finds_its_number(
        self, arguments: tuple[str, ...], setting: dict[str, object], r1: tuple[float, float | None]
    ) -> None:
        found = paper_result(*arguments, **setting)  # type: ignore[arg-type]
        assert found is not None
        assert found["r1"] == PaperValue(*r1)
        assert set(found) == {"r1", "r5", "r10"}

    @pytest.mark.parametrize(
        ("arguments", "setting"),
        [
            (("scenes-audiocaps", "scenes-audiocaps", "resnet38", "diff", "t2a"), {}),
            (("audiocaps", "audiocaps", "small", "diff", "t2a"), {}),
            (("audiocaps", "audiocaps", "resnet38", "diff", "t2a"), {"chain": 20}),
            (("audiocaps", "audiocaps", "cnn14", "diff", "t2a"), {"chain": 10}),
            (("audiocaps", "audiocaps", "resnet38", "diff", "t2a"), {"chain": 10, "strategy": "gen"}),
            (("audiocaps", "audiocaps", "resnet38", "baseline", "t2a"), {"strategy": "gen"}),
            (("audiocaps", "audiocaps", "resnet38", "baseline", "t2a"), {"batch_size": 16}),
            (("clotho", "clotho", "resnet38", "baseline", "t2a"), {"batch_size": 16}),
            (("clotho", "audiocaps", "resnet38", "diff", "t2a"), {"batch_size": 16}),
            (("clotho", "clotho", "resnet38", "diff", "t2a"), {"chain": 10}),
        ],
    )
    def test_a_setting_that_the_paper_did_not_try_finds_none(
        self, arguments: tuple[str, ...], setting: dict[str, object]
    ) -> None:
        assert paper_result(*arguments, **setting) is None  # type: ignore[arg-type]


class TestTables:
    def test_evaluation_fits_80_columns_with_the_papers_number_below_ones_own(self) -> None:
        lines = printed(evaluation_table(result()))
        rows = [line.split() for line in lines]
        diff = [i for i, row in enumerate(rows) if row[:1] == ["Diff"]]
        assert rows[diff[0]] == ["Diff", "41.0±1.0", "61.0±1.0", "71.0±1.0", "51.0±1.0", "3.5±0.0", "12.2±0.0"]
        assert rows[diff[0] + 1] == ["the", "paper", "36.1±0.2", "71.9±0.5", "84.9±0.1", "–", "–", "–"]
        assert rows[diff[1] + 1] == ["the", "paper", "42.6±0.3", "74.4±0.4", "86.6±0.6", "–", "–", "–"]
        text = " ".join(" ".join(lines).split())
        assert "test split, 913 clips and 4,565 captions (the paper: 957 and 4,785)" in text
        assert "over seeds 0, 1, 2" in text
        assert "50 steps in a chain of 50 over all candidates" in text
        assert "t2a 0.5, 0.5, 0.5" in text

    def test_gains_stand_below_the_systems_and_fit_80_columns(self) -> None:
        better = of_queries(result(), {"baseline": 0, "diff": 20})
        lines = printed(evaluation_table(better))
        rows = [line.split() for line in lines]
        (start, _) = [i for i, row in enumerate(rows) if row[:3] == ["Diff", "-", "baseline"]]
        assert rows[start][3:] == ["+20.0"] * 4 + ["-2.0", "-2.0"]
        assert rows[start + 1] == ["95", "%", "from", *["+20.0"] * 4, "-2.0", "-2.0"]  # the same for every query: no doubt
        assert rows[start + 2] == ["95", "%", "to", *["+20.0"] * 4, "-2.0", "-2.0"]
        text = " ".join(" ".join(lines).split())
        assert "95 % intervals: bootstrap over queries, those of a clip together, all seeds" in text
        assert better.to_json()["difference"]["diff"]["a2t"]["medr"] == pytest.approx({"mean": -2, "low": -2, "high": -2})
        assert "95 %" not in " ".join(printed(evaluation_table(result())))

    def test_a_comparison_and_scores_of_others(self) -> None:
        first, second = (of_queries(result(), {"baseline": gain, "diff": 1}) for gain in (0, 10))
        compared = ComparisonResult(names=("runs/[a]", "runs/b"), first=first, second=second)
        lines = printed(comparison_table(compared))
        rows = [line.split() for line in lines]
        gains = [row for row in rows if row[:3] == ["second", "-", "first"]]
        assert [row[3] for row in gains] == ["on", "+10.0", "+0.0", "+10.0", "+0.0"]
        assert "first runs/[a] (seeds 0, 1, 2), second runs/b" in " ".join(" ".join(lines).split())
        measured = ScoresResult(
            scores="[x].npz", target="t", split="val", protocol="dcase2025", clips=2, captions=1234, directions={
                "t2a": {metric: Interval(50.0, 41.5, 58.25) for metric in ("r1", "r5", "r10", "map16", "medr", "meanr")}
            },
        )  # fmt: skip
        lines = printed(scores_table(measured))
        rows = [line.split() for line in lines]
        assert ["scores", *["50.0"] * 6] in rows
        assert ["95", "%", "from", *["41.5"] * 6] in rows
        assert ["R@1", "R@5", "R@10", "mAP@16", "MedR", "MeanR"] in rows
        assert "val split, 2 clips and 1,234 captions" in " ".join(" ".join(lines).split())

    def test_evaluation_by_another_protocol(self) -> None:
        text = " ".join(" ".join(printed(evaluation_table(result(protocol="all-captions")))).split())
        assert "protocol all-captions" in text
        assert "the paper" not in " ".join(text.split("(")[0].split("R@1")[1:])
        assert result(protocol="shared").to_json()["paper"] == {}

    def test_evaluation_of_ones_own_data_with_one_seed(self) -> None:
        text = " ".join(" ".join(printed(evaluation_table(result("[b]mine", "x", seeds=1, shortlist=32, steps=5)))).split())
        assert "[b]mine → x, ResNet38" in text
        assert "±" not in text
        assert "the paper" not in text
        assert "5 steps in a chain of 50 over the 32 best by cosine" in text

    def test_the_papers_numbers_stand_beside_the_test_split_alone(self) -> None:
        text = "\n".join(printed(evaluation_table(result(split="val"))))
        assert "val split" in text
        assert "the paper" not in text
        assert result(split="val").to_json()["paper"] == {}

    def test_cross_domain_has_the_layout_of_tables_3_and_4(self) -> None:
        results = [
            result(s, t, model) for s, t in [("clotho", "audiocaps"), ("audiocaps", "clotho")] for model in ("resnet38", "cnn14")
        ]
        third, fourth = map(printed, cross_domain_tables(results), (100, 100))
        assert third[0].strip() == "clotho → audiocaps"
        assert fourth[0].strip() == "audiocaps → clotho"
        rows = [line.split() for line in third]
        assert " ".join(rows[2]) == "t2a R@1 t2a R@5 t2a R@10 a2t R@1 a2t R@5 a2t R@10"
        names = ["ResNet38 (baseline)", "CNN14 (baseline)", "ResNet38 (Diff)", "CNN14 (Diff)"]
        assert [" ".join(row[:2]) for row in rows[4:12]] == [label for name in names for label in (name, "the paper")]
        assert rows[8][2:] == ["41.0±1.0", "61.0±1.0", "71.0±1.0", "61.0±1.0", "81.0±1.0", "91.0±1.0"]
        assert rows[9][2:] == ["17.2±0.2", "40.2±0.3", "54.3±0.2", "19.4±0.3", "44.3±0.6", "56.6±0.2"]

    def test_rows(self) -> None:
        rows = [
            line.split() for line in printed(rows_table("[t]", ["split", "clips"], [["[train]", 49838], ["val", 495]], "c [d]"))
        ]
        assert rows[0] == ["[t]"]
        assert ["[train]", "49,838"] in rows
        assert ["val", "495"] in rows
        assert ["c", "[d]"] in rows
