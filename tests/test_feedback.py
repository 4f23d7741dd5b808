"""Candidates' similarities among themselves, by their definitions in float64: neighbours, the walk over them, the denoiser's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from diffatr_cli.core import feedback, fused
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.feedback import RESTART, Neighbours, neighbours_of, random_walk, walk_scores
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_sample, fast_ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import Reranker, diffusion_scores
from diffatr_cli.training.denoisers import denoising_loss
from diffatr_cli.types import DIRECTIONS


def unit(*shape: int, seed: int = 0) -> Tensor:
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(vectors, dim=-1)


def repeated(n: int, dim: int, distinct: int, seed: int) -> Tensor:
    """(n, dim) vectors of which many are equal, in no order."""
    which = torch.randint(distinct, (n,), generator=torch.Generator().manual_seed(seed))
    return unit(distinct, dim, seed=seed)[which]


def matrix(candidates: Tensor, count: int = 10) -> np.ndarray:
    """W of (N, D), by its definition."""
    vectors = candidates.double().numpy()
    distinct, place = np.unique(vectors, axis=0, return_inverse=True)
    place = place.ravel()
    lengths = np.linalg.norm(distinct, axis=1, keepdims=True)
    cosine = (distinct @ distinct.T) / np.where(lengths > 0, lengths, 1) / np.where(lengths > 0, lengths, 1).T
    w = np.zeros(cosine.shape)
    for i, row in enumerate(cosine):
        others = sorted((j for j in range(len(row)) if j != i), key=lambda j: -row[j])[:count]
        for j in others:
            w[i, j] = max(row[j], 0) ** 3
        if not w[i].sum():
            w[i, i] = 1
    w /= w.sum(1, keepdims=True)
    return (w / np.bincount(place))[np.ix_(place, place)]


def dense(neighbours: Neighbours, n: int) -> np.ndarray:
    """W as `spread` applies it: its columns are what it makes of one candidate's value."""
    return neighbours.spread(torch.eye(n, dtype=torch.float64)).T.numpy()


sizes = st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(1, 30), st.integers(0, 10**6))


@settings(max_examples=60)
@given(sizes, st.integers(1, 12))
def test_neighbours_are_those_of_the_definition(size: tuple[int, int, int, int], count: int) -> None:
    candidates = repeated(*size)
    w = dense(neighbours_of(candidates, count), len(candidates))
    np.testing.assert_allclose(w, matrix(candidates, count), atol=1e-12)
    np.testing.assert_allclose(w.sum(1), 1)


@settings(max_examples=60)
@given(sizes, st.sampled_from([RESTART, 0.5, 1.0]))
def test_the_walk_ends_where_the_equation_is_solved(size: tuple[int, int, int, int], restart: float) -> None:
    candidates = repeated(*size)
    n = len(candidates)
    start = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(size[3])).softmax(1)
    found = random_walk(start, neighbours_of(candidates), restart)
    w = matrix(candidates)
    # Equal candidates share their start evenly.
    same = (candidates[:, None] == candidates[None]).all(2).double().numpy()
    shared = start.numpy() @ (same / same.sum(1, keepdims=True))
    solved = np.linalg.solve(np.eye(n) - (1 - restart) * w.T, restart * shared.T).T
    np.testing.assert_allclose(found.numpy(), solved, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)


def test_groups_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = torch.stack([repeated(13, 5, 9, seed) for seed in range(4)])
    values = torch.randn(4, 3, 13, dtype=torch.float64)
    whole = neighbours_of(candidates)
    spread = whole.spread(values)
    for entries in (1, 30, 200, 400):
        monkeypatch.setattr(feedback, "BLOCK_ENTRIES", entries)
        torch.testing.assert_close(neighbours_of(candidates).spread(values), spread)
        for group, own in enumerate(candidates):
            alone = neighbours_of(own)
            torch.testing.assert_close(alone.spread(values[group]), spread[group])
            start = values[group].softmax(1)
            torch.testing.assert_close(random_walk(start, alone), start.new_tensor(solve(start, own)))


def solve(start: Tensor, candidates: Tensor) -> np.ndarray:
    same = (candidates[:, None] == candidates[None]).all(2).double().numpy()
    shared = start.numpy() @ (same / same.sum(1, keepdims=True))
    w = matrix(candidates)
    return np.linalg.solve(np.eye(len(w)) - (1 - RESTART) * w.T, RESTART * shared.T).T


def test_equal_candidates_stay_tied_and_norms_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where products of equal vectors can differ by a rounding that depends on where they stand."""
    monkeypatch.setattr(feedback, "BLOCK_ENTRIES", 150)
    candidates = unit(40, 64).float().repeat(9, 1)
    cosine = unit(5, 64, seed=1).float() @ candidates.T
    found = walk_scores(cosine, neighbours_of(candidates), 0.07).view(5, 9, 40)
    assert torch.equal(found, found[:, :1].expand(5, 9, 40))
    longer = walk_scores(cosine, neighbours_of(candidates * 4), 0.07).view(5, 9, 40)
    torch.testing.assert_close(longer, found)
    zero = torch.cat([torch.zeros(2, 64), -torch.zeros(1, 64), candidates[:20]])
    assert neighbours_of(zero).first is not None
    assert neighbours_of(zero).first.tolist()[:4] == [0, 0, 0, 3]  # type: ignore[union-attr]


def test_many_equal_candidates_do_not_hide_the_neighbours_of_one_another() -> None:
    """Thirty copies would fill all ten places of each other."""
    candidates = torch.cat([unit(1, 8).repeat(30, 1), functional.normalize(unit(1, 8) + 0.3 * unit(3, 8, seed=2), dim=1)])
    w = dense(neighbours_of(candidates), 33)
    assert (w[:30, :30] == 0).all()
    assert (w[:30, 30:].sum(1) > 0.99).all()


def test_it_finds_what_the_query_alone_does_not() -> None:
    """Of two candidates that are equally near to a query, the one whose neighbours are near it too comes first."""
    query = torch.tensor([[1.0, 0.0, 0.0]])
    near, far = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.6, 0.0, 0.8])
    between = functional.normalize(torch.tensor([[0.8, 0.6, 0.0], [0.9, 0.5, 0.0], [0.7, 0.7, 0.1]]), dim=1)
    candidates = torch.stack([near, far, *between])
    found = walk_scores(query @ candidates.T, neighbours_of(candidates), 0.2)[0]
    assert found[0] > found[1]


def test_edges() -> None:
    assert random_walk(torch.zeros(3, 0), neighbours_of(torch.zeros(0, 4))).shape == (3, 0)
    assert random_walk(torch.zeros(0, 5), neighbours_of(unit(5, 4).float())).shape == (0, 5)
    assert random_walk(torch.ones(2, 1), neighbours_of(unit(1, 4).float())).tolist() == [[1.0], [1.0]]
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    start = torch.tensor([[0.3, 0.7]])
    torch.testing.assert_close(random_walk(start, neighbours_of(opposite)), start)  # there is nowhere to go
    for restart in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="restart"):
            random_walk(start, neighbours_of(opposite), restart)


# Feedback inside the denoiser


SCHEDULE = replace(NoiseSchedule.cosine(12), x0_scale=6.0)


def fed_back(gain: float, **options: Any) -> AttentionDenoiser:
    """A denoiser in float64 as training leaves it, off its start, with a factor as it may have been learned."""
    generator = torch.Generator().manual_seed(3)
    denoiser = AttentionDenoiser(6, 10, temperature=0.3, feedback="neighbours", generator=generator, **options).double()
    with torch.no_grad():
        for i, parameter in enumerate(denoiser.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64))
        assert denoiser.neighbour_gain is not None
        denoiser.neighbour_gain.fill_(gain)
    return denoiser


def written_down(denoiser: AttentionDenoiser) -> Any:
    """(x_k, level, query, candidates) -> logits by the paper's module with x_k + g W x_k in the place of x_k, W by definition."""
    options = dict(vars(denoiser.config)) | {"feedback": "none"}
    paper = AttentionDenoiser(**options).double()
    paper.load_state_dict({k: v for k, v in denoiser.state_dict().items() if k != "neighbour_gain"})
    assert denoiser.neighbour_gain is not None
    factor = denoiser.neighbour_gain.item() / denoiser.config.temperature

    @torch.no_grad()
    def denoise(x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor) -> Tensor:
        rows = []
        for i, x in enumerate(x_k):
            own = candidates if candidates.ndim == 2 else candidates[i]
            shown = x + factor * x.new_tensor(matrix(own)) @ x
            rows.append(paper(shown[None], level[i : i + 1], query[i : i + 1], own[None]))
        return torch.cat(rows)

    return denoise


def candidates_of(own: bool, copies: bool) -> Tensor:
    return repeated(15, 6, 9 if copies else 10**6, 4) if not own else torch.stack([repeated(15, 6, 12, i) for i in range(5)])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("output", ["decoder", "add_weight", "add_logit"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_denoiser_is_what_is_written_down(own: bool, output: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits, and by both forms the same gradients, that of the factor too."""
    monkeypatch.setattr(fused, "SMALL_TRAINING", 0 if compiled else 2**60)
    denoiser = fed_back(0.25, output=output)
    x_k = torch.randn(5, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    args = x_k, torch.tensor([0, 3, 11, 7, 2]), unit(5, 6, seed=2), candidates_of(own, True)
    expected = written_down(denoiser)(*args)
    assert not torch.allclose(expected, written_down(fed_back(0.0, output=output))(*args), atol=1e-3)
    leaves = [x_k, *denoiser.parameters()]
    answers = []
    for run in (denoiser.forward, denoiser.factored_forward):
        logits = run(*args)
        torch.testing.assert_close(logits.detach(), expected, rtol=0, atol=1e-9)
        answers.append(torch.autograd.grad((logits * unit(5, 15, seed=3)).sum(), leaves))
    for printed, factored in zip(*answers, strict=True):
        assert printed.abs().max() > 0
        torch.testing.assert_close(printed, factored, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_samplers_are_what_is_written_down(own: bool, told: bool, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With self-conditioning too: what is shown of the step before is spread like the rest of x_k."""
    denoiser = fed_back(0.5, self_conditioning=told).requires_grad_(False)
    if denoiser.feedback_gain is not None:
        denoiser.feedback_gain.fill_(0.4)
    factor = 0.0 if denoiser.feedback is None else float(denoiser.feedback)
    args = unit(5, 6, seed=2), candidates_of(own, True), SCHEDULE, 6, eta, query_noise(1, range(5), 15)
    expected = ddim_sample(written_down(denoiser), *args, feedback=factor)
    torch.testing.assert_close(ddim_sample(denoiser, *args, feedback=factor), expected, rtol=0, atol=1e-9)
    for blocks in (1, 2**18):
        monkeypatch.setattr("diffatr_cli.core.sampler.BLOCK_ENTRIES", blocks)
        monkeypatch.setattr("diffatr_cli.core.sampler.BLOCK_QUERIES", 2)
        monkeypatch.setattr("diffatr_cli.core.sampler.OWN_ENTRIES", blocks)
        torch.testing.assert_close(fast_ddim_sample(denoiser, *args), expected, rtol=0, atol=1e-9)
    without = fed_back(0.0, self_conditioning=told).requires_grad_(False)
    if without.feedback_gain is not None:
        without.feedback_gain.fill_(0.4)
    assert not torch.allclose(fast_ddim_sample(without, *args), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shortlist", [None, 6, 40])
def test_every_way_to_scores_feeds_back(direction: Any, shortlist: int | None) -> None:
    """All candidates and a shortlist, whose candidates are then each other's neighbours; a search's draws; every step shown."""
    denoisers = {each: fed_back(0.25 + 0.1 * i).requires_grad_(False) for i, each in enumerate(DIRECTIONS)}
    sampling = Sampling(steps=5, draws=2, shortlist=shortlist, seed=7)
    reranker = Reranker(denoisers, SCHEDULE, sampling, {})
    plain = written_down(denoisers[direction])
    queries, candidates = unit(4, 6, seed=2), candidates_of(False, True)
    scores = diffusion_scores(queries, reranker.prepare(direction, candidates), SCHEDULE, sampling)
    steps: dict[int, list[tuple[Tensor, Tensor]]] = {0: [], 1: []}
    for row, query in enumerate(queries):
        nearest = (candidates @ query).argsort(descending=True, stable=True)[:shortlist]
        expected = torch.zeros(15, dtype=torch.float64)
        for draw in range(2):
            noise = query_noise(7, [row], 15, draw)(0)[:, nearest].double()
            expected[nearest] += ddim_sample(plain, query[None], candidates[nearest], SCHEDULE, 5, noise=noise)[0] / 2
        torch.testing.assert_close(scores[row], expected, rtol=0, atol=1e-9)
    # A search hands over a shortlist; the page and `trajectory` ask for its steps.
    found = reranker.draws(direction, queries[0], candidates[:8], sampling, lambda level, x, x0_hat: steps[0].append((x, x0_hat)))
    noise = torch.cat([query_noise(7, [0], 8, draw)(0) for draw in range(2)]).double()
    twice = queries[:1].expand(2, -1)
    expected = ddim_sample(
        plain, twice, candidates[:8], SCHEDULE, 5, noise=noise, on_step=lambda level, x, x0_hat: steps[1].append((x, x0_hat))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(steps[0][-1], steps[1][-1], rtol=0, atol=1e-9)
    assert len(steps[0]) == len(steps[1]) == 5


def test_training_learns_the_factor_over_the_candidates_of_the_batch() -> None:
    """It starts at zero, where the loss is that without feedback, and its gradient is not zero there."""
    generator = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"temperature": 0.3}
    denoiser = AttentionDenoiser(6, 10, feedback="neighbours", generator=generator, **kind)
    plain = AttentionDenoiser(6, 10, generator=torch.Generator().manual_seed(0), **kind)
    query, candidates = unit(7, 6).float(), unit(9, 6, seed=1).float()
    x_0 = functional.one_hot(torch.arange(7), 9).float()

    def loss(of: AttentionDenoiser, candidates: Tensor = candidates) -> Tensor:
        return denoising_loss(of, SCHEDULE, query, candidates, x_0, torch.Generator().manual_seed(1))

    torch.testing.assert_close(loss(denoiser), loss(plain))
    loss(denoiser).backward()  # type: ignore[no-untyped-call]
    assert denoiser.neighbour_gain is not None
    assert denoiser.neighbour_gain.grad is not None
    assert float(denoiser.neighbour_gain.grad) != 0
    with torch.no_grad():
        denoiser.neighbour_gain.fill_(0.3)
    torch.testing.assert_close(loss(denoiser), loss(denoiser, candidates.expand(7, -1, -1)))
    assert abs((loss(denoiser) - loss(plain)).item()) > 1e-3


def test_half_precision_takes_the_same_neighbours() -> None:
    """Products in bf16 would choose others than sampling does."""
    candidates = unit(60, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        under = neighbours_of(candidates)
    assert torch.equal(under.places, neighbours_of(candidates).places)
    assert torch.equal(under.weights, neighbours_of(candidates).weights)
