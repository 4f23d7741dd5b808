"""What one of several processes does in test_processes.py: the loss and gradients of one joint batch, written to a file.

python tests/joint_step.py OUT.pt DATA RECIPE.yaml [KEY=VALUE]...
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from diffatr_cli import processes
from diffatr_cli.core.bert import BertConfig
from diffatr_cli.core.ragged import Ragged
from diffatr_cli.core.sight import States
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.progress import silent
from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.training.batches import overlapped_batches
from diffatr_cli.training.candidates import CandidateBatches
from diffatr_cli.training.denoisers import DenoiserPair
from diffatr_cli.training.pretrain import PhaseOne
from diffatr_cli.training.streams import torch_stream
from diffatr_cli.training.views import TrainingViews


def phase_one(recipe: Recipe, data: Path) -> tuple[nn.Module, torch.Tensor]:
    """The loss of phase one's first batch, with nothing in it that each process draws for itself."""
    dataset = load_dataset(data, recipe.data.name)
    phase = PhaseOne(recipe, 0, torch.device("cpu"))
    for module in phase.modules():
        if isinstance(getattr(module, "config", None), BertConfig):
            module.config = replace(module.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    train = phase.read(dataset, silent)
    _, batch, crops = next(overlapped_batches(train, recipe.pretrain, 0, 1, 0))
    phase.train()
    return phase, phase.loss(train, batch, crops, torch_stream(0, "diffusion", 0))


def phase_two(recipe: Recipe) -> tuple[nn.Module, torch.Tensor]:
    """The loss of phase two's first batch, on random embeddings."""
    torch.manual_seed(0)
    audio, text = (nn.functional.normalize(torch.randn(*shape, recipe.model.dim), dim=-1) for shape in ((2, 40), (40,)))
    states = None
    if recipe.diffusion.conditioning != "none":
        tokens, frames = ([torch.randn(1 + i % 4, size) for i in range(number)] for number, size in ((40, 6), (80, 5)))
        states = States(Ragged.of(tokens, 6), Ragged.of(frames, 5))
    views = TrainingViews(audio, text, torch.arange(40), torch.arange(40), states)
    batches = CandidateBatches(views, recipe.diffusion, 0)
    pair = DenoiserPair(recipe.model, recipe.diffusion, (5, 6))
    with torch.no_grad():
        for conditioner in pair.conditioners_by_direction().values():
            conditioner.outer.weight.normal_()  # off its start at zero
    return pair, pair.loss(batches(0, 0), torch_stream(0, "diffusion", 0))


def main(out: str, data: str, recipe_file: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    processes.join("cpu")
    found = {}
    recipe = load_recipe(recipe_file, overrides)
    for name, (module, loss) in {"one": phase_one(recipe, Path(data)), "two": phase_two(recipe)}.items():
        trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
        loss.backward()
        processes.mean_gradients(trained.values())
        found[name] = {
            "loss": processes.summed(loss.detach()) / processes.count(),
            "gradients": {key: p.grad for key, p in trained.items() if p.grad is not None},
            "buffers": {key: buffer for key, buffer in module.named_buffers() if "running" in key},
        }
    torch.save(found, f"{out}.{os.environ.get('RANK', 'alone')}")
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
