"""Joining trained models, against what the mean of their similarities is in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workshop
from torch import nn

from diffatr_cli.core.audio_encoder import SideBySide, SmallCnn
from diffatr_cli.core.towers import ProjectionHead, TwoTowers
from diffatr_cli.errors import UsageError
from diffatr_cli.model import load_retriever
from diffatr_cli.recipe import dump_recipe
from diffatr_cli.training.pretrain import pretrain

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import join_models
from join_models import Member, join

DIM, TEXT, CHANNELS = 6, 10, (4, 5)


def made(seed: int) -> tuple[TwoTowers, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    towers = TwoTowers(SmallCnn(CHANNELS), None, CHANNELS[-1], TEXT, DIM).eval()
    with torch.no_grad():
        for head in (towers.audio_head, towers.text_head):
            assert isinstance(head, ProjectionHead)
            last = head[3]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(seed + 1)  # members whose heads give vectors of other lengths
    return towers, {f"towers.{name}": tensor for name, tensor in towers.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("dim", [2 * DIM, 5])
def test_the_joined_model_has_the_similarities_of_its_members(dim: int) -> None:
    waves, captions = torch.randn(40, 9000), torch.randn(50, TEXT)
    members, given = [], []
    for seed in (1, 2):
        towers, tensors = made(seed)
        text, audio = towers.text_head(captions), towers.audio_head(towers.audio(waves))
        members.append(Member(tensors, text, audio))
        given.append((audio.double().numpy(), text.double().numpy()))
    joined = TwoTowers(
        SideBySide([SmallCnn(CHANNELS), SmallCnn(CHANNELS)]), None, 2 * CHANNELS[-1], TEXT, dim, head_width=4 * DIM
    )
    joined.eval().load_state_dict({name.removeprefix("towers."): tensor for name, tensor in join(members, dim).items()})
    got = joined.embed_pooled_audio(joined.audio(waves)) @ joined.embed_pooled_text(captions).T

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    sounds, texts = (
        np.concatenate([each[side] / np.linalg.norm(each[side], axis=1).mean() for each in given], 1) for side in (0, 1)
    )
    moments = sum(unit(x).T @ unit(x) / len(x) for x in (sounds, texts))
    kept = np.linalg.svd(moments)[0][:, :dim]
    np.testing.assert_allclose(got.numpy(), unit(sounds @ kept) @ unit(texts @ kept).T, atol=1e-5)


def test_runs_are_joined_into_one_that_embeds_and_is_not_begun_anew(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe("pretrain.epochs=1")
    runs = [
        pretrain(name, recipe, data=workshop.data, runs=tmp_path, seed=seed, device="cpu").folder.parent
        for seed, name in enumerate("ab")
    ]
    width, out = 4 * recipe.model.dim, tmp_path / "joined" / "seed-0"
    both = workshop.recipe("audio.members=2", f"model.head_width={width}")
    (tmp_path / "both.yaml").write_text(dump_recipe(both), encoding="utf-8")

    def joined(*more: str) -> None:
        arguments = [*map(str, runs), "--recipe", str(tmp_path / "both.yaml"), "--data", str(workshop.data), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["join_models.py", *arguments, *more])
        join_models.main()

    joined()
    model = load_retriever(out, "cpu")
    assert model.embed_audio([np.ones(9000, np.float32)]).shape == (1, recipe.model.dim)
    before = (out / "pretrain" / "best.safetensors").read_bytes()
    with pytest.raises(UsageError):
        pretrain("joined", both, data=workshop.data, runs=tmp_path, seed=0, device="cpu")
    assert (out / "pretrain" / "best.safetensors").read_bytes() == before
    with pytest.raises(SystemExit):
        joined()
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "both.yaml").write_text(dump_recipe(workshop.recipe("audio.members=2")), encoding="utf-8")
    with pytest.raises(SystemExit):
        joined("--out", str(tmp_path / "other"))
    assert f"set model.head_width={width}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
