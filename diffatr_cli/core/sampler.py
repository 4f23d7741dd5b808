"""DDIM sampling of x_0 from noise (Eq. 3, the denoiser in a loop): the plain loop, and the factored one that equals it.

B batch, N candidates, D embedding size, H hidden width, K chain length, S sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from . import rough
from .algebra import Factors, Halves, PreparedCandidates
from .chain import Chain, Levels, OnStep, predicted_x0
from .denoiser import AttentionDenoiser
from .factored import FactoredDenoiser
from .focused import sample_focused
from .fused import distribution, takes_coarse
from .recorded import Work
from .sampling import X0
from .schedule import NoiseSchedule
from .threads import parallel_for

Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (x_k, level, query, candidates) -> logits
Noise = Tensor | Callable[[int], Tensor]


def ddim_levels(chain: int, steps: int | None) -> list[int]:
    """The noise level indices that a sampler of `steps` steps visits: evenly spaced from chain - 1 down to 0.

    One step visits only the last level.

    Raises:
        ValueError: not 1 <= steps <= chain.
    """
    steps = chain if steps is None else steps
    if not 1 <= steps <= chain:
        raise ValueError(f"steps must lie between 1 and the chain's length, {chain}, got {steps}")
    return [chain - 1 - i * (chain - 1) // max(steps - 1, 1) for i in range(steps)]


def ddim_coefficients(schedule: NoiseSchedule, level: int, following: int, eta: float) -> tuple[float, float, float]:
    """One DDIM step (Song et al. 2020, Eq. 12) from `level` to `following`: x <- a x0_hat + b x + c noise; returns a, b, c.

    The noise that x_k holds, (x_k - sqrt(acp_k) s x0_hat) / sqrt(1 - acp_k) with s the schedule's `x0_scale`, is put in, which
    leaves three coefficients.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    acp, acp_next = schedule.alphas_cumprod[level].item(), schedule.alphas_cumprod[following].item()
    sigma = eta * ((1 - acp_next) / (1 - acp) * (1 - acp / acp_next)) ** 0.5
    kept = ((1 - acp_next - sigma**2) / (1 - acp)) ** 0.5
    return schedule.x0_scale * (acp_next**0.5 - kept * acp**0.5), kept, sigma


def _noise_source(noise: Noise | None, generator: torch.Generator | None, like: Tensor, n: int) -> Callable[[int], Tensor]:
    """The noise of step i, (B, N) in the type and on the device of the queries `like`."""
    shape = (len(like), n)

    def draw(i: int) -> Tensor:
        if callable(noise):
            drawn = noise(i)
        elif noise is not None and i == 0:
            drawn = noise
        else:
            device = like.device if generator is None else generator.device
            drawn = torch.randn(shape, generator=generator, device=device, dtype=like.dtype)
        if drawn.shape != shape:
            raise ValueError(f"the noise of {shape[0]} queries and {shape[1]} candidates is {shape}, got {tuple(drawn.shape)}")
        return drawn.to(like)

    return draw


@torch.no_grad()
def ddim_sample(
    denoiser: Denoise,
    query: Tensor,
    candidates: Tensor,
    schedule: NoiseSchedule,
    steps: int | None = None,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
    x0: X0 = "softmax",
    on_step: OnStep | None = None,
    feedback: float = 0.0,
) -> Tensor:
    """Eq. 3: x = f_phi(a, t, N(0, I)), by DDIM (Song et al. 2020). The plain loop, which `fast_ddim_sample` must equal.

    Args:
        denoiser: any callable (x_k, level, query, candidates) -> logits of x0_hat, (B, N).
        query: (B, D).
        candidates: (N, D), or (B, N, D), one set a query.
        schedule: of K levels.
        steps: levels visited, evenly spaced; None visits all K.
        eta: 0 is deterministic, 1 ancestral sampling.
        noise: the start noise (B, N), or a function of i that gives it for i = 0 and, with eta > 0, the noise to add after
            step i for i >= 1.
        generator: source of the noise that `noise` does not give; None is torch's global one.
        x0: how logits become x0_hat.
        on_step: called at every level with (level index, x_k, x0_hat).
        feedback: times x0_hat of the step before, it is added to the x_k that the denoiser gets (`AttentionDenoiser.feedback`).

    Returns:
        x0_hat of the last step, (B, N).

    Raises:
        ValueError: steps or eta out of range, or noise of another shape.
    """
    levels = ddim_levels(len(schedule), steps)
    coefficients = [ddim_coefficients(schedule, *pair, eta) for pair in pairwise(levels)]
    draw = _noise_source(noise, generator, query, candidates.shape[-2])
    x = draw(0)
    x0_hat = torch.zeros_like(x)
    for i, level in enumerate(levels):
        shown = x + feedback * x0_hat if feedback else x
        x0_hat = predicted_x0(denoiser(shown, torch.full((len(query),), level, device=query.device), query, candidates), x0)
        if on_step is not None:
            on_step(level, x, x0_hat)
        if i + 1 < len(levels):
            a, b, c = coefficients[i]
            x = a * x0_hat + b * x
            if c > 0:
                x = x + c * draw(i + 1)
    return x0_hat


BLOCK_ENTRIES = 2**18  # of a (queries, candidates) array of the fast sampler: small enough for the caches
GPU_ENTRIES = 2**22  # the same on a GPU, which small blocks leave idle
BLOCK_QUERIES = 32  # at least, however many candidates: fewer make matrix products slow
OWN_ENTRIES = 2**20  # of the (queries, candidates, D) embeddings held at a time where queries have candidates of their own


@torch.no_grad()
def fast_ddim_sample(
    denoiser: AttentionDenoiser | Factors,
    query: Tensor,
    candidates: Tensor | PreparedCandidates,
    schedule: NoiseSchedule,
    steps: int | None = None,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
    x0: X0 = "softmax",
    on_step: OnStep | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`ddim_sample` of an `AttentionDenoiser` by the algebra of `Factors`: the same result up to rounding.

    Queries go through in blocks, so that working memory beside the (B, N) result stays bounded; with eta > 0 or `on_step`
    all go in one block, since noise is drawn and steps are shown for all of them at once.

    Args:
        denoiser: plain, or multiplied out once for many calls.
        candidates: as in `ddim_sample`, or (N, D) prepared once by `FactoredDenoiser(denoiser).prepare` for many calls, which
            then take the weights from there.
        shift: (B, N), added to the logits at every step, with candidates (B, N, D) alone; None adds nothing.

    The other arguments, the result and the errors are those of `ddim_sample`.
    """
    shared: PreparedCandidates | None = None
    if isinstance(candidates, PreparedCandidates):
        shared, factors, embeddings = candidates, candidates.factors, candidates.candidates
    else:
        factors = denoiser if isinstance(denoiser, Factors) else FactoredDenoiser(denoiser)
        embeddings = candidates
        if candidates.ndim == 2:
            shared = factors.prepare(candidates)
    if shared and shift is not None:
        raise ValueError("a shift of the logits is each query's own, and so must its candidates be: (B, N, D)")
    n = embeddings.shape[-2]
    visited = ddim_levels(len(schedule), steps)
    coefficients = [ddim_coefficients(schedule, *pair, eta) for pair in pairwise(visited)]
    chain = Chain(visited, coefficients, x0, on_step)
    query = query.to(factors.dtype)
    draw = _noise_source(noise, generator, query, n)

    start = draw(0)
    levels = Levels.of(factors, visited, query.device)
    alone = len(query) == 1 and query.device.type == "cpu"  # then `_sample_block` finds out whether it needs them
    shifts = None if shared is None or alone else levels.attended @ shared.candidates.mT
    if shared and factors.neighbour_feedback is not None:
        _ = shared.neighbours  # once, before several threads ask for them
    coarse = shared is not None and x0 == "softmax" and factors.output == "decoder"
    halves = shared.halves if shared and coarse and takes_coarse(shared.candidate_hidden, len(query)) else None
    together = eta > 0 or on_step is not None
    if together:
        rows = max(1, len(query))
    else:
        entries = BLOCK_ENTRIES if query.device.type == "cpu" else GPU_ENTRIES
        rows = max(BLOCK_QUERIES, entries // max(n, 1)) if shared else max(1, OWN_ENTRIES // max(n * query.shape[1], 1))
    out = torch.empty_like(start)

    def over_shared(query: Tensor, x: Tensor) -> Tensor:
        assert shared is not None
        return _sample_block(shared, query, x, chain, levels, shifts, draw, halves)

    def over_own(candidates: Tensor, query: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return _sample_block(factors.prepare(candidates, shift), query, x, chain, levels, None, draw)

    # Without a look at values on the way, a GPU can replay a block that it has been through.
    replays = replays_on(query.device) and not together and (shared is not None or factors.neighbour_feedback is None)
    kind = tuple(visited), tuple(coefficients), x0

    reads = (*levels.tensors, *([] if shifts is None else [shifts]))

    def run(work: Work, *inputs: Tensor) -> Tensor:
        return (shared or factors).recordings.run(kind, work, *inputs, reads=reads) if replays else work(*inputs)

    def sample(first: int) -> None:
        part = slice(first, first + rows)
        if shared:
            out[part] = run(over_shared, query[None, part], start[None, part])[0]
        else:
            own = [embeddings[part].to(factors.dtype), query[part, None], start[part, None]]
            out[part] = run(over_own, *own, *([] if shift is None else [shift[part, None]]))[:, 0]

    blocks = range(0, len(query), rows)
    if query.device.type == "cpu":
        parallel_for(sample, blocks)
    else:
        for first in blocks:
            sample(first)
    return out


def replays_on(device: torch.device) -> bool:
    """Whether a device can replay what was done on it once (`recorded`)."""
    return device.type == "cuda"


def _one_of_many(part: PreparedCandidates, x: Tensor, chain: Chain) -> bool:
    """Whether start noise (G, T, N) belongs to one query over many candidates, and nobody asks for x_k of all of them.

    They are asked for where steps are shown, where noise is added, and where they spread to neighbours.
    """
    return (
        x.device.type == "cpu"
        and x.numel() == x.shape[2] >= rough.MANY
        and chain.on_step is None
        and all(c == 0 for *_, c in chain.coefficients)
        and part.factors.neighbour_feedback is None
        and part.shift is None
    )


def _sample_block(
    part: PreparedCandidates,
    query: Tensor,
    x: Tensor,
    chain: Chain,
    levels: Levels,
    shifts: Tensor | None,
    draw: Callable[[int], Tensor],
    halves: Halves | None = None,
) -> Tensor:
    """The loop of `ddim_sample`, factored: queries (G, T, D) and start noise (G, T, N) -> x0_hat (G, T, N).

    `shifts`: A l . c_i, (G, S, N), where they are known. `halves`: what the tables are read from, where they suffice.
    """
    factors, candidates = part.factors, part.candidates
    roughly: rough.RoughX0 | None = None
    if _one_of_many(part, x, chain):
        found = sample_focused(part, query[0, 0], x[0, 0], chain, levels)
        if found is not None:
            return found[None, None]
        coarse = rough.coarse_of(part, len(chain.levels)) if chain.x0 == "softmax" else None
        roughly = rough.RoughX0(part, coarse) if coarse else None
    of_query = factors.attend(query)
    similarity = of_query @ candidates.mT  # (G, T, N)
    shifts = levels.attended @ candidates.mT if shifts is None else shifts
    dropped = of_query @ levels.embeddings.mT + levels.dropped  # (G, T, S)
    # Candidates go through the context once each, or their mean at each step, whichever is less work.
    visits, dim, hidden = len(chain.levels) * x.shape[1], candidates.shape[2], part.candidate_hidden.shape[2]
    projected = visits * x.shape[2] * hidden + x.shape[2] * dim * hidden < visits * dim * (x.shape[2] + hidden)
    embeddings = levels.contexts if projected else levels.embeddings
    x0_hat = torch.zeros_like(x)
    for i, level in enumerate(chain.levels):
        shown = x + factors.feedback * x0_hat if factors.feedback and i else x
        attention = (similarity + part.fed_back(shown)).add_(shifts[:, i, None])
        told, last = part.hidden(attention, embeddings[i], projected, halves), i + 1 == len(chain.levels)
        gain = 0.0 if last else max(abs(chain.coefficients[i][0]), abs(factors.feedback))
        near = roughly(told, attention, dropped[..., i], gain) if roughly and not last else None
        if near is None:
            roughly = None  # it is no use trying again
            logits = part.decoded(told, attention, dropped[..., i], halves)
            near = distribution(logits) if chain.x0 == "softmax" else predicted_x0(logits, chain.x0)
        x0_hat = near
        if chain.on_step is not None:
            chain.on_step(level, x.flatten(0, 1), x0_hat.flatten(0, 1))
        if not last:
            a, b, c = chain.coefficients[i]
            x = (b * x).add_(x0_hat, alpha=a)
            if c > 0:
                x.add_(draw(i + 1).view_as(x), alpha=c)
    return x0_hat
