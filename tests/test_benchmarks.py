"""Every benchmark runs at a tiny size and the document holds what they found. How fast anything is, is not tested."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as runner
from benchmarks import gpu, index, report, service, startup
from benchmarks.common import Row, Skip

# That of kills runs a command again and again until it has been killed at every stage; of long recordings one is enough.
SLOW = {("index", "kills"), ("index", "unchanged"), ("startup", "fresh processes")}
SLOW |= {("service", "load"), ("cluster", "workers"), ("approximate", "search")}
SLOW |= {*(("long", name) for name in ("flac", "mp3", "opus", "wav"))}
CASES = [
    pytest.param(topic, name, marks=pytest.mark.slow if (topic, name) in SLOW else ())
    for topic in runner.TOPICS
    for name in importlib.import_module(f"benchmarks.{topic}").cases("tiny")
]


@pytest.mark.parametrize(("topic", "name"), CASES)
def test_every_benchmark_runs(topic, name, monkeypatch, request):
    if topic in ("startup", "index", "long", "service", "cluster"):
        run, python = request.getfixturevalue("trained"), startup.python
        monkeypatch.setattr(startup, "make_run", lambda folder: run)
        for module in (index, service):
            monkeypatch.setattr(module, "a_run", lambda folder: run)
        # Importing other people's packages in fresh processes takes seconds and shows nothing about this one.
        monkeypatch.setattr(startup, "python", lambda *a: "" if str(a[1]).startswith(("import", "from")) else python(*a))
    outcome = runner.run_case(topic, name, "tiny")
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
    assert outcome["rows"]
    for row in outcome["rows"]:
        assert all(math.isfinite(value) and value > 0 for value in (row["fast"], row["plain"] or 1, outcome["peak_gb"]))
        assert row["what"] in report.printed(outcome)


@pytest.mark.parametrize(("unit", "ratio"), [("s", 4), ("clips/s", 0.25)])
def test_ratios_say_how_many_times_faster(unit, ratio):
    assert Row("", fast=2, plain=8, unit=unit).ratio == ratio
    assert Row("", fast=2, unit=unit).ratio is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", ""),
        (0.5, "s", "500 ms"),
        (2e-5, "s", "20 us"),
        (299, "s", "299 s"),
        (600, "s", "10 min"),
        (7.2e6, "s", "2,000 h"),
        (1234.5, "clips/s", "1,234 clips/s"),
        (0.01234, "Gop/s", "0.0123 Gop/s"),
    ],
)
def test_amounts_are_told_in_three_digits(value, unit, text):
    assert report.amount(value, unit) == text


def test_one_command_makes_the_document(tmp_path, monkeypatch, capsys):
    """A topic in processes of its own, kept as JSON; then a document of that and newer results, which win."""
    pytest.importorskip("matplotlib")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        return runner.main()

    kept, newer, document = tmp_path / "kept.json", tmp_path / "newer.json", tmp_path / "docs" / "performance.md"
    assert run("--only", "metrics", "--size", "tiny", "--json", kept) == 0
    assert "50 x 50, 5 relevant" in capsys.readouterr().out
    first, *_ = json.loads(kept.read_text())
    assert first["machine"]["threads"] >= 1
    point = runner.run_case("sampler", "growth over steps, 5", "tiny")
    newer.write_text(json.dumps([point, first | {"rows": [first["rows"][0] | {"fast": 123.0}]}]))
    assert run("--from", kept, newer, "--document", document) == 0
    text = document.read_text()
    assert "123 s" in text
    assert "50 x 50, 5 relevant" in text
    assert "### How cost grows" in text
    assert "performance.svg" in text
    assert "<svg" in (document.parent / "performance.svg").read_text()


def on(processor, case, fast, topic="sampler"):
    """An outcome of one row, on a machine with this processor; none for a benchmark that was skipped."""
    outcome = {"topic": topic, "about": "about", "case": case, "size": "full"}
    if processor is None:
        return outcome | {"skipped": "not here"}
    row = {"what": case, "fast": fast, "plain": 8.0, "unit": "s", "goal": "", "remark": "", "curve": None, "ratio": 8 / fast}
    machine = {"processor": processor, "cores": 2, "threads": 2, "gpu": None, "torch": "", "python": "", "revision": ""}
    return outcome | {"rows": [row], "peak_gb": 1.0, "machine": machine, "load": fast}


def test_kinds_of_machines_keep_to_their_columns(tmp_path):
    """A later figure takes the place of an earlier one of its own kind, and a skipped one of none."""
    wide, narrow = "Chip (AVX512)", "Chip (AVX2, emulated: this one has AVX-512)"
    cases = [(wide, "a", 5.0), (wide, "a", 2.0), (narrow, "a", 4.0), (wide, "b", 1.0), (None, "b", 0.0), (None, "c", 0.0)]
    outcomes = report.merged([*(on(*case) for case in cases), on(wide, "d", 0.5, "gpu")])
    assert [report.kind(outcome) for outcome in outcomes] == ["AVX-512", "AVX2", "AVX-512", "", "GPU"]
    report.write_document(outcomes, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    columns = "plain, AVX-512 | here, AVX-512 | times, AVX-512 | plain, AVX2 | here, AVX2 | times, AVX2"
    assert f"|  | {columns} | peak memory |" in text
    assert "| a | 8 s | 2 s | 4 | 8 s | 4 s | 2 | 1.0 GB |" in text
    assert "| b | 8 s | 1 s | 8 |  |  |  | 1.0 GB |" in text
    assert "Skipped: not here." in text
    assert "figures of AVX-512 were measured beside other work, a load of up to 2 on 2 cores" in text
    assert "figures of AVX2 were measured beside other work, a load of up to 4 on 2 cores" in text
    assert "figures of GPU" not in text
    assert "ATEN_CPU_CAPABILITY=avx2" in text
    assert "Machine: Chip (AVX2, emulated: this one has AVX-512)" in text


def test_curves_keep_the_point_that_they_have_in_common():
    outcomes = [on(chip, "1 x 8", fast) for chip, fast in (("Chip (AVX512)", 1.0), ("Chip (AVX512)", 2.0), ("Chip (AVX2)", 4.0))]
    curves = ["candidates", 8], ["queries", 1], ["queries", 1]
    measured = [(outcome["rows"][0] | {"curve": curve}, outcome) for outcome, curve in zip(outcomes, curves, strict=True)]
    assert report.compared(measured, ["AVX-512", "AVX2"]).splitlines()[2:] == [
        "| 1 x 8 | 8 s | 1 s | 8 |  |  |  | 1.0 GB |",
        "| 1 x 8 | 8 s | 2 s | 4 | 8 s | 4 s | 2 | 1.0 GB |",
    ]


@pytest.mark.parametrize("name", ["decoder", "noise", "precision", "replays", "embedding", "indexing"])
def test_what_is_measured_on_a_gpu_runs_on_a_cpu(name):
    """Where it says nothing, but shows that the script would not fail on the GPU's time."""
    for row in gpu.MEASURED[name](size="tiny", device="cpu"):
        assert math.isfinite(row.fast)
        assert row.fast > 0


def test_how_busy_a_gpu_is_counts_from_its_first_work_to_its_last(tmp_path, monkeypatch):
    said = tmp_path / "nvidia-smi"
    said.write_text("#!/bin/sh\nprintf '0\\n0\\n40\\n[N/A]\\n0\\n80\\n0\\n'\n: > printed\nexec sleep 60\n")
    said.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with gpu.busy() as shares:
        while not Path("printed").exists():
            time.sleep(0.01)
    assert shares == [40, 0, 80]
    monkeypatch.setenv("PATH", "")
    with gpu.busy() as shares:
        pass
    assert shares == []


def test_a_gpu_s_benchmarks_end_in_time_and_without_a_gpu_at_once(monkeypatch, capsys):
    asked = []

    def child(*arguments, limit=None):
        if "--list" in arguments:
            return {"gpu": ["a", "b", "c"]}
        asked.append((arguments[2], limit))
        if absent:
            return {"topic": "gpu", "case": "a", "skipped": "no CUDA GPU here"}
        raise runner.subprocess.TimeoutExpired("b", limit)

    monkeypatch.setattr(runner, "in_child", child)
    absent = True
    assert len(runner.run_all("full", ["gpu"])[0]) == 1
    assert [name for name, _ in asked] == ["a"]
    asked.clear()
    absent = False
    clock = iter([0.0, 100.0, 230.0, 250.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    assert runner.run_all("full", ["gpu"]) == ([], True)
    assert asked == [("a", 140.0), ("b", 10.0)]
    assert capsys.readouterr().out.count("left out, the 240 s of this topic are over") == 3


def test_a_failed_benchmark_is_told_and_writes_no_document(tmp_path, monkeypatch, capsys):
    def fail(*arguments, limit=None):
        if "--list" in arguments:
            return {"metrics": ["text to audio"]}
        raise runner.subprocess.CalledProcessError(1, arguments)

    monkeypatch.setattr(runner, "in_child", fail)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--document", str(tmp_path / "p.md")])
    assert runner.main() == 1
    assert "metrics, text to audio: failed" in capsys.readouterr().out
    assert not (tmp_path / "p.md").exists()


def test_what_cannot_run_is_skipped(monkeypatch):
    def unable(size):
        raise Skip("no librosa here")

    monkeypatch.setattr("benchmarks.prepare.cases", lambda size: {"auto": unable})
    assert "skipped, no librosa here" in report.printed(runner.run_case("prepare", "auto", "tiny"))
