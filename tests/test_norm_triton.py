"""Batch norm, ReLU and halving while training on a GPU, in Triton's interpreter: a process of its own runs this file again."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from triton_kernels import compiled, interpreted, run_interpreted

from diffatr_cli.core import norm as norm_module

pytest.importorskip("triton")


@compiled
def test_all_that_is_interpreted() -> None:
    run_interpreted(__file__)


@interpreted
@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.tuples(st.integers(2, 3), st.integers(1, 70), st.integers(2, 9), st.integers(2, 20)),
    st.booleans(),
    st.integers(1, 5),
)
def test_it_is_torch_s_own(shape: tuple[int, int, int, int], halve: bool, parts: int) -> None:
    """Values, gradients of all three, and the statistics that are kept, against float64."""
    from diffatr_cli.core import norm_triton

    generator = torch.Generator().manual_seed(sum(shape))
    norm = nn.BatchNorm2d(shape[1])
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    exact = copy.deepcopy(norm).double()
    x = (3 * torch.randn(shape, generator=generator) + 1).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = functional.relu(exact(wide))
    expected = functional.avg_pool2d(expected, 2) if halve else expected
    given_back = torch.randn(expected.shape, generator=generator)
    expected.backward(given_back.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_triton, "PARTS", parts)
        got = norm_triton.norm_rectified_triton(x, norm, halve)
        got.backward(given_back)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in ((x.grad, wide.grad), (norm.weight.grad, exact.weight.grad), (norm.bias.grad, exact.bias.grad)):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3)
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(value.double(), exact.state_dict()[key].double(), rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("halves", [False, True])
def test_it_compiles_for_gpus(halves: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diffatr_cli.core import norm_triton

    floats, sizes = ("scale", "shift", "mean", "deviation"), ("height", "width", "out_height", "out_width")
    tile = {"C": 64, "HALVES": halves, "R": norm_triton.ROWS, "N": norm_triton.COLUMNS}
    kernels = (
        (norm_triton._forward, ("x", "scale", "shift", "out", *sizes), {"C": 64, "HALVES": halves, "N": norm_triton.BLOCK}),
        (norm_triton._sums, ("x", "gradient", *floats, "sums", "places", "steps", *sizes), tile),
        (norm_triton._backward, ("x", "gradient", *floats, "sums", "out", "places", *sizes), tile),
    )
    for kernel, names, constants in kernels:
        types = {name: "*bf16" if name in ("x", "gradient", "out") else "*fp32" for name in names}
        types |= {name: "i32" for name in names if name in (*sizes, "places", "steps")}
        aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if types[name] != "i32"}
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
        assert "ld.global.v4.b32" in ptx  # 16 bytes at a time


@compiled
@pytest.mark.parametrize("works", [True, False])
def test_the_kernel_is_asked_while_training_and_once_if_it_fails(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stood in for here; where it fails torch's operations are taken, and that is told."""
    from diffatr_cli.core import norm_triton

    asked: list[bool] = []

    def stand_in(x: torch.Tensor, norm: nn.BatchNorm2d, halve: bool = False) -> torch.Tensor:
        asked.append(halve)
        if not works:
            raise ValueError("no compiler")
        x = functional.relu(norm(x))
        return functional.avg_pool2d(x, 2) if halve else x

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    monkeypatch.setattr(norm_module._fusing, "works", True)
    monkeypatch.setattr(norm_triton, "norm_rectified_triton", stand_in)
    norm, other, x = nn.BatchNorm2d(5), nn.BatchNorm2d(5), torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), caplog.at_level(logging.DEBUG, "diffatr_cli.core.norm"):
        for training, halve in ((True, False), (True, True), (False, True)):
            expected = functional.relu(other.train(training)(x))
            got = norm_module.norm_rectified(x.clone().as_subclass(OnGpu), norm.train(training), halve)
            torch.testing.assert_close(got.as_subclass(torch.Tensor), functional.avg_pool2d(expected, 2) if halve else expected)
    assert asked == ([False, True] if works else [False])
    assert len(caplog.records) == (0 if works else 1)
    assert all(torch.equal(*pair) for pair in zip(norm.state_dict().values(), other.state_dict().values(), strict=True))
