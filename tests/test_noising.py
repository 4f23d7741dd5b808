"""How phase two makes x_k: as printed, and the ways in which recipes depart from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.losses import generation_loss
from diffatr_cli.core.sampler import ddim_coefficients
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.phase_two import build_schedule
from diffatr_cli.recipe_schema import DiffusionSection
from diffatr_cli.training.denoisers import Noising, denoising_loss

SCHEDULE = replace(NoiseSchedule.cosine(10), x0_scale=5.0)
QUERY, CANDIDATES = (functional.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), dim=1) for n in (6, 9))
X_0 = functional.one_hot(torch.arange(6), 9).float()


class Recorder(AttentionDenoiser):
    """A denoiser that keeps what it was asked."""

    def __init__(self, **options: bool) -> None:
        super().__init__(8, 12, generator=torch.Generator().manual_seed(1), **options)  # type: ignore[arg-type]
        self.asked: list[tuple[Tensor, Tensor, bool]] = []

    def factored_forward(
        self, x_k: Tensor, level: Tensor, query: Tensor, candidates: Tensor, shift: Tensor | None = None
    ) -> Tensor:
        self.asked.append((x_k.detach(), level, torch.is_grad_enabled()))
        return super().factored_forward(x_k, level, query, candidates, shift)


def ask(noising: Noising, denoiser: Recorder | None = None, seed: int = 0, rows: slice = slice(None)) -> tuple[Recorder, Tensor]:
    denoiser = denoiser or Recorder()
    generator = torch.Generator().manual_seed(seed)
    return denoiser, denoising_loss(denoiser, SCHEDULE, QUERY, CANDIDATES, X_0, generator, noising, rows)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, (6,), generator=generator), torch.randn(6, 9, generator=generator)


def test_as_printed_x_k_is_eq_5() -> None:
    denoiser, loss = ask(Noising())
    [(x_k, level, learns)] = denoiser.asked
    levels, noise = drawn()
    assert torch.equal(level, levels)
    kept = SCHEDULE.alphas_cumprod[levels].float()[:, None]
    torch.testing.assert_close(x_k, kept.sqrt() * 5 * X_0 + (1 - kept).sqrt() * noise)
    torch.testing.assert_close(loss, generation_loss(denoiser(x_k, level, QUERY, CANDIDATES), X_0))
    assert learns


def test_rollout_starts_where_sampling_starts() -> None:
    """x_k is what one DDIM step from noise leads to, by the denoiser's own x0_hat there; the loss is still that of x_0."""
    denoiser, loss = ask(Noising(rollout=1))
    (noise, last, learns), (x_k, level, _) = denoiser.asked
    assert not learns
    assert last.tolist() == [9] * 6
    levels, expected_noise = drawn()
    torch.testing.assert_close(noise, expected_noise)
    x0_hat = denoiser(noise, last, QUERY, CANDIDATES).softmax(1)
    for row, at in enumerate(levels.tolist()):
        a, b, _ = ddim_coefficients(SCHEDULE, 9, at, 0.0)
        torch.testing.assert_close(x_k[row], (a * x0_hat[row] + b * noise[row]).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, generation_loss(denoiser(x_k, level, QUERY, CANDIDATES), X_0))


def test_a_share_of_the_queries_is_rolled_out() -> None:
    printed, some = ask(Noising())[0].asked[0][0], ask(Noising(rollout=0.5))[0].asked[1][0]
    same = (printed == some).all(1)
    assert 0 < same.sum() < 6


def test_high_levels_are_the_highest_of_three() -> None:
    """Their distribution function is that of one draw, cubed."""
    counts = torch.zeros(10)
    for seed in range(500):
        counts += torch.bincount(ask(Noising(levels="high"), seed=seed)[0].asked[0][1], minlength=10)
    expected = torch.tensor([((k + 1) / 10) ** 3 - (k / 10) ** 3 for k in range(10)]) * 3000
    assert float(((counts - expected) ** 2 / expected).sum()) < 30  # chi-squared of nine degrees: 0.05 % are above


def test_self_conditioning_tells_half_of_the_queries_and_learns_its_gain() -> None:
    denoiser, loss = ask(Noising(), Recorder(self_conditioning=True))
    (x_k, level, learns), (shown, _, _) = denoiser.asked
    assert not learns
    torch.testing.assert_close(shown, x_k)  # the gain starts at zero
    torch.testing.assert_close(loss, ask(Noising())[1])
    loss.backward()  # type: ignore[no-untyped-call]
    assert denoiser.feedback_gain is not None
    assert denoiser.feedback_gain.grad is not None
    assert float(denoiser.feedback_gain.grad) != 0
    with torch.no_grad():
        denoiser.feedback_gain.fill_(0.07)
    denoiser.asked.clear()
    ask(Noising(), denoiser)
    added = denoiser.asked[1][0] - denoiser.asked[0][0]
    answer = denoiser(x_k, level, QUERY, CANDIDATES).softmax(1)
    told = added.abs().sum(1) > 0
    assert 0 < told.sum() < 6
    torch.testing.assert_close(added[told], answer[told].detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noising", [Noising(), Noising(levels="high", rollout=0.5), Noising("discriminative")])
def test_shares_of_the_queries_draw_what_all_draw(noising: Noising) -> None:
    whole = ask(noising, Recorder(self_conditioning=True))[1]
    halves = [ask(noising, Recorder(self_conditioning=True), rows=rows)[1] for rows in (slice(0, 3), slice(3, None))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_a_recipe_says_all_of_it() -> None:
    section = DiffusionSection(x0_scale=3, levels="high", rollout=0.25, x0="clip", objective="discriminative")
    assert Noising.of(section) == Noising("discriminative", "high", 0.25, "clip")
    assert build_schedule(section).x0_scale == 3
    assert Noising.of(DiffusionSection()) == Noising()
    assert build_schedule(DiffusionSection()).x0_scale == 1


def test_noise_is_found_again() -> None:
    level, noise = torch.tensor([0, 3, 9, 9, 1, 5]), torch.randn(6, 9, dtype=torch.float64)
    x_k = SCHEDULE.q_sample(X_0.double(), level, noise)
    torch.testing.assert_close(SCHEDULE.noise_in(x_k, X_0.double(), level), noise)
    with pytest.raises(ValueError, match="x0_scale"):
        replace(SCHEDULE, x0_scale=0.0)
