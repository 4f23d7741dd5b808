"""`diffatr serve` under load: a service over 10,000 indexed clips of a tenth of a second, asked by 50 clients at once.

The model is the one that ships with the package; without it, the demo recipe's after one epoch. The clients are threads of this
process, on the same cores as the service. Each has a connection, asks for one of many texts, waits for the answer and asks
again at once. Beside it stands one client that does the same alone, in the same service. An answer other than 200, one without
hits, or a connection that breaks is an error, and any error fails the benchmark.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from . import startup
from .common import Case, Row, Size, pick
from .index import a_run

SOUNDS = ("dog", "engine", "bell", "child", "river", "door", "bird", "crowd", "train", "violin")
DOINGS = ("far away", "in a room", "at night", "behind a wall", "in the rain", "slowly", "twice", "loudly", "again", "outside")
TEXTS = [f"a {sound} {doing}" for sound, doing in itertools.product(SOUNDS, DOINGS)]


class Load(NamedTuple):
    """What clients met. `took`: seconds of each answer; `errors`: how many of each kind; `seconds` in all."""

    took: list[float]
    errors: Counter[str]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.took) / self.seconds

    def quantile(self, share: float) -> float:
        """The seconds within which this share of the answers came."""
        return sorted(self.took)[min(len(self.took) - 1, int(share * len(self.took)))]


def ask(port: int, clients: int, seconds: float) -> Load:
    """Let so many clients ask for so long, each as fast as it is answered."""
    took: list[list[float]] = [[] for _ in range(clients)]
    errors: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        texts = itertools.islice(itertools.cycle(TEXTS), number * 7, None)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            while (began := time.perf_counter()) < end:
                try:
                    connection.request("GET", f"/api/search?q={quote(next(texts))}")
                    answer = connection.getresponse()
                    document = json.loads(answer.read())
                    if answer.status != 200 or not document["hits"]:
                        errors[f"status {answer.status}"] += 1
                    took[number].append(time.perf_counter() - began)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    errors[type(error).__name__] += 1
                    connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load([each for some in took for each in some], errors, time.perf_counter() - began)


@contextlib.contextmanager
def service(clips: Path, run: Path, workers: int) -> Iterator[tuple[int, int]]:
    """While the block runs, a service of the clips, which are indexed: the number of its process, and its port."""
    command = ("-m", "diffatr_cli", "serve", "--corpus", clips, "--run", run, "--device", "cpu", "--port", "0", "--no-open")
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--workers", str(workers)], cwd=startup.ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/", process.stdout.readline())
        if found is None:
            raise RuntimeError("the service did not start")
        port = int(found[1])
        warm: set[int] = set()
        while len(warm) < workers:
            document = _get(port, "/health")
            if document["indexing"] is None and _get(port, "/api/search?q=a+dog")["hits"]:
                warm.add(document["worker"])
            time.sleep(0.05)
        yield process.pid, port
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise RuntimeError(f"the service ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _get(port: int, address: str) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", address)
        return json.loads(connection.getresponse().read())


def _private_memory(process: int) -> float | None:
    """Bytes that a process and its children have for themselves, in GB; what they share is counted once. None where unknown."""
    total = 0
    children = [process]
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
        children += map(int, tasks.split())
    try:
        for each in children:
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="utf-8")
            total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return None
    return total * 1024 / 1e9


def load(size: Size, run: Path | None = None) -> list[Row]:
    """One and two workers under the same load."""
    count, clients, seconds = pick(size, (20, 4, 1.0), (2_000, 50, 15.0), (10_000, 50, 60.0))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = run or a_run(folder)
        clips = startup.make_clips(folder / "clips", count)
        startup.python("-m", "diffatr_cli", "index", clips, "--run", run, "--device", "cpu", "--json")
        for workers in (1, 2):
            with service(clips, run, workers) as (process, port):
                alone = ask(port, 1, seconds / 4)
                many = ask(port, clients, seconds)
                memory = _private_memory(process)
            if errors := alone.errors + many.errors:
                raise RuntimeError(f"with {workers} workers, of {len(many.took)} requests: {dict(errors)}")
            what = f"{count:,} clips, {clients} clients, {workers} worker{'s' * (workers > 1)}"
            told = f"{len(many.took):,} answers in {many.seconds:.0f} s, no error"
            told += "" if memory is None else f"; {memory:.2f} GB in all"
            half = f"alone {1e3 * statistics.median(alone.took):.0f} ms"
            rows += [
                Row(f"{what}: answers", many.rate, alone.rate, unit="/s", remark=f"{told}; plain: one client alone"),
                Row(
                    f"{what}: half of them within",
                    many.quantile(0.5),
                    remark=half,
                ),
                Row(
                    f"{what}: 95 % of them within",
                    many.quantile(0.95),
                    goal="goal: under 1 s",
                    remark=f"alone {1e3 * alone.quantile(0.95):.0f} ms; load of the machine before {os.getloadavg()[0]:.1f}",
                ),
            ]
    return rows


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"load": load}
