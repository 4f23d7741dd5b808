"""The Triton kernels without a GPU: what they compute, in Triton's interpreter, and that they compile for GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from triton_kernels import ROUNDING, assembler, compiled, interpreted, run_interpreted

pytest.importorskip("triton")

few = settings(max_examples=25, derandomize=True)


@compiled
def test_all_that_is_interpreted() -> None:
    run_interpreted(__file__)


def terms(groups: int, queries: int, n: int, hidden: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(groups + queries + n + hidden)
    sizes = (groups, n, hidden), (groups, queries, hidden), (hidden,)
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


@interpreted
@few
@given(
    st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(0, 150), st.integers(1, 70)),
    st.sampled_from([torch.float32, torch.float64]),
)
@example((1, 1, 1, 1), torch.float32)
@example((1, 5, 129, 1), torch.float32)  # one unit, one candidate more than two tiles
@example((2, 1, 1, 512), torch.float64)
@example((1, 4, 257, 33), torch.float32)
@example((1, 17, 65, 512), torch.float32)
@example((2, 64, 64, 64), torch.float32)
def test_sums_of_maxima_equal_those_of_brute_force(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    from diffatr_cli.core.kernels_triton import sum_of_maxima_triton

    candidate_hidden, negative_hidden, weight = terms(*shape, dtype)
    got = sum_of_maxima_triton(candidate_hidden, negative_hidden, weight)
    a, b, w = (x.double().numpy() for x in (candidate_hidden, negative_hidden, weight))
    maxima = np.maximum(a[:, None], b[:, :, None])
    assert (got.dtype, got.shape) == (dtype, (shape[0], shape[1], shape[2]))
    error = np.abs(got.double().numpy() - np.einsum("gtnh,h->gtn", maxima, w))
    bound = (ROUNDING if dtype == torch.float32 else 1e-15) * np.einsum("gtnh,h->gtn", np.abs(maxima), np.abs(w))
    assert (error <= bound).all()


@interpreted
def test_operands_that_are_parts_of_others() -> None:
    """Neither strides nor what lies beside the operands in memory matter; NaN beside them stays there."""
    from diffatr_cli.core.kernels_triton import sum_of_maxima_triton

    whole = torch.full((4, 30, 20), torch.nan)
    whole[::2, 3:22, 1:14] = torch.randn(2, 19, 13)
    part, query, weight = whole[::2, 3:22, 1:14], torch.randn(2, 13, 6).mT, torch.randn(26)[::2]
    got = sum_of_maxima_triton(part, query, weight)
    expected = np.einsum("gtnh,h->gtn", np.maximum(part.numpy()[:, None], query.numpy()[:, :, None]), weight.numpy())
    assert_allclose(got.numpy(), expected, atol=1e-5)


@interpreted
@pytest.mark.parametrize("n", [1, 19, 32])
def test_a_table_is_laid_out_once(n: int) -> None:
    from diffatr_cli.core import kernels_triton

    table, query, weight = terms(2, 5, n, 13, torch.float32)
    laid_out = kernels_triton.laid_out(table)
    assert torch.equal(laid_out, table)
    assert kernels_triton.by_unit(laid_out).data_ptr() == laid_out.data_ptr()
    sums = [kernels_triton.sum_of_maxima_triton(each, query, weight) for each in (laid_out, table)]
    assert torch.equal(*sums)


@interpreted
@pytest.mark.parametrize(("queries", "n"), [(1, 70), (6, 33)])
def test_sampling_by_the_kernel_is_the_plain_loop_in_float64(queries: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffatr_cli.core import fused
    from diffatr_cli.core.denoiser import AttentionDenoiser
    from diffatr_cli.core.kernels_triton import sum_of_maxima_triton
    from diffatr_cli.core.sampler import ddim_sample, fast_ddim_sample
    from diffatr_cli.core.schedule import NoiseSchedule

    calls: list[int] = []

    def kernel(*operands: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return sum_of_maxima_triton(*operands)

    monkeypatch.setattr(fused, "_compiled_maxima", lambda *_: kernel)
    generator = torch.Generator().manual_seed(0)
    denoiser = AttentionDenoiser(24, 40, generator=generator).requires_grad_(False)
    query, candidates = (
        torch.nn.functional.normalize(torch.randn(each, 24, generator=generator), dim=1) for each in (queries, n)
    )
    noise = torch.randn(queries, n, generator=generator)
    fast = fast_ddim_sample(denoiser, query, candidates, NoiseSchedule.cosine(50), 8, noise=noise)
    plain = ddim_sample(denoiser.double(), query.double(), candidates.double(), NoiseSchedule.cosine(50), 8, noise=noise.double())
    assert len(calls) == 8
    assert_allclose(fast.double().numpy(), plain.numpy(), atol=ROUNDING, rtol=0)


@interpreted
@few
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=0, max_size=3),
    st.integers(0, 1500),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
@example(1, [0], 1, 1, False)
@example(2**64 - 1, [-1, 2**63 - 1], 1025, 2**32 - 1, True)
def test_noise_is_what_torch_draws(seed: int, ids: list[int], n: int, stream: int, listed: bool) -> None:
    from diffatr_cli.core.noise import ROUNDING, normals_eager
    from diffatr_cli.core.noise_triton import normals_triton

    rows = torch.tensor(ids, dtype=torch.int64)
    places = torch.randint(2**34 - 1, (len(ids), n), generator=torch.Generator().manual_seed(n)) if listed else None
    got, plain = (draw(seed, rows, n, stream, places) for draw in (normals_triton, normals_eager))
    torch.testing.assert_close(got, plain, atol=ROUNDING, rtol=0)


# Compiling for a GPU needs none


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_tile_compiles_and_stays_in_registers(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is spilled to memory, and the table of candidates, the only large one, is read four numbers at a time."""
    from diffatr_cli.core import kernels_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("candidate_hidden", "negative_hidden", "weight", "out"), "*fp32")
    types |= dict.fromkeys(("h_end", "t_row", "n_row"), "row")
    for tile in kernels_triton.TILES:
        ptx, usage = assembler(kernels_triton._sum_of_maxima, tile.kwargs, tile.num_warps, capability, types)
        assert re.search(r"STACK:0 .*LOCAL:0", usage), (tile, usage)
        assert re.search(r"ld\.global\S*\.v4", ptx), tile


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("seed", ["i32", "i64", "u64"])
def test_the_noise_compiles_for_every_size_of_seed(
    listed: bool, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffatr_cli.core import noise_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"seed": seed, "stream": "i64", "ids": "*i64", "places": "*i64", "out": "*fp32"}
    _, usage = assembler(noise_triton._normals, {"LISTED": listed, "BLOCK": noise_triton.BLOCK}, 4, 90, types)
    assert re.search(r"STACK:0 .*LOCAL:0", usage), usage
