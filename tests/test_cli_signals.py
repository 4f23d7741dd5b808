"""Ctrl-C and `kill` at any moment: one line, the exit code that shells expect, nothing hung, nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from command_line import DIFFATR, ROOT, Terminal, shown, start
from conftest import Workshop

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes where Linux shows them")

LINE = "diffatr: interrupted. The same command continues where this one stopped."


def handles_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the program has its own way with SIGTERM; before, while Python itself starts, no program can."""
    caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    while not handles_signals(process):
        assert process.poll() is None
        time.sleep(0.001)


def session_of(process: subprocess.Popen[str]) -> list[str]:
    """The processes that still are of the session that this one began."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == process.pid and state != "Z":
            found.append(name)
    return found


def nothing_is_left_of(process: subprocess.Popen[str]) -> bool:
    for _ in range(200):
        if not session_of(process):
            return True
        time.sleep(0.1)
    return False


def run_script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python code after `signals.install()`, in a process of its own."""
    script = "import os, signal, sys, time\nfrom diffatr_cli.cli import signals\nsignals.install()\n" + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *arguments])}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


# --- the moments -----------------------------------------------------------------------------------------------------


def commands(folder: Path) -> dict[str, list[str]]:
    clips = str(folder / "clips")
    return {
        "query": ["query", "a dog", "--corpus", clips],
        "index": ["index", clips],
        "demo": ["demo", "--data", str(folder / "data"), "--runs", str(folder / "runs")],
    }


SAID = {  # on stderr, undisturbed
    "query": ["files: 26 indexed"],
    "index": [],
    "demo": ["$ diffatr prepare synthetic", "$ diffatr pretrain demo", "$ diffatr train-diffusion demo"],
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("command", SAID)
def test_ctrl_c_at_a_random_moment(tmp_path: Path, command: str, seed: int) -> None:
    rng = random.Random(f"{command}{seed}")
    shutil.copytree(ROOT / "examples" / "clips", tmp_path / "clips", ignore=shutil.ignore_patterns(".*"))
    console_script = shutil.which("diffatr") if seed % 2 else None
    process = start([*([console_script] if console_script else DIFFATR), *commands(tmp_path)[command]])
    wait_until_ready(process)
    time.sleep(rng.uniform(0, 6))
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    lines = err.splitlines()
    assert "Traceback" not in err
    if process.returncode == 0:
        assert lines == SAID[command]
    else:
        assert process.returncode == 130, err
        assert lines[-1:] == [LINE]
        assert lines[:-1] == SAID[command][: len(lines) - 1]
    assert nothing_is_left_of(process)
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("wait", [0.0, 0.4])
def test_while_the_program_loads_a_signal_ends_it_with_one_line(number: str, wait: float, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    process = start([*DIFFATR, "index", tmp_path / "clips", "--runs", tmp_path])
    wait_until_ready(process)
    time.sleep(wait)
    if process.poll() is None:
        process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=60)
    if process.returncode == 1:  # it was faster: there is no run
        return
    assert process.returncode == 128 + getattr(signal, number)
    how = "interrupted" if number == "SIGINT" else f"ended by {number}"
    assert (out, err) == ("", f"diffatr: {how}. The same command continues where this one stopped.\n")


def test_what_a_program_was_started_to_ignore_stays_ignored() -> None:
    done = subprocess.run(
        ["nohup", sys.executable, "-c", "import signal\nfrom diffatr_cli.cli import signals\nsignals.install()\n"
         "print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM))"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    ignored, handled = done.stdout.split(maxsplit=1)
    assert ignored in ("Handlers.SIG_IGN", "1")
    assert "_handle" in handled


def test_ctrl_c_in_a_terminal_puts_the_cursor_back(tmp_path: Path) -> None:
    """The key itself, while a bar is shown: the bar goes, the cursor comes back, one line is said."""
    terminal = Terminal([*DIFFATR, "prepare", "synthetic", "--train", "3000", "--workers", "1", "--data", tmp_path])
    seen, pressed = b"", False
    for block in terminal.output():
        seen += block
        if b"generating" in seen and not pressed:
            pressed = True
            terminal.press(b"\x03")
    assert terminal.process.wait(60) == 130
    text = seen.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert shown(text.rpartition("\x1b[?25h")[2]) == f"{LINE}\n"
    assert "Traceback" not in text
    assert nothing_is_left_of(terminal.process)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_file_leaves_no_part_of_it(tmp_path: Path, number: int, code: int) -> None:
    process = start([*DIFFATR, "prepare", "synthetic", "--train", "3000", "--workers", "1", "--data", tmp_path])
    while not list(tmp_path.glob("synthetic/train/*.wav")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, len(err.splitlines())) == (code, "", 1)
    assert not list(tmp_path.rglob("*.tmp"))


# --- where an exception cannot do it ---------------------------------------------------------------------------------


def test_an_import_is_let_come_to_its_end(tmp_path: Path) -> None:
    """One that swallows everything, as some do: the interruption comes after it, and not into it."""
    (tmp_path / "swallowing.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(50): time.sleep(0.01)\n"
        "except BaseException as error:\n"
        "    print('in the import:', repr(error))\n"
        "print('imported')\n"
    )
    done = run_script(
        """
        try:
            with signals.unwinding():
                import swallowing
                time.sleep(60)
        except KeyboardInterrupt:
            print("unwound", signals.arrived(), signals.exit_code())
            print(signals.farewell(), signals.farewell())
        """,
        str(tmp_path),
    )
    assert done.stdout.splitlines() == ["imported", "unwound True 130", f"{LINE} None"]
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_is_being_started_is_let_start() -> None:
    """Half of one would wait for the other half, or end with a traceback of its own."""
    done = run_script(
        """
        class Starting:  # is pickled by `multiprocessing` while it starts a process
            def __reduce__(self):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.01)
                except KeyboardInterrupt:
                    print("in the middle")
                return print, ("started",)

        import multiprocessing

        try:
            with signals.unwinding():
                process = multiprocessing.get_context("spawn").Process(target=print, args=(Starting(),))
                process.start()
                time.sleep(60)
        except KeyboardInterrupt:
            process.join()
            print("unwound", process.exitcode, flush=True)
        """
    )
    assert sorted(done.stdout.splitlines()) == ["None", "started", "unwound 0"]
    assert (done.returncode, done.stderr) == (0, "")


def test_where_nothing_is_at_stake_an_import_is_ended(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('imported')\n")
    done = run_script("import slow", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{LINE}\n")


def test_what_swallows_the_exception_is_ended_in_time() -> None:
    done = run_script(
        """
        signals.GRACE = 0.5
        with signals.unwinding():
            while True:
                try:
                    if not signals.arrived():
                        os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(60)
                except BaseException:
                    pass
        """
    )
    assert (done.returncode, done.stderr) == (130, f"{LINE}\n")


def test_an_exception_that_is_lost_is_raised_again() -> None:
    """In a destructor Python can only write it down, and goes on."""
    done = run_script(
        """
        class Loses:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

        try:
            with signals.unwinding():
                Loses()
                time.sleep(60)
        except KeyboardInterrupt:
            print("unwound", signals.exit_code(), signals.dealt_with())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "unwound 143 False\n", "")


def test_asked_twice_it_ends_at_once() -> None:
    done = run_script(
        """
        with signals.unwinding():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
        """
    )
    assert (done.returncode, done.stderr) == (130, f"{LINE}\n")


def test_after_the_end_only_the_exit_code_is_left() -> None:
    done = run_script("signals.finished(2)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    assert (done.returncode, done.stderr) == (2, "")
    done = run_script(
        """
        class Late:
            def __del__(self, kill=os.kill, process=os.getpid()):
                kill(process, 2)

        late = Late()
        signals.finished(0)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")  # Python has taken its handlers away by then


# --- commands that take a signal for their own -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "said"), [("INT", 0, None), ("TERM", 143, "diffatr: ended by SIGTERM")])
def test_ctrl_c_ends_the_sound_that_is_played_alone(
    workshop: Workshop, trained: Path, tmp_path: Path, name: str, code: int, said: str | None
) -> None:
    player = tmp_path / "bin" / "ffplay"
    player.parent.mkdir()
    player.write_text(f"#!/bin/sh\nkill -{name} $PPID\nexec sleep 60\n")
    player.chmod(0o755)
    path = os.pathsep.join([str(player.parent), os.environ["PATH"]])
    corpus = workshop.data / "tones" / "test"
    process = start(
        [*DIFFATR, "query", "a low tone", "--corpus", corpus, "--index", tmp_path / "index", "--run", trained, "--play"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "a low tone" in out
    last = err.splitlines()[-1]
    assert last.startswith(said or "playing ")
    assert nothing_is_left_of(process)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 0, "stopped")])
def test_serve_ends_clean(workshop: Workshop, trained: Path, tmp_path: Path, number: int, code: int, said: str) -> None:
    corpus = workshop.data / "tones" / "test"
    process = start([*DIFFATR, "serve", "--corpus", corpus, "--index", tmp_path / "i", "--run", trained, "--port", "0"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://")
    assert process.stderr is not None
    while "files:" not in process.stderr.readline():  # until it has indexed
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert (out, len(err.splitlines())) == ("", 1)
    assert said in err
