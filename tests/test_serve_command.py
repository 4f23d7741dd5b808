"""The command `diffatr serve`, and the port that it listens on."""

import re

import pytest
import typer
from fake_retriever import FakeRetriever
from fastapi.testclient import TestClient
from serving import refusal
from typer.testing import CliRunner

from diffatr_cli.cli import answering
from diffatr_cli.cli import serve as command
from diffatr_cli.errors import DiffATRError, UsageError
from diffatr_cli.web import server
from diffatr_cli.web.server import listen

pytest_plugins = ["serving_fixtures"]


app = typer.Typer()
command.register(app)


@app.command("other")
def other():
    """With a second command, `serve` is written out as it is in diffatr."""


@pytest.fixture
def started(own, monkeypatch):
    """What the command line builds and opens, without serving."""
    seen = {"opened": []}
    monkeypatch.setattr(answering, "load_model", lambda *_: FakeRetriever(phase_two=True))
    monkeypatch.setattr("webbrowser.open", seen["opened"].append)

    def run(app, listener, refused):
        seen["client"] = TestClient(app, base_url="http://localhost")
        listener.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run", run)

    def call(*arguments):
        seen["result"] = CliRunner().invoke(app, ["serve", "--corpus", str(own.folder.corpus), *arguments])
        return seen

    return call


def test_the_command_prints_the_address_and_ends_after_ctrl_c(started):
    seen = started("--port", "0")
    result = seen["result"]
    assert result.exit_code == 130, result.output
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", result.stdout)
    assert "Ctrl-C" in result.stderr
    assert seen["opened"] == []  # stdout is no terminal
    assert seen["client"].get("/").status_code == 200
    refusal(seen["client"].get("/", headers={"Host": "evil.example"}), 403, "own name")
    seen = started("--port", "0", "--open")
    assert seen["opened"] == [seen["result"].stdout.strip()]


def test_beyond_this_machine_a_key_is_needed(started):
    seen = started("--host", "0.0.0.0", "--port", "0")
    address = seen["result"].stdout.strip()
    token = re.fullmatch(r"http://[^/]+:\d+/\?token=([\w-]{32})", address)[1]
    refusal(seen["client"].get("/"), 401, "needs its key")
    assert seen["client"].get("/", params={"token": token}).status_code == 200
    assert "not encrypted" in seen["result"].stderr
    again = re.search("token=(.*)", started("--host", "0.0.0.0", "--port", "0")["result"].stdout)[1]
    assert again != token


def test_wrong_use_is_told_before_any_work(started, monkeypatch, tmp_path):
    monkeypatch.setattr(answering, "load_model", lambda *_: pytest.fail("the model was loaded"))
    find = command.importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(command.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
        error = started()["result"].exception
        assert isinstance(error, UsageError)
        assert "pip install 'diffatr[serve]'" in str(error)
    error = CliRunner().invoke(app, ["serve", "--corpus", str(tmp_path / "nowhere")]).exception
    assert isinstance(error, UsageError)
    with listen("127.0.0.1", 0) as taken:
        error = started("--port", str(taken.getsockname()[1]))["result"].exception
        assert isinstance(error, DiffATRError)


def test_a_key_of_ones_own_stands_in_no_log(started, tmp_path):
    key = "0123456789abcdef.~-_"
    (tmp_path / "key").write_text(f"{key}\n")
    seen = started("--key-file", str(tmp_path / "key"), "--port", "0", "--open")
    result, client = seen["result"], seen["client"]
    assert key not in result.output
    assert seen["opened"] == [f"{result.stdout.strip()}?token={key}"]
    refusal(client.get("/"), 401, "needs its key")  # on this machine too
    refusal(client.get(f"/?token={key}", headers={"Host": "evil.example"}), 403, "own name")
    assert client.get(f"/?token={key}").status_code == 200


@pytest.mark.parametrize(
    "content", [b"short", b"", b"a key with spaces in it", b"0123456789abcdef\nmore", "schlüsselschlüssel".encode()]
)
def test_what_is_no_key_is_told_and_not_shown(started, tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    error = started("--key-file", str(tmp_path / "key"))["result"].exception
    assert isinstance(error, UsageError)
    assert "16 to 200 letters" in str(error)
    error = started("--key-file", str(tmp_path / "nowhere"))["result"].exception
    assert isinstance(error, DiffATRError)
    assert "nowhere" in str(error)


def test_ports():
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, pytest.raises(DiffATRError, match="--port 0"):
        listen("127.0.0.1", port)
    with listen("127.0.0.1", None) as one, listen("127.0.0.1", None) as other:  # any that is free, if 8765 is not
        assert one.getsockname()[1] != other.getsockname()[1]
    with pytest.raises(DiffATRError, match="no address of this machine"):
        listen("nowhere.invalid", 0)
