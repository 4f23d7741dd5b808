"""`diffatr index`, `query` and `serve` as users run them, with an index in object storage that the environment tells of."""

import json
import os
import signal
import subprocess
import time

import lancedb
import pytest
from command_line import DIFFATR, ROOT, start, typed
from fake_retriever import FakeRetriever, write_tone
from test_service import launch, wait_until  # noqa: F401 (a fixture)

from diffatr_cli.corpus.index import FolderIndex

pytest_plugins = ["storage_fixtures"]
SECRETS = ("an-identity", "a-secret")


def run(*arguments, code=0):
    """The streams of a command, in which no credentials stand."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*DIFFATR, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    return done.stdout, done.stderr


@pytest.fixture
def clips(tmp_path):
    for i in range(3):
        write_tone(tmp_path / "clips" / f"{i}.wav", 200 + 400 * i, 1, seed=i)
    return tmp_path / "clips"


@pytest.mark.slow
def test_index_and_queries_while_files_come_and_go(clips, tmp_path, uri, trained):
    model = ("--run", trained, "--device", "cpu")

    def found(index):
        out, err = run("query", "a low tone", "--corpus", clips, "--index", index, *model, "--json")
        return [(row["path"], row["score"]) for row in json.loads(out)["results"]], err

    out, _ = run("index", clips, "--index", uri, *model, "--json")
    document = json.loads(out)
    assert (document["index"], document["files"], document["embedded"]) == (uri, 3, 3)
    first, err = found(uri)
    assert (len(first), "indexed" in err) == (3, False)
    assert uri in run("index", clips, "--index", uri, *model)[0]
    write_tone(clips / "new.wav", 3000, 1)
    second, err = found(uri)
    assert "1 indexed" in err
    (clips / "0.wav").unlink()
    third, err = found(uri)
    assert "1 removed" in err
    assert [len(second), len(third)] == [4, 3]
    here, _ = found(tmp_path / "here")
    assert [path for path, _ in third] == [path for path, _ in here]
    assert [score for _, score in third] == pytest.approx([score for _, score in here], abs=2e-3)
    assert sorted(path.name for path in clips.iterdir()) == ["1.wav", "2.wav", "new.wav"]  # nothing was put there
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or not any(secret.encode() in path.read_bytes() for secret in SECRETS)


@pytest.mark.slow
def test_a_killed_command_holds_the_next_one_up_until_its_lock_ends(tmp_path, uri, trained):
    for i in range(120):
        write_tone(tmp_path / "clips" / f"{i}.wav", 100 + 37 * i, 0.3, seed=i)
    command = ["index", tmp_path / "clips", "--index", uri, "--run", trained, "--device", "cpu", "--json"]
    killed = start([*DIFFATR, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: lancedb.connect(uri).list_tables().tables and row_of_the_lock(uri)["owner"])
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    waiting = start([*DIFFATR, *command])
    line = waiting.stderr.readline()
    assert f"{uri}: another process writes this index now" in line
    assert f"process {killed.pid}" in line
    time.sleep(3)
    assert waiting.poll() is None
    lancedb.connect(uri).open_table("lock").update(where="true", values={"expires": time.time() + 1})  # as minutes later
    out, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    document = json.loads(out)
    assert (document["files"], document["skipped"]) == (120, [])
    assert row_of_the_lock(uri)["owner"] == ""


def row_of_the_lock(uri):
    database = lancedb.connect(uri)
    (row,) = database.open_table("lock").to_arrow().to_pylist() if "lock" in database.list_tables().tables else ({"owner": ""},)
    return row


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service(launch, tmp_path, uri, workers):  # noqa: F811
    service = launch("--index", uri, workers=workers).wait_for_address()
    wait_until(lambda: service.json("/health")["indexing"] is None)
    write_tone(tmp_path / "clips" / "3000.wav", 3000, 1)
    service.json("/api/refresh", "POST")
    wait_until(lambda: service.json("/api/state")["indexing"] is None)
    assert {service.json("/api/search?q=3000+Hz&top=1")["hits"][0]["name"] for _ in range(6)} == {"3000.wav"}
    assert service.json("/health")["problem"] is None
    assert service.stop() == 0
    assert FolderIndex(tmp_path / "clips", uri).read("model-a").paths == ["200.wav", "3000.wav", "900.wav"]
    assert not any(secret in line for secret in SECRETS for line in service.log)


@pytest.mark.slow
def test_what_cannot_be_reached_is_told_with_exit_code_one(clips, uri, storage):
    storage.cut = lambda request: "before"
    out, err = run("index", clips, "--index", uri, "--device", "cpu", code=1)
    assert out == ""
    assert err.startswith(f"diffatr: {uri}: the index cannot be read and written now")
    assert "run the command again" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("index", "code", "words"),
    [("s3://no-such-bucket/p", 1, "there is no such bucket"), ("https://example.org/x", 2, "s3://bucket/prefix")],
)
@pytest.mark.parametrize("command", ["index", "query", "serve"])
def test_what_is_wrong_with_a_place_is_told_before_the_model_is_loaded(storage, clips, index, code, words, command):
    arguments = {"index": ["index", clips], "query": ["query", "x", "--corpus", clips], "serve": ["serve", "--corpus", clips]}
    result = typed([*arguments[command], "--index", index, "--run", "no such run"])
    assert (result.code, result.out) == (code, "")
    assert f"{index}: " in result.err
    assert words in result.err
    assert result.err.count("\n") == 1


def test_who_may_only_read_searches_what_is_there(clips, uri, monkeypatch):
    """All that writes is refused, as by a policy."""
    FolderIndex(clips, uri).update(FakeRetriever())
    write_tone(clips / "new.wav", 3000, 1)
    monkeypatch.setattr("diffatr_cli.corpus.storage_lock.StorageLock._set", refuse)
    monkeypatch.setattr("diffatr_cli.cli.query.load_model", lambda *_: FakeRetriever())
    result = typed(["query", "200 Hz", "--corpus", clips, "--index", uri, "--json"])
    assert result.code == 0, result.err
    assert "AccessDenied" in result.err
    assert "Searching what is indexed so far" in result.err
    assert next(row["path"] for row in json.loads(result.out)["results"]) == str(clips / "0.wav")
    assert len(json.loads(result.out)["results"]) == 3


def refuse(*_):
    raise RuntimeError('Generic S3 error: Error performing PUT http://h/x - 403 Forbidden: "<Code>AccessDenied</Code>"')


def test_help_tells_of_it():
    for command in ("index", "query", "serve"):
        assert "s3://" in typed([command, "--help"]).out
