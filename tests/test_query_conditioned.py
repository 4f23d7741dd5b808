"""Candidates as the query sees them, against the definition written out in loops, and inside the paper's denoiser and sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from diffatr_cli.core import query_conditioned
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.losses import generation_loss
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.query_conditioned import Padded, QueryConditioner, each_of
from diffatr_cli.core.sampler import ddim_sample, fast_ddim_sample
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.types import DIRECTIONS, Direction

H, F, D, W = 6, 5, 8, 4


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioner(seed: int = 1) -> QueryConditioner:
    """In float64, off its start at zero: every term counts."""
    made = QueryConditioner(H, F, D, W, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.add_(0.5 * randn(*parameter.shape, seed=10 + i))
    return made


def padded(lengths: list[int], features: int, seed: int, filler: float = 0.0, longer: int = 0) -> Padded:
    """Random states of these lengths; the padding, `longer` than it need be, holds `filler`."""
    longest = max(lengths) + longer
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    states = torch.full((len(lengths), longest, features), filler, dtype=torch.float64)
    for i, length in enumerate(lengths):
        states[i, :length] = randn(length, features, seed=100 * seed + i)
    return Padded(states, mask)


def reference(made: QueryConditioner, tokens: Padded, frames: Padded) -> np.ndarray:
    """e of every caption with every clip, token by token and frame by frame: (B, N, D)."""
    state = {name: tensor.numpy() for name, tensor in made.state_dict().items()}

    def softmax(values: list[float]) -> np.ndarray:
        powers = np.exp(np.array(values) - max(values))
        return powers / powers.sum()

    captions = [s[m].numpy() for s, m in zip(tokens.states, tokens.mask, strict=True)]
    clips = [s[m].numpy() for s, m in zip(frames.states, frames.mask, strict=True)]
    e = np.zeros((len(captions), len(clips), D))
    for b, caption in enumerate(captions):
        for n, clip in enumerate(clips):
            if not len(caption) or not len(clip):
                continue
            weights = softmax([float(state["weigh.weight"][0] @ u) for u in caption])
            products, gots, bests = np.zeros(W), np.zeros(W), np.zeros(W)
            for w, u in zip(weights, caption, strict=True):
                s = [float((state["w_q.weight"] @ u) @ (state["w_k.weight"] @ f)) / np.sqrt(W) for f in clip]
                got = sum(share * (state["w_v.weight"] @ f) for share, f in zip(softmax(s), clip, strict=True))
                v = state["w_u.weight"] @ u
                products, gots, bests = products + w * v * got, gots + w * got, bests + w * max(s) * v
            h = np.concatenate([products, gots, bests])
            h = (h - h.mean()) / np.sqrt(h.var() + 1e-5) * state["norm.weight"] + state["norm.bias"]
            hidden = np.maximum(state["inner.weight"] @ h + state["inner.bias"], 0)
            e[b, n] = state["outer.weight"] @ hidden + state["outer.bias"]
    return e


def e_of(made: QueryConditioner, tokens: Padded, frames: Padded) -> torch.Tensor:
    projected = made.project_tokens(tokens), made.project_frames(frames)
    return made(*(each_of(each, lambda part: part[None]) for each in projected))[0]


lengths = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)


@settings(max_examples=40)
@given(lengths, lengths, st.sampled_from([0.0, 1e6, float("inf"), float("nan")]), st.integers(0, 3))
def test_pairs_are_the_definition_whatever_stands_in_the_padding(
    tokens: list[int], frames: list[int], filler: float, longer: int
) -> None:
    made, plain = conditioner(), (padded(tokens, H, 1), padded(frames, F, 2))
    with torch.no_grad():
        got = e_of(made, padded(tokens, H, 1, filler, longer), padded(frames, F, 2, filler, longer))
        np.testing.assert_allclose(got.numpy(), reference(made, *plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("entries", [1, 30, 10**6])
@pytest.mark.parametrize("groups", [1, 3])
def test_products_a_few_clips_at_a_time_have_the_gradients_of_all_at_once(
    entries: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_conditioned, "GOT_ENTRIES", entries)
    inputs = [randn(groups, 2 * 3, 5, 4), randn(groups, 5, 4, W, seed=1), randn(groups, 2, 3, W, seed=2)]
    shares, values, weighted = (each.requires_grad_() for each in inputs)
    got = torch.einsum("gkntx,gntw->gknw", shares.unsqueeze(-1), values)
    expected = (got.unflatten(1, (2, 3)) * weighted[:, :, :, None]).sum(2)
    found = query_conditioned.weighted_products(shares, values, weighted)
    torch.testing.assert_close(found, expected)
    seed = randn(*expected.shape, seed=3)
    leaves = [shares, values, weighted]
    torch.testing.assert_close(torch.autograd.grad(found, leaves, seed), torch.autograd.grad(expected, leaves, seed))


def test_one_token_and_one_frame() -> None:
    """All softmaxes are one: what is left is three products of two vectors."""
    made, tokens, frames = conditioner(), padded([1], H, 1), padded([1], F, 2)
    u, f = tokens.states[0, 0], frames.states[0, 0]
    v, got, s = made.w_u(u), made.w_v(f), made.w_q(u) @ made.w_k(f) / W**0.5
    expected = made.outer(made.inner(made.norm(torch.cat([v * got, got, s * v]))).relu())
    torch.testing.assert_close(e_of(made, tokens, frames)[0, 0], expected)


def sides(direction: Direction, of_captions: Padded, of_clips: Padded) -> tuple[Padded, Padded]:
    """Query and candidates of a direction."""
    return (of_captions, of_clips) if direction == "t2a" else (of_clips, of_captions)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_both_directions_have_the_pairs_of_caption_and_clip(direction: Direction) -> None:
    """A clip that asks sees in a caption what that caption finds in the clip; candidates of one's own as shared ones."""
    made, captions, clips = conditioner(), padded([3, 1, 4], H, 1), padded([2, 5], F, 2)
    expected = torch.from_numpy(reference(made, captions, clips))
    if direction == "a2t":
        expected = expected.transpose(0, 1)
    query, candidates = made.project(direction, *sides(direction, captions, clips))
    vectors = randn(expected.shape[1], D, seed=3)
    with torch.no_grad():
        seen, shift = made.see(direction, query, candidates, vectors, 2.0)
        torch.testing.assert_close(seen, vectors + expected / 2)
        torch.testing.assert_close(shift, expected @ made.logit.weight[0])
        chosen = torch.tensor([[1, 0], [0, 1], [1, 1]])[: len(expected)].clamp(max=len(vectors) - 1)
        own = made.see(direction, query, each_of(candidates, lambda part: part[chosen]), vectors[chosen], 2.0)
    rows = torch.arange(len(expected))[:, None]
    torch.testing.assert_close(own, (seen[rows, chosen], shift[rows, chosen]))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("output", ["decoder", "add_logit"])
def test_it_starts_as_the_plain_denoiser(direction: Direction, output: str) -> None:
    made = QueryConditioner(H, F, D, W, torch.Generator().manual_seed(0)).double()
    denoiser = AttentionDenoiser(D, 10, output=output, generator=torch.Generator().manual_seed(1)).double()  # type: ignore[arg-type]
    captions, clips = padded([3, 1, 4], H, 1), padded([2, 5, 1], F, 2)
    query, candidates = made.project(direction, *sides(direction, captions, clips))
    vectors, asking = normalize(randn(3, D, seed=3), dim=1), normalize(randn(3, D, seed=4), dim=1)
    seen, shift = made.see(direction, query, candidates, vectors, denoiser.input_scale)
    x_k, level = randn(3, 3, seed=5), torch.tensor([0, 7, 40])
    plain = denoiser(x_k, level, asking, vectors)
    torch.testing.assert_close(denoiser(x_k, level, asking, seen, shift), plain)
    torch.testing.assert_close(denoiser.factored_forward(x_k, level, asking, seen, shift), plain)


@pytest.mark.parametrize("output", ["decoder", "add_weight", "add_logit"])
def test_the_denoiser_gets_s_c_plus_e_and_the_shift(output: str) -> None:
    """As printed, with [s c + e] in the place of s c, by the definition: the printed form on vectors that are scaled already."""
    made, captions, clips = conditioner(), padded([3, 1], H, 1), padded([2, 5, 3], F, 2)
    options = {"dim": D, "hidden": 10, "output": output, "temperature": 0.5}
    denoiser = AttentionDenoiser(**options, generator=torch.Generator().manual_seed(1)).double()  # type: ignore[arg-type]
    unscaled = AttentionDenoiser(**options, input_scale="none").double()  # type: ignore[arg-type]
    unscaled.load_state_dict(denoiser.state_dict())
    vectors, asking = normalize(randn(3, D, seed=3), dim=1), normalize(randn(2, D, seed=4), dim=1)
    e = torch.from_numpy(reference(made, captions, clips))
    x_k, level = randn(2, 3, seed=5), torch.tensor([3, 40])
    expected = unscaled(x_k, level, D**0.5 * asking, D**0.5 * vectors + e) + e @ made.logit.weight[0]
    seen, shift = made.see("t2a", *made.project("t2a", captions, clips), vectors, denoiser.input_scale)
    torch.testing.assert_close(denoiser(x_k, level, asking, seen, shift), expected)
    torch.testing.assert_close(denoiser.factored_forward(x_k, level, asking, seen, shift), expected)


@pytest.mark.parametrize("output", ["decoder", "add_weight", "add_logit"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_fast_sampler_equals_the_plain_loop(output: str, eta: float) -> None:
    denoiser = AttentionDenoiser(D, 10, output=output, generator=torch.Generator().manual_seed(1)).double()  # type: ignore[arg-type]
    asking, own, shift = normalize(randn(4, D), dim=1), randn(4, 6, D, seed=1), randn(4, 6, seed=2)
    schedule, noise = NoiseSchedule.cosine(12), query_noise(1, range(4), 6)

    def shifted(x_k: torch.Tensor, level: torch.Tensor, query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = denoiser(x_k, level, query, candidates)
        return logits + shift

    plain = ddim_sample(shifted, asking, own, schedule, 5, eta, noise)
    fast = fast_ddim_sample(denoiser, asking, own, schedule, 5, eta, noise, shift=shift)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    assert not torch.allclose(fast, fast_ddim_sample(denoiser, asking, own, schedule, 5, eta, noise))
    with pytest.raises(ValueError, match="must its candidates be"):
        fast_ddim_sample(denoiser, asking, own[0], schedule, 5, eta, noise, shift=shift)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_it_learns_what_the_vectors_do_not_tell(direction: Direction) -> None:
    """Captions and clips whose vectors are all alike, and whose first token and last frame say who belongs to whom."""
    torch.manual_seed(0)
    made = QueryConditioner(8, 8, D, 16)
    denoiser = AttentionDenoiser(D, 16, output="add_logit")
    captions = Padded(torch.randn(8, 3, 8), torch.ones(8, 3, dtype=torch.bool))
    clips = Padded(torch.randn(8, 4, 8), torch.ones(8, 4, dtype=torch.bool))
    captions.states[:, 0], clips.states[:, 3] = 4 * torch.eye(8), 4 * torch.eye(8)
    alike = torch.ones(8, D) / D**0.5
    parameters = [*made.parameters(), *denoiser.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(150):
        seen, shift = made.see(
            direction, *made.project(direction, *sides(direction, captions, clips)), alike, denoiser.input_scale
        )
        logits = denoiser.factored_forward(torch.zeros(8, 8), torch.zeros(8, dtype=torch.long), alike, seen, shift)
        loss = generation_loss(logits, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(8), abs=1e-3)
    assert losses[-1] < 0.1
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


def test_it_runs_under_autocast_near_its_own_result() -> None:
    """bf16 has three digits."""
    made, captions, clips = conditioner().float(), padded([3, 1], H, 1), padded([2, 5, 0], F, 2)
    captions, clips = (Padded(each.states.float(), each.mask) for each in (captions, clips))
    projected = made.project("t2a", captions, clips)
    plain = made.see("t2a", *projected, torch.zeros(3, D), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made.see("t2a", *made.project("t2a", captions, clips), torch.zeros(3, D), 1.0)
    for one, other in zip(plain, rounded, strict=True):
        assert (one - other.float()).norm() < 0.05 * one.norm()
