import math

import pytest
import torch
from other_device import OtherDevice

from diffatr_cli.core.schedule import NoiseSchedule


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.cosine])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 1000])
def test_schedules_end_in_noise_and_keep_their_definitions(make, steps):
    schedule = make(steps)
    product, products = 1.0, []
    for beta in schedule.betas.tolist():
        assert 0 < beta < 1
        products.append(product := product * (1 - beta))
    assert len(schedule) == steps
    assert schedule.betas.dtype == schedule.alphas.dtype == schedule.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(schedule.alphas, 1 - schedule.betas)
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor(products, dtype=torch.float64))
    assert (schedule.betas.diff() >= 0).all()
    assert schedule.alphas_cumprod[-1] < 2e-3


def test_closed_forms():
    assert NoiseSchedule.linear(1000).betas[[0, 500, 999]].tolist() == pytest.approx([1e-4, 1e-4 + 0.0199 * 500 / 999, 0.02])
    assert NoiseSchedule.linear(100).betas[0].item() == pytest.approx(1e-3)

    def f(k):
        return math.cos((k / 50 + 0.008) / 1.008 * math.pi / 2) ** 2

    assert NoiseSchedule.cosine(50).alphas_cumprod[[0, 24, 48]].tolist() == pytest.approx(
        [f(1) / f(0), f(25) / f(0), f(49) / f(0)]
    )


def test_q_sample_is_the_mean_and_variance_of_repeated_q_steps():
    """Eq. 4 k times gives Eq. 5: the noise-free part and, noise by noise, the variance."""
    schedule, x0 = NoiseSchedule.cosine(7), torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    for last in range(7):
        mean, variance = x0, torch.zeros_like(x0)
        for k in range(last + 1):
            level = torch.full((2,), k)
            mean = schedule.q_step(mean, level, torch.zeros_like(x0))
            one = schedule.q_step(torch.zeros_like(x0), level, torch.ones_like(x0))
            variance = schedule.alphas[k] * variance + one**2
        level = torch.full((2,), last)
        torch.testing.assert_close(mean, schedule.q_sample(x0, level, torch.zeros_like(x0)))
        torch.testing.assert_close(variance.sqrt(), schedule.q_sample(torch.zeros_like(x0), level, torch.ones_like(x0)))


def test_q_sample_takes_a_level_a_row_and_keeps_the_type():
    schedule = NoiseSchedule.linear(20)
    x0, noise = torch.rand(3, 5), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    got = schedule.q_sample(x0, torch.tensor([0, 19, 4]), noise)
    kept = schedule.alphas_cumprod[[0, 19, 4], None].numpy()
    assert got.dtype == torch.float32
    assert got.numpy() == pytest.approx(kept**0.5 * x0.numpy() + (1 - kept) ** 0.5 * noise.numpy(), abs=1e-6)


def test_what_is_refused():
    schedule = NoiseSchedule.linear(20)
    for level in (20, -1):
        with pytest.raises(IndexError, match="0 to 19"):
            schedule.q_sample(torch.zeros(1, 2), torch.tensor([level]), torch.zeros(1, 2))
    for betas in ([], [0.0, 0.1], [1.0], [[0.1]]):
        with pytest.raises(ValueError, match="betas"):
            NoiseSchedule(torch.tensor(betas))
    with pytest.raises(ValueError, match="steps=0"):
        NoiseSchedule.cosine(0)


def test_noise_is_added_on_devices_without_float64():
    schedule, level = NoiseSchedule.cosine(10), torch.tensor([0, 9])
    with OtherDevice():
        x, noise = torch.empty(2, 3, device="meta"), torch.empty(2, 3, device="meta")
        for noisy in (schedule.q_step(x, level, noise), schedule.q_sample(x, level, noise)):
            assert (noisy.shape, noisy.dtype, noisy.device) == (x.shape, x.dtype, x.device)
