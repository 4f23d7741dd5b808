import itertools
from dataclasses import asdict
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from other_device import OtherDevice
from torch.nn.functional import normalize

from diffatr_cli.core import fused
from diffatr_cli.core.denoiser import AttentionDenoiser, DenoiserConfig, DenoiserOptions
from diffatr_cli.core.losses import generation_loss
from diffatr_cli.phase_two import build_denoiser
from diffatr_cli.recipe_schema import DiffusionSection, ModelSection, Recipe

ALL_OPTIONS = list(
    itertools.product(
        ("decoder", "add_weight", "add_logit"), ("none", "sqrt_dim"), ("sqrt_dim", "none"), ("similarity", "random")
    )
)
"""output, attention_scale, input_scale, init."""


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scattered(**options):
    """A denoiser in float64, off its special start: every term counts."""
    denoiser = AttentionDenoiser(temperature=0.3, generator=torch.Generator().manual_seed(1), **options).double()
    with torch.no_grad():
        for i, parameter in enumerate(denoiser.parameters()):
            parameter.add_(0.3 * randn(*parameter.shape, seed=i))
    return denoiser


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
    denoiser = scattered(dim=dim, hidden=5, init=init, attention_scale=attention_scale, output=output, input_scale=input_scale)
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
        64,
        8,
        temperature=temperature,
        attention_scale=attention_scale,
        output="add_logit",
        input_scale=input_scale,
        generator=torch.Generator().manual_seed(0),
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


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids="-".join)
def test_the_algebra_has_the_logits_and_gradients_of_the_printed_form(options, shared, compiled, monkeypatch):
    """For the weights, and for queries and candidates, which the encoders learn by where they are trained with the denoiser."""
    monkeypatch.setattr(fused, "SMALL_TRAINING", 0 if compiled else 2**60)
    output, attention_scale, input_scale, init = options
    denoiser = scattered(dim=6, hidden=5, output=output, attention_scale=attention_scale, input_scale=input_scale, init=init)
    inputs = randn(3, 4), randn(3, 6, seed=1), randn(*((4, 6) if shared else (3, 4, 6)), seed=2)
    x_k, query, candidates = (tensor.double().requires_grad_() for tensor in inputs)
    leaves = {**dict(denoiser.named_parameters()), "x_k": x_k, "query": query, "candidates": candidates}
    answers = []
    for run in (denoiser.forward, denoiser.factored_forward):
        logits = run(x_k, torch.tensor([0, 3, 49]), query, candidates)
        gradients = torch.autograd.grad((logits * randn(3, 4, seed=3)).sum(), list(leaves.values()))
        answers.append((logits.detach(), dict(zip(leaves, gradients, strict=True))))
    assert all(gradient.abs().max() > 0 for gradient in answers[0][1].values())
    torch.testing.assert_close(*answers, atol=1e-9, rtol=1e-9)


def test_the_algebra_under_autocast_is_near_the_printed_form():
    """bf16 has three digits."""
    denoiser = AttentionDenoiser(32, 40, output="add_weight", temperature=0.5, generator=torch.Generator().manual_seed(0))
    args = randn(8, 9), torch.arange(8), normalize(randn(8, 32, seed=1)), normalize(randn(9, 32, seed=2))
    with torch.autocast("cpu", torch.bfloat16):
        got = denoiser.factored_forward(*args)
    torch.testing.assert_close(got.float(), denoiser(*args), atol=0.03, rtol=0)


def test_it_trains_on_a_device_that_is_neither_cpu_nor_cuda(monkeypatch):
    monkeypatch.setattr(fused, "SMALL_TRAINING", 0)
    denoiser = AttentionDenoiser(6, 5).to("meta")
    x_k, level, query, candidates = (tensor.to("meta") for tensor in (randn(3, 4), torch.arange(3), randn(3, 6), randn(4, 6)))
    with OtherDevice():
        denoiser.factored_forward(x_k, level, query, candidates).sum().backward()
    assert all(p.grad.shape == p.shape for p in denoiser.parameters())


# Its options, which stand in `DenoiserConfig`


def test_a_recipe_and_a_caller_can_say_what_a_config_can_hold():
    """Names and values alike: a type checker reads `DenoiserOptions`, pydantic the recipe's sections."""
    types = get_type_hints(DenoiserConfig)
    assert get_type_hints(DenoiserOptions) == {name: kind for name, kind in types.items() if name not in ("dim", "hidden")}
    model, diffusion = ModelSection.model_fields, DiffusionSection.model_fields
    for name, kind in types.items():
        assert (name in model) + (name in diffusion) == 1
        if get_origin(kind) is Literal:
            assert set(get_args(diffusion[name].annotation)) == set(get_args(kind))


def test_every_option_reaches_the_denoiser_from_the_recipe():
    said = DenoiserConfig(16, 24, 0.3, "random", "sqrt_dim", "add_logit", "none", self_conditioning=True, feedback="neighbours")
    plain = DenoiserConfig(
        *(getattr(section, name) for section, name in ((Recipe().model, "dim"), (Recipe().diffusion, "hidden")))
    )
    recipe = Recipe(
        model=ModelSection(dim=said.dim, temperature=said.temperature),
        diffusion=DiffusionSection(
            hidden=said.hidden,
            init=said.init,
            attention_scale=said.attention_scale,
            output=said.output,
            input_scale=said.input_scale,
            self_conditioning=said.self_conditioning,
            feedback=said.feedback,
        ),
    )
    assert all(a != b for a, b in zip(asdict(said).values(), asdict(plain).values(), strict=True))
    assert build_denoiser(recipe.model, recipe.diffusion).config == said
    assert build_denoiser(Recipe().model, Recipe().diffusion).config == plain
