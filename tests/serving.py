"""The page of `diffatr serve` for tests: a folder of tones, a session on it, a client of its app, and the app on a real port."""

import http.client
import io
import json
import threading
import time

import numpy as np
import soundfile
from fake_retriever import RATE, FakeRetriever, tone, write_tone
from fastapi.testclient import TestClient

from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import SearchSession
from diffatr_cli.web.app import make_app
from diffatr_cli.web.connection import Limits
from diffatr_cli.web.server import listen, make_server

LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]"))


def make_clips(folder):
    for hz in (200, 450, 900, 2000, 4000):
        write_tone(folder / f"{hz}.wav", hz, 2)
    write_tone(folder / "deep" / "long.flac", 6000, 12)
    samples = np.concatenate([tone(300, 70), tone(5000, 10), tone(300, 40)])
    soundfile.write(folder / "deep" / "very long.wav", samples, RATE)
    return folder


def make_session(folder, sampling=None):
    return SearchSession(FakeRetriever(phase_two=True), FolderIndex(folder), sampling)


def client_of(session, **options):
    return TestClient(make_app(session, **{"hosts": LOCAL} | options), base_url="http://127.0.0.1:8765")


class Running:
    """An app on a free port of this machine, in a thread."""

    def __init__(self, app, limits=None):
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._server = make_server(app, limits or Limits())
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def connections(self):
        """Those that are open."""
        return self._server.server_state.connections

    def stop(self):
        self._server.should_exit = True
        self._thread.join()


def refusal(answer, status, words):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert words in answer.json()["error"]
    return answer.json()["error"]


def wav_bytes(samples, kind="WAV"):
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


def answer_on(connection):
    """Status and document of the next answer on a socket."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())
