import pytest
import torch

from diffatr_cli.core.gradients import clip_gradients


@pytest.mark.parametrize("limit", [0.5, 3.0, 50.0])
def test_gradients_are_clipped_as_torch_does(limit):
    parameters = [torch.zeros(shape, requires_grad=True) for shape in [(4, 5), (7,), ()]] + [torch.zeros(3, requires_grad=True)]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters[:3]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    expected = [p.grad.clone() for p in parameters[:3]]
    norm = float(torch.cat([g.flatten() for g in expected]).double().norm())
    assert 3 < norm < 50  # so that both cases are seen
    expected = [g * min(1, limit / (norm + 1e-6)) for g in expected]
    clip_gradients(parameters, limit)
    torch.testing.assert_close([p.grad for p in parameters[:3]], expected)
    assert parameters[3].grad is None


def test_a_gradient_that_is_no_number_stays_none():
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.tensor([float("nan"), 1.0])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.isnan().all()
