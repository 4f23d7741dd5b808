"""The folder that a training phase writes: opened or refused, resumed, its record, its log, its best and its last state.

A phase's `best.safetensors` and `last.safetensors` have one form, tensors with facts in the header. The last one holds all that
going on needs: the module, the optimizer and where the training was.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..checkpoint import load_state, load_weights, save_weights
from ..errors import UsageError
from ..files import replacing, write_text
from ..launched import launcher
from ..processes import count, from_first, is_first, wait_for_all
from ..recipe import differing_fields, dump_recipe
from ..recipe_schema import Recipe
from ..runs import BEST, LAST, RECIPE, RECORD, Phase, read_record, recipe_of_record

_OLD_LAST = "last.pt"  # as earlier versions wrote it
_LOCK = ".lock"


@dataclass(frozen=True)
class TrainingResult:
    """What a finished phase reports.

    Attributes:
        folder: of the phase.
        best: the log's row of the epoch that validation chose.
        seconds: that this start took.
        notes: what is worth knowing beside it.
    """

    folder: Path
    best: dict[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `pretrain --json` and `train-diffusion --json`."""
        return {"folder": str(self.folder), "seconds": self.seconds, "best": self.best, "notes": list(self.notes)}


@contextlib.contextmanager
def open_phase(
    run: Path, phase: Phase, recipe: Recipe, sections: Sequence[str], seed: int, command: str, data: str
) -> Iterator[PhaseFolder]:
    """A phase's folder in a run's, for one training at a time. Nothing is in the way where nothing was trained.

    Args:
        recipe: resolved.
        sections: of the recipe, those that this phase is trained by.
        command: that starts or continues this phase.
        data: a fingerprint of what is learnt from.

    Raises:
        UsageError: the folder holds a run of another recipe or of other data, which would be mixed with this one, or another
            training is at work there.
    """
    from filelock import FileLock, Timeout

    path = run / phase
    record = path / RECORD
    if record.is_file() and any((path / name).is_file() for name in (BEST, LAST, _OLD_LAST)):
        changed = [name for name in differing_fields(recipe_of_record(record), recipe) if name.partition(".")[0] in sections]
        other = f"another recipe ({', '.join(changed)})" if changed else None
        if other is None and read_record(record)["data"] != data:
            other = "other data"
        if other:
            raise UsageError(f"{path}: holds a run with {other}. Choose another --name or --runs, or remove that folder.")
    path.mkdir(parents=True, exist_ok=True)
    lock, free = FileLock(path / _LOCK, blocking=False), True
    try:
        if is_first():
            with contextlib.suppress(Timeout):
                lock.acquire()
            free = lock.is_locked
        if not from_first(free):
            raise UsageError(f"{path}: another process is training there. Wait for it, or choose another --name.")
        yield PhaseFolder(path, phase, recipe, seed, command, data)
    finally:
        if lock.is_locked:
            lock.release()
            with contextlib.suppress(OSError):
                if os.listdir(path) == [_LOCK]:  # it failed before it began
                    os.unlink(path / _LOCK)
                    for empty in (path, run, run.parent):
                        empty.rmdir()


class PhaseFolder:
    """A phase's folder, held by this training (`open_phase`). Of several processes the first one writes, for all."""

    def __init__(self, path: Path, phase: Phase, recipe: Recipe, seed: int, command: str, data: str) -> None:
        self.path = path
        self._facts = {
            "phase": phase,
            "seed": seed,
            "recipe": recipe.model_dump(mode="json"),
            "data": data,
            "resume": command,
        }
        self._recipe = recipe

    @property
    def command(self) -> str:
        """That starts or continues this phase."""
        return str(self._facts["resume"])

    def recorded(self, name: str) -> Any:
        """A fact that the record says; None where there is no record, or it does not say it."""
        path = self.path / RECORD
        return read_record(path).get(name) if path.is_file() else None

    def add_fact(self, name: str, value: Any) -> None:
        """Have the record say something more, or say it anew."""
        self._facts[name] = value
        path = self.path / RECORD
        if is_first() and path.is_file() and (record := read_record(path)).get(name) != value:
            write_text(path, json.dumps(record | {name: value}, indent=2))

    def record_start(self, device: torch.device, precision: str, epochs_done: int) -> None:
        """Note that training begins or goes on now: the record is written once, each start is added to it.

        Raises UsageError where it was begun by another number of processes: going on would give other numbers than either.
        """
        path = self.path / RECORD
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": git_revision(),
            "device": str(device),
            "precision": precision,
            "threads": torch.get_num_threads(),
            "processes": count(),
            "versions": versions(),
            "epochs_done": epochs_done,
        }
        begun = any((self.path / name).is_file() for name in (BEST, LAST, _OLD_LAST))
        if begun and path.is_file():
            record = read_record(path)
            if (before := _processes_of(record)) != count():
                raise UsageError(
                    f"{self.path}: was begun by {before} process{'es' if before > 1 else ''}, and here are {count()}. Go on with "
                    f"as many (torchrun --nproc-per-node {before} -m diffatr_cli ...), or start with a new --name."
                )
        else:  # a record without a checkpoint is of a start that came to nothing
            record = self._facts
            if is_first():
                write_text(self.path / RECIPE, dump_recipe(self._recipe))
        wait_for_all()  # nobody reads any more
        if is_first():
            write_text(path, json.dumps(record | {"starts": [*record.get("starts", []), start]}, indent=2))

    def resume(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Fill a module and its optimizer with the last state; the facts of `save`, empty where nothing was saved.

        Tensors that the state lacks, such as those of a frozen encoder, stay as they are. Raises DiffATRError for damage.
        """
        path = self.path / LAST
        if path.is_file():
            tensors, facts = load_weights(path)
            model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".")
                    states.setdefault(int(index), {})[key] = tensor
            optimizer_state: Any = {"state": states, "param_groups": facts.pop("param_groups")}
        elif old := load_state(self.path / _OLD_LAST):
            facts, model, optimizer_state = old, old.pop("model"), old.pop("optimizer")
        else:
            return {}
        module.load_state_dict(module.state_dict() | model)
        optimizer.load_state_dict(optimizer_state)
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:  # files keep no memory format, and fused optimizers need the parameter's
                    values[key] = torch.empty_like(parameter).copy_(value)
        return facts

    def save(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
        """Keep what `resume` needs: the module's tensors, its optimizer, and facts as plain values."""
        if not is_first():
            return
        state = optimizer.state_dict()
        saved = {f"model.{name}": tensor for name, tensor in tensors.items()}
        for index, values in state["state"].items():
            saved |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        save_weights(self.path / LAST, saved, {**facts, "param_groups": state["param_groups"]})
        (self.path / _OLD_LAST).unlink(missing_ok=True)

    def keep_best(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the model that is used for anything but going on."""
        if is_first():
            save_weights(self.path / BEST, tensors, {"recipe": self._facts["recipe"], "seed": self._facts["seed"], **facts})
        wait_for_all()  # it can be loaded from here on

    def load_best(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `keep_best` kept last. Raises DiffATRError where there is none, or it is damaged."""
        return load_weights(self.path / BEST)

    def log(self, epochs_done: int) -> MetricsLog:
        """The log, as of that epoch."""
        return MetricsLog(self.path, epochs_done, writes=is_first())


def _processes_of(record: Mapping[str, Any]) -> int:
    """By how many processes a run was trained last."""
    return int((record.get("starts") or [{}])[-1].get("processes", 1))


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
    return shlex.join([*launcher(), command, *arguments, *flags])


class MetricsLog:
    """`metrics.jsonl` and `metrics.csv` of a run, one row an epoch; rows beyond a resumed checkpoint are dropped.

    Where TensorBoard is installed (extra `tensorboard`) the rows are curves in the run's `tensorboard` folder as well.
    """

    def __init__(self, folder: Path, epochs_done: int = 0, writes: bool = True) -> None:
        self.folder, self._writes = folder, writes
        path = folder / "metrics.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            if path.is_file()
            else []
        )
        self.rows: list[dict[str, Any]] = rows[:epochs_done]
        self._curves: Any = None
        if writes and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)
        self._write()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one epoch's row to both files, and to the curves."""
        self.rows.append(dict(row))
        self._write()
        if self._curves is not None:
            for name, value in row.items():
                if name != "epoch" and not isinstance(value, str):  # such as the shape of a fusion
                    self._curves.add_scalar(name, value, row["epoch"])
            self._curves.flush()

    def _write(self) -> None:
        if not self._writes:
            return
        # A training has at most hundreds of epochs, so writing all rows is as cheap as appending, and atomic.
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            if self.rows:
                writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
