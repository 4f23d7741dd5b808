"""Several folders searched as one, and a folder searched through the index above it."""

import json
import os
import shutil

import numpy as np
import pytest
from command_line import typed
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli import api
from diffatr_cli.corpus.asking import ask_texts
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.joined import join
from diffatr_cli.corpus.library import Library, open_corpora, through_ancestors
from diffatr_cli.corpus.search import embed_texts, search
from diffatr_cli.corpus.session import SearchSession
from diffatr_cli.corpus.subfolder import Subfolder, through_ancestor
from diffatr_cli.errors import DiffATRError, UsageError

TONES = (200, 320, 450, 640, 900, 1400, 2000, 2900, 4000, 6000)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Folders `a` and `b`, and `both`, which holds the recordings of both below `a` and `b`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffatr_cli.cli.query.load_model", lambda *_: FakeRetriever(phase_two=True))
    monkeypatch.setattr("diffatr_cli.cli.index.load_model", lambda *_: FakeRetriever(phase_two=True))
    monkeypatch.setattr("diffatr_cli.cli.tag.load_model", lambda *_: FakeRetriever(phase_two=True))
    for number, hz in enumerate(TONES):
        write_tone(tmp_path / "ab"[number % 2] / ("deep" if number % 3 == 0 else "") / f"{hz}.wav", hz, 11 if number == 4 else 2)
    shutil.copy(tmp_path / "b" / "320.wav", tmp_path / "a" / "copy.wav")
    for name in "ab":
        shutil.copytree(tmp_path / name, tmp_path / "both" / name)
    return tmp_path


def hits(searched, text="900 Hz", model=None, **options):
    model = model or FakeRetriever(phase_two=True)
    searched.update(model)
    recordings = searched.read(model.model_id)
    return search(model, recordings, embed_texts(model, [text]), **options)[0].hits


@pytest.mark.parametrize("approximate", [None, True])
@pytest.mark.parametrize("text", ["900 Hz", "320 Hz", "5000 Hz"])
def test_two_folders_rank_as_one_folder_that_holds_both(there, text, approximate):
    whole = hits(FolderIndex(there / "both"), text, top=20)
    library = open_corpora([there / "a", there / "b"], approximate=approximate)
    found = hits(library, text, top=20)
    assert [os.path.relpath(hit.path, there) for hit in found] == [hit.path for hit in whole]
    assert [(hit.rank, hit.start, hit.end) for hit in found] == [(hit.rank, hit.start, hit.end) for hit in whole]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in whole], atol=1e-5)


def test_one_folder_approximate_and_one_in_memory(there):
    whole = hits(FolderIndex(there / "both"), top=20)
    library = Library([FolderIndex(there / "a", approximate=True), FolderIndex(there / "b")])
    assert [os.path.relpath(hit.path, there) for hit in hits(library, top=20)] == [hit.path for hit in whole]
    recordings = library.read("model-a")
    exact = Library([FolderIndex(there / "a"), FolderIndex(there / "b")])
    exact.update(FakeRetriever())
    rows = np.array([5, 0, 3, 9])
    np.testing.assert_array_equal(recordings.vectors_at(rows), exact.read("model-a").vectors[rows])


def asked(searched, text, by, top=20):
    model = FakeRetriever(phase_two=True)
    searched.update(model)
    (found,) = ask_texts(model, searched.read(model.model_id), [text], by=by, top=top)
    return [(hit.path, hit.by, hit.facts) for hit in found.hits], found.fitting


QUESTIONS = ["900 Hz", "900 Hz copy", "900 Hz in:deep", "900 Hz -copy", "320 Hz length:>5", "320 Hz copy format:wav channels:1"]


@pytest.mark.parametrize("approximate", [None, True])
@pytest.mark.parametrize("by", ["both", "sound", "name"])
def test_names_and_filters_over_two_folders_and_below_one(there, by, approximate):
    whole = FolderIndex(there / "both")
    library = open_corpora([there / "a", there / "b"], approximate=approximate)
    mixed = Library([FolderIndex(there / "a", approximate=True), FolderIndex(there / "b")])
    asked(FolderIndex(there / "both", approximate=approximate), "900 Hz", by)
    below = through_ancestor(FolderIndex(there / "both" / "a"), "model-a", home=there.parent)
    alone = FolderIndex(there / "a")
    for text in QUESTIONS:
        expected, fitting = asked(whole, text, by)
        for several in (library, mixed):
            found, fitting_there = asked(several, text, by)
            assert [(os.path.relpath(path, there), *rest) for path, *rest in found] == [tuple(each) for each in expected]
            assert fitting_there == fitting
        assert isinstance(below, Subfolder)
        assert asked(below, text, by) == asked(alone, text, by)


def test_what_is_joined_is_what_one_index_holds(there):
    model = FakeRetriever()
    whole = FolderIndex(there / "both")
    whole.update(model)
    expected = whole.read(model.model_id)
    library = open_corpora([there / "a", there / "b"])
    report = library.update(model)
    assert (report.files, report.embedded) == (11, 11)  # each folder has an index of its own
    assert sorted(path.name for path in there.glob("*/.diffatr")) == [".diffatr"] * 3
    got = library.read(model.model_id)
    assert got.candidates == expected.candidates == 10  # one content is in both
    assert [os.path.relpath(path, there) for path in got.paths] == expected.paths
    for name in ("content", "offsets", "spans", "hashes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_allclose(got.vectors, expected.vectors, atol=1e-3)
    assert got.updated == min(FolderIndex(there / name).read(model.model_id).updated for name in "ab")


def test_folders_that_overlap_give_each_file_once(there):
    (there / "link").symlink_to(there / "a" / "deep")
    model = FakeRetriever()
    library = open_corpora([there / "a" / "deep", there / "a", there / "link", there / "a" / "."])
    library.update(model)
    got = library.read(model.model_id)
    assert sorted(os.path.realpath(path) for path in got.paths) == sorted(map(str, (there / "a").rglob("*.wav")))
    assert not (there / "a" / "deep" / ".diffatr").exists()  # nothing is embedded twice
    # Where links make two folders overlap that do not lie in each other.
    (there / "b" / "other").symlink_to(there / "a" / "deep")
    library = open_corpora([there / "b", there / "a"])
    library.update(model)
    got = library.read(model.model_id)
    reals = [os.path.realpath(path) for path in got.paths]
    assert len(set(reals)) == len(reals) == 11
    assert any(path.startswith(str(there / "b" / "other")) for path in got.paths)  # the folder that was named first


def test_none_and_empty():
    assert len(join([])) == 0


def test_one_folder_that_cannot_be_used_is_told_and_the_others_go_on(there):
    (there / "silent").mkdir()
    alone = json.loads(typed(["query", "900 Hz", "--corpus", "a", "--json"]).out)
    result = typed(["query", "900 Hz", "--corpus", "a", "--corpus", "nowhere", "--corpus", "silent", "--json"])
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["results"] == alone["results"]
    assert (document["index"]["files"], document["index"]["windows"]) == (6, 7)
    assert {each["folder"] for each in document["index"]["problems"]} == {"nowhere", "silent"}
    told = [line for line in result.err.splitlines() if line.startswith(("nowhere", "silent"))]
    assert len(told) == 2
    assert "no such folder" in told[0]
    assert "no sound files" in told[1]
    result = typed(["query", "900 Hz", "--corpus", "nowhere", "--corpus", "neither"])
    assert (result.code, result.out) == (2, "")
    assert ["nowhere" in result.err, "neither" in result.err] == [True, True]
    result = typed(["query", "900 Hz", "--corpus", "silent", "--corpus", "neither"])
    assert (result.code, result.out) == (1, "")


def test_a_damaged_index_is_mended_or_told(there):
    model = FakeRetriever()
    library = open_corpora([there / "a", there / "b"])
    library.update(model)
    for path in (there / "b" / ".diffatr").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damage")
    told = []
    library = open_corpora([there / "a", there / "b"])
    library.update(model, tell=told.append)
    assert len(library.read(model.model_id)) == 11 or told


def test_shown_paths_say_which_folder(there):
    result = typed(["query", "900 Hz", "--corpus", "a", "--corpus", "./b", "--json", "--top", 20])
    paths = [row["path"] for row in json.loads(result.out)["results"]]
    assert sorted(paths) == sorted(
        os.path.relpath(path, there) for path in [*there.glob("a/**/*.wav"), *there.glob("b/**/*.wav")]
    )
    assert "900.wav" in typed(["query", "900 Hz", "--corpus", "a", "--corpus", "b"]).out
    assert typed(["query", "900 Hz", "--corpus", "a", "--corpus", "b", "--copy-to", "b/found"]).code == 2
    assert typed(["query", "900 Hz", "--corpus", "a", "--corpus", "b", "--copy-to", "found", "--top", 3]).code == 0
    assert len(list((there / "found").iterdir())) == 3


def test_several_folders_in_one_place(there):
    result = typed(["query", "900 Hz", "--corpus", "a", "--corpus", "b", "--index", "kept", "--json"])
    assert json.loads(result.out)["index"]["files"] == 11
    assert not list(there.glob("[ab]/.diffatr"))


def test_index_takes_several(there):
    result = typed(["index", "a", "b", "--json"])
    assert [document["corpus"] for document in json.loads(result.out)] == ["a", "b"]
    assert [document["files"] for document in json.loads(result.out)] == [6, 5]
    (there / "silent").mkdir()
    result = typed(["index", "silent", "nowhere", "b", "--json"])
    assert result.code == 1
    assert [document["corpus"] for document in json.loads(result.out)] == ["b"]
    assert ["silent" in result.err, "nowhere" in result.err] == [True, True]
    assert typed(["index", "a", "--json", "--watch"]).code == 2


def test_from_python(there, monkeypatch, caplog):
    monkeypatch.setattr(api, "load_any", lambda *_: FakeRetriever(phase_two=True))
    model = api.load_model()
    found = model.search([there / "a", str(there / "b")], "900 Hz", top=20)
    assert [os.path.relpath(hit.path, there) for hit in found] == [
        hit.path for hit in model.search(there / "both", "900 Hz", top=20)
    ]
    assert [hit.path for hit in model.search([there / "a"], "900 Hz")] == [
        hit.path for hit in model.search(there / "a", "900 Hz")
    ]
    with pytest.raises(UsageError):
        model.search([], "900 Hz")
    assert len(model.search([there / "a", there / "nowhere"], "900 Hz")) == 6
    assert "nowhere" in caplog.text
    with pytest.raises(DiffATRError):
        model.search([there / "neither", there / "nowhere"], "900 Hz")


def test_a_session_of_several_gives_out_what_lies_in_them(there):
    session = SearchSession(FakeRetriever(phase_two=True), open_corpora([there / "a", there / "b"]))
    session.update()
    assert session.status.files == 11
    assert session.title == f"{there / 'a'}, {there / 'b'}"
    from diffatr_cli.corpus.session import key_of

    for hit in session.by_text("900 Hz", 20).hits:
        clip = session.clip(key_of(hit.path))
        assert clip.real.is_file()
        assert any(clip.real.is_relative_to(there / name) for name in "ab")
    report = session.update()
    assert report is not None
    assert (report.files, report.unchanged) == (11, 11)
    assert session.skipped() == []


# A folder below one that is indexed


@pytest.fixture
def indexed(there):
    FolderIndex(there / "both").update(FakeRetriever(phase_two=True))
    return there / "both"


@pytest.mark.parametrize("approximate", [None, True])
def test_a_subfolder_is_searched_through_the_index_above(indexed, approximate):
    if approximate:
        FolderIndex(indexed, approximate=True).update(FakeRetriever())
    alone = hits(FolderIndex(indexed / "a", index=indexed.parent / "elsewhere"), top=20)
    part = through_ancestor(FolderIndex(indexed / "a", approximate=approximate), "model-a", home=indexed.parent / "home")
    assert isinstance(part, Subfolder)
    model = FakeRetriever(phase_two=True)
    found = hits(part, model=model, top=20)
    assert model.embedded == 0
    assert [(hit.rank, hit.path, hit.start, hit.end) for hit in found] == [
        (hit.rank, hit.path, hit.start, hit.end) for hit in alone
    ]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in alone], atol=1e-3)
    assert not (indexed / "a" / ".diffatr").exists()


def test_only_what_lies_below_is_updated(indexed):
    model = FakeRetriever(phase_two=True)
    part = through_ancestor(FolderIndex(indexed / "a"), "model-a")
    report = part.update(model)
    assert (report.files, report.windows, report.unchanged, report.embedded) == (6, 7, 6, 0)
    write_tone(indexed / "a" / "new.wav", 3000, 2)
    write_tone(indexed / "b" / "new.wav", 3300, 2)
    (indexed / "a" / "200.wav").unlink(missing_ok=True)
    removed = next((indexed / "b").glob("*.wav"))
    removed.unlink()
    (indexed / "a" / "bad.wav").write_text("no sound")
    (indexed / "b" / "bad.wav").write_text("no sound")
    report = part.update(model)
    assert (report.embedded, report.newly_skipped, [each.path for each in report.skipped]) == (1, 1, ["bad.wav"])
    assert "new.wav" in part.read("model-a").paths
    whole = FolderIndex(indexed)
    before = whole.read("model-a").paths
    assert "b/new.wav" not in before
    assert os.path.relpath(removed, indexed) in before  # nothing else was looked at
    again = part.update(model)
    assert (again.embedded, again.files) == (0, len(part.read("model-a")))
    report = whole.update(model)
    assert (report.embedded, report.removed) == (1, 1)
    assert "b/new.wav" in whole.read("model-a").paths
    assert part.update(model).embedded == 0


def test_an_update_of_a_part_that_has_nothing_to_do_reads_no_tables(indexed, monkeypatch):
    model = FakeRetriever()
    write_tone(indexed / "b" / "new.wav", 3300, 2)
    part = through_ancestor(FolderIndex(indexed / "a"), "model-a")
    write_tone(indexed / "a" / "new.wav", 3000, 2)
    assert part.update(model).embedded == 1
    monkeypatch.setattr("diffatr_cli.corpus.store.FileTable.mend", lambda *_, **__: pytest.fail("the tables were read"))
    report = part.update(model)
    assert (report.files, report.unchanged) == (7, 7)
    assert part.report("model-a").files == 7


def test_what_counts_as_an_index_above(indexed, tmp_path):
    deep = indexed / "a" / "deep"
    own = FolderIndex(deep)

    def above(folder, model_id="model-a", home=tmp_path / "home"):
        found = through_ancestor(folder, model_id, home)
        return found.whole.corpus if isinstance(found, Subfolder) else None

    assert above(own) == indexed
    assert above(own, "model-b") is None  # of another model
    assert above(FolderIndex(deep, index=tmp_path / "place")) is None  # somebody said where
    assert above(own, home=indexed) is None  # the home folder
    assert above(own, home=indexed / "a") is None  # and what is above it
    FolderIndex(indexed / "a").update(FakeRetriever())
    assert above(own) == indexed / "a"  # the nearest
    hidden = indexed / "a" / ".hidden"
    write_tone(hidden / "x.wav", 500, 2)
    assert above(FolderIndex(hidden)) is None  # a scan from above does not see it
    (tmp_path / "way").symlink_to(deep)
    assert above(FolderIndex(tmp_path / "way")) == indexed / "a"  # by its real place
    own.update(FakeRetriever())
    assert above(own) is None  # its own


def test_nothing_is_looked_for_beyond_a_mount_point(indexed, monkeypatch):
    folder = FolderIndex(indexed / "a" / "deep")
    is_mount = type(indexed).is_mount
    monkeypatch.setattr(type(indexed), "is_mount", lambda path: path == indexed / "a" or is_mount(path))
    assert through_ancestor(folder, "model-a", home=indexed.parent / "home") is folder


def test_a_subfolder_on_the_command_line(indexed):
    result = typed(["query", "900 Hz", "--corpus", "both/a", "--json", "--top", 20])
    assert result.code == 0, result.err
    assert result.err.count("searched through the index of") == 1
    assert str(indexed) in result.err
    paths = [row["path"] for row in json.loads(result.out)["results"]]
    assert sorted(paths) == sorted(os.path.relpath(path, indexed.parent) for path in (indexed / "a").rglob("*.wav"))
    assert not (indexed / "a" / ".diffatr").exists()
    document = json.loads(typed(["index", "both/a", "--json"]).out)
    assert (document["files"], document["index"]) == (6, str(indexed / ".diffatr"))
    result = typed(["query", "900 Hz", "--corpus", "both/a", "--index", "both/a/.diffatr"])
    assert "searched through" not in result.err
    assert (indexed / "a" / ".diffatr").exists()


def test_two_subfolders_of_one_index(indexed):
    told = []
    library = through_ancestors(open_corpora([indexed / "a", indexed / "b"]), "model-a", told.append)
    assert len(told) == 2
    model = FakeRetriever(phase_two=True)
    assert len(hits(library, model=model, top=20)) == 11
    assert model.embedded == 0


def test_a_subfolder_without_a_sound(indexed):
    (indexed / "none").mkdir()
    result = typed(["query", "900 Hz", "--corpus", "both/none"])
    assert (result.code, result.out) == (1, "")
    assert "no sound files" in result.err.splitlines()[-1]


def test_how_old_an_index_is(there):
    document = json.loads(typed(["query", "900 Hz", "--corpus", "a", "--json"]).out)
    again = json.loads(typed(["query", "900 Hz", "--corpus", "a", "--json"]).out)
    assert again["index"] == document["index"]
    from datetime import UTC, datetime

    age = datetime.now(UTC) - datetime.fromisoformat(document["index"]["updated"])
    assert 0 <= age.total_seconds() < 3600
    assert "index:" not in typed(["query", "900 Hz", "--corpus", "a"]).err
    assert "index: 6 files, updated just now\n" in typed(["query", "900 Hz", "--corpus", "a"], terminal=True).err
