"""`--engine ray` with Ray: the same index, whatever is killed or lost; nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from audio_files import bad_files
from cluster_work import CRASH, begun, loader
from command_line import DIFFATR, ROOT, start
from fake_retriever import RATE, FakeRetriever, contents, tone, write_tone
from test_cli_signals import LINE, nothing_is_left_of
from test_engines import a_corpus, as_rows

from diffatr_cli.cluster import engine as engine_module
from diffatr_cli.cluster.driver import ENVIRONMENT, Connect

os.environ.update(ENVIRONMENT)  # before Ray is loaded
ray = pytest.importorskip("ray")

import soundfile  # noqa: E402

from diffatr_cli.corpus.elsewhere import Elsewhere  # noqa: E402
from diffatr_cli.corpus.index import FolderIndex  # noqa: E402
from diffatr_cli.corpus.scan import Stamp  # noqa: E402
from diffatr_cli.errors import UsageError  # noqa: E402
from diffatr_cli.worker_process import started  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes where Linux shows them"),
]


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setattr(engine_module, "_STORE", 100 << 20)


def same(there, here, report, expected):
    assert as_rows(report) == as_rows(expected)
    assert contents(there) == contents(here)


def many(folder, count=200):
    for number in range(count):
        write_tone(folder / f"{number % 7}" / f"{number}.wav", 100 + 17 * number, 0.2 if number % 9 else 11, seed=number)
    return folder


def wait_for(happened, seconds=400):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_index_is_the_same_and_a_recording_that_crashes_costs_itself(tmp_path, capfd):
    clips = a_corpus(tmp_path / "clips")
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    expected = here.update(FakeRetriever())
    with engine_module.RayEngine(workers=2, device="cpu") as engine:
        elsewhere = Elsewhere(engine, loader())
        same(there, here, there.update(FakeRetriever(), elsewhere=elsewhere), expected)
        soundfile.write(clips / "0/crash.wav", tone(500, 1)[:CRASH], RATE, subtype="PCM_16")
        for number in range(5):
            write_tone(clips / f"1/more {number}.wav", 900 + number, 1, seed=90 + number)
        report = there.update(FakeRetriever(), elsewhere=elsewhere)
    assert [(each.path, each.reason) for each in report.skipped if each not in expected.skipped] == [
        ("0/crash.wav", "cannot be decoded (the process that worked on it died twice)")
    ]
    assert (report.embedded, report.files) == (5, expected.files + 5)
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_changes_nothing(tmp_path):
    clips, notes = many(tmp_path / "clips"), tmp_path / "notes"
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    killed = []

    def kill():
        for _ in range(2):
            seen = notes.stat().st_size if notes.exists() else 0
            wait_for(lambda seen=seen: notes.exists() and notes.stat().st_size > seen)
            last = int(notes.read_text().splitlines()[-1].split()[0])
            with contextlib.suppress(ProcessLookupError):
                os.kill(last, signal.SIGKILL)
                killed.append(last)

    killer = threading.Thread(target=kill)
    killer.start()
    with engine_module.RayEngine(workers=2, device="cpu") as engine:
        report = there.update(FakeRetriever(), elsewhere=Elsewhere(engine, loader(notes, 0.02)))
    killer.join()
    assert killed
    same(there, here, report, here.update(FakeRetriever()))


def test_a_lost_machine_changes_nothing_and_one_that_cannot_see_the_files_is_named(tmp_path):
    from ray.cluster_utils import Cluster

    clips, notes = many(tmp_path / "clips"), tmp_path / "notes"
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    options = {"num_cpus": 1, "object_store_memory": 100 << 20}
    machines = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        second = machines.add_node(**options)
        lost = []

        def lose():
            wait_for(lambda: len(begun(notes)) == 2)
            machines.remove_node(second, allow_graceful=False)
            lost.append(1)

        loser = threading.Thread(target=lose)
        loser.start()
        with engine_module.RayEngine(machines.address, device="cpu") as engine:
            report = there.update(FakeRetriever(), elsewhere=Elsewhere(engine, loader(notes, 0.1, together=2)))
            loser.join()
            assert lost
            same(there, here, report, here.update(FakeRetriever()))
            (tmp_path / "clips").rename(tmp_path / "elsewhere")
            work = Elsewhere(engine, loader())
            with pytest.raises(UsageError, match=r"a worker on .*: .*clips is not to be seen there"):
                list(work.findings(clips, {b"a.wav": Stamp(1, 1, 1, 1)}, FakeRetriever(), set(), lambda path: ""))
    finally:
        machines.shutdown()


def reading():
    """The processes that read for a GPU, by their numbers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path.parent.name] if b"reading_processes import serve" in path.read_bytes() else []
    return found


def test_a_worker_with_a_gpu_has_processes_that_read_and_that_end_with_it(tmp_path):
    """Ray takes this machine's word for its GPU."""
    from ray.cluster_utils import Cluster

    clips, notes = many(tmp_path / "clips", 600), tmp_path / "notes"
    for number in range(4):
        write_tone(clips / f"{number} long.flac", 300 + number, 200)
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    options = {"num_cpus": 4, "num_gpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    machine = Cluster(initialize_head=True, head_node_args=options)
    seen, killed = set(), []

    def kill():
        wait_for(lambda: seen.update(reading()) or (seen and begun(notes)))
        killed.append(int(next(iter(begun(notes)))))
        os.kill(killed[0], signal.SIGKILL)
        wait_for(lambda: not seen & set(reading()))

    killer = threading.Thread(target=kill, daemon=True)
    try:
        killer.start()
        with engine_module.RayEngine(machine.address) as engine:
            assert (engine.device, engine.threads) == ("cuda", 4)
            report = there.update(FakeRetriever(), elsewhere=Elsewhere(engine, loader(notes, 0.002)))
        killer.join(60)
    finally:
        machine.shutdown()
    assert killed
    assert len(begun(notes)) == 2
    same(there, here, report, here.update(FakeRetriever()))
    wait_for(lambda: not reading())


def command(clips, index, *more):
    return [*DIFFATR, "index", clips, "--index", index, "--device", "cpu", "--json", *more]


def test_the_command_killed_and_interrupted(tmp_path):
    """kill -9 and Ctrl-C of the process that commits: no worker is left running, and what is committed is not embedded again."""
    clips = many(tmp_path / "clips", 150)
    bad_files(clips / "bad")
    expected = json.loads(subprocess.run([*map(str, command(clips, tmp_path / "here"))], capture_output=True, check=True).stdout)
    there = command(clips, tmp_path / "there", "--engine", "ray", "--workers", "2")

    def has_begun(process):
        wait_for(lambda: process.poll() is not None or "MapWorker" in processes_of(process))
        time.sleep(1)

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as files:  # a short name, with room for those of Ray's sockets
        first = start(there, env=os.environ | {"TMPDIR": files})
        has_begun(first)
        assert list(Path(files).glob("diffatr-*"))
        first.kill()
        first.communicate(timeout=120)
        wait_for(lambda: nothing_is_left_of(first), 60)
        assert not list(Path(files).glob("diffatr-*"))
    second = start(there)
    has_begun(second)
    ended = second.poll() is not None
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=120)
    assert ended or (second.returncode, out, err.splitlines()) == (130, "", [LINE])
    assert nothing_is_left_of(second)
    last = start(there)
    out, err = last.communicate(timeout=300)
    assert (last.returncode, err) == (0, "")
    document = json.loads(out)
    for name in ("files", "windows"):
        assert document[name] == expected[name]
    assert document["skipped"] == expected["skipped"]
    assert nothing_is_left_of(last)


def test_a_question_that_is_cut_off_ends_the_process_that_has_ray():
    """As where the command is killed while it asks."""
    process = started("diffatr_cli.cluster.driver", subprocess.PIPE, subprocess.PIPE, os.environ)
    process.stdin.write(pickle.dumps(Connect(None, 1, "cpu", 100 << 20, "/tmp/none"))[:20])
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def test_ctrl_c_while_ray_starts_leaves_nothing(tmp_path):
    many(tmp_path / "clips", 3)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as files:
        process = start(command(tmp_path / "clips", tmp_path / "index", "--engine", "ray"), env=os.environ | {"TMPDIR": files})
        wait_for(lambda: process.poll() is not None or "raylet" in processes_of(process))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err.splitlines()) == (130, "", [LINE])
        wait_for(lambda: nothing_is_left_of(process), 60)
        assert not list(Path(files).glob("diffatr-*"))


@pytest.mark.parametrize("name", ["raylet/raylet ", "cluster.driver import serve", "gcs_server "])
def test_where_ray_itself_ends_it_is_started_anew(tmp_path, name):
    """As where memory is short. It ends the process that has loaded it, without a word."""
    clips = many(tmp_path / "clips", 300)
    here, there = FolderIndex(clips, tmp_path / "here"), FolderIndex(clips, tmp_path / "there")
    expected = here.update(FakeRetriever())
    killed = []

    def kill():
        wait_for(lambda: begun(tmp_path / "notes"))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if name in path.read_text().replace("\0", " ") and session_of_file(path) == os.getsid(0):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    killed.append(path)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with engine_module.RayEngine(workers=2, device="cpu") as engine:
        report = there.update(FakeRetriever(), elsewhere=Elsewhere(engine, loader(tmp_path / "notes", 0.02)))
        folder = engine._driver.folder
    killer.join(60)
    assert killed
    same(there, here, report, expected)
    assert not folder.exists()


def session_of_file(path):
    return int((path.parent / "stat").read_text().rpartition(") ")[2].split()[3])


def processes_of(process):
    """The names of the processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if session_of_file(path) == process.pid:
                found.append(path.read_text())
    return "\n".join(found)
