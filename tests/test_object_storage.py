"""An index in object storage: the same as one in a folder, whatever happens to the line, and whole to all who read meanwhile."""

import random
import re
import shutil
import threading
from pathlib import Path

import lancedb
import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus import batches, commits, vector_index
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
from diffatr_cli.corpus.object_storage import ObjectStorage
from diffatr_cli.corpus.place import Folder, place_of
from diffatr_cli.corpus.report import Damaged, FolderGone
from diffatr_cli.corpus.search import search
from diffatr_cli.corpus.store import FileTable, WindowTable
from diffatr_cli.corpus.troubles import troubles
from diffatr_cli.errors import DiffATRError, UsageError

pytest_plugins = ["storage_fixtures"]


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for i in range(6):
        write_tone(root / f"{i}.wav", 200 + 300 * i, 12 if i == 3 else 0.5, seed=i)
    (root / "bad.wav").write_text("no sound")
    return root


def answers(index):
    recordings = index.read("model-a")
    return {
        path: [(*recordings.spans[row], *recordings.vectors[row]) for row in range(len(recordings.spans))[recordings.rows_of(i)]]
        for i, path in enumerate(recordings.paths)
    }


def of_a_folder(corpus, tmp_path):
    """What a new index in a folder holds."""
    index = FolderIndex(corpus, tmp_path / "plain")
    shutil.rmtree(index.folder, ignore_errors=True)
    index.update(FakeRetriever())
    return answers(index)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/some/prefix", "s3://bucket/some/prefix"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("S3://Bucket", "s3://Bucket"),
        (Path("s3://bucket/prefix"), "s3://bucket/prefix"),  # a Path writes one slash
        ("gs://bucket/x", "gs://bucket/x"),
        ("az://container/x", "az://container/x"),
    ],
)
def test_addresses(text, address):
    place = place_of(text)
    assert isinstance(place, ObjectStorage)
    assert str(place) == place.address == address


def test_what_is_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    for text in ("s3:/bucket", "clips/.diffatr", str(tmp_path), "C:/index"):
        place = place_of(text)
        assert isinstance(place, Folder)
        assert place.local == Path(text)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/x", "ftp://a/b", "gopher://x/y", "memory://a", "file:///tmp/x", "db://name", "s3://", "s3:///"],
)
def test_an_address_at_which_nothing_can_be_kept(tmp_path, monkeypatch, address):
    """...and no folder is made that is called like it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"--index DIR\|URI"):
        FolderIndex(tmp_path, address).place.check()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_holds_what_one_in_a_folder_does_while_the_folder_changes(corpus, tmp_path, uri):
    here, there, model = FolderIndex(corpus, tmp_path / "here"), FolderIndex(corpus, uri), FakeRetriever()
    rng = random.Random(0)
    for step in range(6):
        files = sorted(corpus.glob("*.wav"))
        for change in rng.sample(("add", "remove", "rewrite", "rename", "copy"), 2):
            chosen = rng.choice([each for each in files if each.exists()])
            if change == "add":
                write_tone(corpus / f"new{step}.wav", 150 + 100 * step, rng.choice([0.5, 11]))
            elif change == "remove":
                chosen.unlink()
            elif change == "rewrite":
                write_tone(chosen, 120 + 100 * step, 1)
            elif change == "rename":
                chosen.rename(corpus / f"moved{step}.wav")
            else:
                shutil.copy2(chosen, corpus / f"copy{step}.wav")
        assert there.update(model) == here.update(model)
        assert answers(there) == answers(here)
        assert answers(FolderIndex(corpus, uri)) == answers(here)
        assert there.update(model) == here.update(model)  # now without the tables
    assert answers(there) == of_a_folder(corpus, tmp_path)


def test_the_cache_is_made_again_and_keeps_no_secret(corpus, tmp_path, uri, storage):
    FolderIndex(corpus, uri).update(FakeRetriever())
    want, cache = of_a_folder(corpus, tmp_path), FolderIndex(corpus, uri).folder
    assert cache.is_relative_to(tmp_path / "cache")
    (snapshot,) = cache.iterdir()
    assert not any(secret.encode() in snapshot.read_bytes() for secret in ("an-identity", "a-secret", storage.url))
    for damage in (lambda: shutil.rmtree(cache), lambda: snapshot.write_bytes(b"damage")):
        damage()
        assert answers(FolderIndex(corpus, uri)) == want
        before = len(storage.seen)
        assert answers(FolderIndex(corpus, uri)) == want
        assert not any("/data/" in request for request in storage.seen[before:])  # it is there again
    write_tone(corpus / "new.wav", 4000, 0.5)
    shutil.rmtree(cache)
    FolderIndex(corpus, uri).update(FakeRetriever())
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)


def test_a_cache_of_tables_that_were_made_anew_is_of_no_use(corpus, tmp_path, uri):
    """Their versions are counted from one again."""
    FolderIndex(corpus, uri).update(FakeRetriever())
    database = lancedb.connect(uri)
    for name in database.list_tables().tables:
        database.drop_table(name)
    assert answers(FolderIndex(corpus, uri)) == {}
    for i in range(6):
        write_tone(corpus / f"{i}.wav", 3000 + 100 * i, 0.5, seed=i)
    cache = FolderIndex(corpus, uri).folder
    kept = shutil.copytree(cache, tmp_path / "kept")
    FolderIndex(corpus, uri).update(FakeRetriever())
    shutil.rmtree(cache)
    kept.rename(cache)
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize(
    "request_", ["PUT .*manifest", "PUT .*txn", "PUT .*/data/", "GET .*/data/", "GET .*list-type", "GET .*manifest"]
)
def test_a_request_whose_line_is_cut_is_repeated_and_done_once(corpus, tmp_path, uri, storage, request_, how):
    index, model = FolderIndex(corpus, uri), FakeRetriever()
    for _ in range(2):
        storage.cut_once(request_, how, times=2)
        report = index.update(model)
        assert (report.repaired, report.files) == (0, len(list(corpus.glob("[0-9]*.wav"))))
        write_tone(corpus / "7.wav", 5000, 1)
        (corpus / "2.wav").unlink(missing_ok=True)
    storage.cut_once(request_, how, times=2)
    index.update(model)
    storage.mend()
    shutil.rmtree(index.folder)
    assert answers(index) == of_a_folder(corpus, tmp_path)


@pytest.mark.slow
def test_a_bad_line(corpus, tmp_path, uri, storage):
    """One request in eight is cut, at random."""
    rng = random.Random(1)
    storage.cut = lambda request: rng.choice(["before", "after"]) if rng.random() < 0.125 else None
    index, model = FolderIndex(corpus, uri), FakeRetriever()
    assert index.update(model).files == 6
    write_tone(corpus / "1.wav", 5000, 1)
    report = index.update(model)
    assert (report.files, report.embedded, report.repaired) == (6, 1, 0)
    shutil.rmtree(index.folder)
    assert answers(index) == of_a_folder(corpus, tmp_path)


@pytest.mark.slow
def test_what_is_committed_stays_where_the_line_is_lost(corpus, tmp_path, uri, storage, monkeypatch):
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(batches, "BATCH", 1)

    class Cutting(FakeRetriever):
        def embed_audio(self, waveforms):
            if self.embedded >= 3:
                storage.cut = lambda request: "before"
            return super().embed_audio(waveforms)

    with pytest.raises(CannotUpdate, match=f"^{re.escape(uri)}: .*cannot be read and written now.*network") as failure:
        FolderIndex(corpus, uri).update(Cutting())
    assert "a-secret" not in str(failure.value)
    with pytest.raises(CannotUpdate, match="cannot be read and written now"):
        FolderIndex(corpus, uri).read("model-a")
    storage.mend()
    assert 0 < len(answers(FolderIndex(corpus, uri))) < 6
    lancedb.connect(uri).open_table("lock").update(where="true", values={"expires": 0.0})  # as two minutes later
    model = FakeRetriever()
    assert FolderIndex(corpus, uri).update(model).files == 6
    assert 0 < model.embedded < 7
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)


REQUEST = "IO { source: Generic { source: RetryError(RetryErrorImpl { method: GET, uri: Some(http://h:1/b?x=y), inner: %s }) } }"
BODY = 'Status { status: %d, body: Some("<Error><Code>%s</Code><AWSAccessKeyId>AN-IDENTITY</AWSAccessKeyId></Error>") }'


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (REQUEST % (BODY % (404, "NoSuchBucket")), CannotUpdate, r"no such bucket \(NoSuchBucket\).*--index"),
        (REQUEST % (BODY % (403, "InvalidAccessKeyId")), CannotUpdate, r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"),
        (REQUEST % (BODY % (403, "AccessDenied")), CannotUpdate, r"AccessDenied.*permit"),
        (REQUEST % (BODY % (503, "SlowDown")), CannotUpdate, r"error of its own \(SlowDown\).*again"),
        (REQUEST % "ConnectError: dns error: failed to lookup address information", CannotUpdate, "name of its server"),
        (REQUEST % "Os { message: Connection refused }", CannotUpdate, "refuses connections.*AWS_ENDPOINT_URL"),
        (REQUEST % "reqwest::Error { kind: Builder, source: BadScheme }", CannotUpdate, "AWS_ALLOW_HTTP"),
        ("Failed to get AWS credentials: CredentialsNotLoaded(no providers in chain)", CannotUpdate, "Check the credentials"),
        (
            "Generic S3 error: Error performing GET http://h/x/data/y.lance in 1s - HTTP error: operation timed out",
            CannotUpdate,
            "time",
        ),
        ("Generic S3 error: HTTP error: error decoding response body", CannotUpdate, "connection failed"),
        ("something that nobody has seen before", CannotUpdate, "again.*remove s3://b/p"),
        ("LanceError(IO): Generic N/A error: Not found: c/x.lance/data/1010.lance, /rustc/x.rs:1", Damaged, "diffatr index"),
        ("Invalid input, file does not appear to be a Lance file (invalid magic: [1])", Damaged, "damaged"),
        ("lance error: LanceError(IO): does not have sufficient data, len: 7, bytes: b'x'", Damaged, "damaged"),
        ("lance error: Encountered corrupt file binary mini-block", Damaged, "damaged"),
        ("lance error: LanceError(IO): file size is too small, /root/x.rs:1:2", Damaged, "damaged"),
    ],
)
def test_troubles_of_the_storage_are_told_from_damage_and_in_plain_words(text, kind, words):
    """What is taken for damage is made again, which may take days: only what is known to be damage is."""
    with pytest.raises(DiffATRError, match=words) as failure, troubles(ObjectStorage("s3://b/p")):
        raise RuntimeError(text)
    assert type(failure.value) is kind
    assert str(failure.value).startswith("s3://b/p: ")
    assert not any(word in str(failure.value) for word in ("lance error", "AN-IDENTITY", "x=y", ".rs", "{"))


@pytest.mark.parametrize("where", ["folder", "storage"])
def test_a_reader_that_a_whole_update_overtakes_sees_one_state(corpus, tmp_path, uri, monkeypatch, where):
    """Between a reader's look at the files and its look at the windows all files change, and the old windows go."""
    place = uri if where == "storage" else tmp_path / "index"
    FolderIndex(corpus, place).update(FakeRetriever())
    rows, overtaken = FileTable.rows, []

    def overtaking(self):
        found = rows(self)
        if not overtaken:
            overtaken.append(True)
            for i in range(6):
                write_tone(corpus / f"{i}.wav", 2000 + 300 * i, 0.5, seed=i)
            FolderIndex(corpus, place).update(FakeRetriever())
        return found

    monkeypatch.setattr(FileTable, "rows", overtaking)
    index = FolderIndex(corpus, place)
    shutil.rmtree(index.folder) if where == "storage" else [path.unlink() for path in index.folder.glob("snapshot-*")]
    recordings = index.read("model-a")
    assert overtaken
    assert recordings.paths == [f"{i}.wav" for i in range(6)]
    assert len(recordings.vectors) == 6


@pytest.mark.slow
def test_two_readers_during_a_write_see_each_file_as_it_was_or_as_it_is(corpus, tmp_path, uri, monkeypatch):
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 0.0)
    FolderIndex(corpus, uri).update(FakeRetriever())
    before = of_a_folder(corpus, tmp_path)
    for i in range(6):
        write_tone(corpus / f"{i}.wav", 2000 + 300 * i, 0.5, seed=10 + i)
    after, done, wrong, seen = of_a_folder(corpus, tmp_path), threading.Event(), [], []

    def read(cache):
        place = ObjectStorage(uri)
        while not done.is_set():
            index = FolderIndex(corpus, uri)
            index.place, index.folder = place, tmp_path / cache
            state = answers(index)
            seen.append({path: state[path] == after[path] for path in state})
            wrong.extend(path for path in before if state.get(path) not in (before[path], after[path]))

    readers = [threading.Thread(target=read, args=(name,)) for name in ("one", "two")]
    for reader in readers:
        reader.start()
    try:
        for _ in range(3):
            FolderIndex(corpus, uri).update(FakeRetriever())
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert len(seen) > 4
    assert answers(FolderIndex(corpus, uri)) == after


@pytest.mark.slow
def test_an_approximate_index_is_trained_and_searched_there(corpus, tmp_path, uri, monkeypatch):
    monkeypatch.setattr(vector_index, "_LEAST", 256)
    write_tone(corpus / "long.wav", 700, 1400)
    model = FakeRetriever()
    there = FolderIndex(corpus, uri, approximate=True)
    there.update(model)
    recordings = there.read("model-a")
    assert vector_index._trained(WindowTable(there.place, there._table_names("model-a")[1])._table)
    assert len(recordings.vectors) == 0
    exact = FolderIndex(corpus, tmp_path / "exact")
    exact.update(model)
    query = model.embed_text(["1100 Hz"])
    (found,), (want,) = (search(model, each.read("model-a"), query, refine=False, top=3) for each in (there, exact))
    assert [(hit.path, hit.start) for hit in found.hits] == [(hit.path, hit.start) for hit in want.hits]
    np.testing.assert_allclose([hit.score for hit in found.hits], [hit.score for hit in want.hits], atol=1e-5)


def test_damaged_rows_are_made_again(corpus, tmp_path, uri):
    index, model = FolderIndex(corpus, uri), FakeRetriever()
    index.update(model)
    lancedb.connect(uri).open_table("windows-v1-model-a").update(where="start = 2", values={"end": 3.0})
    with pytest.raises(Damaged, match=re.escape(uri)):
        index.read("model-a")
    report = index.update(model)
    assert (report.repaired, report.embedded, report.files) == (1, 1, 6)
    assert answers(index) == of_a_folder(corpus, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"garbage" * 1000], ids=["gone", "empty", "short", "long"])
@pytest.mark.parametrize("files", ["data", "_versions"])
@pytest.mark.parametrize("name", ["files-v1", "windows-v1"])
def test_a_table_that_cannot_be_read_is_made_anew(corpus, tmp_path, uri, storage, name, files, content):
    index, model = FolderIndex(corpus, uri), FakeRetriever()
    index.update(model)
    assert storage.damage(uri, rf"{name}[^/]*\.lance/{files}/", content)
    index = FolderIndex(corpus, uri)
    shutil.rmtree(index.folder)
    if (files, content) == ("_versions", None):  # without them it is no table: one that was never made
        assert answers(index) == {}
    else:
        with pytest.raises(Damaged):
            index.read("model-a")
    before = model.embedded
    assert index.update(model).files == 6
    assert (model.embedded > before) == (name == "windows-v1")
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)


def test_a_folder_without_sounds(tmp_path, uri):
    (tmp_path / "clips").mkdir()
    with pytest.raises(DiffATRError, match="no sound files"):
        FolderIndex(tmp_path / "clips", uri).update(FakeRetriever())
    write_tone(tmp_path / "clips/a.wav", 500, 0.5)
    assert FolderIndex(tmp_path / "clips", uri).update(FakeRetriever()).files == 1
    (tmp_path / "clips/a.wav").rename(tmp_path / "a.wav")
    with pytest.raises(FolderGone, match="no sound files in it now, but the index has some") as told:
        FolderIndex(tmp_path / "clips", uri).update(FakeRetriever())
    (tmp_path / "a.wav").rename(tmp_path / "clips/a.wav")
    model = FakeRetriever()
    assert FolderIndex(tmp_path / "clips", uri).update(model).files == 1
    assert model.embedded == 0
    (tmp_path / "clips/a.wav").unlink()
    place, _, table = str(told.value).partition("remove ")[2].removesuffix(".lance").rpartition("/")
    assert place == uri
    FolderIndex(tmp_path / "clips", uri).place.remove(table)
    with pytest.raises(DiffATRError, match=r"no sound files in it \("):
        FolderIndex(tmp_path / "clips", uri).update(FakeRetriever())


def test_contents_that_go_many_at_once_are_kept(corpus, tmp_path, uri, monkeypatch):
    monkeypatch.setattr("diffatr_cli.corpus.gone.MANY", 3)
    model = FakeRetriever()
    FolderIndex(corpus, uri).update(model)
    before = model.embedded
    corpus.rename(tmp_path / "away")
    write_tone(corpus / "stray.wav", 700, 1)
    for seed in range(2):
        write_tone(corpus / "stray.wav", 700, 1, seed)
        assert FolderIndex(corpus, uri).update(model).files == 1
    shutil.rmtree(corpus)
    (tmp_path / "away").rename(corpus)
    assert FolderIndex(corpus, uri).update(model).reused == 6
    assert model.embedded == before + 2
    assert FolderIndex(corpus, uri).place.tables("files-gone") == []
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)


def test_two_corpora_in_one_place_share_what_is_equal(corpus, tmp_path, uri):
    other = shutil.copytree(corpus, tmp_path / "other")
    model = FakeRetriever()
    FolderIndex(corpus, uri).update(model)
    report = FolderIndex(other, uri).update(model)
    assert (report.reused, report.embedded) == (6, 0)
    for path in list(other.glob("*.wav"))[1:]:
        path.unlink()
    FolderIndex(other, uri).update(model)
    assert answers(FolderIndex(corpus, uri)) == of_a_folder(corpus, tmp_path)
