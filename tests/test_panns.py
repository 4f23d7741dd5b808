"""CNN14 and ResNet38 against their definition and the authors' outputs, and the reading of the authors' files."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffatr_cli.core.audio_encoder import ConvBlock
from diffatr_cli.core.panns import NOT_LOADED, Cnn14, ResNet38, load_panns
from diffatr_cli.errors import DiffATRError

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden arrays beside the checkout")
BOTH = pytest.mark.parametrize("kind", [Cnn14, ResNet38])


def golden_values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule by which the golden outputs' weights were filled."""
    g = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return g.uniform(0.5, 1.5, shape)
    if key.endswith("running_mean"):
        return g.normal(0, 0.1, shape)
    if len(shape) == 1:
        return g.uniform(0.8, 1.2, shape) if key.endswith("weight") else g.normal(0, 0.05, shape)
    return g.normal(0, 1, shape) * np.sqrt(1 / np.prod(shape[1:]))


@pytest.fixture(scope="module")
def filled() -> Callable[[type[Cnn14 | ResNet38]], Cnn14 | ResNet38]:
    models: dict[type, Cnn14 | ResNet38] = {}

    def make(kind: type[Cnn14 | ResNet38]) -> Cnn14 | ResNet38:
        if kind not in models:
            model = kind().eval()
            with torch.no_grad():
                for key, value in model.state_dict().items():
                    if not key.endswith("num_batches_tracked"):
                        value.copy_(torch.from_numpy(golden_values(key, tuple(value.shape))))
            models[kind] = model
        return models[kind]

    return make


@needs_golden
@BOTH
def test_pooled_values_of_the_authors(kind: type[Cnn14 | ResNet38], filled: Any) -> None:
    golden = np.load(GOLDEN / "panns_golden.npz")
    expected = golden[f"{kind.__name__}_pooled"]
    with torch.inference_mode():
        got = filled(kind)(torch.from_numpy(golden["waveform"])[None])[0].numpy()
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@needs_golden
@BOTH
def test_keys_and_shapes_of_the_authors(kind: type[Cnn14 | ResNet38], filled: Any) -> None:
    theirs = json.loads((GOLDEN / f"{kind.__name__}_keys.json").read_text())
    ours = {key: list(value.shape) for key, value in filled(kind).state_dict().items()}
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith(NOT_LOADED)}


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, gain, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    column = (slice(None), None, None)
    return (x - mean[column]) / (var[column] + 1e-5).sqrt() * gain[column] + bias[column]


def reference(kind: type, state: dict[str, Tensor], logmel: Tensor) -> Tensor:
    """Both networks as functions of their state dict, (B, T, 64) -> (B, 2048)."""

    def conv(name: str, bn: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return norm(state, bn, functional.conv2d(x, weight, padding=weight.shape[-1] // 2))

    def two(name: str, x: Tensor) -> Tensor:
        for i in "12":
            x = conv(f"{name}.conv{i}", f"{name}.bn{i}", x).clamp_min(0)
        return x

    x = norm(state, "bn0", logmel.permute(2, 0, 1)[None]).permute(2, 0, 3, 1)
    halve = nn.AvgPool2d(2)
    if kind is Cnn14:
        for i in range(1, 6):
            x = halve(two(f"conv_block{i}", x))
        x = two("conv_block6", x)
    else:
        x = halve(two("conv_block1", x))
        for layer, blocks in enumerate((3, 4, 6, 3), 1):
            for b in range(blocks):
                name = f"resnet.layer{layer}.{b}"
                x = shortcut = halve(x) if layer > 1 and b == 0 else x
                if f"{name}.downsample.1.weight" in state:
                    shortcut = conv(f"{name}.downsample.1", f"{name}.downsample.2", x)
                inner = conv(f"{name}.conv1", f"{name}.bn1", x).clamp_min(0)
                x = (conv(f"{name}.conv2", f"{name}.bn2", inner) + shortcut).clamp_min(0)
        x = two("conv_block_after1", halve(x))
    x = x.mean(3)
    return x.amax(2) + x.mean(2)


@BOTH
def test_against_the_definition(kind: type[Cnn14 | ResNet38], filled: Any) -> None:
    model = filled(kind)
    waveform = torch.randn(2, 25000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got, logmel = model(waveform), model.log_mel(waveform)
        expected = reference(kind, model.state_dict(), logmel.contiguous())
        frames = model.frames(logmel)
    assert frames.shape == (2, logmel.shape[1] // model.reduction, model.features)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@BOTH
def test_start_and_training(kind: type[Cnn14 | ResNet38]) -> None:
    torch.manual_seed(0)
    model = kind(stripes=(8, 4)).train()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:  # Xavier uniform: bounded, and filling the bound
            out, into, *kernel = parameter.shape
            bound = (6 / ((into + out) * np.prod(kernel))) ** 0.5
            assert 0.97 * bound < parameter.abs().max() <= bound, name
        else:
            residual = name.startswith("resnet") and name.endswith("bn2.weight")
            assert (parameter == (0.0 if residual or name.endswith("bias") else 1.0)).all(), name
    waveform = torch.randn(2, model.min_samples)
    model(waveform).sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Behind a residual norm that starts at zero nothing moves in the first step but that norm.
    assert all(name.startswith("resnet") and not name.endswith(("bn2.weight", "bn2.bias")) for name in silent)


def test_dropout_where_the_authors_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(functional, "dropout", lambda x, p, training: rates.append(p) or x)  # type: ignore[func-returns-value]
    logmel = torch.randn(1, 32, 64)
    narrow(Cnn14).pooled(logmel)
    assert rates == [0.2] * 6
    rates.clear()
    ResNet38().pooled(logmel)
    assert rates == [0.2] + [0.1] * 16 + [0.2] * 2


def narrow(kind: type[Cnn14]) -> Cnn14:
    """The same names of parameters with few channels: files of kilobytes."""
    model = kind()
    for i in range(1, 7):
        setattr(model, f"conv_block{i}", ConvBlock(1 if i == 1 else 4, 4))
    return model


def as_published(model: nn.Module) -> dict[str, Any]:
    """A checkpoint as the authors save it: with the front end, the two heads, and the iteration."""
    extra = {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 4), "logmel_extractor.melW": torch.zeros(513, 64)}
    heads = {"fc1.weight": torch.zeros(4, 4), "fc1.bias": torch.zeros(4), "fc_audioset.weight": torch.zeros(527, 4)}
    return {"iteration": 600000, "model": extra | dict(model.state_dict()) | heads}


@pytest.fixture(scope="module")
def source() -> Cnn14:
    torch.manual_seed(3)
    return narrow(Cnn14)


@pytest.fixture(scope="module")
def blank() -> Cnn14:
    return narrow(Cnn14)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_loading(tmp_path: Path, source: Cnn14, zipped: bool) -> None:
    path = tmp_path / "Cnn14_mAP=0.431.pth"
    torch.save(as_published(source), path, _use_new_zipfile_serialization=zipped)
    model = narrow(Cnn14)
    load_panns(model, path)
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with pytest.raises(
        DiffATRError, match=r"half-downloaded.* bytes with md5 .*541141fa2ee191a88f24a3219fff024e, 327428481 bytes"
    ):
        load_panns(model, path)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, source: Cnn14, blank: Cnn14, zipped: bool) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "touched"
    torch.save(as_published(source) | {"sampler": Evil(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DiffATRError, match=r"evil.pth: refused.*could run code.*Fetch Cnn14_mAP"):
        load_panns(blank, path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists()  # it would have run


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><title>404</title>", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(90), bytes(999)]
)
def test_no_checkpoint_at_all(tmp_path: Path, blank: Cnn14, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(
        DiffATRError, match=r"x.pth: .*etch Cnn14_mAP=0.431.pth .md5.*zenodo.org/records/3987831/files/Cnn14_mAP%3D0.431.pth"
    ):
        load_panns(blank, path)


def test_missing_file_and_folder(tmp_path: Path, blank: Cnn14) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(DiffATRError, match=r"there is no such file. Fetch Cnn14_mAP=0.431.pth"):
            load_panns(blank, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: {"model": {k: v for k, v in c["model"].items() if "block6" not in k}},
            "conv_block6.conv1.weight is missing.* and 9 more",
        ),
        (
            lambda c: {"model": c["model"] | {"resnet.layer1.0.conv1.weight": torch.zeros(1)}},
            "resnet.layer1.0.conv1.weight is unknown",
        ),
        (lambda c: {"model": c["model"] | {"bn0.weight": torch.zeros(128)}}, r"bn0.weight is \(128,\), not \(64,\)"),
        (lambda c: c["model"], "without the weights under `model`"),
        (lambda c: {"model": {"epoch": 3}}, "without the weights under `model`"),
        (lambda c: [1, 2], "without the weights under `model`"),
    ],
)
def test_other_contents(tmp_path: Path, source: Cnn14, blank: Cnn14, change: Any, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(change(as_published(source)), path)
    before = {key: value.clone() for key, value in blank.state_dict().items()}
    with pytest.raises(DiffATRError, match=message):
        load_panns(blank, path)
    assert all(torch.equal(value, before[key]) for key, value in blank.state_dict().items())
