"""Fuzzing: feed a parser with damaged inputs for some seconds, and keep what brings it down.

A target is a function of a test module that takes bytes and returns, whatever they are; it lets out only what is a fault. Its
corpus is a folder of `tests/fuzz_corpus`. A test module runs it so:

    def check(data: bytes) -> None:
        with contextlib.suppress(DiffATRError):
            parse(data)

    @pytest.mark.parametrize("path", corpus("wav"), ids=lambda path: path.name)
    def test_the_corpus(path: Path) -> None:
        check(path.read_bytes())

    @pytest.mark.slow
    def test_fuzz() -> None:
        fuzz(check, "wav", tokens=[b"RIFF", b"data"])

The inputs run in a process of its own, which may take only so much memory, and so long for each. An input that raises, takes
more than that, or ends the process is written into the corpus, where it stays as a test, and the test fails. Inputs that reach
lines of the package which none before has reached are mutated further.

`DIFFATR_FUZZ_SECONDS` (10) says for how long each target runs, `DIFFATR_FUZZ_SEED` (0) with which random numbers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

CORPUS = Path(__file__).parent / "fuzz_corpus"
PACKAGE = Path(__file__).parents[1] / "diffatr_cli"
MEMORY = 1 << 30
"""Bytes that inputs may take beyond what the process has after its corpus."""
SLOWEST = 10.0
"""Seconds for one input."""
LARGEST = 1 << 14
"""Bytes of an input. What grows faster than inputs do shows in these too, and of small ones there are more in a second."""

Check = Callable[[bytes], None]


def corpus(name: str) -> list[Path]:
    """The inputs that are kept for a target."""
    return sorted(path for path in (CORPUS / name).iterdir() if path.is_file())


def fuzz(check: Check, name: str, tokens: Sequence[bytes] = (), seconds: float | None = None) -> None:
    """Run a target on inputs mutated from its corpus; `tokens` are words of its language, which mutations put in.

    Fails, with the input's place in the corpus, if one brings it down.
    """
    with tempfile.NamedTemporaryFile() as current:
        job = {
            "target": [check.__module__, check.__qualname__],
            "current": current.name,
            "paths": list(map(str, corpus(name))),
            "tokens": [token.decode("latin-1") for token in tokens],
            "seconds": float(os.environ.get("DIFFATR_FUZZ_SECONDS", "10")) if seconds is None else seconds,
            "seed": int(os.environ.get("DIFFATR_FUZZ_SEED", "0")),
        }
        folders = [str(Path(__file__).parent), str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, __file__, json.dumps(job)],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            check=False,
        )
        data = Path(current.name).read_bytes()
    if done.returncode == 0:
        print(done.stdout.decode())  # how many inputs there were, for who runs pytest with -s
        return
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    told = done.stderr.decode(errors="replace").splitlines()[-40:]
    shown = [line if len(line) < 300 else f"{line[:200]} ... {line[-99:]}" for line in told]
    pytest.fail("\n".join([f"{path}: brings {check.__qualname__} down ({done.returncode}):", *shown]), pytrace=False)


# --- mutations -------------------------------------------------------------------------------------------------------

_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 44, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
_BYTES = b"\0\x01\x7f\x80\xff\xfe \t\n\r\"',;:.[]{}()-+0129aAeE\\/#&*!%"


class Mutator:
    """Changes inputs, by the random numbers of a seed."""

    def __init__(self, seed: int, tokens: Sequence[bytes] = ()) -> None:
        self.random = random.Random(seed)
        self.tokens = list(tokens)
        self._kinds = [self._flip, self._byte, self._delete, self._repeat, self._insert, self._number, self._move, self._cut]
        self._kinds += [self._token] * (4 if tokens else 0)

    def __call__(self, pool: Sequence[bytes]) -> bytes:
        """One of the inputs, changed in one to eight places, perhaps with a part of another."""
        data = bytearray(self.random.choice(pool))
        if self.random.random() < 0.2:
            other = self.random.choice(pool)
            data[self._place(data) :] = other[self._place(other) :]
        for _ in range(1 << self.random.randrange(4)):
            self.random.choice(self._kinds)(data)
        return bytes(data[:LARGEST])

    def _place(self, data: bytes | bytearray) -> int:
        return self.random.randint(0, len(data))

    def _stretch(self, data: bytearray) -> slice:
        start = self._place(data)
        longest = self.random.choice((1, 4, 16, 64, 1024, len(data)))
        return slice(start, start + self.random.randint(1, max(longest, 1)))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def _byte(self, data: bytearray) -> None:
        if data:
            data[self.random.randrange(len(data))] = self.random.choice(_BYTES)

    def _delete(self, data: bytearray) -> None:
        del data[self._stretch(data)]

    def _repeat(self, data: bytearray) -> None:
        part = bytes(data[self._stretch(data)])
        times = self.random.choice((1, 2, 10, 100, 5000))
        place = self._place(data)
        data[place:place] = part * min(times, LARGEST // max(len(part), 1))

    def _insert(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = self.random.randbytes(self.random.choice((1, 2, 4, 16)))

    def _token(self, data: bytearray) -> None:
        place = self._place(data)
        end = place if self.random.random() < 0.5 else place + self.random.randint(0, 8)
        data[place:end] = self.random.choice(self.tokens)

    def _number(self, data: bytearray) -> None:
        width = self.random.choice((1, 2, 4, 8))
        number = self.random.choice((*_NUMBERS, len(data), 2 ** (8 * width) - 1 - self.random.randrange(3)))
        place = self._place(data)
        order: Any = self.random.choice(("little", "big"))
        data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, order)

    def _move(self, data: bytearray) -> None:
        part = bytes(data[(where := self._stretch(data))])
        del data[where]
        place = self._place(data)
        data[place:place] = part

    def _cut(self, data: bytearray) -> None:
        del data[self._place(data) :]


# --- the process that runs them --------------------------------------------------------------------------------------


class _Lines:
    """The lines of the package that have been reached."""

    def __init__(self) -> None:
        self.reached: set[tuple[CodeType, int]] = set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(str(PACKAGE)) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.reached.add((frame.f_code, frame.f_lineno))
        return self._line


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on every system
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _run(job: dict[str, Any]) -> None:
    module, function = job["target"]
    check: Check = getattr(importlib.import_module(module), function)
    pool = [Path(path).read_bytes() for path in job["paths"]]
    mutate = Mutator(job["seed"], [token.encode("latin-1") for token in job["tokens"]])
    lines, runs = _Lines(), 0
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # tells where, and the signal ends the process then
    with open(job["current"], "r+b", buffering=0) as current:

        def run(data: bytes) -> bool:
            """Whether the input reached a line that none before has reached."""
            before = len(lines.reached)
            current.seek(0)
            current.truncate()
            current.write(data)
            signal.setitimer(signal.ITIMER_REAL, SLOWEST)
            with lines.watched():
                check(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            return len(lines.reached) > before

        for data in list(pool):
            run(data)
        _limit_memory()
        end = time.monotonic() + job["seconds"]
        while time.monotonic() < end:
            data = mutate(pool)
            runs += 1
            if run(data):
                pool.append(data)
    news = len(pool) - len(job["paths"])
    print(f"{function}: {runs} inputs, {news} of them reached new lines, {len(lines.reached)} lines in all")


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
