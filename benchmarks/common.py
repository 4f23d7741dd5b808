"""What all benchmarks share: sizes, rows of results, and timing."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from diffatr_cli.training.phase_folder import git_revision

Size = Literal["tiny", "quick", "full"]
"""`tiny` is for tests, `quick` for a look, `full` for the document."""
T = TypeVar("T")


class Skip(Exception):
    """A benchmark that cannot run here, and why."""


@dataclass(frozen=True)
class Row:
    """One figure beside its plain version.

    Attributes:
        fast, plain: in `unit`: seconds, or something a second; None where there is nothing to compare with.
        goal: in words.
        curve: (what grows, how large it is here), for the plot.
    """

    what: str
    fast: float
    plain: float | None = None
    unit: str = "s"
    goal: str = ""
    remark: str = ""
    curve: tuple[str, int] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the plain version."""
        if self.plain is None:
            return None
        return self.plain / self.fast if self.unit == "s" else self.fast / self.plain


Case = Callable[[Size], list[Row]]


def pick(size: Size, tiny: T, quick: T, full: T) -> T:
    """The value for a size."""
    return {"tiny": tiny, "quick": quick, "full": full}[size]


def seconds(way: Callable[[], object], device: str = "cpu") -> float:
    """How long one call takes."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    way()
    wait()
    return time.perf_counter() - started


def medians(ways: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each way over `rounds` turns, after one to warm up.

    The ways take turns, so that other load on the machine meets them alike.
    """
    turns = [{name: seconds(way, device) for name, way in ways.items()} for _ in range(rounds + 1)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in ways}


def median(way: Callable[[], object], rounds: int, device: str = "cpu") -> float:
    """`medians` of one way."""
    return medians({"": way}, rounds, device)[""]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    revision = git_revision()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": revision and revision[:12] + "+" * revision.endswith("+"),
    }


def _processor() -> str:
    """The processor's name where the system tells, with the widest vectors that torch uses on it."""
    name, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        flags = next((line for line in lines if line.startswith("flags")), "")
    widest = torch.backends.cpu.get_cpu_capability()
    emulated = ", emulated: this one has AVX-512" if widest == "AVX2" and "avx512f" in flags.split() else ""
    return f"{name} ({widest}{emulated})"
