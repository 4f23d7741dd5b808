"""What follows a convolution on a GPU, in Triton's interpreter: in a process of its own, which runs this file again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from triton_kernels import compiled, interpreted, run_interpreted

pytest.importorskip("triton")


@compiled
def test_all_that_is_interpreted() -> None:
    run_interpreted(__file__)


@interpreted
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(2, 9), st.integers(2, 40)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(["alone", "halved", "with a shortcut"]),
    st.booleans(),
)
def test_it_is_the_steps(shape: tuple[int, int, int, int], dtype: torch.dtype, how: str, channels_last: bool) -> None:
    from diffatr_cli.core.rectify_triton import rectify_triton

    generator = torch.Generator().manual_seed(sum(shape))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, plus = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator).to(dtype)
    expected = x.float() + bias.float()[:, None, None] + (plus.float() if how == "with a shortcut" else 0)
    expected = functional.relu(expected)
    expected = functional.avg_pool2d(expected, 2) if how == "halved" else expected
    got = rectify_triton(x.clone(), bias, plus if how == "with a shortcut" else None, how == "halved")
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.float(), expected.to(dtype).float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@compiled
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_it_compiles_for_gpus(halves: bool, adds: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diffatr_cli.core.rectify_triton import BLOCK, _rectify

    signature = dict.fromkeys(("x", "bias", "plus", "out"), "*bf16") | dict.fromkeys(
        ("height", "width", "out_height", "out_width"), "i32"
    )
    constants = {"C": 64, "HALVES": halves, "ADDS": adds, "N": BLOCK}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}  # as memory of torch's is
    source = ASTSource(_rectify, signature | dict.fromkeys(constants, "constexpr"), constants, aligned)
    for capability in (80, 90):
        ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
        assert "ld.global.v4.b32" in ptx  # 16 bytes at a time
        assert "st.global.v4.b32" in ptx
