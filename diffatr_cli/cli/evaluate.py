"""`diffatr evaluate` and `diffatr cross-domain`: parse, evaluate, show the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .console import Data, Device, Json, Runs, progress_bar, say, show

Model = Annotated[
    str | None, typer.Option("--model", help="Which runs: those with this audio.encoder in their recipe, such as resnet38.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="Recipe of the runs, where several learnt from one data set.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Training seeds, such as 0,1,2; all that were trained if left out.")]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="DDIM steps; the recipe's, most often all of the chain, if left out.")
]
Shortlist = Annotated[
    int | None, typer.Option("--shortlist", min=2, help="Re-rank only this many best by cosine; all if left out.")
]
NoiseSeed = Annotated[int, typer.Option("--noise-seed", min=0, max=2**31 - 1, help="Seed of the diffusion noise.")]


def evaluate(
    source: Annotated[str, typer.Option("--source", help="Data set that the model learnt from.", metavar="NAME")],
    target: Annotated[str, typer.Option("--target", help="Data set to test on.", metavar="NAME")],
    model: Model = None,
    recipe: RecipeOption = None,
    seeds: Seeds = None,
    steps: Steps = None,
    shortlist: Shortlist = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    noise_seed: NoiseSeed = 0,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test trained models: the cosine baseline and diffusion side by side, in both directions.

    Shows R@1, R@5, R@10, mAP@10 and ranks as mean and standard deviation over training seeds, with the paper's numbers
    beside them where it has some.

    Example: diffatr evaluate --source clotho --target audiocaps --seeds 0,1,2
    """
    from ..evaluation.evaluate import evaluate as job
    from ..report.tables import evaluation_table

    with progress_bar() as progress:
        result = job(
            source,
            target,
            data=data,
            runs=runs,
            model=model,
            recipe=recipe,
            seeds=parse_seeds(seeds),
            steps=steps,
            shortlist=shortlist,
            split=split,
            noise_seed=noise_seed,
            device=device,
            progress=progress,
        )
    _tell(result.notes)
    show(result.to_json(), evaluation_table(result), as_json=as_json)


def cross_domain(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME NAME]", help="Two data sets; clotho and audiocaps if left out.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Which runs: those with this audio.encoder in their recipe; may be repeated."),
    ] = None,
    recipes: Annotated[
        tuple[str, str] | None,
        typer.Option("--recipe", metavar="A B", help="Recipes of the runs, of the first data set and of the second."),
    ] = None,
    seeds: Seeds = None,
    steps: Steps = None,
    shortlist: Shortlist = None,
    noise_seed: NoiseSeed = 0,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Out-of-domain tests: learn from one data set, test on the other, both ways, as in the paper's Tables 3 and 4.

    Example: diffatr cross-domain clotho audiocaps --model resnet38 --model cnn14 --seeds 0,1,2
    """
    from ..evaluation.evaluate import cross_domain as job
    from ..report.tables import cross_domain_tables

    pair = names or ["clotho", "audiocaps"]
    if len(set(pair)) != 2 or len(pair) != 2:
        raise UsageError(f"cross-domain: takes two different data sets, got {' '.join(pair)}")
    with progress_bar() as progress:
        results = job(
            (pair[0], pair[1]),
            models or (None,),
            recipes=recipes,
            data=data,
            runs=runs,
            seeds=parse_seeds(seeds),
            steps=steps,
            shortlist=shortlist,
            noise_seed=noise_seed,
            device=device,
            progress=progress,
        )
    _tell(list(dict.fromkeys(note for result in results for note in result.notes)))
    show([result.to_json() for result in results], *cross_domain_tables(results), as_json=as_json)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """`0,1,2` as numbers. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--seeds: {text!r} is not a list such as 0,1,2") from error
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds: {text!r} names a seed twice")
    return seeds


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("evaluate")(evaluate)
    app.command("cross-domain")(cross_domain)
