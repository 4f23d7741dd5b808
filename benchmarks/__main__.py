"""Run all benchmarks, each in a process of its own, print them, and write docs/performance.md with its plot.

    python -m benchmarks [--quick] [--only TOPIC ...] [--json FILE] [--document FILE] [--from FILE ...]

This process imports nothing heavy: on Linux a child's peak memory begins at its parent's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TOPICS = (
    "sampler",
    "metrics",
    "encoders",
    "training",
    "prepare",
    "startup",
    "index",
    "frames",
    "long",
    "clap",
    "service",
    "cluster",
    "approximate",
    "filters",
    "gpu",
)
LIMITS = {"gpu": 240.0}
"""Seconds that all of a topic's benchmarks may take together, where there is a limit: a GPU is often lent for minutes."""
ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"


def run_case(topic: str, name: str, size: Any) -> dict[str, Any]:
    """Run one benchmark in this process: its rows, this process's peak memory, and the machine."""
    from torch import cuda

    from .common import Skip, machine

    module = importlib.import_module(f".{topic}", __package__)
    outcome: dict[str, Any] = {"topic": topic, "about": module.__doc__, "case": name, "size": size}
    if hasattr(os, "getloadavg"):  # not on Windows
        outcome["load"] = os.getloadavg()[0]  # of what else runs
    try:
        rows = [asdict(row) | {"ratio": row.ratio} for row in module.cases(size)[name](size)]
    except Skip as skip:
        return outcome | {"skipped": str(skip)}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit / 1e9
    if topic == "gpu":
        peak = cuda.max_memory_allocated() / 1e9
    return outcome | {"rows": rows, "peak_gb": peak, "machine": machine()}


def list_cases(topics: list[str], size: Any) -> dict[str, list[str]]:
    """The names of the benchmarks of some topics."""
    return {topic: list(importlib.import_module(f".{topic}", __package__).cases(size)) for topic in topics}


def in_child(*arguments: str, limit: float | None = None) -> Any:
    """What this module prints as its last line when it is run with these arguments; raises if it fails, or goes on for too long.

    Args:
        limit: seconds.
    """
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=limit)
    return json.loads(done.stdout.splitlines()[-1])


def run_all(size: str, topics: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """Run the benchmarks of some topics one after the other, printing each, and whether all of them came to an end."""
    from .report import printed

    results, whole = [], True
    for topic, names in in_child("--list", *topics, "--size", size).items():
        begun = time.monotonic()
        for name in names:
            left = LIMITS[topic] - (time.monotonic() - begun) if topic in LIMITS else None
            try:
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(name, 0)
                outcome = in_child("--case", topic, name, "--size", size, limit=left)
            except subprocess.TimeoutExpired:
                print(f"{topic}, {name}: left out, the {LIMITS[topic]:.0f} s of this topic are over", flush=True)
                continue
            except subprocess.CalledProcessError:
                whole = False
                print(f"{topic}, {name}: failed", flush=True)
                continue
            results.append(outcome)
            print(printed(outcome), flush=True)
            if topic == "gpu" and "skipped" in outcome:
                break  # there is no GPU for the others either
    return results, whole


def main() -> int:
    """Parse the command line and do as it says; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Time everything against its plain version.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look; writes no document unless told")
    parser.add_argument("--only", nargs="+", choices=TOPICS, metavar="TOPIC", help=f"of {', '.join(TOPICS)}; likewise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results, to make a document of")
    parser.add_argument("--document", type=Path, metavar="FILE", help=f"default: {DOCUMENT.relative_to(ROOT)}")
    parser.add_argument(
        "--from",
        dest="files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="make the document of kept results; later ones win",
    )
    parser.add_argument("--size", choices=("tiny", "quick", "full"), help=argparse.SUPPRESS)
    parser.add_argument("--list", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.size or ("quick" if options.quick else "full")
    if options.list or options.case:
        print(json.dumps(list_cases(options.list, size) if options.list else run_case(*options.case, size)))
        return 0

    document = options.document or (None if options.only or size != "full" else DOCUMENT)
    if document and not find_spec("matplotlib"):
        parser.error("the document's plot needs the extra `bench`: pip install 'diffatr[bench]'")
    whole = True
    if options.files:
        from .report import merged

        results = merged(outcome for file in options.files for outcome in json.loads(file.read_text(encoding="utf-8")))
    else:
        results, whole = run_all(size, options.only or list(TOPICS))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if document and whole:
        from .report import write_document

        write_document(results, document)
        print(f"wrote {document}")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
