"""One query over many candidates: following the reached ones alone, and the coarse table, change nothing beyond rounding."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from trained_denoiser import trained

from diffatr_cli.core import focused, rough, sampler
from diffatr_cli.core.chain import Chain, Levels
from diffatr_cli.core.coarse import CoarseTable
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.sampler import ddim_coefficients, ddim_levels, ddim_sample, fast_ddim_sample
from diffatr_cli.core.schedule import NoiseSchedule

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def task(n, dim, dtype=torch.float32, longest=1.0):
    """A query near one of the candidates, whose norms reach up to `longest`, and start noise."""
    generator = torch.Generator().manual_seed(n)
    candidates = normalize(torch.randn(n, dim, generator=generator), dim=1)
    query = normalize(candidates[n // 2] + 0.5 * torch.randn(1, dim, generator=generator) / dim**0.5, dim=1)
    candidates *= 1 + (longest - 1) * torch.rand(n, 1, generator=generator)
    return query.to(dtype), candidates.to(dtype), torch.randn(1, n, generator=generator).to(dtype)


@pytest.fixture
def taken(monkeypatch):
    """Every query goes this way, however few its candidates and flat its attention; what was reached is listed."""
    sizes = []

    def listed(*args):
        places = reached(*args)
        sizes.append(None if places is None else len(places))
        return places

    reached = focused.reached
    for name, value in {"MANY": 0, "COARSE": 0, "COARSE_STEPS": 0, "FEW": 1}.items():
        monkeypatch.setattr(rough, name, value)
    for name, value in {"DENSE": 1, "SAMPLE": 1, "COLUMNS": 7, "LEADERS": 3}.items():
        monkeypatch.setattr(focused, name, value)
    monkeypatch.setattr(focused, "reached", listed)
    return sizes


@pytest.fixture
def rough_alone(taken, monkeypatch):
    """No attention is peaked enough to follow some candidates alone; listed is whether each x0_hat was exact enough."""
    kept, call = [], rough.RoughX0.__call__

    def listed(self, *args):
        x0_hat = call(self, *args)
        kept.append(x0_hat is not None)
        return x0_hat

    monkeypatch.setattr(sampler, "sample_focused", lambda *_: None)
    monkeypatch.setattr(rough.RoughX0, "__call__", listed)
    return kept


@few
@given(
    n=st.integers(1, 300),
    dim=st.integers(1, 40),
    hidden=st.integers(1, 70),
    steps=st.integers(1, 12),
    output=st.sampled_from(["decoder", "add_weight"]),
    x0=st.sampled_from(["softmax", "clip"]),
    scale=st.sampled_from([1.0, 6.0]),
    temperature=st.sampled_from([0.001, 0.01, 0.07]),
    gain=st.sampled_from([1.0, 10.0, 60.0]),
    fed_back=st.booleans(),
    longest=st.sampled_from([1.0, 3.0]),
)
def test_focused_equals_plain(taken, n, dim, hidden, steps, output, x0, scale, temperature, gain, fed_back, longest):
    """In float64 nothing but rounding is left; in float32, where the coarse table is used too, as much as without it."""
    schedule = replace(NoiseSchedule.cosine(12), x0_scale=scale)
    for dtype, near in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        denoiser = trained(dim, hidden, temperature, gain, output=output, self_conditioning=fed_back).to(dtype)
        if fed_back:
            denoiser.feedback_gain.fill_(2 * temperature)
        query, candidates, noise = task(n, dim, dtype, longest)
        told = 2.0 if fed_back else 0.0
        plain = ddim_sample(denoiser, query, candidates, schedule, steps, noise=noise, x0=x0, feedback=told)
        taken.clear()
        fast = fast_ddim_sample(denoiser, query, candidates, schedule, steps, noise=noise, x0=x0)
        assert len(taken) == 1
        assert taken != [None]
        torch.testing.assert_close(fast, plain, rtol=0, atol=near)


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_at_full_size_the_coarse_table_is_used_and_nothing_lost(gain, taken, monkeypatch):
    """D = H = 512, as the benchmark's: within 3e-7 of the sampler that follows all candidates."""
    denoiser, (query, candidates, noise) = trained(512, 512, 0.01, gain), task(5000, 512)
    args = denoiser, query, FactoredDenoiser(denoiser).prepare(candidates), NoiseSchedule.cosine(50), 50
    coarse, given_up = 0, focused._Denominator.log

    def log(self, *rest):
        nonlocal coarse
        result = given_up(self, *rest)
        coarse += self.coarse is not None
        return result

    monkeypatch.setattr(focused._Denominator, "log", log)
    fast = fast_ddim_sample(*args, noise=noise)
    assert coarse == 49
    assert taken[0] < 500
    monkeypatch.setattr(rough, "MANY", 2**60)
    torch.testing.assert_close(fast, fast_ddim_sample(*args, noise=noise), rtol=1e-5, atol=3e-7)
    assert len(taken) == 1


@few
@given(
    n=st.integers(1, 300),
    dim=st.integers(1, 40),
    hidden=st.integers(1, 70),
    steps=st.integers(1, 12),
    output=st.sampled_from(["decoder", "add_weight", "add_logit"]),
    scale=st.sampled_from([1.0, 6.0]),
    temperature=st.sampled_from([0.01, 0.07, 1.0]),
    gain=st.sampled_from([1.0, 10.0, 60.0]),
    fed_back=st.booleans(),
)
def test_rough_equals_plain(rough_alone, n, dim, hidden, steps, output, scale, temperature, gain, fed_back):
    denoiser = trained(dim, hidden, temperature, gain, output=output, self_conditioning=fed_back)
    if fed_back:
        denoiser.feedback_gain.fill_(2 * temperature)
    query, candidates, noise = task(n, dim)
    schedule, told = replace(NoiseSchedule.cosine(12), x0_scale=scale), 2.0 if fed_back else 0.0
    plain = ddim_sample(denoiser, query, candidates, schedule, steps, noise=noise, feedback=told)
    rough_alone.clear()
    fast = fast_ddim_sample(denoiser, query, candidates, schedule, steps, noise=noise)
    assert steps == 1 or rough_alone
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("output", ["decoder", "add_logit"])
def test_at_full_size_x0_hat_is_taken_roughly_and_nothing_lost(output, rough_alone, monkeypatch):
    """Where one candidate takes much, and where all take little."""
    for temperature, gain in ((0.01, 4.0), (0.07, 1.0)):
        denoiser, (query, candidates, noise) = trained(512, 512, temperature, gain, output=output), task(5000, 512)
        args = denoiser, query, FactoredDenoiser(denoiser).prepare(candidates), NoiseSchedule.cosine(50), 50
        fast = fast_ddim_sample(*args, noise=noise)
        assert rough_alone == [True] * 49
        with monkeypatch.context() as patch:
            patch.setattr(rough, "MANY", 2**60)
            torch.testing.assert_close(fast, fast_ddim_sample(*args, noise=noise), rtol=2e-5, atol=3e-7)
        rough_alone.clear()


@few
@given(
    n=st.integers(1, 200),
    dim=st.integers(1, 30),
    steps=st.integers(1, 12),
    temperature=st.sampled_from([0.001, 0.01, 0.07]),
    longest=st.sampled_from([1.0, 3.0]),
    x0=st.sampled_from(["softmax", "clip"]),
)
def test_whoever_counts_is_reached(taken, n, dim, steps, temperature, longest, x0):
    """Against the attention of the printed form, all along the plain loop."""
    denoiser, schedule = trained(dim, 2 * dim, temperature, 10.0).double(), replace(NoiseSchedule.cosine(12), x0_scale=3.0)
    query, candidates, noise = task(n, dim, torch.float64, longest)
    seen = []
    ddim_sample(denoiser, query, candidates, schedule, steps, noise=noise, x0=x0, on_step=lambda *step: seen.append(step[:2]))
    counts = torch.zeros(n, dtype=torch.bool)
    for level, x_k in seen:
        pj, scale = denoiser.level(torch.tensor([level])), dim**0.5
        attention = denoiser.w_q(query * scale + pj) @ denoiser.w_k(candidates * scale + pj).T + x_k
        counts |= attention[0] > attention.max() - math.log(n / torch.finfo(torch.float64).eps)

    factors, levels = FactoredDenoiser(denoiser), ddim_levels(12, steps)
    coefficients = [ddim_coefficients(schedule, *pair, 0.0) for pair in pairwise(levels)]
    places = focused.reached(
        factors.prepare(candidates),
        factors.attend(query[0]),
        noise[0],
        Chain(levels, coefficients, x0, None),
        Levels.of(factors, levels, query.device),
    )
    assert set(counts.nonzero()[:, 0].tolist()) <= set(places.tolist())


def test_what_needs_all_candidates_and_what_is_flat_go_the_usual_way(taken, monkeypatch):
    query, candidates, noise = task(60, 24)
    for options, asked in (
        ({"output": "add_logit"}, {}),
        ({"feedback": "neighbours"}, {}),
        ({}, {"eta": 1.0}),
        ({}, {"on_step": lambda *_: None}),
    ):
        denoiser = trained(24, 40, 0.01, 8.0, **options)
        if denoiser.neighbour_gain is not None:
            denoiser.neighbour_gain.fill_(0.1)
        start = {"noise": noise} if "eta" not in asked else {"noise": lambda i: noise.roll(i)}
        args = denoiser, query, candidates, NoiseSchedule.cosine(10), 5
        torch.testing.assert_close(fast_ddim_sample(*args, **start, **asked), ddim_sample(*args, **start, **asked))
    assert taken == []
    monkeypatch.setattr(focused, "DENSE", 60)
    args = trained(24, 40, 0.07, 8.0), query, candidates, NoiseSchedule.cosine(10)
    torch.testing.assert_close(fast_ddim_sample(*args, noise=noise), ddim_sample(*args, noise=noise), rtol=0, atol=2e-5)
    assert taken == [None]


@pytest.mark.parametrize("broken", ["candidates", "weights"])
def test_what_is_no_number_stays_none(broken, taken):
    query, candidates, noise = task(60, 24)
    denoiser = trained(24, 40, 0.01, 8.0)
    (candidates[3] if broken == "candidates" else denoiser.w_q.weight).fill_(torch.nan)
    assert fast_ddim_sample(denoiser, query, candidates, NoiseSchedule.cosine(10), noise=noise).isnan().any()


@given(st.integers(1, 50), st.integers(1, 40), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 99))
def test_a_coarse_table_is_within_half_a_step(n, hidden, size, seed):
    generator = torch.Generator().manual_seed(seed)
    table = size * torch.randn(n, hidden, generator=generator)
    table[:, 0] = size  # a column of one value
    negative, weight = size * torch.randn(hidden, generator=generator), torch.randn(hidden, generator=generator)
    coarse = CoarseTable.of(table)
    back = coarse.middle.double() + coarse.step.double() * coarse.values.double()
    assert ((back - table.double()).abs() <= 0.51 * coarse.step.double() + 2e-7 * table.double().abs()).all()

    b, w, more = (x.double().numpy() for x in coarse.for_maxima(negative, weight))
    got = np.maximum(coarse.values.numpy(), b) @ w + more
    expected = np.maximum(table.double().numpy(), negative.double().numpy()) @ weight.double().numpy()
    assert np.abs(got - expected).max() <= 1e-5 * size * hidden + 0.51 * float((weight * coarse.step).abs().sum())
    assert coarse.spread(weight) == pytest.approx(math.hypot(*(weight * coarse.step).tolist()), rel=1e-5)


@few
@given(st.integers(2, 400), st.integers(1, 60), st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.0, 1e-7, 1e-5, 1e-3]))
def test_the_denominator_is_as_exact_as_asked(taken, n, hidden, gain, tolerance):
    """With a tolerance of nothing, from the table itself; otherwise the own share of the softmax is wrong by that at most."""
    denoiser, (_, candidates, _) = trained(16, hidden, 0.07, gain), task(n, 16)
    part = FactoredDenoiser(denoiser).prepare(candidates)
    vector = torch.randn(hidden, generator=torch.Generator().manual_seed(n))
    logits = (part.candidate_hidden[0] + vector).relu().double() @ part.factors.weight.double() + part.factors.bias.double()
    places = torch.arange(0, n, 3)
    denominator = focused._Denominator(part, places, 1)
    assert denominator.coarse is not None
    own = logits[places].float()
    got = denominator.log(vector, own, tolerance)
    exact = logits.logsumexp(0)
    rounding = 1e-6 * hidden**0.5 * max(1.0, float(logits.abs().max()))
    assert ((own - got).exp() - (own - exact).exp()).abs().max() <= tolerance + rounding
    if tolerance == 0 and len(places) < n:
        assert denominator.coarse is None
