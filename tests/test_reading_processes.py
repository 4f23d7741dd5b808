"""Processes that examine files find what `examine` finds, whatever dies, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import bad_files, shorten
from command_line import ROOT, start
from fake_retriever import RATE, FakeRetriever, contents, tone, write_tone
from hypothesis import given
from hypothesis import strategies as st
from test_cli_signals import nothing_is_left_of, session_of
from test_engines import a_corpus

from diffatr_cli.core.windows import OURS
from diffatr_cli.corpus import noting, update
from diffatr_cli.corpus import reading_processes as module
from diffatr_cli.corpus.examine import Content, Failure, Left, examine
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.note_table import NoteTable
from diffatr_cli.corpus.notes import Note
from diffatr_cli.corpus.reading_processes import Readers
from diffatr_cli.corpus.report import Damaged
from diffatr_cli.corpus.scan import Stamp, scan
from diffatr_cli.corpus.windows import Missing, Window
from diffatr_cli.errors import DiffATRError

pytestmark = pytest.mark.skipif(not module._POSSIBLE, reason="this system has not what it takes")


class OnGPU(FakeRetriever):
    device = "cuda"


def plain(findings):
    """Findings as values that can be compared."""
    return [(each.start, each.end, each.samples.tobytes()) if isinstance(each, Window) else each for each in findings]


def stamp_of(path: Path) -> Stamp:
    return Stamp.of(path.stat())


def unknown(content: str) -> bool:
    return False


def not_settled(path: bytes, content: str) -> bool:
    return False


def always(workers, stamps=None) -> bool:
    return True


def here(corpus: Path, name: str):
    """What is found in a file without a process."""
    return plain(examine(corpus / name, stamp_of(corpus / name), OURS, unknown))


def there(readers: Readers, corpus: Path, *names: str, is_settled=not_settled):
    """What a process that is told of files together finds in each, up to its end."""
    return by_file(readers.examine([(os.fsencode(name), stamp_of(corpus / name)) for name in names], is_settled), *names)


def by_file(parcels, *names: str):
    found: list[list[object]] = [[]]
    for path, finding in chain.from_iterable(parcels):
        assert path == os.fsencode(names[len(found) - 1])  # one file after the other
        if finding is None:
            found.append([])
        elif isinstance(finding, Note):
            assert isinstance(found[-1][-1], Content)
        else:
            found[-1].append(finding)
    assert found.pop() == []
    return [plain(each) for each in found]


def files_of(corpus: Path) -> list[str]:
    return [os.fsdecode(path) for path in scan(corpus, corpus / ".diffatr").files]


@pytest.fixture
def corpus(tmp_path):
    """Good files, long ones, bad ones, and one that can be read in part."""
    root = a_corpus(tmp_path / "clips")
    bad_files(root / "bad")
    write_tone(root / "long.flac", 400, 63)
    write_tone(root / "name \udce9.wav", 400, 0.3)
    write_tone(root / "part.mp3", 500, 31)
    shorten(root / "part.mp3")
    return root


def test_processes_find_what_is_found_here(corpus):
    names = files_of(corpus)
    expected = [here(corpus, name) for name in names]
    with Readers(corpus, OURS) as readers:
        for together in (1, 3, len(names)):
            groups = [names[first : first + together] for first in range(0, len(names), together)]
            assert [found for group in groups for found in there(readers, corpus, *group)] == expected
    assert {Content, tuple, Failure, Missing} == {type(each) for found in expected for each in found}
    assert len(readers._all) == 1  # one, which all the bad ones have not harmed


@given(st.lists(st.integers(0, 12 << 20), min_size=1, max_size=400), st.integers(1, 40))
def test_groups_hold_all_files_in_order_some_for_each_worker(sizes, workers):
    files = {b"%d" % number: Stamp(size, 0, 0, number) for number, size in enumerate(sizes)}
    groups = list(module.in_groups(files, workers))
    assert [each for group in groups for each in group] == list(files.items())
    assert all(len(group) == 1 or sum(stamp.size for _, stamp in group) <= module._GROUP_BYTES for group in groups)
    assert len(groups) >= min(len(files), 4 * workers)


def test_what_is_settled_is_not_decoded(corpus):
    asked = []

    def settled(path: bytes, content: str) -> bool:
        asked.append((path, content))
        return path != b"part.mp3"

    with Readers(corpus, OURS) as readers:
        found = there(readers, corpus, "long.flac", "part.mp3", "x.flac", is_settled=settled)
    contents_of = dict(asked)
    assert found == [[Content(contents_of[b"long.flac"])], here(corpus, "part.mp3"), [Content(contents_of[b"x.flac"])]]


@pytest.mark.parametrize("parcels", [1, 2, 3])
def test_what_is_settled_meanwhile_is_left(corpus, parcels):
    """As a recording whose copy was embedded; what comes after it is whole."""
    write_tone(corpus / "an hour.wav", 400, 900)
    whole = here(corpus, "an hour.wav")
    asked = []

    def settled(path: bytes, content: str) -> bool:
        asked.append(path)
        return asked.count(b"an hour.wav") > parcels

    with Readers(corpus, OURS) as readers:
        for _ in range(2):
            (*first, left), second = there(readers, corpus, "an hour.wav", "long.flac", is_settled=settled)
            assert left == Left()
            assert first == whole[: len(first)]
            assert parcels * module.PARCEL / 2 < sum(len(each[2]) for each in first[1:]) < (parcels + 2) * module.PARCEL
            assert second == here(corpus, "long.flac")
            asked.clear()
    assert len(readers._all) == 1
    assert parcels + 2 < sum(len(each[2]) for each in whole[1:]) / module.PARCEL


def test_a_file_that_changed_since_is_told(corpus):
    with Readers(corpus, OURS) as readers:
        stamp = stamp_of(corpus / "long.flac")
        files = [(b"long.flac", stamp._replace(mtime_ns=1)), (b"part.mp3", stamp_of(corpus / "part.mp3"))]
        first, second = by_file(readers.examine(files, not_settled), "long.flac", "part.mp3")
    assert first[-1] == Failure("changed while it was read", lasting=False)
    assert second == here(corpus, "part.mp3")


def test_files_may_be_left_at_any_place(corpus):
    write_tone(corpus / "an hour.wav", 400, 900)
    files = [(name, stamp_of(corpus / os.fsdecode(name))) for name in (b"an hour.wav", b"long.flac")]
    with Readers(corpus, OURS) as readers:
        for taken in range(4):
            parcels = readers.examine(files, not_settled)
            assert len(list(islice(parcels, taken))) == taken
            parcels.close()
        assert there(readers, corpus, "long.flac") == [here(corpus, "long.flac")]


# --- what dies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """A folder that a process that reads imports from first: what is written to it ends it, as a decoder would, when a window
    of a file begins there. The file `deaths` has an x for each death; `then` is done at the beginning of a file after it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))

    def write(window: int, deaths: int, then: str = "pass") -> Path:
        (site / "sitecustomize.py").write_text(
            textwrap.dedent(f"""
            import os, signal
            from pathlib import Path
            from diffatr_cli.corpus import examine
            from diffatr_cli.corpus.windows import windows_of

            deaths = Path({str(site / "deaths")!r})

            def dying(path, windowing):
                if deaths.exists():
                    {then}
                for number, window in enumerate(windows_of(path, windowing)):
                    if "deadly" in path.name and number == {window}:
                        if not deaths.exists() or deaths.read_text().count("x") < {deaths}:
                            with deaths.open("a") as file:
                                file.write("x")
                            os.kill(os.getpid(), signal.SIGSEGV)
                    yield window

            examine.windows_of = dying
            """)
        )
        return site / "deaths"

    return write


@pytest.mark.parametrize("window", [0, 1, 3, 150])
@pytest.mark.parametrize("names", [("deadly.wav",), ("x.flac", "deadly.wav", "long.flac"), ("deadly.wav", "deadly.wav")])
def test_a_process_that_dies_once_changes_nothing(corpus, deadly, window, names):
    """At the first windows, and when some are given already."""
    deaths = deadly(window, 1)
    write_tone(corpus / "deadly.wav", 400, 900)
    expected = [here(corpus, name) for name in names]
    with Readers(corpus, OURS) as readers:
        assert there(readers, corpus, *names) == expected
    assert deaths.read_text() == "x"


@pytest.mark.parametrize("names", [("deadly.wav",), ("x.flac", "deadly.wav", "long.flac")])
@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("raise MemoryError", "not enough memory to decode it"),
        ("raise OSError(116, 'Stale file handle')", "cannot be read (Stale file handle)"),
    ],
)
def test_what_is_wrong_the_second_time_is_told_however_much_was_given(corpus, deadly, then, reason, names):
    """Or a part of a recording would pass for all of it."""
    deadly(150, 1, f"if 'deadly' in path.name: {then}")
    write_tone(corpus / "deadly.wav", 400, 900)
    whole = here(corpus, "deadly.wav")
    with Readers(corpus, OURS) as readers:
        found = dict(zip(names, there(readers, corpus, *names), strict=True))
    *some, last = found.pop("deadly.wav")
    assert 5 < len(some) < len(whole)
    assert some == whole[: len(some)]
    assert last == Failure(reason, lasting=False)
    assert list(found.values()) == [here(corpus, name) for name in found]


def test_a_file_that_is_another_one_the_second_time_is_told(corpus, deadly):
    """Also where the other content need not be decoded."""
    write_tone(corpus / "deadly.wav", 400, 900)
    contents_asked: list[str] = []

    def settled(path: bytes, content: str) -> bool:
        contents_asked.append(content)
        return len(set(contents_asked)) == 2

    deadly(150, 1)
    with Readers(corpus, OURS) as readers:
        parcels = readers.examine([(b"deadly.wav", stamp_of(corpus / "deadly.wav"))], settled)
        assert len(next(parcels)) > 5
        write_tone(corpus / "other.wav", 700, 30)
        (corpus / "other.wav").replace(corpus / "deadly.wav")
        *_, last, end = chain.from_iterable(parcels)
    assert len(set(contents_asked)) == 2
    assert (last[1], end[1]) == (Failure("changed while it was read", lasting=False), None)


@pytest.mark.parametrize("names", [("deadly.wav",), ("x.flac", "deadly.wav", "long.flac"), ("deadly.wav", "part.mp3")])
def test_what_is_settled_when_it_is_begun_again_has_an_end(corpus, deadly, names):
    """As where a copy was embedded meanwhile."""
    deaths = deadly(150, 1)
    write_tone(corpus / "deadly.wav", 400, 900)
    whole = here(corpus, "deadly.wav")

    def settled(path: bytes, content: str) -> bool:
        return path == b"deadly.wav" and deaths.exists()

    with Readers(corpus, OURS) as readers:
        found = dict(zip(names, there(readers, corpus, *names, is_settled=settled), strict=True))
    some = found.pop("deadly.wav")
    assert 5 < len(some) < len(whole)
    assert some == whole[: len(some)]
    assert list(found.values()) == [here(corpus, name) for name in found]


def test_a_recording_over_which_processes_die_costs_itself(corpus, tmp_path, deadly, monkeypatch):
    monkeypatch.setattr(update, "pay", always)
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    expected = here.update(FakeRetriever())
    write_tone(corpus / "deadly.wav", 700, 21)
    deaths = deadly(1, 99)
    report = there.update(OnGPU())
    assert deaths.read_text() in ("xx", "xxx")  # twice alone, and before that perhaps among others
    assert [(each.path, each.reason) for each in report.skipped if each not in expected.skipped] == [
        ("deadly.wav", "cannot be decoded (the process that worked on it died twice)")
    ]
    assert contents(here) == contents(there)
    deaths.write_text("x" * 99)
    assert there.update(OnGPU()).embedded == 1  # it is looked at again


def test_several_over_which_processes_die_cost_themselves(corpus, deadly):
    names = ["deadly 1.wav", "x.flac", "deadly 2.wav", "deadly 3.wav", "long.flac"]
    for number in (1, 2, 3):
        write_tone(corpus / f"deadly {number}.wav", 400 + number, 21)
    deadly(1, 99)
    died = Failure("cannot be decoded (the process that worked on it died twice)", lasting=False)
    with Readers(corpus, OURS) as readers:
        found = there(readers, corpus, *names)
    assert [each[-1] == died for each in found] == [True, False, True, True, False]
    assert [found[1], found[4]] == [here(corpus, "x.flac"), here(corpus, "long.flac")]


def test_a_process_that_is_killed_between_two_files_is_replaced(corpus):
    with Readers(corpus, OURS) as readers:
        first = there(readers, corpus, "long.flac")
        (dead,) = readers._all
        dead._process.kill()
        os.waitid(os.P_PID, dead._process.pid, os.WEXITED | os.WNOWAIT)
        assert there(readers, corpus, "long.flac") == first
        assert dead._process.returncode == -signal.SIGKILL  # it was reaped
        assert dead not in readers._all
        assert len(readers._all) == 1


STOPPED = """
import sys
from pathlib import Path
from diffatr_cli.core.windows import OURS
from diffatr_cli.corpus import reading_processes as module
from diffatr_cli.corpus.examine import Content, Window
from diffatr_cli.corpus.scan import Stamp

module._BUFFER = 1 << 16  # so that most of a window is on its way when this process is stopped
path = Path(sys.argv[1])
with module.Readers(path.parent, OURS) as readers:
    print("begun", flush=True)
    for _ in range(4):
        parcels = readers.examine([(path.name.encode(), Stamp.of(path.stat()))], lambda path, content: False)
        first, note, *rest, end = (finding for parcel in parcels for _, finding in parcel)
        assert isinstance(first, Content) and len(rest) > 90 and all(isinstance(each, Window) for each in rest) and end is None
    print(len(readers._all))
"""


def test_an_asker_that_is_stopped_and_goes_on_finds_nothing_dead(tmp_path):
    """Ctrl-Z and fg; a debugger or a profiler stops a process as well."""
    write_tone(tmp_path / "long.wav", 400, 900)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = start([sys.executable, "-c", STOPPED, tmp_path / "long.wav"], env=environment)
    assert process.stdout.readline() == "begun\n"
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.001)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.003)
    assert process.communicate() == ("1\n", "")


def test_a_signal_amid_a_window_ends_nothing(corpus, monkeypatch):
    monkeypatch.setattr(module, "_BUFFER", 1 << 16)
    write_tone(corpus / "long.wav", 400, 63)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with Readers(corpus, OURS) as readers:
            expected = there(readers, corpus, "long.wav")
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for _ in range(10):
                assert there(readers, corpus, "long.wav") == expected
            assert len(readers._all) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_process_ends_whatever_else_has_its_line(corpus, monkeypatch):
    """As a child has that this process forked, which is no reader."""
    monkeypatch.setattr(module, "_PATIENCE", 60)
    with Readers(corpus, OURS) as readers:
        there(readers, corpus, "long.flac")
        held = os.dup(readers._all[0]._line.fileno())
        began = time.monotonic()
    os.close(held)
    assert readers._all[0]._process.returncode == 0  # it was not killed
    assert time.monotonic() - began < 60


def test_a_process_that_cannot_be_started_is_told(corpus, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(corpus / "no such python"))
    with Readers(corpus, OURS) as readers, pytest.raises(DiffATRError, match=r"No such file or directory\): try fewer"):
        there(readers, corpus, "long.flac")


def test_what_ends_before_it_has_begun_is_no_file_s_fault(corpus, tmp_path, monkeypatch):
    """Or all files would be told to be at fault: as where Python is embedded in another program."""
    other = tmp_path / "program"
    other.write_text("#!/bin/sh\nexit 3\n")
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    monkeypatch.setattr(update, "pay", always)
    with pytest.raises(DiffATRError, match="program ended with 3"):
        FolderIndex(corpus).update(OnGPU())


def test_where_python_has_no_program_of_its_own_threads_read(monkeypatch):
    monkeypatch.setattr(sys, "executable", None)
    assert not module.pay(64, [Stamp(1, 0, 0, 0)] * 10_000)


def test_a_process_finds_what_this_one_finds(corpus, tmp_path, monkeypatch):
    """Whatever is listed there, and whatever of Python's own names lie beside a script: they were loaded before it."""
    for name in ("site.py", "sitecustomize.py", "codecs.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), tmp_path, str(tmp_path / f"a{os.pathsep}b"), "", *sys.path])
    with Readers(corpus, OURS) as readers:
        assert there(readers, corpus, "long.flac") == [here(corpus, "long.flac")]


# --- an index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_an_index_is_the_same(corpus, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(update, "pay", always)
    (corpus / "again.flac").write_bytes((corpus / "long.flac").read_bytes())
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    reports = [index.update(model, workers=workers) for index, model in ((here, FakeRetriever()), (there, OnGPU()))]
    assert contents(here) == contents(there)
    assert reports[0].skipped == reports[1].skipped
    assert reports[0].partial == reports[1].partial
    assert (reports[0].embedded, reports[0].reused) == (reports[1].embedded, reports[1].reused)


def test_what_files_say_of_themselves_is_read_with_their_sound(corpus, tmp_path, monkeypatch):
    """And once."""
    soundfile.write(corpus / "told.wav", tone(500, 1), RATE)
    with soundfile.SoundFile(corpus / "told.flac", "w", RATE, 1) as file:
        file.title = "a hum of Wednesday"
        file.write(tone(510, 1))
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    expected = here.update(FakeRetriever())
    monkeypatch.setattr(update, "pay", always)
    looked = []
    real = noting.note_of
    monkeypatch.setattr(noting, "note_of", lambda path, stamp: looked.append(path.name) or real(path, stamp))
    report = there.update(OnGPU())
    assert len(looked) == report.reused == expected.reused  # whose sound was not read
    assert here._note_table().rows() == there._note_table().rows()
    assert "a hum of Wednesday" in str(there._note_table().rows())
    for each in here._note_table().rows():
        (corpus / os.fsdecode(each)).touch()
    looked.clear()
    there.update(OnGPU())
    assert len(looked) == report.files


@pytest.mark.parametrize("fault", ["no table", "damaged", "refused once"])
def test_notes_that_cannot_be_kept_at_first_are_read_again(corpus, tmp_path, monkeypatch, fault):
    here, there = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, tmp_path / "there")
    (corpus / "long.flac").rename(corpus / "aside")
    there.update(OnGPU())
    (corpus / "aside").rename(corpus / "long.flac")
    here.update(FakeRetriever())
    monkeypatch.setattr(update, "pay", always)
    (table,) = there.folder.glob("notes-*.lance")
    if fault == "no table":
        shutil.rmtree(table)
    if fault == "damaged":
        for path in table.rglob("*.lance"):
            path.write_bytes(b"")
    if fault == "refused once":
        real, tried = NoteTable.put, []

        def put(self, rows):
            tried.append(rows)
            if len(tried) == 1:
                raise Damaged(self._place)
            real(self, rows)

        monkeypatch.setattr(NoteTable, "put", put)
    assert there.update(OnGPU()).embedded == 1
    assert here._note_table().rows() == there._note_table().rows()


@pytest.mark.parametrize(
    ("device", "files", "workers", "expected"),
    [("cuda", 3, 4, True), ("cuda", 2, 4, False), ("cuda", 3, 3, False), ("cpu", 3, 4, False)],
)
def test_processes_read_for_a_gpu_where_there_are_many_files_and_cores(tmp_path, monkeypatch, device, files, workers, expected):
    made = []

    class Noted(Readers):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

    for number in range(files):
        write_tone(tmp_path / "clips" / f"{number}.wav", 300 + number, 0.2, seed=number)
    monkeypatch.setattr(module, "_FILES", 3)
    monkeypatch.setattr(update, "Readers", Noted)
    model = FakeRetriever()
    model.device = device
    assert FolderIndex(tmp_path / "clips").update(model, workers=workers).files == files
    assert bool(made) == expected


UPDATE = """
import sys, time
from pathlib import Path
from diffatr_cli.corpus import batches, commits, update
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.notes import Note
from fake_retriever import FakeRetriever

update.pay, commits._COMMIT_SECONDS = lambda *_: True, 0.0

class Slow(FakeRetriever):
    device = "cuda"

    def embed_audio(self, waveforms):
        print("at work", flush=True)
        time.sleep(0.3)
        return super().embed_audio(waveforms)

batches.GPU_BATCH = 1
FolderIndex(Path(sys.argv[1])).update(Slow(), workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_asks(tmp_path, number):
    for i in range(8):
        write_tone(tmp_path / "clips" / f"{i}.wav", 300 + i, 40, seed=i)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = start([sys.executable, "-c", UPDATE, tmp_path / "clips"], env=environment)
    assert process.stdout.readline() == "at work\n"
    assert len(session_of(process)) == 3
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C goes to all of them
    process.wait(60)
    assert "KeyboardInterrupt" in process.communicate()[1] or number != signal.SIGINT
    assert nothing_is_left_of(process)


def test_the_library_can_be_used_from_a_script_without_a_guard(corpus, tmp_path):
    """The processes do not run the script that asks for them."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom diffatr_cli.corpus import update\nfrom diffatr_cli.corpus.index import FolderIndex\n"
        "from fake_retriever import FakeRetriever\nupdate.pay = lambda *_: True\n"
        f"model = FakeRetriever()\nmodel.device = 'cuda'\nprint(FolderIndex(Path({str(corpus)!r})).update(model).files)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(FolderIndex(corpus, tmp_path / "here").update(FakeRetriever()).files)]
    assert done.stderr == ""


def test_samples_are_the_askers_own(corpus):
    """They may be changed, and outlive the process."""
    with Readers(corpus, OURS) as readers:
        parcels = list(readers.examine([(b"long.flac", stamp_of(corpus / "long.flac"))], not_settled))
    found = [each for _, each in chain.from_iterable(parcels) if isinstance(each, Window)]
    assert all(each.samples.flags.owndata and each.samples.flags.writeable for each in found)
    assert len({each.samples.ctypes.data for each in found}) == len(found)
    assert np.isfinite(np.concatenate([each.samples for each in found])).all()
