"""Sampling x_0 over all candidates: the factored sampler against the plain loop, which calls the denoiser step by step.

D = H = 512. The denoisers are trained for a moment on made-up pairs, since how peaked x_0 is decides part of the cost. The
plain loop is timed on a slice of queries, candidates and steps and extrapolated, since its cost is proportional to each. The
operations of the factored sampler count as 6 QNH a step, beside a float32 matrix product's on the same threads.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffatr_cli.core import kernels
from diffatr_cli.core.denoiser import AttentionDenoiser
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.sampler import ddim_sample, fast_ddim_sample
from diffatr_cli.core.sampling import Sampling
from diffatr_cli.core.schedule import NoiseSchedule
from diffatr_cli.core.scoring import diffusion_score_blocks
from diffatr_cli.training.denoisers import denoising_loss

from .common import Case, Row, Size, median, medians, pick

STEPS = 50
AUDIOCAPS = {"tiny": (20, 4), "quick": (500, 100), "full": (4785, 957)}
"""Captions and clips of AudioCaps' test split."""


@dataclass(frozen=True)
class Task:
    """A denoiser with queries (Q, D) and candidates (N, D) for it."""

    denoiser: AttentionDenoiser
    query: Tensor
    candidates: Tensor
    schedule: NoiseSchedule


def make_task(size: Size, queries: int, n: int, chain: int = STEPS, device: str = "cpu") -> Task:
    """Unit vectors, each query near one candidate, and a denoiser trained to find it."""
    dim = pick(size, 16, 512, 512)
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(n, dim, generator=generator)
    candidates /= candidates.norm(dim=1, keepdim=True)

    def near(true: Tensor) -> Tensor:
        return functional.normalize(true + 0.8 * torch.randn(true.shape, generator=generator) / dim**0.5, dim=1)

    denoiser, schedule = AttentionDenoiser(dim, dim, generator=generator).to(device), NoiseSchedule.cosine(chain)
    optimizer, x_0 = torch.optim.AdamW(denoiser.parameters(), lr=1e-3), torch.eye(32, device=device)
    for _ in range(pick(size, 2, 50, 200)):
        true = functional.normalize(torch.randn(32, dim, generator=generator), dim=1)
        optimizer.zero_grad()
        denoising_loss(denoiser, schedule, near(true).to(device), true.to(device), x_0, generator).backward()
        optimizer.step()
    query = near(candidates[torch.arange(queries) % n])
    return Task(denoiser.eval(), query.to(device), candidates.to(device), schedule)


def plain_loop(task: Task, steps: int, size: Size, device: str = "cpu", most_steps: int = 10) -> tuple[float, str]:
    """Seconds of `ddim_sample` over the whole task, extrapolated from a slice large enough to run at full speed; and of what."""
    pairs = 5_000 if device == "cpu" else 250_000
    whole = len(task.query), len(task.candidates), steps
    n = min(whole[1], pairs)
    q, k = min(whole[0], pairs // n), min(steps, most_steps)
    arguments = task.denoiser, task.query[:q], task.candidates[:n], task.schedule, k
    measured = median(lambda: ddim_sample(*arguments), pick(size, 1, 1, 3), device)
    return measured * (whole[0] / q) * (whole[1] / n) * (whole[2] / k), f"plain: from {q} x {n:,}, {k} steps"


def score_all(task: Task) -> None:
    """x0_hat of every query over all candidates, block by block, noise and preparation included."""
    prepared = FactoredDenoiser(task.denoiser).prepare(task.candidates)
    for _ in diffusion_score_blocks(task.query, prepared, task.schedule, Sampling()):
        pass


def audiocaps(size: Size, device: str = "cpu") -> list[Row]:
    """Every caption against every clip and the other way round, from embeddings to x0_hat."""
    captions, clips = AUDIOCAPS[size]
    rows, rounds = [], pick(size, 1, 2, 3)
    for queries, n in ((captions, clips), (clips, captions)):
        task = make_task(size, queries, n, device=device)
        fast = median(partial(score_all, task), rounds, device)
        plain, remark = plain_loop(task, STEPS, size, device, STEPS)
        what = f"{queries:,} {'captions' if queries == captions else 'clips'} over {n:,}, {STEPS} steps"
        rows.append(Row(what, fast, plain, remark=remark))
    plain = sum(row.plain or 0 for row in rows)
    goal = "goal: within 30 s, and at least 1000 times the plain loop, on two cores" if device == "cpu" else ""
    return [*rows, Row("both directions", sum(row.fast for row in rows), plain, goal=goal)]


def operations(size: Size, device: str = "cpu") -> list[Row]:
    """Operations a second of a thousand queries over a thousand candidates, and of a matrix product, in turns."""
    q = pick(size, 20, 200, 1000)
    task = make_task(size, q, q, device=device)
    prepared = FactoredDenoiser(task.denoiser).prepare(task.candidates)
    noise = torch.randn(q, q, device=device)
    square = torch.randn(2, *[pick(size, 64, 1024, 2048 if device == "cpu" else 8192)] * 2, device=device)
    arguments = task.denoiser, task.query, prepared, task.schedule
    ways = {"fast": lambda: fast_ddim_sample(*arguments, noise=noise), "product": lambda: square[0] @ square[1]}
    took = medians(ways, pick(size, 1, 3, 7), device)
    fast = 6 * q * q * task.query.shape[1] * STEPS / took["fast"] / 1e9
    product = 2 * square.shape[1] ** 3 / took["product"] / 1e9
    plain, remark = plain_loop(task, STEPS, size, device)
    return [
        Row(
            f"{q:,} queries over {q:,}, operations",
            fast,
            product,
            "Gop/s",
            goal="goal: at least half of a matrix product's",
            remark=f"plain: a float32 matrix product of {square.shape[1]} x {square.shape[1]}, GFLOP/s",
        ),
        Row(f"{q:,} queries over {q:,}, prepared", took["fast"], plain, remark=remark),
    ]


def precision(size: Size, device: str = "cpu") -> list[Row]:
    """How far x0_hat lies from the plain loop's in float64 at most, and would with the decoder's table in half the bits."""
    task = make_task(size, 5, pick(size, 20, 100, 957), device=device)
    prepared, noise = (
        FactoredDenoiser(task.denoiser).prepare(task.candidates),
        torch.randn(5, len(task.candidates), device=device),
    )
    steps = 10
    exact = ddim_sample(
        deepcopy(task.denoiser).double(),
        task.query.double(),
        task.candidates.double(),
        task.schedule,
        steps,
        noise=noise.double(),
    )
    rows = []
    for dtype, goal in ((torch.float32, "goal: at most 3e-7"), (torch.float16, ""), (torch.bfloat16, "goal: at most 1e-4")):
        table = replace(prepared, candidate_hidden=prepared.candidate_hidden.to(dtype).float())
        off = (fast_ddim_sample(task.denoiser, task.query, table, task.schedule, steps, noise=noise) - exact).abs().max().item()
        name = str(dtype).removeprefix("torch.")
        remark = "" if dtype == torch.float32 else "not used alone"
        rows.append(
            Row(
                f"5 queries over {len(task.candidates)}, table in {name}, {steps} steps",
                off,
                unit="off",
                goal=goal,
                remark=remark,
            )
        )
    return rows


def tiles(size: Size) -> list[Row]:
    """Operations a second of one thread in the decoder's inner loop, in tiles for 16 and for 32 vector registers."""
    n, hidden = pick(size, 8, 128, 128), pick(size, 16, 512, 512)
    rng = np.random.default_rng(0)
    a, b, weight = (rng.standard_normal(shape, np.float32) for shape in ((n, hidden), (2 * n, hidden), hidden))
    out = np.empty((2 * n, n), np.float32)
    blocks = {"3 x 3": kernels._block_of_nine, "4 x 4": kernels._block_of_sixteen}
    took = medians({name: partial(block, a, b, weight, out) for name, block in blocks.items()}, pick(size, 1, 30, 100))
    operations = 3 * 2 * n * n * hidden / 1e9
    return [
        Row(
            f"inner loop in tiles of {name}",
            operations / took[name],
            unit="Gop/s",
            remark=f"used where there are {registers} vector registers",
        )
        for name, registers in (("3 x 3", 16), ("4 x 4", 32))
    ]


def growth(what: str, value: int, size: Size) -> list[Row]:
    """One point of the curve of cost over `what` grows: candidates of one query, queries of 1000 candidates, or steps."""
    base = pick(size, 10, 200, 1000)
    queries, n, steps = {
        "candidates": (1, value, STEPS),
        "queries": (value, base, STEPS),
        "steps": (100, base, value),
    }[what]
    task = make_task(size, queries, n, max(STEPS, steps))
    prepared = FactoredDenoiser(task.denoiser).prepare(task.candidates)
    noise = torch.randn(queries, n)
    arguments = task.denoiser, task.query, prepared, task.schedule, steps
    fast = median(lambda: fast_ddim_sample(*arguments, noise=noise), pick(size, 1, 2, 3))
    plain, remark = plain_loop(task, steps, size)
    goal = "goal: within 3 s, with AVX2 alone too, on two cores" if n == 1_000_000 else ""
    return [Row(f"{queries:,} x {n:,}, {steps} steps", fast, plain, goal=goal, remark=remark, curve=(what, value))]


CURVES = {
    "candidates": (100, 1_000, 10_000, 100_000, 1_000_000),
    "queries": (1, 10, 100, 1_000, 10_000),
    "steps": (5, 10, 20, 50, 100, 200),
}
"""What grows, and through which values; quick runs leave out those from 100,000 on."""


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    largest = pick(size, 10, 10_000, 1_000_000)
    points = {
        f"growth over {what}, {value}": partial(growth, what, value)
        for what, values in CURVES.items()
        for value in values
        if value <= largest
    }
    return {"AudioCaps": audiocaps, "operations": operations, "precision": precision, "tiles": tiles, **points}
