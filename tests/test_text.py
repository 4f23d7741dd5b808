"""The caption encoder against transformers used directly, and the failures that people meet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Workshop
from safetensors.torch import save_file
from transformers import BertModel

from diffatr_cli.core.text import normalise_caption
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.pretrained import load_text_encoder, text_folder


def test_captions_are_normalised() -> None:
    assert normalise_caption("  A Dog's bark,\tthen -- rain!  ") == "a dogs bark then rain"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pools_what_transformers_gives(workshop: Workshop, pooling: str) -> None:
    encoder = load_text_encoder(str(workshop.root / "bert"), pooling)  # type: ignore[arg-type]
    captions = ["A low tone plays.", "hiss", "high sound, first"]
    vocabulary = (workshop.root / "bert" / "vocab.txt").read_text().split()
    bert = BertModel.from_pretrained(workshop.root / "bert", add_pooling_layer=False).eval()
    for caption, vector in zip(captions, encoder.encode(captions, batch_size=2), strict=True):
        words = normalise_caption(caption).split()
        ids = torch.tensor([[vocabulary.index(w) for w in ["[CLS]", *words, "[SEP]"]]])
        states = bert(ids).last_hidden_state[0]
        assert torch.allclose(vector, states[0] if pooling == "cls" else states.mean(0), atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(workshop: Workshop) -> None:
    encoder = load_text_encoder(str(workshop.root / "bert"), "mean")
    captions = ["hiss", "a low tone plays first second third sound", "low"]
    assert torch.allclose(encoder.encode(captions)[0], encoder.encode(captions[:1])[0], atol=1e-6)


def test_token_states_are_those_of_transformers_whatever_the_batch(workshop: Workshop) -> None:
    encoder = load_text_encoder(str(workshop.root / "bert"), "mean")
    captions = ["A low tone plays.", "hiss", "high sound, first", "HISS", ""]
    vocabulary = (workshop.root / "bert" / "vocab.txt").read_text().split()
    bert = BertModel.from_pretrained(workshop.root / "bert", add_pooling_layer=False).eval()
    found = encoder.token_states(captions, batch_size=2)
    for caption, got, pooled in zip(captions, found, encoder.encode(captions), strict=True):
        ids = torch.tensor([[vocabulary.index(w) for w in ["[CLS]", *normalise_caption(caption).split(), "[SEP]"]]])
        torch.testing.assert_close(got.float(), bert(ids).last_hidden_state[0].detach(), atol=2e-3, rtol=0)  # half precision
        torch.testing.assert_close(got.float().mean(0), pooled, atol=2e-3, rtol=0)


def test_long_captions_are_cut(workshop: Workshop) -> None:
    encoder = load_text_encoder(str(workshop.root / "bert"), "cls", max_tokens=8)
    ids, mask = encoder.tokenise(["low " * 100, "low"])
    assert ids.shape == (2, 8)
    assert mask.sum(1).tolist() == [8, 3]
    whole = load_text_encoder(str(workshop.root / "bert"), "cls", max_tokens=10**6)
    assert whole.encode(["low " * 100]).isfinite().all()
    assert whole.tokenise(["low " * 100])[0].shape == (1, whole.bert.config.max_position_embeddings)


def test_failures_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"diffatr\[small\]"):
        text_folder("minilm")
    with pytest.raises(DiffATRError, match=r"config\.json"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DiffATRError, match=r"model\.safetensors"):
        load_text_encoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DiffATRError, match=r"model\.safetensors is damaged or half downloaded"):
        load_text_encoder(str(tmp_path))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DiffATRError, match="tokenizer"):
        load_text_encoder(str(tmp_path))


def test_an_unreachable_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(DiffATRError, match="minilm"):
        text_folder("nobody/knows-this-bert")


@pytest.mark.parametrize("place", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_hub_model_that_was_fetched_before_needs_no_hub(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(place, str(tmp_path))
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[place]
    model = tmp_path / below / "models--somebody--bert"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abcd")
    with pytest.raises(DiffATRError, match="minilm"):  # fetched in part only
        text_folder("somebody/bert")
    shutil.copytree(workshop.root / "bert", model / "snapshots" / "0123abcd")
    assert text_folder("somebody/bert") == model / "snapshots" / "0123abcd"


def test_equal_captions_are_embedded_once(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_text_encoder(str(workshop.root / "bert"), "mean")
    seen: list[str] = []
    tokenise = encoder.tokenise
    monkeypatch.setattr(encoder, "tokenise", lambda captions: seen.extend(captions) or tokenise(captions))
    captions = ["Hiss!", "low tone", "hiss", "low tone", "a sound"]
    vectors = encoder.encode(captions, batch_size=2)
    assert sorted(seen) == ["a sound", "hiss", "low tone"]
    for caption, vector in zip(captions, vectors, strict=True):
        assert torch.allclose(vector, encoder.encode([caption])[0], atol=1e-6)
