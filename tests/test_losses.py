import math

import numpy as np
import pytest
import torch

from diffatr_cli.core.losses import cosine_similarity, generation_loss, nt_xent, posterior


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_nt_xent(audio, text, temperature, clip_ids):
    """Eq. 8 term by term."""
    a, t, total = audio.numpy(), text.numpy(), 0.0

    def s(i, j):
        return t[i] @ a[j] / np.linalg.norm(t[i]) / np.linalg.norm(a[j])

    rows = range(len(a))
    for i in rows:
        others = [j for j in rows if j == i or clip_ids[j] != clip_ids[i]]
        total += math.log(math.exp(s(i, i) / temperature) / sum(math.exp(s(i, j) / temperature) for j in others))
        total += math.log(math.exp(s(i, i) / temperature) / sum(math.exp(s(j, i) / temperature) for j in others))
    return -total / 2 / len(a)


@pytest.mark.parametrize("clip_ids", [None, [0, 1, 0, 2, 1, 0], [7] * 6])
def test_nt_xent_is_eq_8_without_siblings(clip_ids):
    audio, text = randn(6, 4), randn(6, 4, seed=1)
    got = nt_xent(audio, text, 0.2, None if clip_ids is None else torch.tensor(clip_ids))
    assert got.item() == pytest.approx(reference_nt_xent(audio, text, 0.2, clip_ids or range(6)))


def test_sibling_captions_get_no_gradient_from_each_other():
    audio, text = randn(2, 4), randn(2, 4, seed=1).requires_grad_()
    nt_xent(audio, text, 0.07, torch.tensor([3, 3])).backward()
    assert text.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [1e-6, 0.01, 1e6])
def test_nt_xent_stays_finite(dtype, temperature):
    audio = (300 * randn(5, 8)).to(dtype).requires_grad_()
    loss = nt_xent(audio, (300 * randn(5, 8, seed=1)).to(dtype), temperature, torch.tensor([0, 0, 1, 2, 2]))
    loss.backward()
    assert loss.isfinite()
    assert audio.grad.isfinite().all()


def test_cosine_and_posterior():
    query, candidates = torch.tensor([[3.0, 4.0]]), torch.tensor([[30.0, 40.0], [-4.0, 3.0], [-3.0, -4.0]])
    cosine = cosine_similarity(query, candidates)
    assert cosine.numpy() == pytest.approx(np.array([[1.0, 0.0, -1.0]]), abs=1e-6)
    weights = np.exp([2.0, 0.0, -2.0])
    assert posterior(cosine, 0.5).numpy() == pytest.approx(weights[None] / weights.sum())


def test_generation_loss_is_the_finite_kullback_leibler_divergence():
    logits = randn(4, 5)
    x0_hat = logits.softmax(1).numpy()
    one_hot = torch.eye(5, dtype=torch.float64)[[2, 0, 4, 4]]
    expected = -np.log(x0_hat[range(4), [2, 0, 4, 4]]).mean()
    assert generation_loss(logits, torch.tensor([2, 0, 4, 4])).item() == pytest.approx(expected)
    assert generation_loss(logits, one_hot).item() == pytest.approx(expected)
    x0 = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.2, 0.3, 0.5], [1, 0, 0, 0, 0], [0.2] * 5], dtype=torch.float64).numpy()
    divergence = sum(p * math.log(p / q) for p, q in zip(x0.ravel(), x0_hat.ravel(), strict=True) if p > 0) / 4
    assert generation_loss(logits, torch.from_numpy(x0)).item() == pytest.approx(divergence)
    assert generation_loss(logits.log_softmax(1), logits.softmax(1)).item() == pytest.approx(0, abs=1e-12)
    assert generation_loss(torch.tensor([[6e4, -6e4]], dtype=torch.float16), torch.tensor([1])).isfinite()


def test_what_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(randn(2, 3), randn(2, 3), 0.0)
    with pytest.raises(ValueError, match="same shape"):
        nt_xent(randn(2, 3), randn(3, 3), 0.1)
    for target in (torch.zeros(2, 3), torch.zeros(3), torch.zeros(4, 5, dtype=torch.long)):
        with pytest.raises(ValueError, match="target"):
            generation_loss(randn(4, 5), target)
