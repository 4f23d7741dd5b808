"""`diffatr pretrain` and `diffatr train-diffusion`: parse, train, show the epoch that validation chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Data, Device, Json, Runs, Seed, joined, progress_bar, say, show

if TYPE_CHECKING:
    from rich.table import Table

    from ..training.phase_folder import TrainingResult

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe by name (audiocaps-resnet38, clotho-cnn14, demo, ...) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, such as pretrain.epochs=2 diffusion.lr=3e-4."),
]
Name = Annotated[str | None, typer.Option("--name", help="Keep the run under this name instead of the recipe's.")]


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    name: Name = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Phase one: train the audio and text encoders with the contrastive loss.

    Continues by itself where an earlier call was cut off. Everything is kept under RUNS/RECIPE/seed-N/pretrain. With
    model.strategy=joint the diffusion model is trained together with them, and nothing is left for train-diffusion.

    Example: diffatr pretrain clotho-resnet38 --seed 0
    Example: diffatr pretrain clotho-resnet38 model.strategy=joint --name joint
    """

    def job(*arguments: Any, **options: Any) -> TrainingResult:
        from ..training.pretrain import pretrain as train

        return train(*arguments, **options)

    _train(job, recipe, overrides, data, runs, name, seed, device, as_json)


def train_diffusion(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    name: Name = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            "--encoders",
            metavar="RUN",
            help="Stand on the phase one of another run (runs/RECIPE/seed-N), which is found again and checked, not copied.",
            file_okay=False,
        ),
    ] = None,
    denoisers: Annotated[
        Path | None,
        typer.Option(
            "--denoisers",
            metavar="RUN",
            help="Train nothing: take the denoisers of RUN as they are, with their encoders, and choose their weights anew by "
            "this recipe's `evaluation` section.",
            file_okay=False,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Phase two: train the diffusion model on the encoders that `pretrain` left, which stay as they are.

    Continues by itself where an earlier call was cut off. Everything is kept under RUNS/RECIPE/seed-N/diffusion. With
    diffusion.folds=F phase one is trained F times more first, each time without a fold of the clips (RUNS/RECIPE/seed-N/folds).

    Example: diffatr train-diffusion clotho-resnet38 --seed 0
    Example: diffatr train-diffusion clotho-resnet38 diffusion.steps=10 --name steps10 --encoders runs/clotho-resnet38/seed-0
    Example: diffatr train-diffusion clotho-resnet38 evaluation.bank=8192 --name bank --denoisers runs/clotho-resnet38/seed-0
    """
    stated = [override.partition("=")[0].strip() for override in overrides or ()]

    def job(*arguments: Any, **options: Any) -> TrainingResult:
        from ..training.train_diffusion import train_diffusion as train

        return train(*arguments, encoders=encoders, denoisers=denoisers, stated=stated, **options)

    given = {"--encoders": encoders, "--denoisers": denoisers}
    more = tuple(part for name, run in given.items() if run for part in (name, str(run)))
    _train(job, recipe, overrides, data, runs, name, seed, device, as_json, more)


def _train(
    job: Callable[..., TrainingResult],
    recipe: str,
    overrides: list[str] | None,
    data: Path,
    runs: Path,
    name: str | None,
    seed: int,
    device: str,
    as_json: bool,
    more: tuple[str, ...] = (),
) -> None:
    """Run `job`, which loads what it needs, torch above all, only when it is called: after the recipe has been read.

    `more`: options that the command to resume needs beside its own.
    """
    from ..recipe import load_recipe

    changed = tuple(overrides or ())
    loaded = load_recipe(recipe, changed)
    resume = (recipe, *changed, *(("--name", name) if name else ()), *more)
    with joined(device), progress_bar() as progress:
        result = job(
            name or Path(recipe).stem, loaded, data=data, runs=runs, seed=seed, device=device, resume=resume, progress=progress
        )
    for note in result.notes:
        say(f"note: {note}")
    say(f"kept in {result.folder}")
    show(result.to_json(), training_table(result), as_json=as_json)


SCORE = (
    "R@k in percent on the validation split. A score is R@1 + R@5 + R@10: of both directions together (score, 600 at most), or "
    "of one (t2a_score and a2t_score, 300 at most), with the weight of x0_hat that reaches it."
)


def training_table(result: TrainingResult) -> Table:
    """The epoch of a phase that validation chose."""
    from ..report.tables import rows_table

    rows = [(key, f"{value:.3f}" if isinstance(value, float) else str(value)) for key, value in result.best.items()]
    return rows_table("The epoch that validation chose", ("figure", "value"), rows, caption=SCORE)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("pretrain")(pretrain)
    app.command("train-diffusion")(train_diffusion)
