"""What the audio encoders share, and the small encoder, against plain references."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from diffatr_cli.core.audio_encoder import AudioEncoder, ConvBlock, SideBySide, SmallCnn, pool_frames


@pytest.fixture
def small() -> SmallCnn:
    torch.manual_seed(0)
    encoder = SmallCnn((8, 16, 24), dropout=0.3, stripes=(20, 8))
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return encoder.eval()


def test_pooling_is_the_maximum_plus_the_mean() -> None:
    frames = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [2.0, 0.0]]])
    assert pool_frames(frames).tolist() == [[3 + 2, 0 - 2]]


def test_conv_block_against_the_definition() -> None:
    torch.manual_seed(1)
    block = ConvBlock(3, 5).double().train()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    expected = x
    for conv in (block.conv1, block.conv2):
        y = functional.conv2d(expected, conv.weight, padding=1)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        expected = ((y - mean) / (var + 1e-5).sqrt()).clamp_min(0)
    torch.testing.assert_close(block(x.clone()), expected)


def test_mels_are_normalised_each_for_itself(small: SmallCnn) -> None:
    seen = []
    small.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logmel = torch.randn(2, 40, 64) * 10
    small.frames(logmel)
    scale = small.bn0.weight / (small.bn0.running_var + 1e-5).sqrt()
    torch.testing.assert_close(seen[0].squeeze(1), (logmel - small.bn0.running_mean) * scale + small.bn0.bias)


def test_shapes_and_the_shortest_clip() -> None:
    encoder = SmallCnn().eval()
    assert sum(p.numel() for p in encoder.parameters()) <= 5e6
    shortest = torch.randn(2, encoder.min_samples)
    assert encoder(shortest).shape == (2, encoder.features)
    assert encoder.frames(encoder.log_mel(shortest)).shape[1] == 1
    logmel = encoder.log_mel(torch.randn(2, 64000))
    frames = encoder.frames(logmel)
    assert frames.shape == (2, logmel.shape[1] // encoder.reduction, encoder.features)
    torch.testing.assert_close(encoder.pooled(logmel), pool_frames(frames))


def test_chance_only_while_training(small: SmallCnn) -> None:
    logmel = torch.randn(2, 40, 64)
    assert torch.equal(small.pooled(logmel), small.pooled(logmel))
    small.train()
    assert not torch.equal(small.pooled(logmel), small.pooled(logmel))
    small.dropout, small.stripes = 0.0, None
    assert torch.equal(small.pooled(logmel), small.pooled(logmel))


def test_every_parameter_learns(small: SmallCnn) -> None:
    small.train()(torch.randn(3, 32000)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


def test_frames_are_pooled_in_float32_whatever_the_convolutions(small: SmallCnn) -> None:
    logmel = torch.randn(2, 40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert small.frames(logmel).dtype == torch.float32


def test_the_base_has_no_convolutions() -> None:
    with pytest.raises(NotImplementedError):
        AudioEncoder(8).frames(torch.zeros(1, 40, 64))


def test_side_by_side_is_what_each_member_hears() -> None:
    torch.manual_seed(0)
    members = [SmallCnn((4, 6), dropout=0.0, stripes=(9, 5), perturbed=True) for _ in range(3)]
    both = SideBySide(members)
    assert (both.features, both.reduction, both.min_samples) == (18, members[0].reduction, members[0].min_samples)
    logmel = torch.randn(2, 33, 64) * 10
    drawn = both.augmentation(2, 33)  # while training all members hear the same speeds and stripes
    expected = torch.cat([each.frames(logmel, drawn) for each in members], 2)
    torch.testing.assert_close(both.frames(logmel, drawn), expected)
    wave = torch.randn(2, 20000)
    both.eval()
    torch.testing.assert_close(both(wave), torch.cat([each(wave) for each in members], 1))
    assert len({id(p) for p in both.parameters()}) == sum(len(list(each.parameters())) for each in members)


def test_side_by_side_wants_members_that_hear_alike() -> None:
    for members in ([SmallCnn((4,))], [SmallCnn((4,)), SmallCnn((4, 6))], [SmallCnn((4,)), SmallCnn((4,), hop=320)]):
        with pytest.raises(ValueError, match="two at least, with one hop"):
            SideBySide(members)
