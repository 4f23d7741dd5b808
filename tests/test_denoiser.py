from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diffatr_cli.core import kernels, pairwise
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.losses import generation_loss


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(denoiser, x_k, level, query, candidates):
    """Section 2.2.1 row by row in float64, from the state dict."""
    config, state = denoiser.config, {k: v.double().numpy() for k, v in denoiser.state_dict().items()}
    dim, rows = config.dim, []
    scale = np.sqrt(dim) if config.input_scale == "sqrt_dim" else 1.0
    for x, k, q, cs in zip(
        x_k.double().numpy(), level.tolist(), query.double().numpy(), candidates.double().numpy(), strict=True
    ):
        half = (dim + 1) // 2
        angles = k * np.exp(-np.log(10000) * np.arange(half) / half)
        inner = state["level.inner.weight"] @ np.concatenate([np.sin(angles), np.cos(angles)]) + state["level.inner.bias"]
        pj = state["level.outer.weight"] @ (inner / (1 + np.exp(-inner))) + state["level.outer.bias"]
        cs = cs * scale
        logits = (cs + pj) @ state["w_k.weight"].T @ (state["w_q.weight"] @ (q * scale + pj))
        logits = logits / (np.sqrt(dim) if config.attention_scale == "sqrt_dim" else 1.0) + x
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        e_t = sum(w * (state["w_v.weight"] @ (c + pj)) for w, c in zip(weights, cs, strict=True))
        out = []
        for c in cs:
            hidden = np.maximum(state["decoder.0.weight"] @ np.concatenate([c, e_t]) + state["decoder.0.bias"], 0)
            out.append(state["decoder.2.weight"][0] @ hidden + state["decoder.2.bias"][0])
        rows.append(np.array(out) + {"decoder": 0, "add_weight": weights, "add_logit": logits}[config.output])
    return np.array(rows)


@pytest.mark.parametrize("output", ["decoder", "add_weight", "add_logit"])
@pytest.mark.parametrize(("dim", "attention_scale", "input_scale"), [(6, "none", "sqrt_dim"), (7, "sqrt_dim", "none")])
@pytest.mark.parametrize("init", ["similarity", "random"])
def test_forward_is_the_papers_module(output, dim, attention_scale, input_scale, init):
    denoiser = AttentionDenoiser(
        dim, 5, 0.3, init, attention_scale, output, input_scale, generator=torch.Generator().manual_seed(1)
    ).double()
    with torch.no_grad():
        for i, parameter in enumerate(denoiser.parameters()):  # off the special start: every term must count
            parameter.add_(0.3 * randn(*parameter.shape, seed=i))
    x_k, query, candidates = randn(3, 4).double(), randn(3, dim, seed=1).double(), randn(3, 4, dim, seed=2).double()
    level = torch.tensor([0, 3, 199])
    got = denoiser(x_k, level, query, candidates).detach().numpy()
    assert got == pytest.approx(reference(denoiser, x_k, level, query, candidates), rel=1e-5, abs=1e-5)
    shared = denoiser(x_k, level, query, candidates[0])
    torch.testing.assert_close(shared, denoiser(x_k, level, query, candidates[:1].expand(3, -1, -1)))


@pytest.mark.parametrize("attention_scale", ["none", "sqrt_dim"])
@pytest.mark.parametrize("input_scale", ["none", "sqrt_dim"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_similarity_start_attends_by_the_contrastive_similarity(attention_scale, input_scale, temperature):
    """With add_logit and a silent decoder the output is Q K^T + x_k, so softmax of it must be near softmax(cosine / tau)."""
    denoiser = AttentionDenoiser(
        64, 8, temperature, "similarity", attention_scale, "add_logit", input_scale, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        denoiser.decoder[2].weight.zero_()
    query, candidates = normalize(randn(5, 64)), normalize(randn(9, 64, seed=1))
    got = denoiser(torch.zeros(5, 9), torch.arange(5), query, candidates).softmax(1)
    torch.testing.assert_close(got, (query @ candidates.T / temperature).softmax(1), atol=0.01, rtol=0)


def test_generator_decides_the_weights_and_the_config_rebuilds_them():
    first, again, other = (AttentionDenoiser(8, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    state = first.state_dict()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    assert not torch.equal(state["w_v.weight"], other.state_dict()["w_v.weight"])
    rebuilt = AttentionDenoiser(**asdict(first.config))
    rebuilt.load_state_dict(state)
    args = randn(2, 3), torch.tensor([0, 1]), randn(2, 8), randn(3, 8)
    assert torch.equal(first(*args), rebuilt(*args))


def test_every_weight_learns():
    """One gradient step lowers the generation loss and reaches every parameter, the level embedding's first layer too."""
    denoiser = AttentionDenoiser(16, 32, generator=torch.Generator().manual_seed(0))
    query = normalize(randn(8, 16))
    args = randn(8, 8), torch.arange(8), query, query
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=1e-3)
    loss = generation_loss(denoiser(*args), torch.arange(8))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in denoiser.parameters())
    optimizer.step()
    assert generation_loss(denoiser(*args), torch.arange(8)) < loss


@pytest.mark.parametrize("output", ["decoder", "add_weight", "add_logit"])
@pytest.mark.parametrize("attention_scale", ["none", "sqrt_dim"])
@pytest.mark.parametrize("shared", [True, False])
def test_multiplied_out_has_the_same_logits_and_gradients(output, attention_scale, shared):
    denoiser = AttentionDenoiser(6, 5, 0.3, "random", attention_scale, output).double()
    candidates = randn(*((4, 6) if shared else (3, 4, 6)), seed=2).double()
    x_k, level, query = randn(3, 4).double(), torch.tensor([0, 3, 49]), randn(3, 6, seed=1).double()
    answers = []
    for run in (denoiser.forward, denoiser.factored_forward):
        denoiser.zero_grad()
        logits = run(x_k, level, query, candidates)
        generation_loss(logits, torch.tensor([1, 0, 3])).backward()
        answers.append((logits.detach(), {name: p.grad.clone() for name, p in denoiser.named_parameters()}))
    torch.testing.assert_close(*answers, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_compiled_decoder_has_the_gradients_of_the_plain_one(groups, threads, autocast, monkeypatch):
    monkeypatch.setattr(pairwise, "SMALL", 0)
    monkeypatch.setattr(kernels, "SMALL", 0)
    table, hidden, weight = randn(groups, 7, 37), randn(groups, 5, 37, seed=1), randn(37, seed=2)
    slope = randn(groups, 5, 7, seed=3)

    plain = [tensor.double().requires_grad_() for tensor in (table, hidden, weight)]
    expected = (plain[0][:, None] + plain[1][:, :, None]).relu() @ plain[2]
    expected.backward(slope.double())

    leaves = [tensor.clone().requires_grad_() for tensor in (table, hidden, weight)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = pairwise.pairwise_decode(*leaves)
        value.backward(slope)
    torch.testing.assert_close(value, expected.float(), atol=1e-5, rtol=1e-5)
    for leaf, other in zip(leaves, plain, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad.float(), atol=1e-5, rtol=1e-5)
