"""`diffatr models` and `diffatr calibrate`: what models there are, and what their scores are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..printable import counted
from .console import Device, Json, Runs, Seed, progress_bar, say, show
from .corpus import Model, NewestOf, Run, load_model


def models(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List the models that are there: the one that ships, your runs, and those fetched from the hub.

    `two towers` serve a folder as they are: query --model NAME. `sound` and `text` are encoders for a recipe.

    Example: diffatr models
    """
    from ..models_there import models_there
    from ..report.tables import rows_table

    notes: list[str] = []
    found = models_there(runs, notes)
    for note in notes:
        say(f"note: {note}")
    words = {True: "yes", False: "no", None: ""}
    rows = [
        (each.name, each.kind, each.megabytes, each.languages or "", each.licence or "", words[each.calibrated]) for each in found
    ]
    columns = ("name", "kind", "MB", "languages", "licence", "calibrated")
    show([each.to_json() for each in found], rows_table("Models", columns, rows), as_json=as_json)


def calibrate(
    data: Annotated[
        str,
        typer.Option("--data", metavar="NAME", help="A prepared data set with captions: its name below ./data, or its folder."),
    ],
    run: Run = None,
    runs: NewestOf = None,
    model_name: Model = None,
    split: Annotated[
        str, typer.Option("--split", metavar="SPLIT", help="train, val or test; not one that the model learnt.")
    ] = "val",
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit what a model's scores are worth, so that searches show probabilities and tell when nothing fits.

    What is fitted is kept for you (in your folder of data) and used by index, query and serve whenever they use this model.

    Example: diffatr calibrate --model laion/clap-htsat-unfused --data clotho
    """
    from ..report.tables import rows_table
    from ..training.calibrate import calibrate as job

    model = load_model(run, runs, model_name, device)
    with progress_bar() as progress:
        result = job(model, *_folder_and_name(data), split=split, seed=seed, progress=progress)
    say(f"kept in {result.path}")
    names = {
        "text_to_audio": "a file matches a text",
        "audio_to_text": "a text matches a sound",
        "audio_to_audio": "two sounds are alike",
        "presence": "anything here matches a text",
        "captions": "any caption of a list fits a sound",
    }
    words = {name: "fitted" if getattr(result.calibration, name) else "not fitted: one label only" for name in names}
    rows = [(what, words[name]) for name, what in names.items()]
    caption = f"{counted(result.clips, 'clip')}, {counted(result.captions, 'caption')} of {result.data} {result.split}"
    show(result.to_json(), rows_table(f"{result.model}", ("probability that", ""), rows, caption=caption), as_json=as_json)


def _folder_and_name(data: str) -> tuple[Path, str]:
    """Of a data set, by its name below ./data or by its folder."""
    folder = Path(data)
    if "/" in data or folder.is_dir():
        folder = folder.absolute()
        return folder.parent, folder.name
    return Path("data"), data


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("models")(models)
    app.command("calibrate")(calibrate)
