"""The Triton kernels for few queries without a GPU: what they compute, in Triton's interpreter, and that they compile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from triton_kernels import ROUNDING, assembler, compiled, interpreted, run_interpreted

pytest.importorskip("triton")

few = settings(max_examples=15, derandomize=True, deadline=None)
shapes = st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 150), st.integers(1, 70))


@compiled
def test_all_that_is_interpreted() -> None:
    run_interpreted(__file__)


def drawn(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, sizes)))
    return [torch.randn(*size, generator=generator) for size in sizes]


@interpreted
@few
@given(shapes, st.sampled_from([torch.float32, torch.float64]))
@example((1, 1, 1, 1), torch.float32)
@example((2, 3, 65, 513), torch.float32)
def test_the_sums_of_few_are_those_of_brute_force(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from diffatr_cli.core.few_triton import sums_of_few

    groups, queries, n, hidden = shape
    table, query, weight = (each.to(dtype) for each in drawn((groups, n, hidden), (groups, queries, hidden), (hidden,)))
    maxima = torch.maximum(table.double()[:, None], query.double()[:, :, None])
    got = sums_of_few(table, query, weight)
    assert (got.dtype, got.shape) == (dtype, (groups, queries, n))
    bound = (ROUNDING if dtype == torch.float32 else 1e-15) * (maxima.abs() @ weight.double().abs())
    assert ((got - maxima @ weight.double()).abs() <= bound).all()


@interpreted
@few
@given(shapes, st.floats(0, 30))
@example((1, 1, 1, 1), 1.0)
@example((1, 2, 300, 600), 3.0)
def test_the_mean_of_few_is_that_of_torch(shape: tuple[int, int, int, int], peak: float) -> None:
    """For even attention and for attention that is all on one candidate, whatever its size."""
    from diffatr_cli.core.few_triton import mean_of_few

    groups, queries, n, dim = shape
    attention, table = drawn((groups, queries, n), (groups, n, dim))
    attention = peak * attention + 500
    expected = attention.double().softmax(2) @ table.double()
    assert_allclose(mean_of_few(attention, table).numpy(), expected.numpy(), rtol=0, atol=3e-6)


@interpreted
@pytest.mark.parametrize("n", [1, 33, 4096, 9000])
def test_the_softmax_of_few_is_that_of_torch(n: int) -> None:
    from diffatr_cli.core.few_triton import softmax_of_few

    (logits,) = drawn((2, 2, n))
    logits[0, 0, n // 2] = -torch.inf if n > 1 else 0
    for scale in (1, 1000):
        assert_allclose(
            softmax_of_few(scale * logits).numpy(), (scale * logits).double().softmax(2).numpy(), rtol=1e-5, atol=1e-7
        )


@interpreted
@pytest.mark.parametrize(("queries", "n", "hidden"), [(1, 400, 512), (2, 200, 200)])
def test_half_precision_is_not_to_be_seen(queries: int, n: int, hidden: int) -> None:
    """Where half precision alone is off by up to some 1e-3, reading what matters in full brings it down to 1e-5."""
    from diffatr_cli.core.few_triton import mean_of_few, sums_of_few

    table, query, weight, attention = drawn((1, n, hidden), (1, queries, hidden), (hidden,), (1, queries, n))
    weight /= 4
    exact = (torch.maximum(table.double()[:, None], query.double()[:, :, None]) @ weight.double()).softmax(2)
    alone = (sums_of_few(table.half(), query, weight).double().softmax(2) - exact).abs().max()
    both = (sums_of_few(table.half(), query, weight, table).double().softmax(2) - exact).abs().max()
    assert both < min(1e-5, alone / 5)
    exact = (3 * attention.double()).softmax(2) @ table.double()
    alone = (mean_of_few(3 * attention, table.half()) - exact).abs().max()
    both = (mean_of_few(3 * attention, table.half(), table) - exact).abs().max()
    assert both < min(1e-5, alone / 5)


@interpreted
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_sampling_by_the_kernels_is_the_plain_loop_in_float64(queries: int, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffatr_cli.core import fused, sampler
    from diffatr_cli.core.denoiser import AttentionDenoiser
    from diffatr_cli.core.factored import FactoredDenoiser
    from diffatr_cli.core.kernels_triton import sum_of_maxima_triton
    from diffatr_cli.core.schedule import NoiseSchedule

    monkeypatch.setattr(fused, "_compiled_maxima", lambda *_: sum_of_maxima_triton)
    monkeypatch.setattr(fused, "_on_triton", lambda *_: True)
    monkeypatch.setattr(fused, "LONG", 1)
    monkeypatch.setattr(sampler, "takes_coarse", lambda *_: half)
    generator = torch.Generator().manual_seed(0)
    denoiser = AttentionDenoiser(24, 40, generator=generator).requires_grad_(False)
    query, candidates = (
        torch.nn.functional.normalize(torch.randn(each, 24, generator=generator), dim=1) for each in (queries, 60)
    )
    noise = torch.randn(queries, 60, generator=generator)
    prepared, schedule = FactoredDenoiser(denoiser).prepare(candidates), NoiseSchedule.cosine(50)
    fast = sampler.fast_ddim_sample(denoiser, query, prepared, schedule, 8, noise=noise)
    exact = denoiser.double(), query.double(), candidates.double()
    plain = sampler.ddim_sample(*exact, schedule, 8, noise=noise.double())
    assert ("halves" in prepared.__dict__) == half
    assert_allclose(fast.double().numpy(), plain.numpy(), atol=1e-5 if half else ROUNDING, rtol=0)


def test_numbers_too_large_for_half_precision_are_kept_in_full() -> None:
    from dataclasses import replace

    from diffatr_cli.core.denoiser import AttentionDenoiser
    from diffatr_cli.core.factored import FactoredDenoiser

    prepared = FactoredDenoiser(AttentionDenoiser(4, 4)).prepare(torch.randn(3, 4))
    assert prepared.halves is not None
    assert prepared.halves.candidate_hidden.dtype == torch.float16
    assert replace(prepared, candidate_hidden=prepared.candidate_hidden - 1e5).halves is None


TYPES = dict.fromkeys(("negative_hidden", "weight", "out", "attention", "means", "highs", "totals"), "*fp32") | {
    "exact": "*fp32",
    "logits": "*fp32",
    "sums": "*fp32",
    "seen": "fp32",
    "h_end": "row",
    "d_end": "row",
}


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("table", ["*fp32", "*fp16"])
def test_every_tile_compiles_and_stays_in_registers(
    table: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is spilled to memory, and tables are read sixteen bytes at a time."""
    from diffatr_cli.core import few_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    half = {"CHUNK": 1024, "D": few_triton.LANES, "HALF": table == "*fp16"}
    kernels = [(few_triton._sums, tile, {}) for tile in few_triton.TILES]
    kernels += [(few_triton._parts_of_mean, tile, half) for tile in few_triton.MEANS]
    for kernel, tile, sizes in kernels:
        ptx, usage = assembler(kernel, {**tile.kwargs, **sizes}, tile.num_warps, capability, TYPES | {"table": table})
        assert re.search(r"STACK:0 .*LOCAL:0", usage), (tile, usage)
        assert re.search(r"ld\.global\S*\.v4", ptx), tile


@compiled
@pytest.mark.slow
def test_what_goes_with_them_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffatr_cli.core import few_triton as few_queries

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, sizes in (
        (few_queries._whole_mean, {"PARTS": 2048, "ROWS": few_queries.JOINED, "D": 16}),
        (few_queries._chunk_sums, {"BLOCK": few_queries.BLOCK}),
        (few_queries._shares, {"PARTS": 256, "BLOCK": few_queries.BLOCK}),
        (few_queries._refine, {"PARTS": 256, "BLOCK": few_queries.REFINED, "ROWS": 8, "H_STEP": 128}),
    ):
        _, usage = assembler(kernel, sizes, 4, 90, TYPES)
        assert re.search(r"STACK:0 .*LOCAL:0", usage), (sizes, usage)
