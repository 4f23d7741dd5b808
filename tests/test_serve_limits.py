"""What a client may take of the server's time, memory and connections; over real sockets."""

import contextlib
import http.client
import os
import re
import select
import socket
import threading
from dataclasses import replace

import pytest
from fake_retriever import tone
from hypothesis import given
from hypothesis import strategies as st
from serving import LOCAL, Running, answer_on, until, wav_bytes

from diffatr_cli.corpus.session import key_of
from diffatr_cli.web.app import make_app
from diffatr_cli.web.connection import Limits

pytest_plugins = ["serving_fixtures"]

SHORT = Limits(
    head_bytes=8 << 10, head_seconds=0.8, body_seconds=0.8, body_rate=1000, idle_seconds=1, linger_seconds=0.3, stop_seconds=0.3
)
FEW = Limits(connections=4, linger_seconds=0.3)
HEAD = b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /api/sound HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def running(session):
    """A server that has little patience."""
    with Running(make_app(session, hosts=LOCAL), SHORT) as server:
        yield server


@pytest.fixture(scope="module")
def small(session):
    """A server that takes few connections."""
    with Running(make_app(session, hosts=LOCAL), FEW) as server:
        yield server


@pytest.fixture
def connect(running):
    """Opens connections, and closes them in the end."""
    opened = []

    def open_one(server=running):
        opened.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def refused_on(connection, status, words):
    """Read an answer that turns the client away, and that the connection ends with it."""
    found, document = answer_on(connection)
    assert found == status
    assert re.search(words, document["error"])
    assert is_ended(connection)


def is_ended(connection):
    """Wait for the end of a connection, which sends nothing more."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def drip(connection, content, size=1):
    """Send twenty pieces a second, until all is sent or the server has something to say. Returns how many bytes were sent."""
    for sent in range(0, len(content), size):
        if select.select([connection], [], [], 0.05)[0]:
            return sent
        try:
            connection.send(content[sent : sent + size])
        except ConnectionError:
            return sent
    return len(content)


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(connect, running):
    connection = connect()
    connection.sendall(HEAD + b"\r\n")
    assert answer_on(connection)[0] == 200
    (served,) = [one.transport for one in running.connections if one.client == connection.getsockname()]
    assert served.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off(connect):
    head = HEAD + b"X: " + b"x" * 500 + b"\r\n\r\n"
    connection = connect()
    assert 0 < drip(connection, head) < len(head)
    refused_on(connection, 408, "head of this request took too long")


def test_a_later_head_is_held_to_the_limit_as_the_first(connect):
    head = HEAD + b"X: " + b"x" * 500 + b"\r\n\r\n"
    connection = connect()
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        assert answer_on(connection)[0] == 200
    assert 0 < drip(connection, head) < len(head)
    refused_on(connection, 408, "head of this request took too long")


def test_a_head_behind_a_request_is_held_to_the_limit_too(connect):
    connection = connect()
    connection.sendall(HEAD + b"\r\n" + HEAD)
    assert answer_on(connection)[0] == 200
    refused_on(connection, 408, "head of this request took too long")


def test_a_connection_on_which_nothing_comes_ends_without_a_word(connect):
    assert is_ended(connect())  # browsers open some in advance, and would take a 408 for the answer to what they ask next


def test_a_connection_that_is_not_used_any_more_ends(connect):
    connection = connect()
    connection.sendall(HEAD + b"\r\n")
    assert answer_on(connection)[0] == 200
    assert is_ended(connection)


@pytest.mark.parametrize(
    ("framing", "piece"), [(b"Content-Length: 1000", b"x" * 1000), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n" * 150)]
)
def test_a_body_that_comes_a_byte_at_a_time_is_cut_off(connect, scratch, framing, piece):
    connection = connect()
    connection.sendall(POST + framing + b"\r\n\r\n")
    assert 0 < drip(connection, piece) < len(piece)
    refused_on(connection, 408, "body of this request took too long")
    until(lambda: not os.listdir(scratch))


def test_a_body_that_never_begins_is_cut_off(connect, scratch):
    connection = connect()
    connection.sendall(POST + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    refused_on(connection, 408, "body of this request took too long")
    until(lambda: not os.listdir(scratch))


def test_a_slow_body_that_goes_on_is_taken(connect):
    sound = wav_bytes(tone(900, 0.3))
    connection = connect()
    connection.sendall(POST + f"Content-Length: {len(sound)}\r\n\r\n".encode())
    for first in range(0, len(sound), 1000):  # longer than `body_seconds` in all, but faster than `body_rate`
        connection.sendall(sound[first : first + 1000])
        assert not select.select([connection], [], [], 0.05)[0] or first + 1000 >= len(sound)
    status, document = answer_on(connection)
    assert (status, document["hits"][0]["name"]) == (200, "900.wav")


def test_a_body_that_nobody_reads_any_more_does_not_go_on_for_ever(connect):
    connection = connect()
    connection.sendall(POST + f"Content-Length: {10**12}\r\n\r\n".encode())
    status, document = answer_on(connection)
    assert status == 413
    assert "larger than" in document["error"]
    assert drip(connection, b"x" * 300_000, size=1000) < 300_000  # however fast it comes


def test_a_head_is_bounded_however_it_comes(connect):
    for whole in (True, False):
        connection = connect()
        head = HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n"
        connection.sendall(head[: None if whole else 50_000])
        refused_on(connection, 431, "larger than 8 kB")
    connection = connect()
    connection.sendall(HEAD + b"X: " + b"x" * 7000 + b"\r\n\r\n")
    assert answer_on(connection)[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a browser that tries TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
)
def test_what_is_no_request_is_told_so(connect, request_):
    connection = connect()
    connection.sendall(request_)
    refused_on(connection, 400, "no HTTP request")


def test_a_body_that_breaks_in_the_midst_of_an_answer_ends_the_connection(connect, session, monkeypatch):
    begun, broken = threading.Event(), threading.Event()

    def late(*_):
        begun.set()
        broken.wait(10)
        return found

    found = session.by_text("900 Hz", 1)
    monkeypatch.setattr(session, "by_text", late)
    connection = connect()
    connection.sendall(b"GET /api/search?q=900+Hz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    begun.wait(10)
    connection.sendall(b"no number\r\n")
    refused_on(connection, 400, "no HTTP request")
    broken.set()


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([HEAD, POST, b"\r\n", b"\r\n\r\n", b"Content-Length: 3\r\n"]))))
def test_no_bytes_end_the_server(running, pieces):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except ConnectionError:
                break
    until(lambda: not running.connections)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert answer_on(connection)[0] == 200


def test_beyond_the_limit_new_connections_are_turned_away_and_open_ones_go_on(connect, small):
    until(lambda: not small.connections)
    opened = [connect(small) for _ in range(FEW.connections)]
    for connection in opened:
        connection.sendall(HEAD + b"\r\n")
        assert answer_on(connection)[0] == 200
    refused_on(connect(small), 503, "Too many connections")
    for connection in opened:
        connection.sendall(HEAD + b"\r\n")
        assert answer_on(connection)[0] == 200
    opened.pop().close()
    until(lambda: len(small.connections) == FEW.connections - 1)
    connection = connect(small)
    connection.sendall(HEAD + b"\r\n")
    assert answer_on(connection)[0] == 200


def test_a_flood_of_connections_is_let_go(connect, small):
    until(lambda: not small.connections)
    flood = [connect(small) for _ in range(60)]
    ended = 0
    for connection in flood[FEW.connections :]:
        with contextlib.suppress(ConnectionError):  # that too is a refusal
            assert b"503" in connection.recv(1000) or is_ended(connection)
        ended += is_ended(connection)
    assert ended == 60 - FEW.connections
    for connection in flood[: FEW.connections]:
        connection.close()
    until(lambda: not small.connections)
    connection = connect(small)
    connection.sendall(HEAD + b"\r\n")
    assert answer_on(connection)[0] == 200


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 503, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), 503, "not enough memory"),
        (ZeroDivisionError("x"), 500, "Unexpected ZeroDivisionError"),
        (RecursionError("x"), 500, "Unexpected RecursionError"),
        (StopIteration(), 500, "Unexpected"),
        (SystemExit(3), 500, "Unexpected SystemExit"),
        (KeyboardInterrupt(), 500, "Unexpected KeyboardInterrupt"),
        (Panic("x"), 500, "Unexpected Panic"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_no_exception_ends_the_server(connect, session, monkeypatch, error, status, words):
    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(session, "by_text", fail)
        patched.setattr(session, "by_sound", fail)
        sound = wav_bytes(tone(900, 0.1))
        for request in (
            b"GET /api/search?q=900+Hz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            POST + f"Content-Length: {len(sound)}\r\n\r\n".encode() + sound,
        ):
            connection = connect()
            connection.sendall(request)
            found, document = answer_on(connection)
            assert found == status
            assert words in document["error"]
    connection.sendall(b"GET /api/search?q=900+Hz HTTP/1.1\r\nHost: localhost\r\n\r\n")  # on the same connection
    assert answer_on(connection)[0] == 200


def test_the_terminal_is_told_of_faults_and_not_of_strangers(session, monkeypatch, capfd):
    told: list[str] = []
    monkeypatch.setattr(session, "by_text", lambda *_: 1 / 0)
    with Running(make_app(session, hosts=LOCAL, tell=told.append), SHORT) as server:
        for request, status in (
            (b"nonsense\r\n\r\n", 400),
            (HEAD + b"X: " + b"x" * 9000, 431),
            (HEAD + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(request)
                assert answer_on(connection)[0] == status
        assert (told, *capfd.readouterr()) == ([], "", "")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET /api/search?q=x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer_on(connection)[0] == 500
    assert told[0] == "GET '/api/search' failed:"
    assert told[-1] == "ZeroDivisionError: division by zero"
    assert capfd.readouterr() == ("", "")


def test_a_server_that_stops_cuts_off_what_cannot_be_stopped(session, monkeypatch, capfd):
    begun, go = threading.Event(), threading.Event()

    def search(*_):
        begun.set()
        go.wait(10)

    monkeypatch.setattr(session, "by_text", search)
    with Running(make_app(session, hosts=LOCAL), SHORT) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"GET /api/search?q=x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert begun.wait(10)
    go.set()
    refused_on(connection, 503, "is being stopped")
    connection.close()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_goes_away_while_a_file_is_sent_is_no_fault(session, running, tmp_path, monkeypatch, capfd):
    (tmp_path / "long.wav").write_bytes(bytes(50_000_000))
    clip = session.clip(key_of("900.wav"))
    monkeypatch.setattr(session, "clip", lambda _: replace(clip, real=tmp_path / "long.wav"))
    with Running(make_app(session, hosts=LOCAL), SHORT) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET /clip/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        until(lambda: not server.connections)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(session, tmp_path, monkeypatch):
    told: list[str] = []
    path = tmp_path / "long.wav"
    path.write_bytes(bytes(50_000_000))
    clip = session.clip(key_of("900.wav"))
    monkeypatch.setattr(session, "clip", lambda _: replace(clip, real=path))
    with Running(make_app(session, hosts=LOCAL, tell=told.append), SHORT) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"GET /clip/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            os.truncate(path, 10)
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                answer.read()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(HEAD + b"\r\n")
            assert answer_on(connection)[0] == 200
    assert told[0].endswith("broke off:")
