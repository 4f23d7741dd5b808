from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from other_device import OtherDevice
from torch.nn.functional import normalize
from trained_denoiser import trained

from diffatr_cli.core import fused, sampler
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.sampler import ddim_coefficients, ddim_levels, ddim_sample, fast_ddim_sample
from diffatr_cli.core.schedule import NoiseSchedule


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(autouse=True, scope="module")
def _compiled_however_small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "SMALL", 0)
        yield


# The plain loop


@given(st.integers(1, 300).flatmap(lambda chain: st.tuples(st.just(chain), st.integers(1, chain))))
def test_levels_are_distinct_even_and_begin_at_the_last(chain_and_steps):
    chain, steps = chain_and_steps
    levels = ddim_levels(chain, steps)
    gaps = -np.diff(levels)
    assert (len(levels), levels[0]) == (steps, chain - 1)
    assert steps == 1 or levels[-1] == 0
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert ddim_levels(chain, None) == list(range(chain))[::-1]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_keeps_the_marginals_of_eq_5(eta):
    """From x_k = sqrt(acp_k) x_0 + sqrt(1 - acp_k) e a step leads to the mean and variance of the following level."""
    schedule = NoiseSchedule.cosine(50)
    acp = schedule.alphas_cumprod
    for level, following in [(49, 48), (49, 30), (30, 7), (1, 0)]:
        a, b, c = ddim_coefficients(schedule, level, following, eta)
        assert a + b * acp[level].sqrt() == pytest.approx(acp[following].sqrt().item())
        assert b**2 * (1 - acp[level]) + c**2 == pytest.approx(1 - acp[following].item())
        posterior = (1 - acp[following]) / (1 - acp[level]) * (1 - acp[level] / acp[following])
        assert c == pytest.approx(eta * posterior.sqrt().item())


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_a_denoiser_that_knows_x0_leaves_a_straight_path(scale):
    """With x0_hat always the same and eta = 0 every x_k is Eq. 5 with the one noise that the start implies."""
    schedule, logits = replace(NoiseSchedule.cosine(20), x0_scale=scale), torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    x0, noise, seen = logits.softmax(1), torch.tensor([[0.3, -1.2, 0.8]], dtype=torch.float64), []
    query = torch.zeros(1, 2, dtype=torch.float64)
    got = ddim_sample(
        lambda *_: logits,
        query,
        torch.zeros(3, 2),
        schedule,
        7,
        noise=noise,
        on_step=lambda level, x, x0_hat: seen.append((level, x)),
    )
    last = schedule.alphas_cumprod[19]
    implied = (noise - last.sqrt() * scale * x0) / (1 - last).sqrt()
    assert [level for level, _ in seen] == ddim_levels(20, 7)
    for level, x in seen:
        torch.testing.assert_close(x, schedule.q_sample(x0, torch.tensor([level]), implied))
    assert torch.equal(got, x0)


@pytest.mark.parametrize("sample", [ddim_sample, fast_ddim_sample])
def test_noise_comes_from_where_it_is_said_to(sample):
    denoiser, schedule = trained(temperature=0.07, gain=2.0), NoiseSchedule.linear(9)
    query, candidates = unit(4, 24), unit(6, 24, seed=1)

    def run(rows=slice(None), eta=1.0, **noise):
        return sample(denoiser, query[rows], candidates, schedule, 5, eta, **noise)

    def by_seed(seed):
        return run(generator=torch.Generator().manual_seed(seed))

    assert torch.equal(by_seed(0), by_seed(0))
    assert not torch.allclose(by_seed(0), by_seed(1))
    start = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(run(eta=0.0, noise=start), run(eta=0.0, noise=lambda i: {0: start}[i]))
    whole = run(noise=query_noise(0, range(4), 6))
    for i in range(4):
        torch.testing.assert_close(run(slice(i, i + 1), noise=query_noise(0, [i], 6)), whole[i : i + 1])


@pytest.mark.parametrize("sample", [ddim_sample, fast_ddim_sample])
def test_what_is_refused(sample):
    def run(steps=None, eta=0.0, noise=None):
        return sample(trained(), unit(2, 24), unit(3, 24), NoiseSchedule.cosine(10), steps, eta, noise)

    for steps in (0, 11, -1):
        with pytest.raises(ValueError, match=f"between 1 and the chain's length, 10, got {steps}"):
            run(steps)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            run(eta=eta)
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(2, 4\)"):
        run(noise=torch.zeros(2, 4))


# The factored sampler


OUTPUTS = ["decoder", "add_weight", "add_logit"]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("x0", ["softmax", "clip"])
@pytest.mark.parametrize("scales", [("none", "sqrt_dim"), ("sqrt_dim", "none")])
def test_fast_equals_plain_in_float64_to_rounding(output, x0, scales):
    """The algebra is exact: at double precision nothing but rounding is left, for every variant, shared and own candidates."""
    denoiser = trained(output=output, attention_scale=scales[0], input_scale=scales[1]).double()
    query, schedule = unit(5, 24).double(), NoiseSchedule.cosine(12)
    for candidates in (unit(7, 24, seed=1).double(), unit(5, 7, 24, seed=1).double()):
        for steps, eta in ((None, 0.0), (4, 0.7), (1, 1.0)):
            args = denoiser, query, candidates, schedule, steps, eta, query_noise(1, range(5), 7)
            torch.testing.assert_close(fast_ddim_sample(*args, x0=x0), ddim_sample(*args, x0=x0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
def test_self_conditioning_tells_the_step_before(own):
    """The plain loop adds x0_hat of the step before to x_k itself; the factored one adds it to the attention."""
    denoiser = trained(self_conditioning=True).double()
    denoiser.feedback_gain.fill_(0.05)
    query, candidates = unit(5, 24).double(), unit(*((5, 7) if own else (7,)), 24, seed=1).double()
    args = query, candidates, replace(NoiseSchedule.cosine(12), x0_scale=6.0), 5, 0.0, query_noise(1, range(5), 7)
    told = ddim_sample(denoiser, *args, feedback=float(denoiser.feedback))
    assert float(denoiser.feedback) == pytest.approx(0.05 / 0.01)
    torch.testing.assert_close(fast_ddim_sample(denoiser, *args), told, rtol=0, atol=1e-10)
    assert not torch.allclose(told, ddim_sample(denoiser, *args), atol=1e-3)


@settings(max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 12),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
    st.sampled_from([0.01, 0.07, 1.0]),
    st.sampled_from([1.0, 10.0, 60.0]),
)
def test_fast_equals_plain_at_any_size_flat_or_peaked(queries, n, dim, hidden, steps, eta, own, temperature, gain):
    denoiser = trained(dim, hidden, temperature, gain)
    query, candidates = unit(queries, dim), unit(*((queries, n) if own else (n,)), dim, seed=1)
    args = denoiser, query, candidates, NoiseSchedule.cosine(12), steps, eta, query_noise(1, range(queries), n)
    plain, fast = ddim_sample(*args), fast_ddim_sample(*args)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-4)
    for a, b in zip(plain, fast, strict=True):  # the same ranking, but where the plain loop itself has a tie up to rounding
        assert (a[b.argsort(descending=True, stable=True)].diff() <= 2e-5 * a.max()).all()


def test_sharply_peaked_at_full_size():
    """D = H = 512 and temperature 0.01, the embeddings scaled by sqrt(D): one candidate takes nearly all of x0_hat."""
    denoiser = trained(512, 512, 0.01, 40.0)
    query = unit(3, 512)
    candidates = torch.cat(
        [normalize(query + 0.03 * torch.randn(3, 512, generator=torch.Generator().manual_seed(1))), unit(60, 512)]
    )
    args = denoiser, query, candidates, NoiseSchedule.cosine(50), 10, 0.0, query_noise(0, range(3), 63)
    plain = ddim_sample(*args)
    assert plain.amax(1).max() > 0.5
    torch.testing.assert_close(fast_ddim_sample(*args), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_blocks_change_nothing_and_steps_are_shown_alike(own, monkeypatch):
    denoiser, query, candidates = trained(temperature=0.07), unit(9, 24), unit(*((9, 11) if own else (11,)), 24, seed=1)

    def run(sample, on_step=None):
        return sample(denoiser, query, candidates, NoiseSchedule.cosine(10), noise=query_noise(0, range(9), 11), on_step=on_step)

    whole = run(fast_ddim_sample)
    plain_steps, fast_steps = [], []
    run(ddim_sample, lambda *step: plain_steps.append(step))
    run(fast_ddim_sample, lambda *step: fast_steps.append(step))
    for name in ("BLOCK_ENTRIES", "BLOCK_QUERIES", "OWN_ENTRIES"):
        monkeypatch.setattr(sampler, name, 1)
    torch.testing.assert_close(run(fast_ddim_sample), whole)
    assert len(plain_steps) == len(fast_steps) == 10
    for plain, fast in zip(plain_steps, fast_steps, strict=True):
        assert plain[0] == fast[0]
        torch.testing.assert_close(fast[1:], plain[1:], rtol=0, atol=1e-5)


def test_the_eager_path_samples_the_same(monkeypatch):
    """What small work and a GPU without Triton compute."""
    args = trained(), unit(3, 24), unit(8, 24, seed=1), NoiseSchedule.cosine(10), None, 0.0, query_noise(0, range(3), 8)
    expected = ddim_sample(*args)
    monkeypatch.setattr(fused, "SMALL", 2**60)
    torch.testing.assert_close(fast_ddim_sample(*args), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_on_a_device_that_is_no_cpu_nothing_compiles_and_no_threads_start(eta, monkeypatch):
    monkeypatch.setattr(sampler, "parallel_for", lambda *_: pytest.fail("threads of the CPU"))
    for size in ("BLOCK_ENTRIES", "BLOCK_QUERIES", "OWN_ENTRIES"):
        monkeypatch.setattr(sampler, size, 1)
    denoiser = trained(output="add_weight").to("meta")
    query = torch.empty(3, 24, device="meta")
    for candidates in (torch.empty(8, 24, device="meta"), torch.empty(3, 8, 24, device="meta")):
        with OtherDevice():
            out = fast_ddim_sample(denoiser.factors(), query, candidates, NoiseSchedule.cosine(5), eta=eta)
        assert (out.shape, out.device.type) == ((3, 8), "meta")


def test_what_was_multiplied_out_is_a_copy():
    denoiser = trained(output="add_logit", temperature=0.07)
    args = unit(3, 24), unit(8, 24, seed=1), NoiseSchedule.cosine(10), None, 0.0, query_noise(0, range(3), 8)
    factors = FactoredDenoiser(denoiser)
    before = fast_ddim_sample(factors, *args)
    for parameter in denoiser.parameters():
        parameter.mul_(1.5)
    assert torch.equal(fast_ddim_sample(factors, *args), before)
    assert not torch.allclose(fast_ddim_sample(denoiser, *args), before)
