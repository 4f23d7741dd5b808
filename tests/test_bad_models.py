"""Models of others that cannot be used: one sentence naming the field or the file, before anything long; none of their code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from command_line import DIFFATR, Result, Terminal, start, typed
from conftest import Workshop
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_hub import sharded
from tiny_models import AUDIO_MODELS, TEXT_MODELS, make_ast, make_clap, make_wavlm, make_whisper, save_tokenizer

from diffatr_cli.errors import DiffATRError
from diffatr_cli.pretrained import load_text_encoder
from diffatr_cli.pretrained.hub import _is_all_there
from diffatr_cli.pretrained.transformers_models import load_audio_model

MAKERS = {**AUDIO_MODELS, "roberta": TEXT_MODELS["roberta"], "bert": TEXT_MODELS["bert"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model of each kind, only to be copied."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(root / name)
    return root


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    shutil.rmtree(folder)
    save_tokenizer(folder)  # even so it reads nothing
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def _lacks_a_shard(folder: Path) -> None:
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    shutil.rmtree(folder)
    sharded(folder, whole)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _shard_elsewhere(folder: Path) -> None:
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    shutil.rmtree(folder)
    sharded(folder, whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../whole/model-00002"))


def _truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)


def _other_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    extra = [{"id": 400 + i, "content": f"<{i}>"} for i in range(200)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [each | flags for each in extra]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "attention" in key or "attn" in key)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors", {"format": "pt"})


def _extractor_of(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        other = make(folder.with_name("other"))
        shutil.copy(other / "preprocessor_config.json", folder / "preprocessor_config.json")

    return replace


def _sized(**changes: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "preprocessor_config.json", **changes)


def _same(folder: Path) -> None:
    pass


Change = Callable[[Path], None]
TEXT: list[tuple[str, Change, str]] = [
    ("ast", _same, "of the type audio-spectrogram-transformer, which reads no texts. Name a text model"),
    ("whisper", _same, "of the type whisper, which reads no texts. Name a text model"),
    ("wavlm", _same, "of the type wavlm, which reads no texts. Name a text model"),
    ("bert", _vit, "of the type vit, which reads no texts. Name a text model"),
    ("roberta", _truncated, "model.safetensors is damaged or half downloaded. Copy it again"),
    ("bert", _truncated, "model.safetensors is damaged or half downloaded. Copy it again"),
    ("roberta", _lacks_a_shard, "lacks model-00002-of-00002.safetensors: half downloaded? Copy it whole"),
    ("roberta", _shard_elsewhere, "names files outside its folder, so it is not used."),
    ("roberta", _without("model.safetensors"), "lacks model.safetensors: half downloaded? Copy it whole"),
    ("roberta", _without("tokenizer.json"), "its tokenizer has no vocabulary (merges.txt or tokenizer.json or vocab.json)"),
    ("roberta", _missing_tensor, "its weights lack some or have other shapes"),
    ("roberta", _other_tokenizer, "tokens and its model 270: they are not of one model. Copy the folder again"),
    ("bert", _other_tokenizer, "tokens and its model 270: they are not of one model. Copy the folder again"),
    ("clap", _other_tokenizer, "tokens and its model 270: they are not of one model. Copy the folder again"),
    ("roberta", lambda folder: _edit(folder / "config.json", model_type="mine"), "of the type mine, which transformers"),
    ("roberta", lambda folder: (folder / "config.json").write_text("{") and None, "cannot be read as a model's settings"),
    ("roberta", _without("config.json"), "holds no model (no config.json)"),
]
AUDIO: list[tuple[str, Change, str]] = [
    ("bert", _same, "of the type bert, which is not an audio model known here"),
    ("bert", _vit, "of the type vit, which is not an audio model known here"),
    ("clap", _without("preprocessor_config.json"), "its feature extractor cannot be loaded"),
    ("clap", _truncated, "model.safetensors is damaged or half downloaded"),
    ("ast", _missing_tensor, "its weights lack some or have other shapes"),
    ("clap", _sized(feature_size=64), "(preprocessor_config.json) has feature_size 64, and the model 16. Copy the folder again"),
    ("ast", _sized(num_mel_bins=16), "(preprocessor_config.json) has num_mel_bins 16, and the model 32."),
    ("ast", _sized(max_length=256), "(preprocessor_config.json) has max_length 256, and the model 128."),
    ("whisper", _sized(feature_size=80), "(preprocessor_config.json) has feature_size 80, and the model 16."),
    ("whisper", _sized(chunk_length=30), "(preprocessor_config.json) has nb_max_frames 3000, and the model 200."),
    *(
        (name, _extractor_of(make), "(preprocessor_config.json) is of a")
        for name in AUDIO_MODELS
        for make in (make_clap, make_ast, make_whisper, make_wavlm)
        if AUDIO_MODELS[name] is not make
    ),
]


def _spoilt(models: Path, tmp_path: Path, name: str, change: Change) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(models / name, folder)
    change(folder)
    return folder


def _is_one_sentence(done: Result, field: str, words: str) -> None:
    assert done.code in (1, 2)
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("diffatr: ")
    assert words in done.err
    assert field in done.err or "model" in done.err
    assert "trust_remote_code" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(("name", "change", "words"), TEXT)
def test_text_encoders(workshop: Workshop, models: Path, tmp_path: Path, name: str, change: Change, words: str) -> None:
    """Told by `pretrain` before it touches the data, and without a run's folder."""
    folder = _spoilt(models, tmp_path, name, change)
    command = ["pretrain", workshop.recipe_file, f"text.encoder={folder}", "--data", workshop.data, "--runs", tmp_path / "runs"]
    _is_one_sentence(typed(command), "text.encoder", words)
    assert not list((tmp_path / "runs").rglob("*.*"))


@pytest.mark.parametrize(("name", "change", "words"), AUDIO)
def test_audio_encoders(models: Path, tmp_path: Path, name: str, change: Change, words: str) -> None:
    folder = _spoilt(models, tmp_path, name, change)
    with pytest.raises(DiffATRError) as failure:
        load_audio_model(str(folder), "mean")
    assert str(failure.value).startswith("audio.encoder: ")
    assert words in str(failure.value)
    assert len(failure.value.args) == 1


def test_an_audio_encoder_in_training(workshop: Workshop, models: Path, tmp_path: Path) -> None:
    tiny.make_data(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    base = ["pretrain", workshop.recipe_file, "--data", tmp_path / "data", "--runs", tmp_path / "runs", "audio.perturb=false"]
    no_pooling = typed([*base, f"audio.encoder={models / 'whisper'}", "audio.pooling=model"])
    _is_one_sentence(no_pooling, "audio.pooling", "the model brings no pooling of its own; use mean, max or panns")
    assert no_pooling.code == 2
    spoilt = _spoilt(models, tmp_path, "clap", _sized(feature_size=64))
    _is_one_sentence(typed([*base, f"audio.encoder={spoilt}"]), "audio.encoder", "has feature_size 64")
    _is_one_sentence(
        typed([*base, f"text.encoder={models / 'roberta'}", "text.pooling=model"]), "text.pooling", "brings no pooling of its own"
    )
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert not list((tmp_path / "runs").rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("roberta", _same, "is of the type roberta, which has no towers of sound and of text"),
        ("clap", _truncated, "model.safetensors is damaged or half downloaded"),
        ("clap", _lacks_a_shard, "lacks model-00002-of-00002.safetensors"),
        ("clap", _sized(feature_size=64), "has feature_size 64, and the model 16"),
        ("clap", _extractor_of(make_ast), "is of a ASTFeatureExtractor"),
        ("clap", _without("preprocessor_config.json"), "its feature extractor cannot be loaded"),
    ],
)
def test_indexing_with_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Change, words: str
) -> None:
    """Told before the folder is looked at."""
    tiny.make_data(tmp_path, sizes=(0, 0, 2))
    folder = _spoilt(models, tmp_path, name, change)

    def scan(*_: object, **__: object) -> None:
        raise AssertionError("the folder was looked at first")

    monkeypatch.setattr("diffatr_cli.corpus.index.scan", scan)
    _is_one_sentence(typed(["index", tmp_path / "tones" / "test", "--model", folder]), "--model", words)


# --- code that comes with models ------------------------------------------------------------------------------------


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["roberta", "bert", "clap"])
def test_pickled_code_is_not_run(models: Path, tmp_path: Path, name: str, form: str) -> None:
    folder, ran = _spoilt(models, tmp_path, name, _without("model.safetensors")), tmp_path / "ran"
    state: dict[str, object] = {**load_file(models / name / "model.safetensors"), "more": _Payload(ran)}
    if form == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DiffATRError, match=r"pytorch_model\.bin is refused: .* Take the model with model\.safetensors instead"):
        load_text_encoder(str(folder), "mean")
    if name == "clap":
        with pytest.raises(DiffATRError, match=r"pytorch_model\.bin is refused"):
            load_audio_model(str(folder), "model")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_plain_tensors_in_a_pickle_load(models: Path, tmp_path: Path, name: str) -> None:
    folder = _spoilt(models, tmp_path, name, _without("model.safetensors"))
    torch.save(load_file(models / name / "model.safetensors"), folder / "pytorch_model.bin")
    captions = ["a low tone plays", "hiss"]
    of_pickle, of_safetensors = (load_text_encoder(str(each), "mean").encode(captions) for each in (folder, models / name))
    assert torch.allclose(of_pickle, of_safetensors, atol=1e-6)
    os.truncate(folder / "pytorch_model.bin", 5000)
    with pytest.raises(DiffATRError, match=r"pytorch_model\.bin is damaged or half downloaded"):
        load_text_encoder(str(folder), "mean")


def _with_code(folder: Path, ran: Path, kind: str) -> None:
    """Code beside a model, as authors publish it, that leaves a file where it is run."""
    code = f"open({str(ran)!r}, 'w').close()\nfrom transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast\n"
    names = {
        "config": "MyConfig(RobertaConfig)",
        "model": "MyModel(RobertaModel)",
        "tokenizer": "MyTokenizer(RobertaTokenizerFast)",
    }
    (folder / "modeling_mine.py").write_text(
        code + "".join(f"class {name}:\n    model_type = {kind!r}\n" for name in names.values())
    )
    auto_map = {"AutoConfig": "modeling_mine.MyConfig", "AutoModel": "modeling_mine.MyModel"}
    _edit(folder / "config.json", model_type=kind, auto_map=auto_map)
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_mine.MyTokenizer"]})


def test_code_of_a_model_of_an_unknown_type_is_refused_and_not_run(workshop: Workshop, models: Path, tmp_path: Path) -> None:
    folder, ran = _spoilt(models, tmp_path, "roberta", _same), tmp_path / "ran"
    _with_code(folder, ran, "mine")
    command = ["pretrain", workshop.recipe_file, f"text.encoder={folder}", "--data", workshop.data, "--runs", tmp_path / "runs"]
    _is_one_sentence(typed(command), "text.encoder", "comes with code of its own, which is never run here")
    assert not ran.exists()


def test_code_of_a_model_of_a_known_type_is_passed_over(models: Path, tmp_path: Path) -> None:
    folder, ran = _spoilt(models, tmp_path, "roberta", _same), tmp_path / "ran"
    _with_code(folder, ran, "roberta")
    captions = ["a low tone plays", "hiss"]
    vectors = load_text_encoder(str(folder), "mean").encode(captions)
    assert torch.equal(vectors, load_text_encoder(str(models / "roberta"), "mean").encode(captions))
    assert not ran.exists()


@pytest.mark.slow
def test_nobody_is_asked_at_a_terminal_whether_code_may_run(workshop: Workshop, models: Path, tmp_path: Path) -> None:
    folder, ran = _spoilt(models, tmp_path, "roberta", _same), tmp_path / "ran"
    _with_code(folder, ran, "mine")
    command = [*DIFFATR, "pretrain", workshop.recipe_file, f"text.encoder={folder}", "--data", workshop.data, "--runs", tmp_path]
    terminal = Terminal(command)
    shown = terminal.read()
    assert terminal.process.wait(60) == 2
    assert "[y/N]" not in shown
    assert "comes with code of its own, which is never run here" in " ".join(shown.split())
    assert not ran.exists()
    # Where the environment asks for it, it is not given either.
    process = start(command, env={**os.environ, "HF_TRUST_REMOTE_CODE": "1", "TRUST_REMOTE_CODE": "1"})
    process.communicate(timeout=120)
    assert process.returncode == 2
    assert not ran.exists()


def test_no_module_lets_code_of_models_run() -> None:
    package = Path(__file__).parents[1] / "diffatr_cli"
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("trust_remote_code=") == text.count("trust_remote_code=False"), path
        assert "weights_only=False" not in text, path


# --- whether weights are all there ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.data())
def test_every_cut_of_safetensors_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    save_file({f"t{i}": torch.zeros(size) for i, size in enumerate(sizes)}, path, {"format": "pt"})
    assert _is_all_there(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert not _is_all_there(path)
    path.write_bytes(whole + b"\0")
    assert not _is_all_there(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 20, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null"],
)
def test_what_is_no_safetensors_is_noticed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert not _is_all_there(tmp_path / "model.safetensors")
