"""The fast encoders against the plain ones, and features that do not depend on the batch."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from diffatr_cli.core import convolution, inference
from diffatr_cli.core.audio_encoder import AudioEncoder, ConvBlock, SideBySide, SmallCnn, pool_frames
from diffatr_cli.core.convolution import WIDTH
from diffatr_cli.core.inference import MARGIN, FoldedConv, RectifiedConv, frame_features, optimise_for_inference, pooled_features
from diffatr_cli.core.panns import BasicBlock, Cnn14, ResNet38
from diffatr_cli.core.winograd import WinogradConv


def lived_in(encoder: AudioEncoder, seed: int = 0) -> AudioEncoder:
    """The encoder with statistics and gains as after training, not the identity that it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.7, 1.3),
                    (module.bias, -0.2, 0.2),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high, generator=generator)
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
    return encoder.eval()


def slim_cnn14() -> Cnn14:
    model = Cnn14()
    for i, (into, out) in enumerate(((1, 32), (32, 32), (32, 48), (48, 32), (32, 64), (64, 40)), 1):
        setattr(model, f"conv_block{i}", ConvBlock(into, out))
    model.features = 40
    return model


def slim_resnet38() -> ResNet38:
    model = ResNet38()
    model.conv_block1, model.conv_block_after1 = ConvBlock(1, 32), ConvBlock(48, 40)
    widths = {"layer1": (32, 32), "layer2": (32, 40), "layer3": (40, 32), "layer4": (32, 48)}
    for (name, (into, out)), blocks in zip(widths.items(), (3, 4, 6, 3), strict=True):
        first = BasicBlock(into, out, name != "layer1", 0.2)
        model.resnet.add_module(name, nn.Sequential(first, *(BasicBlock(out, out, False, 0.2) for _ in range(blocks - 1))))
    model.features = 40
    return model


MAKERS = {
    "cnn14": slim_cnn14,
    "resnet38": slim_resnet38,
    "small": SmallCnn,
    "two small": lambda: SideBySide([SmallCnn((8, 24)), SmallCnn((8, 24))]),
}


@pytest.fixture(scope="module", params=MAKERS)
def encoder(request: pytest.FixtureRequest) -> AudioEncoder:
    torch.manual_seed(0)
    return lived_in(MAKERS[request.param]())


@pytest.fixture(autouse=True)
def _winograd_in_slim_encoders_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffatr_cli.core.inference.WINOGRAD_CHANNELS", 32)


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 23), st.integers(1, 17)),
    outputs=st.integers(1, 9),
    relu=st.booleans(),
    built_for=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_winograd_is_the_convolution(shape: tuple[int, ...], outputs: int, relu: bool, built_for: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    weight, bias = torch.randn(outputs, shape[1], 3, 3, generator=generator), torch.randn(outputs, generator=generator)
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    expected = expected.clamp_min(0) if relu else expected
    got = WinogradConv(weight, bias, relu, built_for)(x)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [16, 192])  # many chunks, shared among workers, and few, whose products torch divides
def test_winograd_by_several_threads(two_threads: None, channels: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, channels, 131, 33), torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    expected = functional.conv2d(x, weight, padding=1)
    got = WinogradConv(weight, torch.zeros(channels), False, 33)(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.get_num_threads() == 2


def test_the_fast_copy_gives_the_same_numbers(encoder: AudioEncoder) -> None:
    waveform = torch.randn(2, 30000, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.01], [0.3]])
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    fast = optimise_for_inference(encoder)
    with torch.inference_mode():
        logmel = encoder.log_mel(waveform)
        assert relative(fast(waveform), encoder(waveform)) < 1e-5
        torch.testing.assert_close(fast.frames(logmel), encoder.frames(logmel), rtol=1e-3, atol=1e-4)
        assert relative(optimise_for_inference(encoder, torch.bfloat16)(waveform), encoder(waveform)) < 2e-2
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(p.requires_grad for p in encoder.parameters())


def test_what_the_fast_copy_is_made_of(encoder: AudioEncoder) -> None:
    fast = optimise_for_inference(encoder.train())
    encoder.eval()
    assert {name.split(".")[-1] for name, m in fast.named_modules() if isinstance(m, nn.BatchNorm2d)} == {"bn0"}
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    assert any(isinstance(m, WinogradConv) for m in fast.modules()) == encoder.heavy
    low = optimise_for_inference(encoder, torch.bfloat16)
    assert {m.conv.weight.dtype for m in low.modules() if isinstance(m, FoldedConv)} == {torch.bfloat16}
    assert not any(isinstance(m, WinogradConv) for m in low.modules())


def test_what_gpus_get_gives_the_same_numbers(encoder: AudioEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ReLU and each sum with a shortcut belongs to a convolution; the first one hears seven channels of zeros too."""
    monkeypatch.setattr(inference, "_fuses", lambda device: True)
    fast, low = optimise_for_inference(encoder), optimise_for_inference(encoder, torch.bfloat16)
    waveform = torch.randn(2, 30000, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.01], [0.3]])
    with torch.inference_mode():
        assert relative(fast(waveform), encoder(waveform)) < 1e-5
        assert relative(low(waveform), encoder(waveform)) < 2e-2
    kinds = [type(module).__name__ for module in fast.modules()]
    assert kinds.count("FoldedBasicBlock") == sum(isinstance(module, BasicBlock) for module in encoder.modules())
    assert "BasicBlock" not in kinds
    alone = [module for module in fast.modules() if isinstance(module, RectifiedConv) and module.alone]
    assert [module.conv.weight.shape[1] for module in alone] == ([WIDTH] if encoder.heavy else [])


@pytest.mark.parametrize("works", [True, False])
def test_a_kernel_is_asked_once_if_it_fails(
    works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one in Triton, stood in for, with and without a shortcut; where it fails the steps are taken, and that is told."""
    asked: list[bool] = []

    def stand_in(x: Tensor, bias: Tensor, plus: Tensor | None = None, halve: bool = False) -> Tensor:
        asked.append(halve)
        if not works:
            raise ValueError("no compiler")
        out = functional.relu(x + bias[:, None, None] + (0 if plus is None else plus))
        return functional.avg_pool2d(out, 2) if halve else out

    class OnGpu(Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    monkeypatch.setattr(convolution._fusing, "works", True)
    monkeypatch.setattr(pytest.importorskip("diffatr_cli.core.rectify_triton"), "rectify_triton", stand_in)
    generator = torch.Generator().manual_seed(0)
    conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 7, 6, generator=generator)
    plus = torch.randn(2, 5, 7, 6, generator=generator)
    with torch.no_grad(), caplog.at_level(logging.DEBUG, "diffatr_cli.core.convolution"):
        for shortcut, halve in ((None, False), (plus, False), (None, True)):
            expected = functional.relu(conv(x) + (0 if shortcut is None else shortcut))
            got = convolution.rectified_conv(x.as_subclass(OnGpu), conv, shortcut, halve)
            torch.testing.assert_close(got.as_subclass(Tensor), functional.avg_pool2d(expected, 2) if halve else expected)
    assert asked == ([False, False, True] if works else [False])
    assert len(caplog.records) == (0 if works else 1)


def test_zeros_beside_a_single_channel_change_neither_convolution_nor_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 9, 7, generator=generator)
    weight = torch.randn(5, 1, 3, 3, generator=generator, requires_grad=True)
    expected = functional.conv2d(x, weight, padding=1)
    got = functional.conv2d(convolution.widened(x), convolution.widened(weight), padding=1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(each.square().sum(), weight)[0] for each in (got, expected)), rtol=1e-4, atol=1e-4
    )
    assert convolution.widened(x).is_contiguous(memory_format=torch.channels_last)


def test_features_depend_on_no_neighbour(encoder: AudioEncoder) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = [20000, 9000, 20000, 1, 20000, 9000, 33000, 700]
    clips = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    sizes: list[tuple[int, ...]] = []
    hook = encoder.log_mel.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    got = pooled_features(encoder, clips, batch_samples=45000)
    hook.remove()
    assert got.shape == (8, encoder.features)
    assert got.dtype == torch.float32
    assert (2, 20000) in sizes
    assert max(rows * samples for rows, samples in sizes) <= 45000
    for clip, features in zip(clips, got, strict=True):
        whole = torch.zeros(max(len(clip), encoder.min_samples))
        whole[: len(clip)] = clip
        with torch.inference_mode():
            assert relative(features[None], encoder(whole[None])) < 1e-5


def test_a_long_clip_goes_through_in_pieces(encoder: AudioEncoder) -> None:
    clip = torch.randn(48 * 3 * encoder.reduction * encoder.hop + 777, generator=torch.Generator().manual_seed(4)) * 0.1
    piece = 48 * encoder.reduction * encoder.hop
    lengths: list[int] = []
    hook = encoder.log_mel.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    got = pooled_features(encoder, [clip], batch_samples=piece)
    hook.remove()
    assert len(lengths) > 3
    assert max(lengths) <= piece + encoder.reduction * encoder.hop
    with torch.inference_mode():
        whole = encoder(clip[None])
    assert relative(got, whole) < 1e-5


def test_no_feature_frame_reaches_beyond_the_margin(encoder: AudioEncoder) -> None:
    logmel = torch.randn(1, (2 * MARGIN + 2) * encoder.reduction, 64, generator=torch.Generator().manual_seed(5))
    other = logmel.clone()
    other[:, : encoder.reduction] = 1e6
    with torch.inference_mode():
        same = (encoder.frames(logmel) == encoder.frames(other)).all(2)[0]
    assert not same[0]
    assert same[MARGIN:].all()


@pytest.mark.parametrize("batch_samples", [10**7, 400_000])
def test_frames_are_what_is_pooled(encoder: AudioEncoder, batch_samples: int) -> None:
    """Of clips shorter than a frame, of equal ones, and of one that goes through in pieces."""
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) / 10 for n in (100, 64000, 48000, 64000, 500_000)]
    frames, pooled = frame_features(encoder, waves, batch_samples), pooled_features(encoder, waves, batch_samples)
    for wave, of_clip, vector in zip(waves, frames, pooled, strict=True):
        assert of_clip.shape == (max(1, (len(wave) // encoder.hop + 1) // encoder.reduction), encoder.features)
        torch.testing.assert_close(pool_frames(of_clip[None])[0], vector)


def test_no_clips_and_training_mode() -> None:
    small = SmallCnn((8, 8)).eval()
    assert pooled_features(small, []).shape == (0, 8)
    with pytest.raises(ValueError, match="evaluation mode"):
        frame_features(SmallCnn(), [torch.zeros(32000)])
    with pytest.raises(ValueError, match="evaluation mode"):
        pooled_features(small.train(), [torch.zeros(32000)])
