"""Turning one space onto another: against scipy, known rotations, and points that leave the answer open."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from diffatr_cli.core.procrustes import rotation_onto


def points(number: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(number, dim, generator=generator, dtype=torch.float64), dim=-1)


def rotation(dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q


@given(st.integers(1, 12), st.integers(0, 2**20))
def test_a_turned_space_is_turned_back(dim: int, seed: int) -> None:
    own, turn = points(5 * dim + 8, dim, seed), rotation(dim, seed + 1)
    found = rotation_onto(own @ turn.T, own)
    assert torch.allclose(found, turn, atol=1e-4)


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 2**20))
def test_cosines_stay_what_they_were(dim: int, number: int, seed: int) -> None:
    source, target = points(number, dim, seed), points(number, dim, seed + 1)
    found = rotation_onto(source, target)
    assert torch.allclose(found @ found.T, torch.eye(dim, dtype=torch.float64), atol=1e-12)
    turned = source @ found
    assert torch.allclose(turned @ turned.T, source @ source.T, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_scipys(dtype: torch.dtype) -> None:
    reference = pytest.importorskip("scipy.linalg").orthogonal_procrustes
    source, target = points(60, 9, 0).to(dtype), points(60, 9, 1).to(dtype)
    theirs = torch.from_numpy(reference(source.double().numpy(), target.double().numpy())[0])
    found = rotation_onto(source, target)
    assert found.dtype == torch.float64
    assert torch.allclose(found, theirs, atol=1e-5)
    lost = (source.double() @ found - target.double()).square().sum()
    for seed in range(50):  # no other rotation does better
        assert lost <= (source.double() @ rotation(9, seed) - target.double()).square().sum()


def test_what_the_points_leave_open_stays_as_it_is() -> None:
    assert torch.allclose(rotation_onto(torch.zeros(0, 4), torch.zeros(0, 4)), torch.eye(4, dtype=torch.float64))
    turn = torch.eye(5, dtype=torch.float64)
    turn[:2, :2] = rotation(2, 3)
    flat = torch.cat([points(30, 2, 0), torch.zeros(30, 3, dtype=torch.float64)], 1)
    assert torch.allclose(rotation_onto(flat, flat @ turn), turn, atol=1e-4)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        rotation_onto(torch.zeros(3, 4), torch.zeros(2, 4))
