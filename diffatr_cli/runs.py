"""Run folders: where the runs of a recipe live, what each holds, and how a job finds the one it needs.

    runs/<recipe>/seed-<n>/pretrain/     phase one
    runs/<recipe>/seed-<n>/diffusion/    phase two

Each phase's folder holds `recipe.yaml` (resolved), `run.json` (versions, git revision, seed, data, how to resume),
`metrics.jsonl` and `metrics.csv`, `best.safetensors` and `last.pt` (everything that resuming needs).
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from . import __version__
from .errors import DiffATRError, UsageError
from .files import replacing, write_text
from .recipe import dump_recipe, load_recipe
from .recipe_schema import Recipe

Phase = Literal["pretrain", "diffusion"]
BEST = "best.safetensors"
LAST = "last.pt"


@dataclass(frozen=True)
class TrainingResult:
    """What a finished phase reports: its folder, and the log's row of the epoch that validation chose."""

    folder: Path
    best: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of `pretrain --json` and `train-diffusion --json`."""
        return {"folder": str(self.folder), "seconds": self.seconds, "best": self.best}


def run_folder(runs: Path, recipe_name: str, seed: int) -> Path:
    """Where the phases of one recipe and seed live."""
    return runs / recipe_name / f"seed-{seed}"


def open_phase(folder: Path, phase: Phase, recipe: Recipe, seed: int, command: str, data_fingerprint: str) -> Path:
    """Make or reopen a phase's folder and return it.

    Raises:
        UsageError: the folder holds a run of another recipe or of other data, which would be mixed with this one.
    """
    path = folder / phase
    record = path / "run.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = _differences(_recipe_of_record(before), recipe)
        other = f"another recipe ({', '.join(changed)})" if changed else None
        if other is None and before["data"] != data_fingerprint:
            other = "other data"
        if other:
            raise UsageError(f"{path}: holds a run with {other}. Choose another --name or --runs, or remove that folder.")
    write_text(path / "recipe.yaml", dump_recipe(recipe))
    write_text(
        record,
        json.dumps(
            {
                "phase": phase,
                "seed": seed,
                "recipe": recipe.model_dump(mode="json"),
                "data": data_fingerprint,
                "resume": command,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "git_revision": git_revision(),
                "versions": versions(),
            },
            indent=2,
        ),
    )
    return path


def _recipe_of_record(record: Mapping[str, Any]) -> Recipe:
    # Fields that the schema has gained since take their defaults, which is how that run was trained.
    return Recipe.model_validate_json(json.dumps(record["recipe"]))


def _differences(before: Recipe, now: Recipe) -> list[str]:
    was, is_now = before.model_dump(), now.model_dump()
    return [f"{section}.{field}" for section in was for field, value in was[section].items() if is_now[section][field] != value]


def versions() -> dict[str, str]:
    """The versions of everything whose arithmetic the numbers depend on."""
    packages = ("torch", "tokenizers", "numpy", "numba")
    return {"diffatr": __version__, "python": platform.python_version(), "platform": platform.platform()} | {
        name: importlib.metadata.version(name) for name in packages
    }


def git_revision() -> str | None:
    """The revision of the checkout that this code runs from, with `+` when it has uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return None  # some other repository that merely holds the installed package
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def resume_command(command: str, arguments: Sequence[str], **options: object) -> str:
    """The command line that starts or continues a run."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return shlex.join(["diffatr", command, *arguments, *flags])


class MetricsLog:
    """`metrics.jsonl` and `metrics.csv` of a run, one row an epoch; rows beyond a resumed checkpoint are dropped.

    Where TensorBoard is installed (extra `tensorboard`) the rows are curves in the run's `tensorboard` folder as well.
    """

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        self.folder = folder
        path = folder / "metrics.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            if path.is_file()
            else []
        )
        self.rows: list[dict[str, Any]] = rows[:epochs_done]
        self._curves: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)
        self._write()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one epoch's row to both files, and to the curves."""
        self.rows.append(dict(row))
        self._write()
        if self._curves is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._curves.add_scalar(name, value, row["epoch"])
            self._curves.flush()

    def _write(self) -> None:
        # A training has at most hundreds of epochs, so writing all rows is as cheap as appending, and atomic.
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            if self.rows:
                writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)


def find_runs(runs: Path, source: str, model: str | None = None, recipe: str | None = None) -> Path:
    """The folder of the recipe whose runs learnt from data set `source` with audio encoder `model`.

    Raises:
        UsageError: none does, or several do and neither `model` nor `recipe` tells them apart.
    """
    found: dict[Path, tuple[str, float]] = {}
    for record in runs.glob("*/seed-*/pretrain/run.json"):
        learnt = _recipe_of_record(json.loads(record.read_text(encoding="utf-8")))
        name = record.parents[2].name
        if learnt.data.name == source and model in (None, learnt.audio.encoder) and recipe in (None, name):
            found[record.parents[2]] = (name, record.stat().st_mtime)
    if not found:
        wanted = " ".join(filter(None, [source, model and f"with {model}", recipe and f"by recipe {recipe}"]))
        raise UsageError(
            f"{runs}: no run was trained on {wanted}. Train one: diffatr pretrain RECIPE (its data.name must be {source})."
        )
    if len(found) > 1:
        exact = [path for path in found if path.name in (source, f"{source}-{model}")]
        if len(exact) == 1:
            return exact[0]
        names = ", ".join(sorted(name for name, _ in found.values()))
        raise UsageError(f"{runs}: several recipes were trained on {source} ({names}). Say which: --recipe NAME.")
    return next(iter(found))


def seeds_of(recipe_folder: Path) -> list[int]:
    """The seeds that were trained under a recipe's folder, ascending."""
    return sorted(
        int(path.name.removeprefix("seed-")) for path in recipe_folder.glob("seed-*") if (path / "pretrain" / BEST).is_file()
    )


def newest_run(runs: Path) -> Path:
    """The seed folder whose phase one finished an epoch most recently. Raises DiffATRError when there is none."""
    found = list(runs.glob(f"*/seed-*/pretrain/{BEST}"))
    if not found:
        raise DiffATRError(f"{runs}: no trained model there. Train one (`diffatr demo` takes minutes), or name one with --run.")
    return max(found, key=lambda path: path.stat().st_mtime).parents[1]


def recipe_of(run: Path) -> Recipe:
    """The resolved recipe of a seed folder. Raises DiffATRError if it is not one."""
    path = run / "pretrain" / "recipe.yaml"
    if not path.is_file():
        raise DiffATRError(f"{run}: not a run folder (no pretrain/recipe.yaml in it).")
    return load_recipe(str(path))
