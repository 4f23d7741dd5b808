"""Figure 3: what is shown is what the sampler went through, and the measures of every level are those of the metrics."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import DIFFATR, typed
from conftest import Workshop

from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.metrics import retrieval_metrics
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.errors import UsageError
from diffatr_cli.evaluation import trajectory as module
from diffatr_cli.evaluation.embedded_split import cached_split
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.evaluation.trajectory import TrajectoryResult, trajectory
from diffatr_cli.model import load_retriever
from diffatr_cli.report.trajectory_figure import check_out, chosen, draw
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.types import DIRECTIONS, Direction


def follow(workshop: Workshop, **options: Any) -> TrajectoryResult:
    return trajectory("tones", "tones2", data=workshop.data, runs=workshop.runs, device="cpu", **options)


@torch.no_grad()
def share_of_x(
    denoiser: AttentionDenoiser, level: int, x: torch.Tensor, queries: torch.Tensor, candidates: torch.Tensor
) -> float:
    """By the printed attention: the mean over the queries of x_k's part of the variances over the candidates."""
    embedding, scale = denoiser.level(torch.tensor([level - 1])), denoiser.input_scale
    q, keys = denoiser.w_q(scale * queries + embedding), denoiser.w_k(scale * candidates + embedding)
    of_x, of_logits = (each.var(1, correction=0) for each in (x, denoiser.attention_scale * q @ keys.T))
    return float((of_x / (of_x + of_logits)).mean())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_level_is_that_of_the_plain_loop(
    workshop: Workshop, trained: Path, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 100)  # a few queries at a time
    result = follow(workshop, direction=direction, item="test/3")
    model = load_retriever(trained, "cpu")
    split = cached_split(model, trained, load_dataset(workshop.data, "tones2"), "test")
    queries, candidates, relevant = split.task(direction)
    assert model.reranker is not None
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    denoiser = model.reranker.denoisers[direction].double()
    noise = query_noise(0, range(len(queries)), len(candidates))(0).double()

    def keep(level: int, x: torch.Tensor, x0_hat: torch.Tensor) -> None:
        seen.append((level + 1, x.clone(), x0_hat.detach()))

    ddim_sample(denoiser, queries.double(), candidates.double(), model.reranker.schedule, noise=noise, on_step=keep)
    assert list(result.levels) == [level for level, _, _ in seen] == list(range(10, 0, -1))
    row = 3 if direction == "a2t" else 6  # its first caption
    cosine = (queries @ candidates.T).double()
    order = torch.argsort(-cosine[row], stable=True)[: len(result.candidates)]
    assert [each.true for each in result.candidates] == [int(i) in relevant[row] for i in order]
    for i, (level, x, x0_hat) in enumerate(seen):
        assert np.allclose(result.x[i], x[row, order], atol=1e-4)
        assert np.allclose(result.x0_hat[i], x0_hat[row, order], atol=1e-4)
        at = result.measures[i]
        assert at.level == level
        share = share_of_x(denoiser, level, x, queries.double(), candidates.double())
        assert at.share_of_x == pytest.approx(100 * share, rel=1e-3)
        true = np.zeros(tuple(x.shape), bool)
        for q, each in enumerate(relevant):
            true[q, each] = True
        assert at.p_true == pytest.approx((x0_hat.numpy() * true).sum(1).mean(), abs=1e-5)
        logs = np.log(np.maximum(x0_hat.numpy(), 1e-300))
        assert at.entropy == pytest.approx(-(x0_hat.numpy() * logs).sum(1).mean(), abs=1e-4)
        final = cosine + model.reranker.fusion_weights[direction] * x0_hat
        for ours, scores in ((at.r1_x, x), (at.r1_x0_hat, x0_hat), (at.r1_final, final)):
            assert ours == pytest.approx(retrieval_metrics(scores.numpy().round(9), relevant)["r1"], abs=1e-3)
    assert result.r1_cosine == pytest.approx(retrieval_metrics(cosine, relevant)["r1"], abs=1e-3)


def test_the_last_level_is_what_evaluation_ranks_by(workshop: Workshop, trained: Path) -> None:
    measured = evaluate("tones", "tones2", data=workshop.data, runs=workshop.runs, device="cpu")
    for direction in DIRECTIONS:
        result = follow(workshop, direction=direction)
        diff = measured.get("diff", direction)
        assert diff is not None
        assert result.measures[-1].r1_final == pytest.approx(diff.mean("r1"))
        assert np.allclose(result.x0_hat.sum(1), 1, atol=1e-4) or result.count > len(result.candidates)


def test_ties_count_by_expectation() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, 5.0, 1.0]])
    true = torch.tensor([[True, False, False], [True, True, False], [False, True, False]])
    expected = [retrieval_metrics(s[None].numpy(), t[None].numpy())["r1"] / 100 for s, t in zip(scores, true, strict=True)]
    assert module._first_is_true(scores, true).tolist() == pytest.approx(expected)


def test_true_clips_of_a_text_are_all_that_have_it_as_a_caption(workshop: Workshop, trained: Path) -> None:
    result = follow(workshop, query="a LOW tone plays")
    clips = load_dataset(workshop.data, "tones2").split("test")
    assert {each.clip for each in result.candidates if each.true} == {
        clip.clip_id for clip in clips if "A low tone plays." in clip.captions
    }
    free = follow(workshop, query="first second")
    assert not any(each.true for each in free.candidates)
    assert free.measures == result.measures


def test_what_cannot_be_shown_is_told(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    for options, match in (
        ({"item": "test/99"}, "no clip test/99"),
        ({"query": "low", "item": "test/1"}, "--item"),
        ({"query": "low", "direction": "a2t"}, "--item"),
        ({"query": "!?"}, "no word"),
        ({"seed": 4}, "seed 4"),
        ({"recipe": "none"}, "diffatr pretrain"),
    ):
        with pytest.raises(UsageError, match=match):
            follow(workshop, **options)
    pretrain("dis", workshop.recipe("pretrain.epochs=1", "model.strategy=dis"), data=workshop.data, runs=tmp_path, device="cpu")
    with pytest.raises(UsageError, match="no diffusion phase"):
        trajectory("tones", "tones", data=workshop.data, runs=tmp_path, device="cpu")


def test_levels_are_spread_from_the_first_to_the_last() -> None:
    assert chosen(range(50)) == [0, 12, 24, 37, 49]
    assert chosen(range(3)) == [0, 1, 2]
    assert chosen(range(1)) == [0]


@pytest.fixture(scope="module")
def result(workshop: Workshop, trained: Path) -> TrajectoryResult:
    return follow(workshop, query="A low tone plays.")


def test_a_picture_is_a_picture_and_a_film_has_every_level(result: TrajectoryResult, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    draw(result, tmp_path / "a.png")
    with image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = (np.abs(pixels.astype(int) - [0xD1, 0x35, 0x2B]) <= 2).all(1).sum()
    assert red > 500  # the true clips are marked
    draw(result, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").count("<svg") == 1
    draw(result, tmp_path / "a.GIF")
    with image.open(tmp_path / "a.GIF") as film:
        assert film.n_frames == len(result.levels)
    assert not list(tmp_path.glob(".*"))


def test_any_text_can_stand_above_it(result: TrajectoryResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import dataclasses

    for text in ("$\\frac{1}$ _x^2 {", "犬が吠える " * 60, "<b>&amp;</b>"):
        draw(dataclasses.replace(result, query=text), tmp_path / "a.png")


@pytest.mark.parametrize("ending", [".png", ".svg", ".gif"])
def test_only_a_figure_of_ours_is_replaced(result: TrajectoryResult, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    out, other = tmp_path / f"ours{ending}", tmp_path / f"mine{ending}"
    draw(result, out)
    Figure().savefig(other, format="png" if ending == ".gif" else None)
    drawn, mine = out.read_bytes(), other.read_bytes()
    asked = ["trajectory", "--source", "x", "--target", "x", "--data", tmp_path, "--runs", tmp_path / "none", "--out"]
    assert typed([*asked, out]).err != (refused := typed([*asked, other])).err
    assert "is there already" not in typed([*asked, out]).err
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(f"diffatr: --out {other}: is there already, and was not written by this command")
    assert "there is no folder" in typed([*asked, tmp_path / "nope" / "f.png"]).err
    if ending == ".png":
        refused = typed(["reproduce", "figure3", "--figure", other])
        assert (refused.code, refused.err.startswith(f"diffatr: --figure {other}: is there already")) == (2, True)
        assert typed(["reproduce", "figure3", "--figure", "a.pdf"]).err.startswith("diffatr: --figure: a.pdf is none of")
        assert "--figure: nothing is drawn" in typed(["reproduce", "1", "--figure", "a.png"]).err
    assert (out.read_bytes(), other.read_bytes()) == (drawn, mine)


def test_the_file_is_checked_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.gif"):
        check_out(Path("figure.pdf"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'diffatr[plot]'")):
        check_out(Path("figure.png"))


def test_the_command(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import subprocess

    command = [
        *DIFFATR,
        "trajectory",
        "--source",
        "tones",
        "--target",
        "tones2",
        "--data",
        workshop.data,
        "--runs",
        workshop.runs,
    ]
    command += ["--out", tmp_path / "f.svg", "--json", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["levels"] == list(range(10, 0, -1))
    assert document["measures"][0]["level"] == 10
    assert len(document["query"]["candidates"][0]["x0_hat"]) == 10
    assert (tmp_path / "f.svg").is_file()
    wrong = subprocess.run([*map(str, command), "--direction", "up"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "t2a, a2t" in wrong.stderr
