"""`diffatr index --engine ray`: one worker against two, and against `--engine local`, on the same files.

The model is the one that ships with the package. Recordings are those of the benchmark `index`. The time counts from the first
work to the last commit, with the start of Ray and of its workers, of which each loads the model; rates are those of the files
beyond the first half, so that a start, which a large folder does not notice, is left out.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from diffatr_cli.cluster.engine import RayEngine
from diffatr_cli.corpus.elsewhere import Elsewhere
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.model import load_retriever

from . import index
from .common import Case, Row, Size, Skip, pick


class _Marks:
    """A `Progress` that notes when half of the files were done and when all were."""

    def __init__(self) -> None:
        self.half, self.end = (0.0, 0), (0.0, 0)

    def __call__(self, done: int, total: int, note: str) -> None:
        if note == "reading metadata":  # which is done here, after all is embedded
            return
        now = time.perf_counter(), done
        if done <= total / 2:
            self.half = now
        self.end = now

    @property
    def rate(self) -> float:
        """Files a second."""
        (before, done), (after, all_of_them) = self.half, self.end
        return (all_of_them - done) / (after - before)


def workers(size: Size) -> list[Row]:
    """Files a second with one worker, with two, and here."""
    if find_spec("ray") is None:
        raise Skip("needs the extra `cluster`")
    count, length = pick(size, (64, 1.0), (400, 30.0), (1_200, 30.0))
    rates: dict[str, float] = {}
    whole: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = index.a_run(folder)
        files = index.make_recordings(folder / "recordings", count, length)
        load = partial(load_retriever, run)
        found = []
        for number, what in ((None, "local"), (1, "one"), (2, "two")):
            marks, started, there = _Marks(), time.perf_counter(), FolderIndex(files, folder / what)
            if number is None:
                there.update(load("cpu"), marks)
            else:
                with RayEngine(workers=number, device="cpu") as engine:
                    there.update(load("cpu"), marks, elsewhere=Elsewhere(engine, load))
            rates[what], whole[what] = marks.rate, time.perf_counter() - started
            found.append(there.read(load("cpu").model_id))
    differences = [index._difference(each, found[0]) for each in found[1:]]
    remark = (
        f"the same index, vectors within {max(differences):.1g}; {whole['one']:.0f} s and {whole['two']:.0f} s with the start"
    )
    return [
        Row(
            f"two workers of Ray against one, {count} files of {length:g} s",
            rates["two"],
            rates["one"],
            unit="files/s",
            goal="goal: 1.7 times one",
            remark=remark,
        ),
        Row("two workers of Ray against --engine local", rates["two"], rates["local"], unit="files/s"),
    ]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"workers": workers}
