"""New names: legal and free, never over another file, in a log before they are given, and undone from it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus.names import Pattern, Rename, legal, plan_renames
from diffatr_cli.corpus.renaming import apply_renames, rename_to_new, undo_renames
from diffatr_cli.errors import DiffATRError, UsageError

ROOT = Path(__file__).parents[1]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.wav"))}


@pytest.fixture
def clips(tmp_path):
    for name in ("a.wav", "b.wav", "sub/a.wav", "dog_x.wav"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_text(name)
    return tmp_path / "clips"


def test_patterns():
    pattern = Pattern("{CatID}_{Label}-{stem}{{}}", ["label", "catid"])
    assert pattern.stem("old", {"label": "dog", "catid": "ANMLDog"}) == "ANMLDog_dog-old{}"
    assert Pattern("{label}_{stem}", ["label"]).stem("dog_old", {"label": "dog"}) == "dog_old"  # which says it already
    assert Pattern("{stem}_{label}", ["label"]).stem("old_dog (2)", {"label": "dog"}) == "old_dog (2)"
    for wrong, words in (
        ("{label.__class__}", "is not known here. There are: stem, label"),
        ("{label!r}", "not known"),
        ("{label:>9}", "not known"),
        ("{0}", "not known"),
        ("{}", "not known"),
        ("{label", "braces"),
        ("plain", "no field"),
        ("{label}/{stem}", "stays in its folder"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            Pattern(wrong, ["label"])


@given(st.text(max_size=300))
def test_legal_names_are_legal_everywhere(text):
    name = legal(text)
    assert name
    assert not set(name) & set('<>:"/\\|?*')
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    assert name == name.strip(" .")
    assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", *(f"{d}{i}" for d in ("COM", "LPT") for i in range(10))}
    assert legal(name) == name


def test_taken_names_are_numbered(clips):
    plan = plan_renames(clips, {"a.wav": "DOG_X", "b.wav": "dog_x", "sub/a.wav": "dog_x", "dog_x.wav": "dog_x"})
    assert plan == [
        Rename("a.wav", "DOG_X (2).wav"),
        Rename("b.wav", "dog_x (3).wav"),
        Rename("sub/a.wav", os.path.join("sub", "dog_x.wav")),
    ]
    assert plan_renames(clips, {"a.wav": "A"}) == [Rename("a.wav", "A.wav")]  # the file's own, in another case
    (long,) = plan_renames(clips, {"a.wav": "\N{LATIN SMALL LETTER E WITH ACUTE}" * 300})
    assert len(long.new.encode()) <= 200


@given(st.lists(st.sampled_from(["x", "X", "y", "a", "b (2)", "b", "x (2)"]), min_size=4, max_size=4))
def test_no_name_is_given_twice(tmp_path_factory, stems):
    folder = tmp_path_factory.mktemp("names")
    names = ["a.wav", "b.wav", "x.wav", "x (2).wav"]
    for name in names:
        (folder / name).touch()
    plan = plan_renames(folder, dict(zip(names, stems, strict=True)))
    after = [name for name in names if name not in {each.old for each in plan}] + [each.new for each in plan]
    assert len({name.casefold() for name in after}) == len(names)
    assert all(each.new not in names for each in plan)  # whatever is done first


def test_links_are_left_alone(clips):
    (clips / "link.wav").symlink_to(clips / "b.wav")
    (clips / "elsewhere").symlink_to(clips / "sub", target_is_directory=True)
    wanted = {"link.wav": "x", "b.wav": "y", "elsewhere/a.wav": "z", "dog_x.wav": "w"}
    told = {each.old: each.why_not for each in plan_renames(clips, wanted)}
    assert told == {
        "link.wav": "a link",
        "b.wav": "a link leads to it",
        "elsewhere/a.wav": "in a linked folder",
        "dog_x.wav": None,
    }


def test_nothing_is_renamed_over_another_file(clips, monkeypatch):
    for exclusively in (True, False):  # as a system that can refuse, and as one that cannot
        if not exclusively:
            monkeypatch.setattr("diffatr_cli.corpus.renaming._renamed_exclusively", lambda *_: False)
        with pytest.raises(FileExistsError):
            rename_to_new(clips / "a.wav", clips / "b.wav")
        assert files(clips)["b.wav"] == "b.wav"
        rename_to_new(clips / "a.wav", clips / "new.wav")
        rename_to_new(clips / "new.wav", clips / "a.wav")
        (clips / "dangling").symlink_to(clips / "nothing")
        with pytest.raises(FileExistsError):
            rename_to_new(clips / "a.wav", clips / "dangling")
        (clips / "dangling").unlink()


def test_applied_and_undone(clips, tmp_path):
    before, log = files(clips), tmp_path / "log.jsonl"
    plan = [Rename("a.wav", "x.wav"), Rename("sub/a.wav", "sub/y.wav"), Rename("gone.wav", "z.wav"), Rename("b.wav", "dog_x.wav")]
    outcome = apply_renames(clips, plan, log)
    assert outcome.done == [("a.wav", "x.wav"), ("sub/a.wav", "sub/y.wav")]
    assert [path for path, _ in outcome.failed] == ["gone.wav", "b.wav"]
    assert sorted(files(clips)) == ["b.wav", "dog_x.wav", "sub/y.wav", "x.wav"]
    with pytest.raises(UsageError, match="there already"):
        apply_renames(clips, plan, log)
    moved = clips.rename(tmp_path / "moved")
    with pytest.raises(DiffATRError, match="If it was moved"):
        undo_renames(log)
    folder, outcome = undo_renames(log, moved)
    assert (folder, outcome.failed) == (moved, [])
    assert outcome.done == [("sub/y.wav", "sub/a.wav"), ("x.wav", "a.wav")]
    assert files(moved) == before
    assert undo_renames(log, moved)[1].done == []  # once is enough


def test_what_was_changed_is_not_undone(clips, tmp_path):
    log = tmp_path / "log.jsonl"
    apply_renames(clips, [Rename(name, f"new {name}") for name in ("a.wav", "b.wav", "dog_x.wav")], log)
    (clips / "new a.wav").write_text("another content")
    (clips / "new b.wav").unlink()
    (clips / "dog_x.wav").write_text("in the way")
    _, outcome = undo_renames(log)
    assert outcome.done == []
    assert dict(outcome.failed) == {
        "new a.wav": "it was changed since.",
        "new b.wav": "no longer there.",
        "new dog_x.wav": "dog_x.wav is there already.",
    }
    assert files(clips)["dog_x.wav"] == "in the way"


KILLED = """
import os, signal, sys
from pathlib import Path
from diffatr_cli.corpus import renaming
from diffatr_cli.corpus.names import Rename
folder, log, count, late = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "late"
real, calls = renaming.rename_to_new, 0
def killed(source, target):
    global calls
    calls += 1
    if calls == count and not late:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
renaming.rename_to_new = killed
names = ["a.wav", "b.wav", "dog_x.wav", os.path.join("sub", "a.wav")]
renaming.apply_renames(folder, [Rename(n, str(Path(n).with_name("new " + Path(n).name))) for n in names], log)
"""


@pytest.mark.parametrize(("count", "when"), [(1, "early"), (2, "late"), (4, "early")])
def test_a_kill_leaves_a_log_that_undoes_all(clips, tmp_path, count, when):
    before, log = files(clips), tmp_path / "log.jsonl"
    command = [sys.executable, "-c", KILLED, clips, log, str(count), when]
    code = subprocess.run(list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    assert code == -signal.SIGKILL
    renamed = count if when == "late" else count - 1
    assert sum(Path(name).name.startswith("new ") for name in files(clips)) == renamed
    with log.open("a") as file:
        file.write('{"old": "half')  # a line that was cut off as well
    _, outcome = undo_renames(log)
    assert (len(outcome.done), outcome.failed) == (renamed, [])
    assert files(clips) == before


@pytest.mark.parametrize(
    "lines",
    [
        ["nonsense"],
        [],
        [json.dumps({"format": "other", "folder": "x"})],
        [json.dumps([1])],
    ],
)
def test_no_log(tmp_path, lines):
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DiffATRError, match="is no log"):
        undo_renames(tmp_path / "log", tmp_path)


def test_a_log_renames_nothing_outside_its_folder(clips, tmp_path):
    (tmp_path / "outside.wav").write_text("x")
    stat = (tmp_path / "outside.wav").stat()
    known = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    entries = [
        {"old": "../other.wav", "new": "../outside.wav", **known},
        {"old": str(tmp_path / "o.wav"), "new": str(tmp_path / "outside.wav"), **known},
        {"old": "sub/a.wav", "new": "b.wav", **known},
        {"old": "a.wav"},
        7,
    ]
    head = {"format": "diffatr renames", "version": 1, "folder": str(clips)}
    (tmp_path / "log").write_text("".join(json.dumps(each) + "\n" for each in [head, *entries]))
    before = files(tmp_path)
    _, outcome = undo_renames(tmp_path / "log")
    assert (outcome.done, len(outcome.failed)) == ([], len(entries))
    assert files(tmp_path) == before
