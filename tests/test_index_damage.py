"""Damage in an index: noticed, mended by the next update, and never an answer that a whole index would not give."""

import os
import random
import shutil

import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus import store, update
from diffatr_cli.corpus.index import FolderIndex


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A folder with an index that has seen changes, so that its tables have pieces, deletions and earlier versions."""
    corpus = tmp_path_factory.mktemp("used") / "clips"
    for i in range(16):
        write_tone(corpus / f"{i:02d}.wav", 150 + 97 * i, 12 if i % 6 == 0 else 0.3, seed=i)
    (corpus / "bad.wav").write_text("no sound")
    index, model = FolderIndex(corpus), FakeRetriever()
    index.update(model)
    (corpus / "03.wav").unlink()
    write_tone(corpus / "07.wav", 999, 11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._Table, "tidy", lambda self: None)
        index.update(model)
    return corpus


@pytest.fixture
def corpus(used, tmp_path):
    return shutil.copytree(used, tmp_path / "clips")


def answers(index, model_id="model-a"):
    recordings = index.read(model_id)
    return {
        path: [
            (*recordings.spans[row], *recordings.vectors[row]) for row in range(len(recordings.vectors))[recordings.rows_of(i)]
        ]
        for i, path in enumerate(recordings.paths)
    }


def of_a_fresh_index(corpus, folder):
    index = FolderIndex(corpus, folder)
    index.update(FakeRetriever())
    return answers(index)


def files_of(index):
    return sorted(path for path in index.folder.rglob("*") if path.is_file() and path.stat().st_size)


def rewrite(path, content, *, keep_time):
    times = path.stat()
    path.write_bytes(content)
    if keep_time:  # as bits flip on a disk
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(path, rng, bits=1, *, keep_time=False):
    content = bytearray(path.read_bytes())
    for _ in range(bits):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    rewrite(path, content, keep_time=keep_time)


def harm(path, rng):
    """Damage one file in one of the ways in which disks, copies and people do."""
    way = rng.choice(["flip", "flip", "flip", "flips", "cut", "zeros", "garbage", "delete"])
    keep_time = rng.random() < 0.5
    size = path.stat().st_size
    if way == "delete":
        path.unlink()
    elif way in ("flip", "flips"):
        flip(path, rng, 1 if way == "flip" else 20, keep_time=keep_time)
    else:
        content = path.read_bytes()
        at = rng.randrange(size)
        new = {"cut": content[:at], "zeros": content[:at] + bytes(size - at), "garbage": content[:at] + rng.randbytes(size - at)}
        rewrite(path, new[way], keep_time=keep_time)


def check_damage(used, work, seed):
    """Harm an index in some places, change the folder or not, and update: the answers are those of a fresh index."""
    rng = random.Random(seed)
    corpus = shutil.copytree(used, work / "clips")
    index = FolderIndex(corpus)
    victims = files_of(index)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        victim = rng.choice(victims)
        if victim.exists() and victim.stat().st_size:
            harm(victim, rng)
    if rng.random() < 0.5:
        write_tone(corpus / "05.wav", 2000, 0.4)
    if rng.random() < 0.3:
        (corpus / "01.wav").unlink()
    if rng.random() < 0.3:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(update, "_COMMIT_SECONDS", 0.0)
            index.update(FakeRetriever())
    else:
        index.update(FakeRetriever())
    want = of_a_fresh_index(corpus, work / "fresh")
    assert answers(index) == want
    again = index.update(FakeRetriever())
    assert (again.embedded, again.reused, again.repaired) == (0, 0, 0)
    assert answers(FolderIndex(corpus)) == want


@pytest.mark.parametrize("seed", range(12))
def test_after_any_damage_an_update_gives_the_answers_of_a_fresh_index(used, tmp_path, seed):
    check_damage(used, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 2500))
def test_after_any_damage_an_update_gives_the_answers_of_a_fresh_index_many_times(used, tmp_path, seed):
    check_damage(used, tmp_path, seed)
