"""Models of `transformers` as encoders: their vectors are those that the library itself gives, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import AUDIO_MODELS, LINES, TEXT_MODELS, make_ast, make_clap, make_sentence_model, make_wavlm, make_whisper

from diffatr_cli.core.text import TextEncoder
from diffatr_cli.core.transformers_audio import pool_counted, trainable_layers
from diffatr_cli.core.transformers_text import TransformersText
from diffatr_cli.errors import UsageError
from diffatr_cli.pretrained import load_text_encoder
from diffatr_cli.pretrained.transformers_models import load_audio_model, load_text_model

RATE = 16_000
SOME = [*LINES, "A LOW tone, and again a low tone, until it is far too long for any model " * 3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, make in {**TEXT_MODELS, **AUDIO_MODELS}.items():
        make(root / name)
    make_sentence_model(root / "sentences")
    make_clap(root / "fused", fusion=True)
    return root


def noise(*seconds: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(round(RATE * each))).astype(np.float32) for each in seconds]


# --- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_vectors_are_the_librarys(folders: Path, name: str, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = load_text_encoder(str(folders / name), pooling, max_tokens=512, normalise=False, fast=False)
    assert isinstance(encoder, TransformersText)
    model, tokenizer = AutoModel.from_pretrained(folders / name).eval(), AutoTokenizer.from_pretrained(folders / name)
    positions = 38 if name in ("roberta", "mpnet") else 40  # the first two are kept for padding there
    got = encoder.encode(SOME, batch_size=3)
    for row, text in enumerate(SOME):
        alone = tokenizer(text, truncation=True, max_length=positions, return_tensors="pt")
        with torch.no_grad():
            states = model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).last_hidden_state[0]
        want = {"cls": states[0], "mean": states.mean(0), "max": states.amax(0)}[pooling]
        torch.testing.assert_close(got[row], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_bert_gives_the_same_vectors_by_either_path(folders: Path, pooling: str) -> None:
    fast, plain = (load_text_encoder(str(folders / "bert"), pooling, fast=fast) for fast in (True, False))
    assert isinstance(fast, TextEncoder)
    assert isinstance(plain, TransformersText)
    torch.testing.assert_close(fast.encode(SOME), plain.encode(SOME), atol=1e-5, rtol=1e-4)


def test_sentence_transformers_own_pooling(folders: Path) -> None:
    """Against that library: mean over tokens, a dense layer with tanh, unit length."""
    library = pytest.importorskip("sentence_transformers")
    want = library.SentenceTransformer(str(folders / "sentences"), device="cpu").encode(SOME)
    encoder = load_text_encoder(str(folders / "sentences"), "model", max_tokens=512, normalise=False)
    assert encoder.features == 20
    np.testing.assert_allclose(encoder.encode(SOME).numpy(), want, atol=1e-5)


def test_weights_that_are_pickled_load_safely(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for path in (folders / "roberta").iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(folders / "roberta" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    both = [load_text_encoder(str(folder), "mean").encode(SOME) for folder in (folders / "roberta", tmp_path)]
    assert torch.equal(*both)


def test_captions_go_as_they_are_written_or_as_the_baseline_writes_them(folders: Path) -> None:
    lower, plain = (load_text_encoder(str(folders / "roberta"), "mean", normalise=normalise) for normalise in (True, False))
    assert torch.equal(*lower.encode(["Rain, Thunder!", "rain thunder"]))
    assert not torch.allclose(*plain.encode(["Rain, Thunder!", "rain thunder"]))


def test_a_text_model_without_pooling_of_its_own(folders: Path) -> None:
    with pytest.raises(UsageError, match=r"text\.pooling: .* use cls or mean"):
        load_text_encoder(str(folders / "roberta"), "model")


# --- sounds ------------------------------------------------------------------------------------------------------------

LENGTHS = (1.0, 0.3, 0.05, 1.0, 1.28, 2.0)


@pytest.mark.parametrize("pooling", ["panns", "mean", "max"])
@pytest.mark.parametrize("name", AUDIO_MODELS)
def test_what_shares_the_batch_does_not_matter(folders: Path, name: str, pooling: Any) -> None:
    encoder = load_audio_model(str(folders / name), pooling).eval()
    sounds = noise(*LENGTHS, 5.3)
    together = encoder.embed(sounds)
    assert together.shape == (7, 32)
    for sound, vector in zip(sounds, together, strict=True):
        torch.testing.assert_close(encoder.embed([sound])[0], vector, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.embed(sounds, seconds=1.0), together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", AUDIO_MODELS)
def test_sounds_are_embedded_in_half_precision_too(folders: Path, name: str) -> None:
    """As on a processor with bf16; what the library's extractors make of a sound stays as it is."""
    encoder = load_audio_model(folders / name, "mean").eval()
    sounds = noise(0.7, 1.3)
    with torch.inference_mode():
        expected = encoder.embed(sounds)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder.embed(sounds)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def pooled(states: torch.Tensor, pooling: str) -> torch.Tensor:
    return {"max": states.amax(0), "mean": states.mean(0), "panns": states.amax(0) + states.mean(0)}[pooling]


def of_ast(model: Any, extractor: Any, sound: np.ndarray) -> torch.Tensor:
    out = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).last_hidden_state[0, 2:]
    frames = out.reshape(4, 16, 32).mean(0)  # 4 bands of frequency, 16 stretches of 8 frames of 10 ms
    return frames[: -(-len(sound) // 1280)]


def of_whisper(model: Any, extractor: Any, sound: np.ndarray) -> torch.Tensor:
    states = model.encoder(extractor(sound, sampling_rate=RATE, return_tensors="pt")["input_features"]).last_hidden_state[0]
    return states[: -(-len(sound) // 320)]  # two mel frames of 160 samples


def of_wavlm(model: Any, extractor: Any, sound: np.ndarray) -> torch.Tensor:
    return model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["panns", "mean", "max"])
@pytest.mark.parametrize(("name", "frames"), [("ast", of_ast), ("whisper", of_whisper), ("wavlm", of_wavlm)])
def test_frames_are_the_librarys(folders: Path, name: str, frames: Callable[..., torch.Tensor], pooling: Any) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(folders / name).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folders / name)
    sounds = noise(0.3, 1.0, 1.28)
    got = load_audio_model(str(folders / name), pooling).eval().embed(sounds)
    for sound, vector in zip(sounds, got, strict=True):
        with torch.no_grad():
            want = pooled(frames(model, extractor, sound), pooling)
        torch.testing.assert_close(vector, want, atol=1e-5, rtol=1e-4)


def test_the_models_own_vector(folders: Path) -> None:
    from transformers import ASTFeatureExtractor, ASTModel

    model, extractor = ASTModel.from_pretrained(folders / "ast").eval(), ASTFeatureExtractor.from_pretrained(folders / "ast")
    (sound,) = noise(0.7)
    with torch.no_grad():
        want = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).pooler_output[0]
    got = load_audio_model(str(folders / "ast"), "model").eval().embed([sound])[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    for name in ("whisper", "wavlm"):
        with pytest.raises(UsageError, match=r"audio\.pooling: .* use mean, max or panns"):
            load_audio_model(str(folders / name), "model")


@pytest.mark.parametrize("name", ["clap", "fused"])
def test_claps_towers_are_the_librarys(folders: Path, name: str) -> None:
    from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizerFast

    model, extractor = ClapModel.from_pretrained(folders / name).eval(), ClapFeatureExtractor.from_pretrained(folders / name)
    tokenizer = RobertaTokenizerFast.from_pretrained(folders / name)
    sounds = noise(1.0, 0.3, 0.05)
    audio = load_audio_model(str(folders / name), "model").eval()
    got = torch.nn.functional.normalize(audio.embed(sounds), dim=-1)
    for sound, vector in zip(sounds, got, strict=True):
        inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
        inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])  # which the library draws by lot for short sounds
        with torch.no_grad():
            want = model.get_audio_features(**inputs).pooler_output[0]
        torch.testing.assert_close(vector, want, atol=1e-5, rtol=1e-4)
    text = load_text_model(name, folders / name, "model", 512, normalise=False)
    got = torch.nn.functional.normalize(text.encode(SOME), dim=-1)
    for line, vector in zip(SOME, got, strict=True):
        with torch.no_grad():
            tokens = tokenizer(line, truncation=True, max_length=38, return_tensors="pt")
            want = model.get_text_features(**tokens).pooler_output[0]
        torch.testing.assert_close(vector, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["clap", "fused"])
def test_a_long_sound_gets_one_vector_and_always_the_same(folders: Path, name: str) -> None:
    """The library would take a random second of it."""
    encoder = load_audio_model(str(folders / name), "model").eval()
    (sound,) = noise(2.6)
    windows = encoder.embed([sound[:RATE], sound[RATE : 2 * RATE], sound[-RATE:]])
    for seed in range(3):
        np.random.seed(seed)  # noqa: NPY002 - the generator that the library draws from
        torch.testing.assert_close(encoder.embed([sound])[0], windows.mean(0), atol=1e-5, rtol=1e-4)


def test_pooling_over_the_frames_that_count() -> None:
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[-5.0], [100.0], [100.0]]])
    assert pool_counted(states, torch.tensor([2, 0]), "mean").tolist() == [[2.0], [-5.0]]  # one frame at least
    assert pool_counted(states, torch.tensor([2, 1]), "max").tolist() == [[3.0], [-5.0]]
    assert pool_counted(states, torch.tensor([3, 1]), "panns").flatten().tolist() == pytest.approx([100 + 104 / 3, -10])


@pytest.mark.parametrize(
    ("make", "last", "behind"),
    [
        (make_ast, "layers.1.", "layernorm."),
        (make_whisper, "encoder.layers.1.", "encoder.layer_norm."),
        (make_wavlm, "encoder.layers.1.", None),
        (make_clap, "audio_model.audio_encoder.layers.1.blocks.0.", "audio_projection."),
    ],
)
def test_the_last_layers_alone_can_be_trained(tmp_path: Path, make: Any, last: str, behind: str | None) -> None:
    encoder = load_audio_model(str(make(tmp_path / "m")), "mean")
    trainable_layers(encoder, 1)
    trained = {name.removeprefix("model.") for name, each in encoder.named_parameters() if each.requires_grad}
    assert any(name.startswith(last) for name in trained)
    assert behind is None or any(name.startswith(behind) for name in trained)
    assert not [name for name in trained if ".0." in name.removeprefix("audio_model.") and not name.startswith(last)]
    trainable_layers(encoder, 2)
    assert any(".0." in name for name, each in encoder.named_parameters() if each.requires_grad)
    with pytest.raises(ValueError, match="has 2 layers, not 3"):
        trainable_layers(encoder, 3)
