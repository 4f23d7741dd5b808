"""The sums over all pairs: every way of taking them equals a brute-force sum, and so do its gradients."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from diffatr_cli.core import fused, kernels

EVERYTHING, NOTHING = -1, 2**60
FLOATS = {torch.float32: 2e-5, torch.float64: 1e-11}
"""Types, and how much rounding may be seen in the tests' sums."""

shapes = st.tuples(st.integers(1, 4), st.integers(0, 20), st.integers(0, 40), st.integers(1, 70))
"""G, T, N, H."""
dtypes = st.sampled_from(list(FLOATS))


# The fixture below is the same for every example.
few = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["numba", "numba on two threads", "eager"])
def way(request):
    """Every amount of work goes this way, in the smallest blocks."""
    threads, small = (2 if "two" in request.param else 1), (NOTHING if request.param == "eager" else EVERYTHING)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (fused, "SMALL", small),
            (fused, "SMALL_TRAINING", small),
            (fused, "EAGER_ENTRIES", 100),
            (kernels, "CACHED_BYTES", 1),  # blocks of four rows
            (kernels, "SMALL", EVERYTHING),
            (kernels, "MANY", EVERYTHING),
        ):
            patch.setattr(module, name, value)
        torch.set_num_threads(threads)
        yield request.param
        torch.set_num_threads(1)


def terms(groups, queries, n, hidden, dtype=torch.float32):
    """candidate_hidden, hidden, weight, bias and the slope of the result."""
    generator = torch.Generator().manual_seed(groups + queries + n + hidden)
    sizes = (groups, n, hidden), (groups, queries, hidden), (hidden,), (1,), (groups, queries, n)
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def maxima(candidate_hidden, negative_hidden, weight):
    """The sum of maxima by brute force, in float64."""
    a, b, w = (x.double().numpy() for x in (candidate_hidden, negative_hidden, weight))
    return np.einsum("gtnh,h->gtn", np.maximum(a[:, None], b[:, :, None]), w)


@few
@given(shapes, dtypes)
@example((1, 1, 1, 1), torch.float32)
@example((2, 6, 130, 64), torch.float32)
@example((1, 4, 300, 512), torch.float32)
@example((2, 600, 9, 4), torch.float64)  # more queries than a block holds
def test_the_decoder_and_its_gradients_equal_a_brute_force_sum(way, shape, dtype):
    *inputs, slope = terms(*shape, dtype)
    a, b, w, bias = (x.double().numpy() for x in inputs)
    values, s = a[:, None] + b[:, :, None], slope.double().numpy()
    expected = np.einsum("gtnh,h->gtn", np.maximum(values, 0), w) + bias
    passed = s[..., None] * w * (values > 0)
    gradients = passed.sum(1), passed.sum(2), np.einsum("gtn,gtnh->h", s, np.maximum(values, 0)), s.sum()

    near = {"atol": FLOATS[dtype] * max(1, np.sqrt(s.size)), "rtol": FLOATS[dtype]}
    assert_allclose(fused.decode(*inputs).numpy(), expected, **near)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    result = fused.decode(*leaves)
    assert_allclose(result.detach().numpy(), expected, **near)
    for got, gradient in zip(torch.autograd.grad(result, leaves, slope), gradients, strict=True):
        assert_allclose(got.numpy(), np.reshape(gradient, got.shape), **near)


def test_no_gradient_passes_where_a_sum_is_zero(way):
    """As relu's, which is 0 at 0; that of a maximum of two equal values is not."""
    leaves = [torch.zeros(1, 3, 4), torch.zeros(1, 2, 4), torch.ones(4), torch.zeros(1)]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    candidate_hidden, hidden, weight, bias = torch.autograd.grad(fused.decode(*leaves).sum(), leaves)
    assert not any(gradient.any() for gradient in (candidate_hidden, hidden, weight))
    assert bias == 6


@pytest.mark.parametrize("recorded", [True, False])
def test_autocast_changes_rounding_alone(way, recorded):
    *inputs, slope = terms(3, 5, 7, 37)
    inputs[0], inputs[1] = inputs[0].bfloat16(), inputs[1].bfloat16()  # as linear layers under autocast hand them on
    *expected, _ = (tensor.double().requires_grad_() for tensor in (*inputs, slope))
    leaves = [tensor.clone().requires_grad_(recorded) for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        value = fused.decode(*leaves)
        plain = fused.decode(*expected)
        torch.testing.assert_close(value.double(), plain, atol=0.2, rtol=0.02)
        if recorded:
            value.backward(slope.to(value))
            plain.backward(slope.double())
            for leaf, other in zip(leaves, expected, strict=True):
                assert leaf.grad.dtype == leaf.dtype
                torch.testing.assert_close(leaf.grad.double(), other.grad, atol=0.2, rtol=0.05)


@few
@given(shapes, dtypes)
@example((2, 600, 9, 4), torch.float32)
def test_the_compiled_sum_of_maxima_equals_a_brute_force_sum(way, shape, dtype):
    candidate_hidden, negative_hidden, weight, *_ = terms(*shape, dtype)
    got = kernels.sum_of_maxima_numba(candidate_hidden, negative_hidden, weight).numpy()
    assert_allclose(got, maxima(candidate_hidden, negative_hidden, weight), atol=FLOATS[dtype])


@few
@given(shapes)
@example((1, 4, 300, 512))
@pytest.mark.parametrize("block", [kernels._block_of_nine, kernels._block_of_sixteen])
def test_both_tilings_equal_a_brute_force_sum(block, shape):
    """Whichever of the two this processor uses."""
    candidate_hidden, negative_hidden, weight, *_ = terms(*shape)
    out = torch.full((shape[0], negative_hidden.shape[1], candidate_hidden.shape[1]), torch.nan)
    for g in range(shape[0]):
        block(candidate_hidden[g].numpy(), negative_hidden[g].numpy(), weight.numpy(), out[g].numpy())
    assert_allclose(out.numpy(), maxima(candidate_hidden, negative_hidden, weight), atol=2e-5)


@pytest.mark.parametrize(("features", "many"), [("+avx2,+fma", False), ("+avx2,+avx512f", True), ("", False)])
def test_the_tiling_is_for_the_processor_that_numba_compiles_for(features, many, monkeypatch):
    """Not for the one that it runs on, where NUMBA_CPU_FEATURES names another."""
    monkeypatch.setattr("numba.config.CPU_FEATURES", features)
    assert kernels.many_registers() == many


def test_the_attended_mean_equals_a_softmax_over_all_candidates(way):
    """Queries from flat, which are done as a matrix product, to one-hot, beside one another; n is no multiple of any tile."""
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for groups, queries, n, hidden in ((1, 150, 517, 40), (3, 5, 203, 9), (70, 1, 300, 16), (2, 3, 1, 4), (1, 0, 9, 4)):
            scale = torch.logspace(-1, 3, groups * queries).view(groups, queries, 1)
            attention = (scale * torch.randn(groups, queries, n, generator=generator)).to(dtype)
            values = torch.randn(groups, n, hidden, generator=generator, dtype=dtype)
            logits = attention.double().numpy()
            weights = np.exp(logits - logits.max(2, keepdims=True))
            expected = weights / weights.sum(2, keepdims=True) @ values.double().numpy()
            assert_allclose(fused.attended_mean(attention, values).numpy(), expected, atol=tolerance)


def test_the_attended_mean_has_gradients(way):
    attention, values = torch.randn(2, 3, 5).double().requires_grad_(), torch.randn(2, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(fused.attended_mean, (attention, values))


# Which way is taken


def ways(monkeypatch):
    """The names of the compiled ways in the order in which they are taken from now on; they still do their work."""
    taken = []
    for name in ("sum_of_maxima_numba", "decode_gradients_numba", "mean_numba"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, name=name, kernel=kernel: taken.append(name) or kernel(*args))
    return taken


def test_much_work_is_compiled_and_little_is_not(monkeypatch):
    """A search's shortlist must not wait for numba to load; a step of training is one of thousands."""
    taken = ways(monkeypatch)
    with torch.no_grad():
        fused.decode(torch.randn(1, 100, 512), torch.randn(1, 4, 512), torch.randn(512), torch.zeros(1))
        fused.attended_mean(torch.randn(1, 4, 100), torch.randn(1, 100, 512))
        assert taken == []
        fused.decode(torch.randn(1, 300, 512), torch.randn(1, 20, 512), torch.randn(512), torch.zeros(1))
        fused.attended_mean(torch.randn(1, 20, 300), torch.randn(1, 300, 512))
    assert taken == ["sum_of_maxima_numba", "mean_numba"]
    taken.clear()
    weight = torch.randn(512, requires_grad=True)
    fused.decode(torch.randn(1, 32, 512), torch.randn(1, 32, 512), weight, torch.zeros(1)).sum().backward()
    fused.attended_mean(torch.randn(1, 20, 300, requires_grad=True), torch.randn(1, 300, 512)).sum().backward()
    assert taken == ["sum_of_maxima_numba", "decode_gradients_numba"]


@pytest.mark.parametrize("recorded", [True, False])
def test_what_numba_cannot_take_goes_the_eager_way(recorded, monkeypatch):
    """Half precision, and devices that are neither a CPU nor CUDA; the meta device stands for those."""
    monkeypatch.setattr(fused, "SMALL", EVERYTHING)
    monkeypatch.setattr(fused, "SMALL_TRAINING", EVERYTHING)
    taken = ways(monkeypatch)
    for options in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        candidate_hidden, hidden, weight, bias, _ = (
            tensor.to(**options).requires_grad_(recorded) for tensor in terms(1, 3, 5, 8)
        )
        result = fused.decode(candidate_hidden, hidden, weight, bias)
        mean = fused.attended_mean(torch.zeros(1, 3, 5, **options), candidate_hidden)
        assert [(x.shape, x.dtype, x.device) for x in (result, mean)] == [
            ((1, 3, 5), candidate_hidden.dtype, candidate_hidden.device),
            ((1, 3, 8), candidate_hidden.dtype, candidate_hidden.device),
        ]
        if recorded:
            result.sum().backward()
            assert candidate_hidden.grad.shape == candidate_hidden.shape
    assert taken == []


def test_the_kernel_compiles_where_nothing_can_be_written(monkeypatch):
    """numba finds no place to cache in if the package folder and the user's cache folder are both read-only."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def double(x):
        x[0] *= 2

    array = np.ones(1)
    kernels.jit(double)(array)
    assert array[0] == 2
