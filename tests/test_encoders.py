"""Both phases on encoders of others: trained whole, in part or not at all, resumed, loaded, searched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from tiny_models import TEXT_MODELS, make_ast, make_clap, make_sentence_model, make_wavlm, make_whisper

from diffatr_cli import load_model
from diffatr_cli.checkpoint import load_weights
from diffatr_cli.core.transformers_audio import TransformersAudio
from diffatr_cli.data.manifest import load_dataset, read_piece
from diffatr_cli.data.resample import resample
from diffatr_cli.encoders import build_text_encoder, check_states
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.evaluation.embedded_split import cached_split
from diffatr_cli.evaluation.evaluate import evaluate
from diffatr_cli.model import load_retriever
from diffatr_cli.runs import BEST
from diffatr_cli.training.pretrain import pretrain
from diffatr_cli.training.train_diffusion import train_diffusion


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, make in {"clap": make_clap, "ast": make_ast, "whisper": make_whisper, "wavlm": make_wavlm}.items():
        make(root / name)
    TEXT_MODELS["roberta"](root / "roberta")
    make_sentence_model(root / "sentences")
    return root


FEW = ("pretrain.epochs=1", "diffusion.epochs=1")
CLAP = ("audio.finetune=false", "audio.pooling=model", "text.finetune=false", "text.pooling=model")
SETTINGS = {
    "everything is trained": ("ast", "roberta", "audio.finetune=true", "audio.pooling=mean", "text.finetune=true"),
    "the last layer is trained": ("wavlm", "roberta", "audio.finetune=1", "audio.pooling=panns", "text.finetune=false"),
    "only the heads are trained": ("whisper", "sentences", "audio.finetune=false", "text.finetune=false", "text.pooling=model"),
    "a CLAP with heads": ("clap", "clap", *CLAP),
    "a CLAP's own space": ("clap", "clap", *CLAP, "model.heads=none"),
}


def fields(models: Path, setting: str) -> tuple[str, ...]:
    audio, text, *others = SETTINGS[setting]
    return (f"audio.encoder={models / audio}", f"text.encoder={models / text}", "text.normalise=false", *others)


def train(workshop: Workshop, runs: Path, *overrides: str, jobs: Any = (pretrain, train_diffusion)) -> Path:
    recipe = workshop.recipe(*FEW, *overrides)
    for job in jobs:
        job("others", recipe, data=workshop.data, runs=runs, device="cpu")
    return runs / "others" / "seed-0"


@pytest.mark.parametrize("setting", SETTINGS)
def test_both_phases_and_a_search(setting: str, models: Path, workshop: Workshop, tmp_path: Path) -> None:
    run = train(workshop, tmp_path / "runs", *fields(models, setting))
    tensors, facts = load_weights(run / "pretrain" / BEST)
    kept = {name.split(".")[1] for name in tensors}
    assert ("audio" in kept) == ("audio.finetune=false" not in SETTINGS[setting])
    assert ("text" in kept) == ("text.finetune=true" in SETTINGS[setting])
    assert ("audio_head" in kept) == ("model.heads=none" not in SETTINGS[setting])
    assert set(facts["sources"]) == {"audio", "text"} - kept
    result = evaluate("tones", "tones", data=workshop.data, runs=tmp_path / "runs", split="val", device="cpu")
    assert result.clips == 8
    # What evaluation ranks is what the loaded model makes of the same sounds and captions.
    model, dataset = load_retriever(run, "cpu"), load_dataset(workshop.data, "tones")
    split = cached_split(model, run, dataset, "val")
    clips = dataset.split("val")
    waves = [resample(read_piece(dataset.root / clip.path), 32_000, to=16_000) for clip in clips]
    assert model.windowing.rate == 16_000
    np.testing.assert_allclose(split.audio.numpy(), model.embed_audio(waves), atol=1e-5)
    np.testing.assert_allclose(split.text.numpy(), model.embed_text([c for clip in clips for c in clip.captions]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(split.audio.numpy(), axis=1), 1, atol=1e-5)
    hits = load_model(run, "cpu").search(workshop.data / "tones" / "val", "a low tone", index=tmp_path / "index")
    assert len(hits) == 8


def test_without_heads_the_space_is_the_models_own(models: Path, workshop: Workshop, tmp_path: Path) -> None:
    run = train(workshop, tmp_path / "runs", *fields(models, "a CLAP's own space"), jobs=(pretrain,))
    ours, theirs = load_model(run, "cpu"), load_model(models / "clap", "cpu")
    files = sorted((workshop.data / "tones" / "val").glob("*.wav"))
    np.testing.assert_allclose(ours.embed_audio(files), theirs.embed_audio(files), atol=1e-5)
    np.testing.assert_allclose(ours.embed_text(["A tone, high."]), theirs.embed_text(["A tone, high."]), atol=1e-5)
    again = train(workshop, tmp_path / "runs", *fields(models, "a CLAP's own space"), jobs=(pretrain,))
    assert again == run


def test_sizes_that_do_not_meet_are_told_before_anything_long(models: Path, workshop: Workshop, tmp_path: Path) -> None:
    mixed = ("text.encoder=" + str(models / "roberta"), "text.pooling=mean")
    with pytest.raises(UsageError, match=r"model\.heads: .* 16 and captions of 32 features share no space of 16"):
        train(workshop, tmp_path / "runs", *fields(models, "a CLAP's own space"), *mixed, jobs=(pretrain,))
    assert not (tmp_path / "runs" / "others" / "seed-0" / "pretrain").exists()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["everything is trained", "only the heads are trained"])
def test_interrupted_and_resumed_it_is_the_same(setting: str, models: Path, workshop: Workshop, tmp_path: Path) -> None:
    more = (*fields(models, setting), "pretrain.epochs=2")
    calm = train(workshop, tmp_path / "calm", *more, jobs=(pretrain,))

    def stop(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 2"):
            raise KeyboardInterrupt

    recipe = workshop.recipe(*FEW, *more)
    with pytest.raises(KeyboardInterrupt):
        pretrain("others", recipe, data=workshop.data, runs=tmp_path / "cut", device="cpu", progress=stop)
    cut = train(workshop, tmp_path / "cut", *more, jobs=(pretrain,))
    one, other = (load_weights(run / "pretrain" / BEST)[0] for run in (calm, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_encoders_features_are_computed_once(
    models: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all seeds, settings of the heads, validations, both phases and evaluation."""
    data = shutil.copytree(workshop.data, tmp_path / "data")
    shutil.rmtree(data / "tones" / ".cache", ignore_errors=True)
    sounds: list[int] = []
    embed = TransformersAudio.embed
    monkeypatch.setattr(TransformersAudio, "embed", lambda self, waves, *a: sounds.append(len(waves)) or embed(self, waves, *a))
    for seed in (0, 1):
        for job in (pretrain, train_diffusion):
            recipe = workshop.recipe(*FEW, *fields(models, "only the heads are trained"), f"pretrain.lr={0.01 * (seed + 1)}")
            job("others", recipe, data=data, runs=tmp_path / "runs", seed=seed, device="cpu")
    dataset = load_dataset(data, "tones")
    splits = [len(dataset.split(name)) for name in ("train", "val")]
    windows = len(dataset.split("val"))  # what calibration is fitted on, for each seed
    assert sum(sounds) == sum(splits) + 2 * windows


def test_another_encoder_in_the_place_of_a_frozen_one_is_noticed(models: Path, workshop: Workshop, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    own = shutil.copytree(models / "whisper", tmp_path / "whisper")
    run = train(
        workshop, tmp_path / "runs", *fields(models, "only the heads are trained"), f"audio.encoder={own}", jobs=(pretrain,)
    )
    load_retriever(run, "cpu").embed_audio([np.zeros(16_000, np.float32)])
    weights = load_file(own / "model.safetensors")
    weights["encoder.layer_norm.bias"] += 1
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DiffATRError, match=f"^{run}: was trained on the audio encoder {own}. That is another model now"):
        load_retriever(run, "cpu").embed_audio([np.zeros(16_000, np.float32)])
    # Nor are features taken that another run left of the encoder that is there now.
    train(workshop, tmp_path / "others", *fields(models, "only the heads are trained"), f"audio.encoder={own}", jobs=(pretrain,))
    shutil.rmtree(run / "pretrain" / "cache", ignore_errors=True)
    for path in run.glob("pretrain/embeddings-*"):
        path.unlink()
    with pytest.raises(DiffATRError, match="That is another model now"):
        cached_split(load_retriever(run, "cpu"), run, load_dataset(workshop.data, "tones"), "val")


def test_a_frozen_encoder_that_has_moved_is_missed_only_where_it_is_asked(
    models: Path, workshop: Workshop, tmp_path: Path
) -> None:
    own = shutil.copytree(models / "whisper", tmp_path / "whisper")
    run = train(
        workshop, tmp_path / "runs", *fields(models, "only the heads are trained"), f"audio.encoder={own}", jobs=(pretrain,)
    )
    own.rename(tmp_path / "moved")
    assert load_model(run, "cpu").embed_text(["a low tone"]).shape[0] == 1
    with pytest.raises(UsageError, match=rf"^{run}: was trained on the audio encoder {own}\. audio\.encoder: {own} is no folder"):
        load_retriever(run, "cpu").embed_audio([np.zeros(16_000, np.float32)])


def test_published_weights_are_needed_no_more_once_a_run_holds_them(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen CNN14 begins with a file of others, and its run keeps it; nobody asks the hub for that file's name."""
    from diffatr_cli.encoders import audio_key
    from diffatr_cli.recipe_schema import AudioSection

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    section = AudioSection(encoder="cnn14", weights=str(tmp_path / "Cnn14.pth"), finetune=False)
    assert audio_key(section) is None
    (tmp_path / "Cnn14.pth").write_bytes(b"weights")
    first = audio_key(section)
    (tmp_path / "Cnn14.pth").write_bytes(b"others")
    assert None not in (first, audio_key(section))
    assert audio_key(section) != first


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("audio.encoder=smal",), r"audio\.encoder: there is no encoder smal"),
        (("audio.encoder=small", "audio.finetune=2"), r"audio\.finetune: .* whole \(true\) or not at all"),
        (("audio.encoder={ast}", "audio.weights=x.pth"), r"audio\.weights: "),
        (("audio.encoder={ast}", "audio.perturb=true"), r"audio\.perturb: "),
        (("audio.encoder={whisper}", "audio.pooling=model"), r"audio\.pooling: .* use mean, max or panns"),
        (("audio.encoder={roberta}",), r"audio\.encoder: .* of the type roberta, which is not an audio model"),
        (("audio.encoder=features",), r"audio\.encoder: `prepare features`"),
        (("model.heads=none", "pretrain.head_steps=3"), r"pretrain\.head_steps: there are no heads"),
    ],
)
def test_what_does_not_go_together(
    overrides: tuple[str, ...], words: str, models: Path, workshop: Workshop, tmp_path: Path
) -> None:
    named = {name: models / name for name in ("ast", "whisper", "roberta")}
    with pytest.raises(DiffATRError, match=words) as failure:
        train(workshop, tmp_path / "runs", *(each.format(**named) for each in overrides), jobs=(pretrain,))
    assert failure.value.exit_code == 2
    assert not list(tmp_path.glob("runs/*/*/*"))


def test_frames_and_token_states_are_those_of_our_own_encoders_and_a_bert(models: Path, workshop: Workshop) -> None:
    ours, bert = workshop.recipe().audio, build_text_encoder(workshop.recipe().text)
    check_states(ours, bert)
    others = workshop.recipe(f"audio.encoder={models / 'ast'}", "audio.finetune=false").audio
    with pytest.raises(UsageError, match=r"^diffusion\.conditioning: frames are those of small, cnn14, resnet38, and .*ast"):
        check_states(others, bert)
    roberta = build_text_encoder(workshop.recipe(f"text.encoder={models / 'roberta'}").text)
    with pytest.raises(UsageError, match=r"^diffusion\.conditioning: .* token states of a BERT"):
        check_states(ours, roberta)
