"""How this process was started: alone, or by torchrun and its like as one of several. Imports nothing heavy."""

from __future__ import annotations

import os


def several() -> bool:
    """Whether it is one of several that do one job."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def rank() -> int:
    """Which of them, from 0."""
    return int(os.environ["RANK"]) if several() else 0


def local_rank() -> int:
    """Which of those on this machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if several() else 0


def launcher() -> list[str]:
    """What a command line begins with that starts as many processes again; `diffatr` for one that was started alone."""
    if not several():
        return ["diffatr"]
    here, all_of_them = (os.environ.get(name, os.environ["WORLD_SIZE"]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    machines = [] if here == all_of_them else ["--nnodes", str(int(all_of_them) // int(here))]
    return ["torchrun", *machines, "--nproc-per-node", here, "-m", "diffatr_cli"]
