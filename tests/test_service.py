"""`diffatr serve --workers N` as real processes: what all of them answer, what happens when one dies, and how they stop."""

import collections
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import start
from fake_retriever import write_tone
from test_cli_signals import LINE, nothing_is_left_of, session_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes where Linux shows them"),
]
PROGRAM = Path(__file__).with_name("fake_service.py")


class Service:
    """A service with a fake model. `log` are the lines of its stderr so far."""

    def __init__(self, folder, *arguments, workers=2, **environment):
        self.folder = folder
        self.begun = folder / "begun"
        (folder / "scratch").mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            "DIFFATR_TEST_BEGUN": str(self.begun),
            "TMPDIR": str(folder / "scratch"),
            **environment,
        }
        command = [sys.executable, PROGRAM, "serve", "--corpus", folder / "clips", "--port", "0", "--no-open"]
        self.process = start([*command, "--workers", str(workers), *arguments], env=environment)
        self.log = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def wait_for_address(self):
        address = self.process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", address)
        assert found, (address, self.log)
        self.port = int(found[1])
        return self

    def ask(self, address, method="GET", timeout=60):
        """Status and content, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, address)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def json(self, address, method="GET"):
        status, content = self.ask(address, method)
        assert status == 200, content
        return json.loads(content)

    def workers(self):
        """The number of each worker that answers, and what it says last; asks until all have."""
        count, said = None, {}
        end = time.monotonic() + 60
        while count is None or len(said) < count:
            assert time.monotonic() < end, said
            document = self.json("/health")
            count = document["workers"]
            said[document["worker"]] = document
        return said

    def children(self):
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                _, _, rest = path.read_text().rpartition(") ")
                if int(rest.split()[1]) == self.process.pid and rest[0] != "Z":
                    found.append(int(path.parent.name))
        return sorted(found)

    def stop(self, number=signal.SIGTERM):
        """The exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        self.process.wait(timeout=300)
        self._reader.join()
        assert nothing_is_left_of(self.process)
        return self.process.returncode


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
    return found


@pytest.fixture
def launch(tmp_path):
    made = []
    for hz in (200, 900):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)

    def launch(*arguments, **options):
        made.append(Service(tmp_path, *arguments, **options))
        return made[-1]

    yield launch
    for service in made:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
        assert nothing_is_left_of(service.process)


def test_all_workers_answer_alike_and_see_what_changes(launch, tmp_path):
    service = launch(workers=3).wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    said = service.workers()
    assert set(said) == {0, 1, 2}
    assert {document["files"] for document in said.values()} == {2}
    assert len({document["index"]["version"] for document in said.values()}) == 1
    first = said[0]["index"]["version"]
    for hz in (1000, 2000, 4000):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
        (tmp_path / "clips" / "900.wav").unlink(missing_ok=True)
        assert service.json("/api/refresh", "POST")["indexing"] is not None  # whichever worker is asked
        wait_until(lambda: service.json("/api/state")["indexing"] is None)
        hits = [service.json(f"/api/search?q={hz}+Hz&top=1")["hits"][0]["name"] for _ in range(12)]
        assert set(hits) == {f"{hz}.wav"}
    said = service.workers()
    assert {document["files"] for document in said.values()} == {4}
    (version,) = {document["index"]["version"] for document in said.values()}
    assert version != first
    assert service.stop() == 0
    assert not list((tmp_path / "scratch").iterdir())


def test_answers_go_on_while_the_index_grows(launch, tmp_path):
    service = launch().wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    for hz in range(1000, 1400, 10):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 1)
    service.json("/api/refresh", "POST")
    names = set()
    while service.json("/api/state")["indexing"] is not None:
        names.add(service.json("/api/search?q=200+Hz&top=1")["hits"][0]["name"])
    assert names <= {"200.wav"}
    assert service.json("/api/state")["files"] == 42


def test_one_copy_of_the_index_lies_in_memory(launch):
    service = launch().wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    service.workers()  # each has taken it up
    mapped = []
    for worker in service.children():
        maps = Path(f"/proc/{worker}/maps").read_text().splitlines()
        mapped.append({tuple(line.split()[1:5]) for line in maps if line.endswith("/vectors")})
    assert len(mapped) == 2
    assert mapped[0] == mapped[1] != set()  # the same pages of the same file, which nobody writes to
    assert all(access.startswith("r-") for access, *_ in mapped[0])


@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_dies_is_started_again(launch, tmp_path, which):
    service = launch().wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    service.workers()
    before = service.children()
    os.kill(before[which], signal.SIGKILL)  # the first was started first
    for _ in range(5):  # the other answers meanwhile
        assert service.json("/api/search?q=900+Hz")["hits"][0]["name"] == "900.wav"
    wait_until(lambda: set(service.workers()) == {0, 1} and len(service.children()) == 2)
    assert len(set(service.children()) - set(before)) == 1
    assert service.log[-1] == f"diffatr: worker {which} was ended by SIGKILL. It is started again."
    write_tone(tmp_path / "clips" / "4000.wav", 4000, 2)
    wait_until(lambda: service.json("/api/state")["indexing"] is None)
    service.json("/api/refresh", "POST")
    wait_until(lambda: service.json("/api/state")["indexing"] is None)
    assert {document["files"] for document in service.workers().values()} == {3}
    assert service.stop() == 0


def test_workers_that_keep_dying_end_the_command(launch):
    service = launch(DIFFATR_TEST_FAILS="always")
    assert service.ended() == 1
    *told, last = service.log
    assert re.fullmatch(r"diffatr: worker \d ended with exit code 7, 3 times in a row within 10 seconds of its start\. .*", last)
    assert all(re.fullmatch(r"diffatr: worker \d ended with exit code 7\. It is started again\.", line) for line in told)
    assert service.process.stdout.read() == ""


def test_what_a_worker_cannot_serve_is_told_once_in_its_own_words(launch):
    service = launch(DIFFATR_TEST_FAILS="model")
    assert service.ended() == 2
    assert service.log == ["diffatr: there is no such model"]


def slow_request(service):
    """A request that is being answered, and where its answer comes to lie."""
    got = []
    service.begun.unlink(missing_ok=True)
    thread = threading.Thread(target=lambda: got.append(service.ask("/api/search?q=slow+900+Hz&top=1")))
    thread.start()
    return thread, got


def is_slow(service):
    """Wait for the moment at which a slow request is being answered."""
    return wait_until(service.begun.exists)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_being_answered_be_finished(launch, workers, number, code):
    service = launch(workers=workers).wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    time.sleep(0.5)  # so that getting ready is over, which takes the model
    thread, got = slow_request(service)
    is_slow(service)
    assert service.stop(number) == code
    thread.join()
    ((status, content),) = got
    assert (status, json.loads(content)["hits"][0]["name"]) == (200, "900.wav")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", service.port))
    assert "Traceback" not in "\n".join(service.log)
    assert service.log[-1] == ("diffatr: stopped." if code == 0 else LINE)


def test_when_the_first_process_is_killed_the_others_go_too(launch, tmp_path):
    service = launch().wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    service.process.kill()
    service.process.wait()
    wait_until(lambda: not session_of(service.process))
    wait_until(lambda: not list((tmp_path / "scratch").iterdir()))


def test_metrics_are_those_of_all_workers_and_of_those_that_died(launch):
    parser = pytest.importorskip("prometheus_client.parser", reason="the extra `service` is not installed")
    service = launch().wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)

    def counted():
        status, text = service.ask("/metrics")
        assert status == 200
        families = parser.text_string_to_metric_families(text.decode())
        return {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}

    def searches(found):
        labels = ("method", "GET"), ("route", "/api/search")
        return {code: found.get(("diffatr_http_requests_total", *labels, ("status", code)), 0) for code in ("200", "400")}

    sent = collections.Counter()

    def send(times):
        for number in range(times):
            bad = number % 4 == 3
            status, _ = service.ask("/api/search?q=!!" if bad else "/api/search?q=900+Hz")
            sent[str(status)] += 1

    clients = [threading.Thread(target=send, args=(20,)) for _ in range(5)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert searches(counted()) == sent == {"200": 75, "400": 25}
    os.kill(service.children()[1], signal.SIGKILL)
    wait_until(lambda: set(service.workers()) == {0, 1})
    send(20)
    for _ in range(6):  # whichever worker is asked
        found = counted()
        assert searches(found) == sent == {"200": 90, "400": 30}
        assert found["diffatr_search_seconds_count", ("stage", "whole")] == 90
        assert found["diffatr_worker_starts_total",] == 3
        assert found["diffatr_index_files",] == 2
    assert service.stop() == 0
