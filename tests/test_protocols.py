"""Protocols and scores of others: figures equal those counted by plain loops, and what does not fit is told in one sentence."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import Result, typed
from sklearn.metrics import average_precision_score

from diffatr_cli.data.manifest import Record, write_manifest
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.evaluation_set import load_evaluation_set
from diffatr_cli.evaluation.protocol import PROTOCOLS
from diffatr_cli.evaluation.results import ScoresResult
from diffatr_cli.evaluation.scores import evaluate_scores

CAPTIONS = [  # clips 0 and 2 share a caption but for its case and a full stop, clips 2 and 5 another; 0 and 5 none
    ["Rain falls.", "water on a roof"],
    ["a dog"],
    ["rain falls", "a bus", "a bus stops"],
    ["birds", "birds in a wood", "one bird"],
    ["a bell", "a bell rings"],
    ["A bus", "an engine"],
    *([f"hum {i}", f"buzz {i}"] for i in range(20)),
]
CLIPS, TEXTS = len(CAPTIONS), [text for captions in CAPTIONS for text in captions]
CLIP_OF = [clip for clip, captions in enumerate(CAPTIONS) for _ in captions]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    records = [
        Record(f"test/clip {i}.wav", "test", tuple(captions), f"test/{i}.wav", frames=32000, md5=str(i))
        for i, captions in enumerate(CAPTIONS)
    ]
    write_manifest(root / "set", records, {"kind": "folder"})
    return root


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """(captions, clips), all different, better than chance."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(len(TEXTS), CLIPS)) + 1.5 * (np.array(CLIP_OF)[:, None] == np.arange(CLIPS))


@pytest.fixture(scope="module")
def saved(scores: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "cosine.npz"
    np.savez(path, cosine=scores)
    return path


def relevance_file(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    path = folder / "relevance.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("caption", "fname"), *rows])
    return path


def counted(scores: np.ndarray, relevant: list[set[int]], cutoff: int | None, share: bool) -> dict[str, float]:
    """Every metric by sorting each row and walking down it."""
    rows = []
    for row, good in zip(scores, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda candidate: -row[candidate])
        places = [place for place, candidate in enumerate(order, 1) if candidate in good]
        found = [sum(place <= k for place in places) for k in (1, 5, 10)]
        recalls = [n / len(good) if share else float(n > 0) for n in found]
        last = cutoff or len(row)
        precisions = [n / place for n, place in enumerate(places, 1) if place <= last]
        rows.append([places[0], *recalls, sum(precisions) / min(len(good), last)])
    table = np.array(rows)
    r1, r5, r10, ap = 100 * table[:, 1:].mean(0)
    return {"r1": r1, "r5": r5, "r10": r10, f"map{cutoff or ''}": ap, "medr": np.median(table[:, 0]), "meanr": table[:, 0].mean()}


def check(result: ScoresResult, direction: str, expected: dict[str, float]) -> None:
    intervals = result.directions[direction]  # type: ignore[index]
    assert list(intervals) == list(expected)
    assert {metric: each.mean for metric, each in intervals.items()} == pytest.approx(expected)
    assert all(each.low <= each.mean <= each.high for each in intervals.values())


OWN_CLIP = [{clip} for clip in CLIP_OF]
OWN_CAPTIONS = [{i for i, of in enumerate(CLIP_OF) if of == clip} for clip in range(CLIPS)]


@pytest.mark.parametrize(
    ("protocol", "cutoff", "share", "directions"),
    [
        ("paper", 10, False, ["t2a", "a2t"]),
        ("all-captions", None, True, ["t2a", "a2t"]),
        ("dcase2024", 10, False, ["t2a"]),
    ],
)
def test_protocols_of_a_clips_own_captions(
    data: Path, saved: Path, scores: np.ndarray, protocol: str, cutoff: int | None, share: bool, directions: list[str]
) -> None:
    result = evaluate_scores(saved, "set", data=data, protocol=protocol)
    assert (result.clips, result.captions, list(result.directions)) == (CLIPS, len(TEXTS), directions)
    tasks = {"t2a": (scores, OWN_CLIP), "a2t": (scores.T, OWN_CAPTIONS)}
    for direction in directions:
        check(result, direction, counted(*tasks[direction], cutoff, share))


def test_all_captions_is_scikit_learns_average_precision(data: Path, saved: Path, scores: np.ndarray) -> None:
    result = evaluate_scores(saved, "set", data=data, protocol="all-captions")
    own = np.array(CLIP_OF)[:, None] == np.arange(CLIPS)
    expected = np.mean([average_precision_score(good, row) for good, row in zip(own.T, scores.T, strict=True)])
    assert result.directions["a2t"]["map"].mean == pytest.approx(100 * expected)


def test_a_shared_caption_counts_for_any_clip_that_has_it(data: Path, saved: Path, scores: np.ndarray) -> None:
    """Not for clips that only others link: clip 0 shares with 2 and 2 with 5, and nothing of 5 is right for 0."""

    def plain(text: str) -> str:
        return text.lower().rstrip(".")

    clips = [{clip for clip, captions in enumerate(CAPTIONS) if plain(text) in map(plain, captions)} for text in TEXTS]
    captions = [{i for i, text in enumerate(TEXTS) if plain(text) in map(plain, own)} for own in CAPTIONS]
    assert sum(len(each) > 1 for each in clips) == 4
    result = evaluate_scores(saved, "set", data=data, protocol="shared")
    check(result, "t2a", counted(scores, clips, 10, False))
    check(result, "a2t", counted(scores.T, captions, 10, False))


def test_a_file_says_what_is_relevant(data: Path, saved: Path, scores: np.ndarray, tmp_path: Path) -> None:
    """Several clips a caption, or one that is not its own, by names with or without their ending; the rest is not asked."""
    listed = {
        "a dog": {1, 4, 7}, "birds": set(range(18)), "a bell": {0}, "hum 3": {9}, "buzz 3": {9, 10}, "one bird": {3},
    }  # fmt: skip
    rows = [(text, f"clip {clip}{'.wav' if clip % 2 else ''}") for text, clips in listed.items() for clip in clips]
    file = relevance_file(tmp_path, [*rows, ("a dog", "clip 99.wav"), ("a cat", "clip 1.wav"), ("birds", "clip 3.wav")])
    result = evaluate_scores(saved, "set", data=data, protocol="dcase2025", relevance=file)
    asked = [i for i, text in enumerate(TEXTS) if text in listed]
    check(result, "t2a", counted(scores[asked], [listed[TEXTS[i]] for i in asked], 16, False))
    assert list(result.directions) == ["t2a"]
    left_out, skipped = sorted(result.notes, key=lambda note: "passed over" in note)
    assert f"nothing for {len(TEXTS) - 6} of {len(TEXTS)} captions" in left_out
    assert "2 rows" in skipped
    assert "relevance.csv:28: no clips of the split are called 'clip 99.wav'" in skipped
    assert "no such caption" in skipped


def test_intervals_keep_the_captions_of_a_clip_together(data: Path) -> None:
    asked = load_evaluation_set(data, "set")
    assert asked.query_clips["t2a"].tolist() == CLIP_OF
    assert asked.query_clips["a2t"].tolist() == list(range(CLIPS))


def test_files_of_relevance_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--relevance FILE"):
        load_evaluation_set(data, "set", protocol="dcase2025")
    file = relevance_file(tmp_path, [("a cat", "clip 1.wav"), ("a dog", "clip 77.wav")])
    with pytest.raises(UsageError, match="reads no such file"):
        load_evaluation_set(data, "set", protocol="paper", relevance=file)
    with pytest.raises(UsageError, match=r"relevance\.csv: no row has .* \(relevance\.csv:2: no such caption\)"):
        load_evaluation_set(data, "set", protocol="dcase2025", relevance=file)
    file.write_text("text,fname\na dog,clip 1.wav\n")
    with pytest.raises(DiffATRError, match="caption"):
        load_evaluation_set(data, "set", protocol="dcase2025", relevance=file)
    with pytest.raises(DiffATRError, match="nowhere"):
        load_evaluation_set(data, "set", protocol="dcase2025", relevance=tmp_path / "nowhere.csv")


def test_every_protocol_is_explained() -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name in PROTOCOLS:
        assert f"| `{name}` |" in text


class TestScores:
    def typed(self, data: Path, path: Path, *more: str | Path) -> Result:
        return typed(["evaluate", "--scores", path, "--target", "set", "--data", data, *more])

    def test_the_command_shows_what_the_function_gives(self, data: Path, saved: Path) -> None:
        code, out, err = self.typed(data, saved, "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert document == json.loads(json.dumps(evaluate_scores(saved, "set", data=data).to_json()))
        assert set(document["directions"]["a2t"]["r1"]) == {"mean", "low", "high"}
        code, out, _ = self.typed(data, saved)
        assert code == 0
        assert f"{document['directions']['t2a']['map10']['mean']:.1f}" in out
        assert "26 clips and 53 captions" in out

    def test_forms_of_one_matrix(self, data: Path, saved: Path, scores: np.ndarray, tmp_path: Path) -> None:
        expected = evaluate_scores(saved, "set", data=data).directions
        np.savez(tmp_path / "two.npz", t2a=scores, a2t=scores.T, clips=np.arange(3))
        np.save(tmp_path / "plain.npy", scores)
        for name in ("two.npz", "plain.npy"):
            assert evaluate_scores(tmp_path / name, "set", data=data).directions == expected
        np.savez(tmp_path / "one.npz", a2t=scores.T)
        assert evaluate_scores(tmp_path / "one.npz", "set", data=data).directions == {"a2t": expected["a2t"]}

    def test_ties_count_by_expectation(self, data: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "constant.npy", np.zeros((len(TEXTS), CLIPS), np.int8))
        result = evaluate_scores(tmp_path / "constant.npy", "set", data=data)
        assert result.directions["t2a"]["r5"].mean == pytest.approx(100 * 5 / CLIPS)
        assert result.directions["t2a"]["medr"].mean == (CLIPS + 1) / 2

    @pytest.mark.parametrize(
        ("array", "told"),
        [
            (np.zeros((CLIPS, len(TEXTS))), f"got {CLIPS} x {len(TEXTS)}. Turn it around."),
            (np.zeros((len(TEXTS), CLIPS + 1)), f"got {len(TEXTS)} x {CLIPS + 1}."),
            (np.zeros(4), "got 4."),
            (np.zeros(()), "got a single number."),
            (np.full((len(TEXTS), CLIPS), "x"), "got <U1."),
            (np.zeros((len(TEXTS), CLIPS), complex), "got complex128."),
            (np.where(np.arange(len(TEXTS) * CLIPS) == 29, np.nan, 0).reshape(-1, CLIPS), "row 1, column 3 (from 0) is NaN."),
        ],
    )
    def test_a_matrix_that_does_not_fit_is_told_what_would(
        self, data: Path, tmp_path: Path, array: np.ndarray, told: str
    ) -> None:
        np.savez(tmp_path / "bad.npz", scores=array)
        code, out, err = self.typed(data, tmp_path / "bad.npz")
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert f"needs {len(TEXTS)} rows (captions) and {CLIPS} columns (clips)" in line
        assert line.endswith(told)

    def test_files_that_hold_no_scores(self, data: Path, scores: np.ndarray, tmp_path: Path) -> None:
        np.savez(tmp_path / "two.npz", one=scores, other=scores)
        np.savez(tmp_path / "none.npz")
        np.savez(tmp_path / "a2t.npz", a2t=scores.T)
        np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
        (tmp_path / "text.npz").write_text("no archive")
        (tmp_path / "empty.npy").touch()
        (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:3000])
        np.savez(tmp_path / "turned.npz", a2t=scores)
        turned = f"{CLIPS} rows (clips) and {len(TEXTS)} columns (captions)"
        cases = [
            ("two.npz", "2 arrays (one, other)"), ("none.npz", "0 arrays (none)"), ("object.npy", "holds Python objects"),
            ("text.npz", "no npz or npy file"), ("empty.npy", "no npz or npy file"), ("cut.npz", "or a damaged one"),
            ("absent.npz", "absent.npz: "), ("turned.npz", turned),
        ]  # fmt: skip
        for name, told in cases:
            code, out, err = self.typed(data, tmp_path / name)
            assert (code, out) == (2, ""), name
            (line,) = err.splitlines()
            assert told in line
        code, _, err = self.typed(data, tmp_path / "a2t.npz", "--protocol", "dcase2024")
        assert code == 2
        assert "has no t2a" in err

    def test_damage_of_any_bit_is_noticed_or_changes_nothing(self, data: Path, tmp_path: Path) -> None:
        """A byte changed, or the end cut off, anywhere in an archive: never other numbers, never another error."""
        path, rng = tmp_path / "damaged.npz", np.random.default_rng(0)
        np.savez_compressed(path, t2a=rng.normal(size=(len(TEXTS), CLIPS)).astype(np.float16))
        whole, expected = path.read_bytes(), evaluate_scores(path, "set", data=data).directions
        for place in rng.choice(len(whole), 250, replace=False).tolist():
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]):
                path.write_bytes(damaged)
                with contextlib.suppress(UsageError):
                    assert evaluate_scores(path, "set", data=data).directions == expected

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (("--source", "x"), "--source and --scores"),
            (("--steps", "3"), "--steps: not with --scores"),
            (("--export", "x", "--seeds", "1"), "--seeds, --export: not with --scores"),
            (("--protocol", "mine"), "'mine' is none of paper, all-captions, dcase2024, dcase2025, shared"),
        ],
    )
    def test_options_that_do_not_go_together(self, data: Path, saved: Path, more: tuple[str, ...], told: str) -> None:
        code, out, err = self.typed(data, saved, *more)
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert told in line

    def test_one_way_must_be_named(self, data: Path) -> None:
        code, out, err = typed(["evaluate", "--target", "set", "--data", data])
        assert (code, out) == (2, "")
        assert "one of --source, --scores, --compare" in err
