"""`diffatr evaluate` and `diffatr cross-domain`: parse, evaluate, show the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .console import Data, Device, Json, Runs, joined, progress_bar, say, show
from .engine import Address, Engine, EngineName, EngineWorkers, check_workers, engine_of
from .targets import check_folder

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
Rivals = Annotated[
    bool, typer.Option("--rivals", help="Also rank by the cosine with querybank normalisation, and by diffusion in one step.")
]
Weight = Annotated[
    float | None,
    typer.Option("--weight", min=0, help="Weight of x0_hat beside the cosine; the one that validation chose if left out."),
]
NoiseSeed = Annotated[int, typer.Option("--noise-seed", min=0, max=2**31 - 1, help="Seed of the diffusion noise.")]


def evaluate(
    target: Annotated[str, typer.Option("--target", help="Data set to test on.", metavar="NAME")],
    source: Annotated[str | None, typer.Option("--source", help="Data set that the model learnt from.", metavar="NAME")] = None,
    model: Model = None,
    recipe: RecipeOption = None,
    seeds: Seeds = None,
    steps: Steps = None,
    shortlist: Shortlist = None,
    weight: Weight = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", help="What counts as found: paper, all-captions, dcase2024, dcase2025 or shared.", metavar="NAME"
        ),
    ] = "paper",
    relevance: Annotated[
        Path | None,
        typer.Option("--relevance", help="CSV of caption,fname, for --protocol dcase2025.", metavar="FILE", dir_okay=False),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write ranks, best candidates and the challenge's CSV here.", metavar="DIR"),
    ] = None,
    matrices: Annotated[bool, typer.Option("--matrices", help="With --export: all scores too, float16.")] = False,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores",
            help="In the place of --source: a matrix of anybody's scores (captions x clips) in an npz or npy file.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            help="In the place of --source: two runs (runs/RECIPE/seed-N, or runs/RECIPE with all seeds), query by query.",
            metavar="RUN_A RUN_B",
        ),
    ] = None,
    noise_seed: NoiseSeed = 0,
    rivals: Rivals = False,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    engine: Engine = EngineName.local,
    address: Address = None,
    workers: EngineWorkers = None,
    as_json: Json = False,
) -> None:
    """Test trained models: the cosine baseline and diffusion side by side, in both directions.

    Shows R@1, R@5, R@10, mAP@10 and ranks as mean and standard deviation over training seeds, with the paper's numbers
    beside them where it has some, and what diffusion gains over the baseline, with a 95 % interval.

    Example: diffatr evaluate --source clotho --target audiocaps --seeds 0,1,2
    """
    check_workers(engine, workers)
    ways = {"--source": source, "--scores": scores, "--compare": compare}
    if len(given := [name for name, value in ways.items() if value]) != 1:
        raise UsageError(f"evaluate: takes one of {', '.join(ways)}" + (f", got {' and '.join(given)}" if given else ""))
    of_models: dict[str, Any] = {
        "--model": model,
        "--recipe": recipe,
        "--seeds": seeds,
        "--export": export,
        "--matrices": matrices,
    }
    of_sampling = {"--steps": steps, "--shortlist": shortlist, "--weight": weight is not None, "--rivals": rivals}
    if scores is not None:
        of_models |= of_sampling
    if source is None and (unwanted := [name for name, value in of_models.items() if value]):
        raise UsageError(f"{', '.join(unwanted)}: not with {given[0]}")
    if matrices and export is None:
        raise UsageError("--matrices: needs --export DIR")
    if export is not None:
        check_folder("--export", export)
    asked: dict[str, Any] = {"data": data, "split": split, "protocol": protocol, "relevance": relevance}
    sampling: dict[str, Any] = {"steps": steps, "shortlist": shortlist, "noise_seed": noise_seed, "device": device}
    sampling |= {} if weight is None else {"weight": weight}
    sampling |= {"rivals": True} if rivals else {}
    if scores is not None:
        result, table = _evaluate_scores(scores, target, asked)
    else:
        with engine_of(engine, address, workers, device) as there, joined(device), progress_bar() as progress:
            how = asked | sampling | {"engine": there, "progress": progress}
            if compare is not None:
                result, table = _compare(compare, target, how)
            else:
                models = {"runs": runs, "model": model, "recipe": recipe, "seeds": parse_seeds(seeds)}
                result, table = _evaluate(source or "", target, how | models | {"export": export, "matrices": matrices})
    _tell(result.notes)
    if export is not None:
        say(f"exported to {export}")
    show(result.to_json(), table(result), as_json=as_json)


def _evaluate(source: str, target: str, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """A result, and what makes its table."""
    from ..evaluation.evaluate import evaluate as job
    from ..report.tables import evaluation_table

    return job(source, target, **options), evaluation_table


def _evaluate_scores(scores: Path, target: str, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    from ..evaluation.scores import evaluate_scores
    from ..report.tables import scores_table

    return evaluate_scores(scores, target, **options), scores_table


def _compare(pair: tuple[Path, Path], target: str, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    from ..evaluation.evaluate import compare
    from ..report.tables import comparison_table

    return compare(*pair, target, **options), comparison_table


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
    weight: Weight = None,
    noise_seed: NoiseSeed = 0,
    rivals: Rivals = False,
    data: Data = Path("data"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    engine: Engine = EngineName.local,
    address: Address = None,
    workers: EngineWorkers = None,
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
    check_workers(engine, workers)
    with engine_of(engine, address, workers, device) as there, joined(device), progress_bar() as progress:
        results = job(
            (pair[0], pair[1]),
            models or (None,),
            recipes=recipes,
            data=data,
            runs=runs,
            seeds=parse_seeds(seeds),
            steps=steps,
            shortlist=shortlist,
            weight=weight,
            noise_seed=noise_seed,
            rivals=rivals,
            device=device,
            engine=there,
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
