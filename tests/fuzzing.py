"""Fuzzing: atheris feeds a parser with damaged inputs for a minute, and what brings it down is kept.

A target is a function of a test module that takes bytes and returns, whatever they are; it lets out only what is a fault. Its
corpus, the inputs that others are made of, is a folder of `tests/fuzz_corpus`. A test module runs it so:

    def check(data: bytes) -> None:
        with contextlib.suppress(DiffATRError):
            parse(data)

    @pytest.mark.parametrize("path", corpus("wav"), ids=lambda path: path.name)
    def test_the_corpus(path: Path) -> None:
        check(path.read_bytes())

    @pytest.mark.slow
    def test_fuzz() -> None:
        fuzz(check, "wav", tokens=[b"RIFF", b"data"])

An input that raises, takes too long or too much memory, or ends the process is written into the corpus, where it stays as a test.

`DIFFATR_FUZZ_SECONDS` (60) says for how long each target runs, `DIFFATR_FUZZ_SEED` (1) with which random numbers.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

CORPUS = Path(__file__).parent / "fuzz_corpus"
MEMORY = 2 << 30
"""Bytes that inputs may take beyond what the process has before them."""
SLOWEST = 10
"""Seconds for one input."""
LARGEST = 1 << 14
"""Bytes of an input. What grows faster than inputs do shows in these too, and of small ones there are more in a second."""

Check = Callable[[bytes], None]


def corpus(name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted((CORPUS / name).iterdir())


def fuzz(check: Check, name: str, tokens: Sequence[bytes] = ()) -> None:
    """Run a target, in a process of its own, on inputs made of its corpus and of `tokens`, which are words of its language.

    Fails, with the place of the input in the corpus, if one brings it down. Skips where there is no atheris.
    """
    pytest.importorskip("atheris", reason="atheris has no wheel for this system")
    with TemporaryDirectory() as folder:
        words = Path(folder, "words")
        escaped = ["".join(rf"\x{byte:02x}" for byte in token) for token in tokens]
        words.write_text("".join(f'"{token}"\n' for token in escaped))
        Path(folder, "new").mkdir()
        options = {
            "max_total_time": os.environ.get("DIFFATR_FUZZ_SECONDS", "60"),
            "seed": os.environ.get("DIFFATR_FUZZ_SEED", "1"),
            "timeout": SLOWEST,
            "report_slow_units": SLOWEST,
            "max_len": LARGEST,
            "rss_limit_mb": 0,  # it is looked at once a second; the limit of _run is met at once
            "dict": words,
            "artifact_prefix": f"{CORPUS / name}{os.sep}",
        }
        arguments = [f"-{option}={value}" for option, value in options.items()]
        places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        before = set(corpus(name))
        done = subprocess.run(
            [sys.executable, __file__, check.__module__, check.__qualname__, *arguments, f"{folder}/new", str(CORPUS / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
            check=False,
        )
    told = [line[:300] for line in done.stdout.splitlines() if not line.startswith(("#", '"'))]
    if done.returncode:
        found = ", ".join(str(path) for path in corpus(name) if path not in before) or "an input of the corpus"
        pytest.fail("\n".join([f"{found}: brings {check.__qualname__} down ({done.returncode})", *told[-40:]]), pytrace=False)
    print(f"{check.__qualname__}: {told[-1]}")  # how many inputs there were, for who runs pytest with -s


def _run(module: str, function: str) -> None:
    """What the process does: `sys.argv` holds the options of libFuzzer."""
    import resource

    import atheris

    with atheris.instrument_imports(include=["diffatr_cli"]):
        check: Check = getattr(importlib.import_module(module), function)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    _run(sys.argv.pop(1), sys.argv.pop(1))
