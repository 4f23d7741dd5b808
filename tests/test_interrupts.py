"""Ctrl-C at any moment: one line, exit 130, and no process left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from audio_files import sine, table, write

from diffatr_cli.data.convert import Converter, convert_all
from diffatr_cli.data.manifest import MANIFEST
from diffatr_cli.errors import INTERRUPTED
from diffatr_cli.interrupts import interrupts_wait

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes under /proc")


def processes_of(group: int) -> list[str]:
    """The processes of a group that are alive, by their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The command in a group of its own, as a terminal starts it."""
    command = [sys.executable, "-m", "diffatr_cli", "prepare", *map(str, arguments)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """What a terminal does at Ctrl-C: the signal goes to the whole group. Gives the exit code and stderr."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        _, told = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):  # of a test that fails
            left = processes_of(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
    for _ in range(100):
        if not left:
            break
        time.sleep(0.1)  # those that were still going when they were counted
        left = processes_of(process.pid)
    assert left == []
    return process.returncode, told


def many_sounds(root: Path, count: int = 80) -> Path:
    for number in range(count):
        write(root / f"{number}.flac", sine(1.0, 44_100, 300 + 10 * number), 44_100)
    table(root / "captions.csv", "file,caption", [[f"{number}.flac", f"tone {number}"] for number in range(count)])
    return root


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("kind", ["synthetic", "folder"])
def test_ctrl_c_at_any_moment(tmp_path: Path, kind: str) -> None:
    arguments: tuple[str | Path, ...] = ("synthetic", "--train", "60", "--val", "8", "--test", "8", "--workers", "3")
    if kind == "folder":
        arguments = ("folder", "--from", many_sounds(tmp_path / "in"), "--name", "folder", "--workers", "3")
    began = time.monotonic()
    whole = start(*arguments, "--data", tmp_path / "whole")
    assert whole.communicate()[1].count("Traceback") == 0
    assert whole.returncode == 0
    took = time.monotonic() - began
    drawn, codes = random.Random(kind), []
    while codes.count(130) < 8:  # however many are done before they are interrupted, which is a matter of the machine
        assert len(codes) < 200
        data = tmp_path / f"data{len(codes) % 4}"  # some begin anew, some go on
        process = start(*arguments, "--data", data)
        pause = took * drawn.random()
        time.sleep(pause)
        code, told = interrupt(process)
        codes.append(code)
        if code == 0:  # it was done already
            assert "Traceback" not in told
        elif code != 130 and pause < 1:  # the interpreter itself had not started up
            assert told == "" or ("KeyboardInterrupt" in told and "diffatr_cli/" not in told)
        else:
            assert code == 130
            assert told == INTERRUPTED + "\n"
        assert not list(data.rglob(".*.tmp"))
    for number in range(4):
        process = start(*arguments, "--data", tmp_path / f"data{number}")
        assert process.communicate()[1].count("Traceback") == 0
        assert process.returncode == 0
        manifest = Path(kind) / MANIFEST
        assert (tmp_path / f"data{number}" / manifest).read_bytes() == (tmp_path / "whole" / manifest).read_bytes()


def slow_sound(source: str) -> np.ndarray:
    Path(source).touch()
    time.sleep(30)
    Path(source).with_suffix(".ended").touch()
    return np.zeros(0)


@needs_proc
def test_workers_at_work_are_ended_and_hear_nothing_of_ctrl_c(tmp_path: Path) -> None:
    work = [(str(tmp_path / f"{number}.began"), tmp_path / f"{number}.wav") for number in range(40)]
    outcomes = convert_all(Converter(slow_sound), work, workers=2)  # type: ignore[arg-type]

    def press() -> None:
        while not list(tmp_path.glob("*.began")):
            time.sleep(0.01)
        for _ in range(5):  # an impatient person
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    thread.join()
    assert not list(tmp_path.glob("*.ended"))
    me = os.getpid()
    children = [
        path
        for path in Path("/proc").glob("[0-9]*/stat")
        if f" {me} " in path.read_text().rpartition(")")[2][:20] and "spawn_main" in (path.parent / "cmdline").read_text()
    ]
    assert children == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_waits_for_its_place_and_is_not_lost() -> None:
    reached = []

    def to_its_place() -> None:
        with interrupts_wait() as raise_interrupt:
            signal.raise_signal(signal.SIGINT)
            reached.append("after the signal")
            raise_interrupt()
            reached.append("never")

    def to_the_end() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            reached.append("to the end")

    for work in (to_its_place, to_the_end):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert reached == ["after the signal", "to the end"]
    with pytest.raises(ValueError, match="first"), interrupts_wait():
        raise ValueError("first")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_nothing_changes() -> None:
    found = []

    def enter() -> None:
        with interrupts_wait() as raise_interrupt:
            raise_interrupt()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_ctrl_c_within_an_import_ends_at_once_with_the_line(tmp_path: Path) -> None:
    """Even where the module that is imported catches everything."""
    (tmp_path / "stubborn.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\nprint('went on')\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import diffatr_cli.__main__ as program, signal, types\n"
        "run = types.ModuleType('diffatr_cli.cli.main')\n"
        "def main():\n    import stubborn\n"
        "run.main = main\nsys.modules['diffatr_cli.cli.main'] = run\nprogram.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", INTERRUPTED + "\n")
