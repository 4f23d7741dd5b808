"""Join trained runs of one recipe into one whose audio encoders stand side by side (`audio.members`).

    python tools/join_models.py runs/small-a/seed-0 runs/small-b/seed-0 --recipe small --data DATA --out runs/small/seed-0

Two trainings err differently, so the mean of their similarities is right more often than either. The joined model has that in
one shared space of the same size D: the heads of its members work side by side, each scaled by the mean length of what it gives,
and are followed by the D directions in which the joined vectors of training captions and clips differ most. Writes phase one
alone; `diffatr train-diffusion` makes phase two as of any run.

n vectors, F features, H width inside a head, D shared size.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.core.inference import optimise_for_inference
from diffatr_cli.core.towers import TwoTowers
from diffatr_cli.data.audio import load_audio
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.encoders import pool_clips
from diffatr_cli.files import write_text
from diffatr_cli.model import build_towers, fill_towers
from diffatr_cli.phase_two import below
from diffatr_cli.recipe import dump_recipe, load_recipe
from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.runs import BEST, RECIPE, RECORD, read_record, recipe_of
from diffatr_cli.types import SAMPLE_RATE

CLIPS = 2000  # of the training split, drawn, by which the shared space is found
BATCH = 64


@dataclass(frozen=True)
class Member:
    """One of the models: its checkpoint, and what its heads give for the same captions and clips, (n, D) each."""

    tensors: dict[str, Tensor]
    captions: Tensor
    clips: Tensor

    def given(self, which: str) -> Tensor:
        """What a head gives, that of `audio` or of `text`."""
        return self.clips if which == "audio" else self.captions

    def scale(self, which: str) -> Tensor:
        """The mean length of what a head gives."""
        return self.given(which).norm(dim=1).mean()


@torch.inference_mode()
def read_member(run: Path, captions: Sequence[str], clips: Sequence[np.ndarray]) -> Member:
    """A run's best encoders, and what their heads give before it becomes a unit vector."""
    recipe = recipe_of(run)
    tensors, _ = load_weights(run / "pretrain" / BEST)
    towers: TwoTowers = build_towers(recipe.audio, recipe.text, recipe.model)
    fill_towers(towers, below("towers.", tensors), recipe.audio, recipe.text, run)
    towers.eval()
    audio, cpu = optimise_for_inference(towers.audio), torch.device("cpu")
    pooled = torch.cat([pool_clips(audio, clips[i : i + BATCH], cpu) for i in range(0, len(clips), BATCH)])
    assert towers.text is not None
    return Member(tensors, towers.text_head(towers.text.encode(captions)), towers.audio_head(pooled))  # type: ignore[operator]


def shared_directions(members: Sequence[Member], dim: int) -> Tensor:
    """The `dim` directions of most variance of the joined unit vectors, captions and clips counting the same: (sum of D, dim)."""
    moments = []
    for which in ("audio", "text"):
        given = [each.given(which) / each.scale(which) for each in members]
        vectors = functional.normalize(torch.cat(given, 1).double(), dim=1)
        moments.append(vectors.T @ vectors / len(vectors))
    return torch.linalg.eigh(moments[0] + moments[1]).eigenvectors[:, -dim:]


def join(members: Sequence[Member], dim: int) -> dict[str, Tensor]:
    """The checkpoint of the joined model."""
    directions = shared_directions(members, dim)
    out = {}
    for number, each in enumerate(members):
        own = below("towers.audio.", each.tensors)
        out |= {f"towers.audio.members.{number}.{name}": tensor for name, tensor in own.items()}
    for which in ("audio", "text"):
        first = [each.tensors[f"towers.{which}_head.0.weight"] for each in members]
        # Each member's sounds are its own; captions are the same for all.
        inner = torch.block_diag(*first) if which == "audio" else torch.cat(first)
        last = [each.tensors[f"towers.{which}_head.3.weight"].double() / each.scale(which) for each in members]
        bias = [each.tensors[f"towers.{which}_head.3.bias"].double() / each.scale(which) for each in members]
        out[f"towers.{which}_head.0.weight"] = inner
        out[f"towers.{which}_head.0.bias"] = torch.cat([each.tensors[f"towers.{which}_head.0.bias"] for each in members])
        out[f"towers.{which}_head.3.weight"] = (directions.T @ torch.block_diag(*last)).float()
        out[f"towers.{which}_head.3.bias"] = (directions.T @ torch.cat(bias)).float()
    return {name: tensor.contiguous() for name, tensor in out.items()}


def refusal(recipe: Recipe, runs: Sequence[Path]) -> str | None:
    """Why runs cannot be joined into a model of a recipe; None where they can."""
    if recipe.audio.members != len(runs):
        return f"has audio.members={recipe.audio.members}; name as many runs"
    if recipe.model.heads == "none" or recipe.text.finetune:
        return "joins heads over one frozen caption encoder: set model.heads=mlp and text.finetune=false"
    owns = [recipe_of(run) for run in runs]
    if (width := sum(own.model.head_width or 2 * own.model.dim for own in owns)) != recipe.model.head_width:
        return f"the heads of these runs are {width} wide together; set model.head_width={width}"
    alone, heads = recipe.audio.model_copy(update={"members": 1}), recipe.model.model_copy(update={"head_width": None})
    for run, own in zip(runs, owns, strict=True):
        if (own.audio, own.text, own.model.model_copy(update={"head_width": None})) != (alone, recipe.text, heads):
            return f"{run} was trained with other encoders or heads than its members"
    return None


def main() -> None:
    """Join the runs and write phase one of the joined one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="seed folders of the members, two at least")
    parser.add_argument("--recipe", required=True, help="of the joined model; the members' have one member and plain heads")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data sets")
    parser.add_argument("--out", type=Path, required=True, help="the joined run's seed folder")
    options = parser.parse_args()
    recipe, folder = load_recipe(options.recipe), options.out / "pretrain"
    if problem := refusal(recipe, options.runs):
        parser.error(f"{options.recipe}: {problem}")
    if folder.exists():
        parser.error(f"{folder}: is there already; name another --out")
    dataset = load_dataset(options.data, recipe.data.name)
    train, rng = dataset.split("train"), np.random.default_rng(0)
    captions = sorted({caption for clip in train for caption in clip.captions})
    drawn = np.sort(rng.permutation(len(train))[:CLIPS])
    longest = int(recipe.data.seconds * SAMPLE_RATE)
    clips = [load_audio(dataset.root / train[i].path)[:longest] for i in drawn]
    members = [read_member(run, captions, clips) for run in options.runs]
    tensors = join(members, recipe.model.dim)

    folder.mkdir(parents=True)
    records = [read_record(run / "pretrain" / RECORD) for run in options.runs]
    resolved = recipe.model_dump(mode="json")
    facts = load_weights(options.runs[0] / "pretrain" / BEST)[1] | {"recipe": resolved, "best": {}}
    save_weights(folder / BEST, tensors, facts)
    write_text(folder / RECIPE, dump_recipe(recipe))
    # Of no data set's fingerprint: `pretrain` refuses such a folder, and does not begin anew over what was joined.
    record = {"phase": "pretrain", "seed": facts["seed"], "recipe": resolved, "data": f"joined of {len(records)} runs"}
    record |= {"resume": shlex.join(["python", *sys.argv]), "joined": records}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    print(f"{folder}: {len(members)} members, {sum(t.numel() for t in tensors.values()) / 1e6:.1f} million numbers")


if __name__ == "__main__":
    main()
