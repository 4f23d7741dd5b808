"""What validation chooses of denoisers that are trained already: by other weights, with a bank, or on more data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_weights
from ..data.manifest import Dataset
from ..device import wants_bf16
from ..errors import DiffATRError, UsageError
from ..model import load_encoders
from ..phase_two import fill_denoisers
from ..processes import from_first
from ..progress import Progress
from ..recipe import differing_fields
from ..recipe_schema import Recipe
from ..runs import BEST, RECORD, Encoders, encoders_of, place_and_hash, recipe_of_record, stands_on, weights_hash
from .choosing import Choosing, best_of, row_of
from .denoisers import DenoiserPair
from .phase_folder import PhaseFolder


@dataclass(frozen=True)
class TrainedDenoisers:
    """The phase two of a run, whose denoisers another one takes.

    Attributes:
        run: the seed folder that holds it.
        checkpoint: the hash (`weights_hash`) that its checkpoint must have; None where any will do.
    """

    run: Path
    checkpoint: str | None = None

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return self.run / "diffusion" / BEST

    def check(self, first: Encoders, recipe: Recipe) -> str:
        """The hash of the checkpoint.

        Args:
            first: the encoders that they must have been trained on.
            recipe: by whose `diffusion` section they must have been trained.

        Raises:
            DiffATRError: it is missing, or another one than was taken before.
            UsageError: it was trained on other encoders, or by another section.
        """
        if not self.path.is_file():
            raise DiffATRError(f"{self.path}: there are no trained denoisers. Train them, or name another run.")
        found = weights_hash(self.path)
        if self.checkpoint not in (None, found):
            raise DiffATRError(f"{self.path}: holds other denoisers now than were taken. Restore them, or choose another --name.")
        if encoders_of(self.run).check() != first.check():
            raise UsageError(f"{self.run}: its denoisers stand on other encoders. Leave --encoders out: theirs are taken.")
        theirs = recipe_of_record(self.run / "diffusion" / RECORD)
        if changed := [name for name in differing_fields(theirs, recipe) if name.partition(".")[0] == "diffusion"]:
            raise UsageError(
                f"{', '.join(changed)}: the denoisers of {self.run} were trained with another value. Take their recipe and "
                "change fields of `evaluation` alone, or train anew, without --denoisers."
            )
        return found

    def record(self, run: Path) -> dict[str, str]:
        """What the record of a run that takes these says of them."""
        return place_and_hash(run, self.run, weights_hash(self.path))


def denoisers_of(run: Path, named: Path | None) -> TrainedDenoisers | None:
    """The denoisers that a run takes: those named, or those that it took before; None where it trains its own.

    Raises:
        DiffATRError: there is no such run.
        UsageError: they are its own.
    """
    if named is None:
        recorded = stands_on(run, "denoisers")
        return None if recorded is None else TrainedDenoisers(*recorded)
    if not named.is_dir():
        raise DiffATRError(f"{named}: there is no such run. Name a seed folder, such as runs/RECIPE/seed-0.")
    if named.resolve() == run.resolve():
        raise UsageError(f"{run}: are the run's own denoisers. Give what is chosen anew another --name.")
    return TrainedDenoisers(named)


def choose_again(
    trained: TrainedDenoisers,
    first: Encoders,
    recipe: Recipe,
    datasets: Sequence[Dataset],
    seed: int,
    device: torch.device,
    folder: PhaseFolder,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Keep trained denoisers with what validation chooses of them by a recipe, once; by direction what that is.

    Args:
        first: their encoders.
        datasets: as in `Choosing`.
    """
    if from_first((folder.path / BEST).is_file()):
        found: dict[str, dict[str, Any]] = folder.load_best()[1]["best"]
        return found
    progress(0, 1, "choosing weights")
    tensors, facts = load_weights(trained.path)
    retriever = load_encoders(first.run, str(device))
    pair = DenoiserPair(recipe.model, recipe.diffusion, retriever.feature_sizes).to(device)
    fill_denoisers(pair.by_direction(), pair.conditioners_by_direction(), tensors, trained.path)
    choosing = Choosing(first, retriever, recipe, datasets, seed, progress)
    folder.record_start(device, "bf16" if wants_bf16(recipe.diffusion.precision, device) else "fp32", 0)
    fusions = choosing(pair)
    best: dict[str, dict[str, Any]] = {d: best_of(fusion, facts["best"][d]["epoch"]) for d, fusion in fusions.items()}
    choosing.keep(folder, {name: tensor for d in fusions for name, tensor in pair.kept(d).items()}, best)
    folder.log(0).append({"epoch": 1} | row_of(fusions))
    progress(1, 1, "choosing weights")
    return best
