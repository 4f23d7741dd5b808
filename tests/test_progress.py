"""Long work in a log: a line now and then that says how far it is, and none for short work."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from command_line import DIFFATR, start
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.cli import console
from diffatr_cli.progress import ProgressLog, ago


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_step_share_rate_and_time_left() -> None:
    clock = Clock()
    log = ProgressLog(clock)
    assert log.line() is None
    log.update(0, 3000, "epoch 1 of 2, loss 2.345")
    clock.now = 30.0
    log.update(120, 3000, "epoch 1 of 2, loss 1.234")
    assert log.line() == "epoch 1 of 2, loss 1.234: 120 of 3,000 (4%), 4/s, 12 min 00 s left"
    clock.now = 60.0
    assert log.line() == "epoch 1 of 2, loss 1.234: 120 of 3,000 (4%), 2/s, 24 min 00 s left"
    clock.now = 90.0
    log.update(3000, 3000, "epoch 2 of 2, loss 0.5")
    assert log.line() == "epoch 2 of 2, loss 0.5: 3,000 of 3,000 (100%), 33.3/s"


def test_the_rate_is_that_of_the_last_minutes() -> None:
    """The first thousand go in a second, as what is known already does; then one takes ten seconds."""
    clock = Clock()
    log = ProgressLog(clock, window=3)
    log.update(0, 2000, "indexing")
    clock.now = 1.0
    log.update(1000, 2000, "indexing")
    log.line()
    for _ in range(3):
        clock.now += 30.0
        log.update(1000 + round((clock.now - 1) / 10), 2000, "indexing")
        line = log.line()
    assert line == "indexing: 1,009 of 2,000 (50%), 0.1/s, 2 h 45 min left"


@pytest.mark.parametrize(("done", "total"), [(5, 1000), (10, 500)])
def test_another_stage_has_a_rate_of_its_own(done: int, total: int) -> None:
    clock = Clock()
    log = ProgressLog(clock)
    log.update(0, 1000, "log-mels")
    clock.now = 10.0
    log.update(900, 1000, "log-mels")
    log.line()
    log.update(done, total, "training")
    assert log.line() == f"training: {done} of {total:,} ({done / total:.0%})"  # nothing of it is known yet
    clock.now = 20.0
    log.update(done + 10, total, "training")
    assert f"{done + 10} of {total:,} " in (line := str(log.line()))
    assert "1/s, " in line


def test_without_a_total_there_is_no_share_and_no_time_left() -> None:
    clock = Clock()
    log = ProgressLog(clock)
    log.update(0, 0, "downloading")
    clock.now = 2.0
    log.update(5_000_000, 0, "downloading")
    assert log.line() == "downloading: 5,000,000, 2,500,000/s"


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 1e6)), max_size=20))
def test_any_order_of_calls_gives_a_line(calls: list[tuple[int, int, float]]) -> None:
    clock = Clock()
    log = ProgressLog(clock)
    for done, total, seconds in calls:
        clock.now += seconds
        log.update(min(done, total) if total else done, total, "x")
        line = log.line()
        assert line is not None
        assert re.fullmatch(r"x: [\d,]+( of [\d,]+ \(\d+%\))?(, [\d.,e-]+/s(, .+ left)?)?", line), line


# --- on the console --------------------------------------------------------------------------------------------------


def test_a_line_each_interval_where_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Semaphore(0)
    say = console.say
    monkeypatch.setattr(console, "say", lambda line: (say(line), said.release()))
    with console.progress_bar(interval=0.01) as progress:
        progress(1, 8, "training\\x1b[31m on \x1b[31m")
        for _ in range(3):
            assert said.acquire(timeout=60)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("training\\x1b[31m on \N{REPLACEMENT CHARACTER}[31m: 1 of 8 (12%)") for line in lines)


def test_short_work_writes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar() as progress:
        for step in range(1000):
            progress(step, 1000, "short")
    with console.progress_bar(interval=0.001):
        threading.Event().wait(0.05)  # nothing has been told yet
    assert capsys.readouterr() == ("", "")


def test_the_command_logs_while_it_works(tmp_path: Path) -> None:
    """The real command, with its half minute shortened."""
    arguments = ["diffatr", "prepare", "synthetic", "--train", "12", "--val", "1", "--test", "1", "--data", str(tmp_path)]
    code = (
        "import sys\nfrom diffatr_cli.cli import console\nfrom diffatr_cli.__main__ import main\n"
        f"console.progress_bar.__wrapped__.__defaults__ = (0.01,)\nsys.argv = {arguments}\nmain()"
    )
    process = start([DIFFATR[0], "-c", code])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = err.splitlines()
    assert lines
    pattern = r"generating: \d+ of 14 \(\d+%\)(, [\d.,]+/s(, (\d+ min )?\d+ s left)?)?"
    assert all(re.fullmatch(pattern, line) for line in lines), lines


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (200, "3 minutes ago"),
        (3599, "59 minutes ago"),
        (7300, "2 hours ago"),
        (90_000, "1 day ago"),
        (200 * 86_400, "200 days ago"),
        (-5, "just now"),
    ],
)
def test_how_long_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_looking_through_a_large_folder_and_then_indexing_it_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan has no total yet; the indexing after it has a rate of its own."""
    from fake_retriever import FakeRetriever, write_tone

    from diffatr_cli.corpus import scan
    from diffatr_cli.corpus.index import FolderIndex

    for number in range(6):
        write_tone(tmp_path / str(number % 3) / f"{number}.wav", 300 + number, 0.1)
    told: list[tuple[int, int, str]] = []
    FolderIndex(tmp_path / "0").update(FakeRetriever(), lambda *each: told.append(each))
    assert all(note != "looking for recordings" for _, _, note in told)  # it took no second
    told.clear()
    monkeypatch.setattr(scan, "_SOON", -1.0)
    FolderIndex(tmp_path).update(FakeRetriever(), lambda *each: told.append(each))
    looking = [each for each in told if each[2] == "looking for recordings"]
    assert [done for done, _, _ in looking] == [0, 2, 4, 6]
    assert {total for _, total, _ in looking} == {0}
    indexing = told[len(looking) :]
    assert [done for done, _, _ in indexing] == [0, 1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in indexing} == {6}
    log = ProgressLog()
    for each in looking:
        log.update(*each)
    assert str(log.line()).startswith("looking for recordings: 6")
    log.update(*indexing[0])
    assert str(log.line()).startswith("indexing: 0 of 6 (0%)")
