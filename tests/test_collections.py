"""Named collections: by content, through new names and a new index, by several writers, and on the command line."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import soundfile
from command_line import ROOT, typed
from fake_retriever import FakeRetriever, tone, write_tone

from diffatr_cli.corpus.collections import FAVOURITES, Collections, Member, places_of
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.errors import DiffATRError, UsageError


@pytest.fixture
def clips(tmp_path):
    for name, hz in (("rain.wav", 300), ("deep/roof.wav", 900), ("deep/copy.wav", 900), ("dog.wav", 2000)):
        write_tone(tmp_path / "clips" / name, hz, 2)
    index(tmp_path / "clips")
    return tmp_path / "clips"


def index(clips):
    folder = FolderIndex(clips)
    folder.update(FakeRetriever())
    return folder


def member(folder, path, start=0.0, end=1.0):
    return Member(folder.contents()[path], path, start, end)


def where(folder, name):
    return [(each.path, each.reason) for each in places_of(Collections(folder).find(name).members, folder.contents())]


def test_members_follow_their_content(clips):
    folder = FolderIndex(clips)
    kept = Collections(folder)
    kept.make("Rain", [member(folder, "rain.wav"), member(folder, "deep/roof.wav"), member(folder, "dog.wav")])
    (clips / "elsewhere").mkdir()
    (clips / "rain.wav").rename(clips / "elsewhere" / "regen.wav")
    (clips / "deep" / "roof.wav").unlink()  # an equal file stays
    (clips / "dog.wav").unlink()
    write_tone(clips / "dog.wav", 4000, 2)
    folder = index(clips)
    assert where(folder, "rain") == [
        ("elsewhere/regen.wav", None),
        ("deep/copy.wav", None),
        (None, "the file holds another sound now"),
    ]
    (clips / "dog.wav").unlink()
    assert where(index(clips), "Rain")[2] == (None, "not in the folder any more")
    for path in (clips / ".diffatr").iterdir():  # all that can be made again
        if not path.name.startswith("collections"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert [path for path, _ in where(index(clips), "Rain")] == ["elsewhere/regen.wav", "deep/copy.wav", None]
    write_tone(clips / "found.wav", 2000, 2)
    assert where(index(clips), "Rain")[2] == ("found.wav", None)


def test_the_hash_is_that_of_the_document(clips):
    import hashlib

    folder = FolderIndex(clips)
    Collections(folder).add(FAVOURITES, [member(folder, "dog.wav", 0.5, 1.5)])
    document = json.loads((clips / ".diffatr" / "collections.json").read_text())
    digest = hashlib.blake2b((clips / "dog.wav").read_bytes(), digest_size=16).hexdigest()
    members = [{"content": digest, "path": "dog.wav", "start": 0.5, "end": 1.5}]
    assert document == {
        "format": "diffatr collections",
        "version": 1,
        "collections": [{"id": "favourites", "name": "Favourites", "members": members}],
    }


def test_names_and_members_are_each_there_once(clips):
    folder = FolderIndex(clips)
    kept = Collections(folder)
    rain = member(folder, "rain.wav")
    made = kept.make("  Rain \t on roofs", [rain, rain])
    assert (made.name, len(made.members)) == ("Rain on roofs", 1)
    for name in ("rain ON roofs", "", " ", "a" * 201, "a\x07b"):
        with pytest.raises(UsageError):
            kept.make(name)
    assert kept.add(made.id, [rain, member(folder, "rain.wav", 1.0, 2.0)])[1] == 1
    assert kept.remove(made.id, [rain.identity])[1] == 1
    kept.make("Dogs")
    with pytest.raises(UsageError, match="already"):
        kept.rename("Dogs", "RAIN on roofs")
    assert kept.rename("Dogs", "dogs").name == "dogs"
    assert kept.delete("dogs").name == "dogs"
    assert [each.name for each in kept.all()] == ["Rain on roofs"]
    with pytest.raises(UsageError, match="There are: Rain on roofs"):
        kept.find("dogs")
    kept.make("Favourites")
    assert kept.add(FAVOURITES, [rain])[0].name == "Favourites 2"  # somebody has the name already


WRITER = """
import sys
from pathlib import Path
from diffatr_cli.corpus.collections import Collections, Member
from diffatr_cli.corpus.index import FolderIndex
kept = Collections(FolderIndex(Path(sys.argv[1])))
for i in range(25):
    kept.add("Shared", [Member(sys.argv[2] * 32, "a.wav", float(i), i + 1.0)])
"""


def test_two_writers_lose_nothing(clips):
    kept = Collections(FolderIndex(clips))
    kept.make("Shared")
    command = [sys.executable, "-c", WRITER, str(clips)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([*command, letter], env=environment) for letter in "ab"]
    threads = [
        threading.Thread(target=lambda i=i: [kept.add("Shared", [Member("c" * 32, "a.wav", i * 100.0 + j)]) for j in range(10)])
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(kept.find("Shared").members) == 25 * 2 + 30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": "other"}',
        '{"format": "diffatr collections", "version": 2, "collections": []}',
        '{"format": "diffatr collections", "version": 1, "collections": [{"id": 3}]}',
        '{"format": "diffatr collections", "version": 1, "collections": [{"id": "a", "name": "A", "members": [{}]}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_told_and_stays(clips, text):
    kept = Collections(FolderIndex(clips))
    kept.path.write_text(text)
    for act in (kept.all, lambda: kept.make("New"), lambda: kept.add(FAVOURITES, [])):
        with pytest.raises(DiffATRError, match=r"collections\.json: is no file of collections"):
            act()
    assert kept.path.read_text() == text


def test_names_that_are_no_text(clips):
    path = os.fsdecode(b"\xff.wav")
    soundfile.write(os.fsencode(clips / path), tone(5000, 1), 32000)
    folder = index(clips)
    kept = Collections(folder)
    kept.make("Odd", [member(folder, path)])
    assert kept.find("Odd").members[0].path == path


def test_where_the_file_lies(clips, tmp_path):
    assert Collections(FolderIndex(clips)).path == clips / ".diffatr" / "collections.json"
    shared = tmp_path / "index"
    one, other = (Collections(FolderIndex(folder, shared)).path for folder in (clips, clips / "deep"))
    assert one.parent == other.parent == shared
    assert one != other
    assert Collections(FolderIndex(clips, "s3://bucket/prefix")).path.parent == clips / ".diffatr"  # not in a cache


# the command


def run(*arguments, code=0):
    result = typed(["collections", *map(str, arguments)])
    assert result.code == code, result.err
    return result


def test_the_command(clips, tmp_path):
    corpus = ("--corpus", clips)
    assert json.loads(run("list", *corpus, "--json").out)["collections"] == []
    assert "Rain: 2 added, 2 in it" in run("add", "Rain", clips / "rain.wav", "deep/roof.wav", *corpus).err
    assert "Rain: 0 added, 2 in it" in run("add", "rain", clips / "rain.wav", *corpus).err
    run("add", "rain", clips / "dog.wav", "--part", "0.5-1.5", *corpus)
    assert json.loads(run("list", *corpus, "--json").out)["collections"] == [{"name": "Rain", "sounds": 3}]
    assert "Rain" in run("list", *corpus).out
    (clips / "rain.wav").unlink()
    index(clips)
    shown = json.loads(run("show", "rain", *corpus, "--json").out)["sounds"]
    assert [(each["path"], each["missing"]) for each in shown] == [
        (str(clips / "rain.wav"), "not in the folder any more"),
        (str(clips / "deep" / "roof.wav"), None),
        (str(clips / "dog.wav"), None),
    ]
    assert "not in the folder any more" in run("show", "rain", *corpus).out
    result = run("export", "Rain", tmp_path / "out", "--cut", *corpus, "--json")
    assert "missing rain.wav: not in the folder any more" in result.err
    document = json.loads(result.out)
    assert [each["file"] for each in document["files"]] == [
        str(tmp_path / "out" / name) for name in ("roof.wav", "dog_00m00.5s.wav")
    ]
    assert [each["path"] for each in document["missing"]] == [str(clips / "rain.wav")]
    assert soundfile.info(tmp_path / "out" / "dog_00m00.5s.wav").duration == 1
    assert (tmp_path / "out" / "roof.wav").read_bytes() == (clips / "deep" / "roof.wav").read_bytes()
    assert "Rain: 2 removed, 1 in it" in run("remove", "Rain", clips / "rain.wav", "dog.wav", *corpus).err


def test_wrong_use_of_the_command(clips, tmp_path):
    corpus = ("--corpus", clips)
    assert "there is no such collection" in run("show", "Rain", *corpus, code=2).err
    assert "is not in the index" in run("add", "Rain", tmp_path / "other.wav", *corpus, code=2).err
    for part in ("3", "3-2", "a-b", "-1-2"):
        assert "--part" in run("add", "Rain", clips / "dog.wav", f"--part={part}", *corpus, code=2).err
    run("add", "Rain", clips / "dog.wav", *corpus)
    assert "is not in Rain" in run("remove", "Rain", clips / "rain.wav", *corpus, code=2).err
    assert "lies in the folder of recordings" in run("export", "Rain", clips / "out", *corpus, code=2).err
    assert "--fps 29" in run("export", "Rain", tmp_path / "out", "--fps", 29, *corpus, code=2).err


def test_a_part_is_in_the_file(clips):
    corpus = ("--corpus", clips)
    for part in ("100-200", "1-9", "2-2.5"):
        told = run("add", "Rain", "rain.wav", "--part", part, *corpus, code=2).err
        assert f"rain.wav: has 2.0 s of sound, and the part {part} is not in it." in told
    assert json.loads(run("list", *corpus, "--json").out)["collections"] == []
    write_tone(clips / "odd.wav", 500, 1.7)
    index(clips)
    run("add", "Rain", "odd.wav", "--part", "0-2", *corpus)  # as a table shows its end
    run("add", "Rain", "rain.wav", "--part", "0.5-2", *corpus)
    (clips / "dog.wav").unlink()  # what is not there says no length
    run("add", "Rain", "dog.wav", "--part", "100-200", *corpus)


def test_a_folder_below_an_indexed_one(clips, tmp_path):
    """As `query`, through the index above it, which keeps the collections too."""
    part = ("--corpus", clips / "deep")
    result = run("add", "Roofs", clips / "deep" / "roof.wav", *part)
    assert "Roofs: 1 added, 1 in it" in result.err
    assert f"searched through the index of {clips}" in result.err
    run("add", "roofs", "copy.wav", *part, "--part", "1-2")
    assert not (clips / "deep" / ".diffatr").exists()
    for corpus in (part, ("--corpus", clips)):
        document = json.loads(run("list", *corpus, "--json").out)
        assert document["file"] == str(clips / ".diffatr" / "collections.json")
        assert document["collections"] == [{"name": "Roofs", "sounds": 2}]
        shown = json.loads(run("show", "Roofs", *corpus, "--json").out)["sounds"]
        assert [(each["path"], each["missing"]) for each in shown] == [
            (str(clips / "deep" / "roof.wav"), None),
            (str(clips / "deep" / "copy.wav"), None),
        ]
    run("export", "Roofs", tmp_path / "out", *part)
    assert (tmp_path / "out" / "roof.wav").read_bytes() == (clips / "deep" / "roof.wav").read_bytes()
    run("remove", "Roofs", "roof.wav", *part)
    assert json.loads(run("list", *part, "--json").out)["collections"] == [{"name": "Roofs", "sounds": 1}]
