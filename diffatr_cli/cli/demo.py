"""`diffatr demo`: everything once, from made-up sounds to an answer, with the command that each step is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from .console import Data, Device, Json, Runs, Seed, progress_bar, say, show

QUERY = "rain"


def demo(
    data: Data = Path("data"), runs: Runs = Path("runs"), seed: Seed = 0, device: Device = "auto", as_json: Json = False
) -> None:
    """Try everything in a few minutes: make sounds, train both phases on them, evaluate, and search.

    Needs no data, no GPU and no network (and the extra `small`, for its text model). Each step says the command that does the
    same; what it reaches shows that the parts fit, not how good the method is.
    """
    from ..corpus.asking import ask_texts
    from ..corpus.index import FolderIndex
    from ..data.synthetic import prepare_synthetic
    from ..evaluation.evaluate import evaluate
    from ..model import load_retriever, sampling_of
    from ..recipe import load_recipe
    from ..report.tables import evaluation_table
    from ..runs import run_folder
    from ..training.pretrain import pretrain
    from ..training.train_diffusion import train_diffusion
    from .prepare import report_tables
    from .query import found_document, found_table
    from .train import training_table

    recipe = load_recipe("demo")
    document: dict[str, Any] = {}

    def step(name: str, command: str, result: Any, *tables: Any) -> None:
        document[name] = result
        if not as_json:
            say(f"$ {command}")
            show(None, *tables, as_json=False)

    with progress_bar() as progress:
        report = prepare_synthetic(data / recipe.data.name, progress=progress)
    step("prepare", "diffatr prepare synthetic", report.to_json(), *report_tables(report))
    for job, command in ((pretrain, "pretrain"), (train_diffusion, "train-diffusion")):
        with progress_bar() as progress:
            trained = job("demo", recipe, data=data, runs=runs, seed=seed, device=device, progress=progress)
        step(command, f"diffatr {command} demo", trained.to_json(), training_table(trained))
    with progress_bar() as progress:
        result = evaluate(
            "synthetic", "synthetic", data=data, runs=runs, recipe="demo", seeds=(seed,), device=device, progress=progress
        )
    command = "diffatr evaluate --source synthetic --target synthetic --recipe demo"
    step("evaluate", command, result.to_json(), evaluation_table(result))
    run = run_folder(runs, "demo", seed)
    model = load_retriever(run, device)
    corpus = data / "synthetic" / "test"
    folder = FolderIndex(corpus)
    with progress_bar() as progress:
        folder.update(model, progress)
    recordings, sampling = folder.read(model.model_id, frames=model.sees_frames), sampling_of(model, folder=True, seed=seed)
    found = ask_texts(model, recordings, [QUERY], sampling, top=5)[0]
    command = f'diffatr query "{QUERY}" --corpus {corpus} --top 5 --run {run}'
    step("query", command, found_document(QUERY, model.name, found, corpus), found_table(QUERY, found, corpus))
    if as_json:
        show(document, as_json=True)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("demo")(demo)
