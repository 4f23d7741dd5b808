"""What goes wrong around an index: with one file, which is that file's alone; with the disk, which is said in one sentence."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_retriever import RATE, FakeRetriever, tone, write_tone

from diffatr_cli.corpus import batches, findings, windows
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
from diffatr_cli.corpus.place import Folder
from diffatr_cli.corpus.report import Damaged
from diffatr_cli.corpus.troubles import troubles
from diffatr_cli.data.audio import AudioError
from diffatr_cli.errors import DiffATRError


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "clips"
    for i in range(6):
        write_tone(root / f"{i}.wav", 200 + 300 * i, 0.5, seed=i)
    return root


def failing(monkeypatch, error):
    """Decoding 3.wav raises `error`; gives the names of the files that are decoded."""
    decoded, real = [], windows.open_sound

    def open_sound(path, **options):
        decoded.append(path.name)
        if path.name == "3.wav":
            raise error
        return real(path, **options)

    monkeypatch.setattr(windows, "open_sound", open_sound)
    return decoded


def test_want_of_memory_is_that_files_reason_for_now(corpus, monkeypatch):
    index, model = FolderIndex(corpus), FakeRetriever()
    with monkeypatch.context() as patch:
        failing(patch, MemoryError())
        report = index.update(model)
    assert [(each.path, each.reason) for each in report.skipped] == [("3.wav", "not enough memory to decode it")]
    assert (report.files, report.newly_skipped) == (5, 1)
    assert index.update(model).embedded == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IndexError("list index out of range\nand more"), "cannot be decoded (IndexError: list index out of range)"),
        (RecursionError(), "cannot be decoded (RecursionError: )"),
        (ValueError("l\udce9.wav is odd"), "cannot be decoded (ValueError: l?.wav is odd)"),
        (AudioError("x", "of no use"), "of no use"),
    ],
)
def test_any_error_of_decoding_is_that_files_reason(corpus, monkeypatch, error, reason):
    index, model = FolderIndex(corpus), FakeRetriever()
    decoded = failing(monkeypatch, error)
    report = index.update(model)
    assert [(each.path, each.reason) for each in report.skipped] == [("3.wav", reason)]
    assert (report.files, report.newly_skipped, sorted(decoded)) == (5, 1, [f"{i}.wav" for i in range(6)])
    report = index.update(model)
    assert (report.unchanged, report.newly_skipped, len(decoded)) == (5, 0, 6)  # remembered


def test_a_file_that_fails_in_its_middle_leaves_nothing(corpus, monkeypatch):
    """Some of its windows are embedded by then, some wait."""
    write_tone(corpus / "3.wav", 1234, 60)
    write_tone(corpus / "5.wav", 4321, 60)
    monkeypatch.setattr(batches, "BATCH", 4)
    real = windows.windows_of

    def windows_of(path, windowing):
        for count, window in enumerate(real(path, windowing)):
            if path.name == "3.wav" and count == 6:
                raise AudioError(path, "damaged further on")
            yield window

    monkeypatch.setattr("diffatr_cli.corpus.examine.windows_of", windows_of)
    index, model = FolderIndex(corpus), FakeRetriever()
    report = index.update(model)
    assert [(each.path, each.reason) for each in report.skipped] == [("3.wav", "damaged further on")]
    assert report.windows == 4 + 11
    recordings = index.read("model-a")
    assert "3.wav" not in recordings.paths
    last = tone(4321, 60)[-10 * RATE :]
    assert abs(recordings.vectors[-1] @ model._embed(last) - 1) < 1e-3


def test_what_is_there_of_a_recording_is_searched_and_what_is_missing_is_remembered(corpus, monkeypatch):
    real = windows.windows_of

    def windows_of(path, windowing):
        yield from real(path, windowing)
        if path.name == "3.wav":
            yield windows.Missing("cut short")

    with monkeypatch.context() as patch:
        patch.setattr("diffatr_cli.corpus.examine.windows_of", windows_of)
        index, model = FolderIndex(corpus), FakeRetriever()
        report = index.update(model)
    assert [(each.path, each.reason) for each in report.partial] == [("3.wav", "cut short")]
    assert (report.files, report.embedded, report.newly_partial, report.skipped) == (6, 6, 1, [])
    shutil.copy(corpus / "3.wav", corpus / "copy.wav")
    report = index.update(model)
    assert [each.path for each in report.partial] == ["3.wav", "copy.wav"]
    assert (report.reused, report.newly_partial) == (1, 1)
    (corpus / "3.wav").unlink()
    (corpus / "copy.wav").rename(corpus / "name.wav")
    for known in (1, 0):
        report = FolderIndex(corpus).update(model)
        assert ([each.path for each in report.partial], report.newly_partial) == (["name.wav"], known)


def test_an_error_of_the_model_is_no_files_reason(corpus):
    class Broken(FakeRetriever):
        def embed_audio(self, waveforms):
            raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        FolderIndex(corpus).update(Broken())


def test_what_is_decoded_ahead_is_counted_in_samples(tmp_path, monkeypatch):
    """Half a minute of silence is a few hundred bytes as FLAC and 4 MB in memory."""
    import soundfile

    for i in range(8):
        soundfile.write(tmp_path / f"{i}.flac", tone(0, 60, seed=i).round(2), RATE)
    made, embedded, most, real = [], [], [], windows.cut

    class Slow(FakeRetriever):
        def embed_audio(self, waveforms):
            embedded.extend(waveforms)
            return super().embed_audio(waveforms)

    def cut(blocks, windowing):
        for window in real(blocks, windowing):
            made.append(window)
            most.append(len(made) - len(embedded))
            yield window

    monkeypatch.setattr(windows, "cut", cut)
    monkeypatch.setattr(findings, "READ_AHEAD", 4 * windows.OURS.length * 4)  # four windows
    monkeypatch.setattr(batches, "BATCH", 1)
    FolderIndex(tmp_path).update(Slow(), workers=3)
    assert len(made) == len(embedded) == 8 * 11
    assert max(most) <= 4 + 3 + 2  # those that may wait, one in the hands of each worker, and one on its way to the model


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            RuntimeError("lance error: LanceError(IO): Generic LocalFileSystem error: x (os error 28), /a.rs:1"),
            CannotUpdate,
            "disk is full",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), CannotUpdate, "disk is full"),
        (RuntimeError("lance error: No space left on device"), CannotUpdate, "disk is full"),
        (OSError("LanceError(IO): Disk quota exceeded (os error 122)"), CannotUpdate, "disk is full"),
        (RuntimeError("lance error: Permission denied (os error 13)"), CannotUpdate, r"Permission denied\).*--index DIR"),
        (PermissionError(errno.EACCES, "Permission denied"), CannotUpdate, "--index DIR"),
        (RuntimeError("lance error: x (os error 30)"), CannotUpdate, r"Read-only file system\).*--index DIR"),
        (OSError(errno.EMFILE, "Too many open files"), CannotUpdate, "Too many open files"),
        (MemoryError(), CannotUpdate, "Cannot allocate memory"),
        (RuntimeError("lance error: Not found: /x/data/y.lance (os error 2)"), Damaged, "diffatr index"),
        (ValueError("LanceError(IO): failed to decode Protobuf message: invalid wire type"), Damaged, "diffatr index"),
    ],
)
def test_troubles_of_the_system_are_told_from_damage_and_in_plain_words(tmp_path, error, kind, words):
    with pytest.raises(DiffATRError, match=words) as failure, troubles(Folder(tmp_path)):
        raise error
    assert type(failure.value) is kind
    assert str(failure.value).startswith(f"{tmp_path}: ")
    assert not any(word in str(failure.value).lower() for word in ("lance", "os error", ".rs", "errno", "\n"))


def in_a_namespace(script, *arguments):
    """Run a shell script that may mount; skip the test where that is not allowed."""
    if os.name == "nt" or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])}
    command = ["unshare", "-rm", "sh", "-ec", script, "sh", sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "mount:" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


FULL = """
import subprocess, sys
from pathlib import Path
from fake_retriever import FakeRetriever
from diffatr_cli.corpus import commits
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
commits._COMMIT_SECONDS = 0.0
disk, corpus = map(Path, sys.argv[1:])
model, searchable = FakeRetriever(), []
for size in range(8, 400, 12):
    subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
    index = FolderIndex(corpus, disk / "index")
    try:
        index.update(model)
    except CannotUpdate as error:
        print(error)
    else:
        print("done", len(index.read("model-a")), model.embedded)
        break
    searchable.append(len(index.read("model-a")))
assert searchable == sorted(searchable), searchable
"""


def test_a_disk_that_is_full_again_and_again(corpus, tmp_path):
    (tmp_path / "disk").mkdir()
    lines = in_a_namespace('mount -t tmpfs -o size=8k none "$3"; "$1" -c "$2" "$3" "$4"', FULL, tmp_path / "disk", corpus)
    sentence = (
        f"{tmp_path / 'disk' / 'index'}: the disk is full. Free some space and run the command again; what is indexed is kept."
    )
    assert len(lines) > 3
    assert set(lines[:-1]) == {sentence}
    done, files, embedded = lines[-1].split()
    assert (done, files) == ("done", "6")
    assert int(embedded) < 6 * (len(lines) - 1)  # what was committed was not embedded again


READ_ONLY = """
import sys
from pathlib import Path
from fake_retriever import FakeRetriever
from diffatr_cli.corpus.index import CannotUpdate, FolderIndex
index = FolderIndex(Path(sys.argv[1]))
print(index.update(FakeRetriever()).unchanged)
try:
    FolderIndex(Path(sys.argv[2])).update(FakeRetriever())
except CannotUpdate as error:
    print(error)
print(len(FolderIndex(Path(sys.argv[2])).read("model-a")))
"""


@pytest.mark.parametrize("had_an_index", [True, False])
def test_a_folder_on_a_disk_that_can_only_be_read(corpus, tmp_path, had_an_index):
    other = tmp_path / "other"
    write_tone(other / "a.wav", 500, 1)
    if had_an_index:
        FolderIndex(other).update(FakeRetriever())
        write_tone(other / "b.wav", 900, 1)
    FolderIndex(corpus).update(FakeRetriever())
    script = 'for d in "$3" "$4"; do mount --bind "$d" "$d"; mount -o remount,bind,ro "$d"; done; "$1" -c "$2" "$3" "$4"'
    lines = in_a_namespace(script, READ_ONLY, corpus, other)
    why = "the index cannot be read and written there (Read-only file system). Name a place for it: --index DIR"
    refusal = f"{other / '.diffatr'}: {why}"
    assert lines == ["6", refusal, "1" if had_an_index else "0"]
