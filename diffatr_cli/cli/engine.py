"""Where heavy work is done, as options of the commands that do it: here, or by workers of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..launched import several

if TYPE_CHECKING:
    from ..cluster.engine import RayEngine


class EngineName(StrEnum):
    """What does the work."""

    local = "local"
    ray = "ray"


Engine = Annotated[
    EngineName,
    typer.Option("--engine", help="What does the work: this machine, or workers of Ray (extra `cluster`), here or on a cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine ray: a running cluster that this machine is part of, or auto; workers are started here if not given. "
        "All its machines need the files under the same paths.",
    ),
]
EngineWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, metavar="N", help="With --engine ray: how many workers embed; one a core, or a GPU, if not given."
    ),
]


def check_workers(name: EngineName, workers: int | None) -> None:
    """Raises UsageError for workers of a command that has none but those of Ray."""
    if name is EngineName.local and workers is not None:
        raise UsageError("--workers is for --engine ray alone.")


@contextlib.contextmanager
def engine_of(name: EngineName, address: str | None, workers: int | None, device: str) -> Iterator[RayEngine | None]:
    """The engine of a name; None for this process itself. Raises UsageError for what does not go together."""
    if name is EngineName.local:
        if address is not None:
            raise UsageError("--address is for --engine ray alone.")
        yield None
        return
    if several():
        raise UsageError("--engine ray has workers of its own: start one process, without torchrun.")
    from ..cluster.engine import RayEngine

    with RayEngine(address, workers, device) as engine:
        yield engine
