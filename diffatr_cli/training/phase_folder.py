"""The folder that a training phase writes: opened or refused, its record, its log, and what the phase reports at its end."""

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
from typing import Any

from .. import __version__
from ..errors import UsageError
from ..files import replacing, write_text
from ..recipe import dump_recipe
from ..recipe_schema import Recipe
from ..runs import Phase, recipe_of_record


@dataclass(frozen=True)
class TrainingResult:
    """What a finished phase reports: its folder, and the log's row of the epoch that validation chose."""

    folder: Path
    best: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of `pretrain --json` and `train-diffusion --json`."""
        return {"folder": str(self.folder), "seconds": self.seconds, "best": self.best}


def open_phase(folder: Path, phase: Phase, recipe: Recipe, seed: int, command: str, data_fingerprint: str) -> Path:
    """Make or reopen a phase's folder and return it.

    Raises:
        UsageError: the folder holds a run of another recipe or of other data, which would be mixed with this one.
    """
    path = folder / phase
    record = path / "run.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = _differences(recipe_of_record(before), recipe)
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
    here = Path(__file__).parents[1]

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
