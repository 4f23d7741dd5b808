"""Disks that are full, places that can only be read, files where folders should be: one sentence that names the place."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audio_files import table, tone
from command_line import typed
from conftest import Workshop
from fake_retriever import FakeRetriever, write_tone
from safetensors.torch import save_file

from diffatr_cli.cli import index, query
from diffatr_cli.data.write_wav import write_wav
from diffatr_cli.errors import DiffATRError
from diffatr_cli.files import replacing, write_text

Commands = Callable[[Path], list[list[str | Path]]]

resource = pytest.importorskip("resource", reason="limits of files are set where there are such")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, no file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own in the memory; skips the test where nobody may mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """A disk without a free byte."""
    with mounted(folder, "size=256k"), (folder / "filling").open("wb", buffering=0) as filling:
        with contextlib.suppress(OSError):
            while filling.write(bytes(4096)):
                pass
        yield


# --- writing one file ------------------------------------------------------------------------------------------------


def write_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=SAMPLES)


SAMPLES = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
WRITERS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save({"x": torch.from_numpy(SAMPLES)}, path),
    "safetensors": lambda path: save_file({"x": torch.from_numpy(SAMPLES)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"x": SAMPLES}), path),
    "numpy": lambda path: write_arrays(path),
    "text": lambda path: path.write_text("x" * 100_000),
    "copy": lambda path: shutil.copy2(__file__, path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("size", [0, 5000])
def test_whoever_writes_a_file_that_does_not_fit_the_old_one_stays(tmp_path: Path, writer: str, size: int) -> None:
    path = tmp_path / "file"
    path.write_text("as it was")
    with files_of_at_most(size), pytest.raises(DiffATRError) as failure, replacing(path) as temporary:
        WRITERS[writer](temporary)
    assert str(failure.value).startswith(f"{path}: ")
    assert len(str(failure.value)) < len(str(path)) + 100  # a sentence, and not what the library said
    assert "\n" not in str(failure.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "as it was"


@pytest.mark.parametrize("writer", WRITERS)
def test_on_a_full_disk(tmp_path: Path, writer: str) -> None:
    with full(tmp_path / "disk"):
        path = tmp_path / "disk" / "file"
        with pytest.raises(DiffATRError, match="the disk is full") as failure, replacing(path) as temporary:
            WRITERS[writer](temporary)
        assert str(failure.value).startswith(f"{path}: ")
        assert os.listdir(tmp_path / "disk") == ["filling"]


def test_a_recording_that_does_not_fit(tmp_path: Path) -> None:
    with files_of_at_most(5000), pytest.raises(DiffATRError, match=r"x\.wav: "):
        write_wav(tmp_path / "x.wav", np.zeros(32_000, np.int16))
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_with_another_file_is_not_said_of_this_one(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for path in (tmp_path / "x", missing / "y"):
        with pytest.raises(FileNotFoundError, match="other"), replacing(path):
            (tmp_path / "other").read_bytes()
    with pytest.raises(IsADirectoryError, match="missing"), replacing(tmp_path / "x"):
        missing.read_bytes()
    with pytest.raises(ValueError, match="of its own"), replacing(tmp_path / "x"):
        raise ValueError("of its own")


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, words in (
        (tmp_path / "file" / "x", "a file is where a folder should be"),
        (tmp_path / "file" / "deep" / "x", "a file is where a folder should be"),
        (tmp_path / "folder", "a folder is where a file should be"),
        (tmp_path / ("x" * 255) / ("y" * 256) / "x", "the name is too long"),
    ):
        with pytest.raises(DiffATRError, match=words):
            write_text(path, "x")
    write_text(tmp_path / ("z" * 255), "the longest name that there is")


def test_places_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a patch, because whoever may do everything is refused nothing."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for target, name in ((os, "replace"), (Path, "mkdir"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            with pytest.raises(DiffATRError, match="no permission") as failure:
                write_text(tmp_path / "x", "x")
        assert str(failure.value).startswith(f"{tmp_path / 'x'}: ")
        assert not list(tmp_path.iterdir())


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(workshop: Workshop, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Every command that writes, given where it is to write."""
    for command in (query, index):
        monkeypatch.setattr(command, "load_model", lambda *_: FakeRetriever(phase_two=True))
    write_tone(tmp_path / "clips" / "900.wav", 900, 2)
    tone(tmp_path / "in" / "good.wav")
    table(tmp_path / "in" / "captions.csv", "file,caption,split", [["good.wav", "x", "train"]])
    np.save(tmp_path / "vector.npy", np.ones((1, 100), np.float32))
    runs = tmp_path / "runs"
    shutil.copytree(trained / "pretrain", runs / "tiny" / "seed-0" / "pretrain")
    typed(["index", tmp_path / "clips"])

    def of(place: Path) -> list[list[str | Path]]:
        vectors = ["--audio", tmp_path / "vector.npy", "--text", tmp_path / "vector.npy"]
        few = ["pretrain.epochs=1", "--data", workshop.data, "--seed", "1"]
        return [
            ["prepare", "synthetic", "--train=1", "--val=1", "--test=1", "--data", place],
            ["prepare", "folder", "--from", tmp_path / "in", "--data", place],
            ["prepare", "features", *vectors, "--captions", tmp_path / "in" / "captions.csv", "--data", place],
            ["pretrain", workshop.recipe_file, *few, "--runs", place],
            ["index", tmp_path / "clips", "--index", place / "index"],
            ["query", "900 Hz", "--corpus", tmp_path / "clips", "--index", place / "index"],
            ["query", "900 Hz", "--corpus", tmp_path / "clips", "--copy-to", place / "found"],
            ["demo", "--data", place, "--runs", tmp_path / "demo-runs"],
        ]

    return of


def check(place: Path, arguments: list[str | Path]) -> None:
    result = typed(arguments)
    # A folder to copy into is made, but not the one that it is to lie in.
    misspelt = "--copy-to" in arguments and not Path(arguments[-1]).parent.is_dir()
    assert result.code == (2 if misspelt else 1), (arguments, result)
    lines = [line for line in result.err.splitlines() if not line.startswith(("files: ", "This model has no calibration"))]
    assert len(lines) == 1, (arguments, result)
    assert str(place) in lines[0], (arguments, result)
    assert "unexpected" not in lines[0]
    assert "Errno" not in lines[0]


def test_commands_whose_files_do_not_fit(commands: Commands, tmp_path: Path) -> None:
    for number, arguments in enumerate(commands(tmp_path / "place")):
        with files_of_at_most(300):
            check(tmp_path / "place", arguments)
        assert not list((tmp_path / "place").rglob("*.tmp")), number


def test_commands_on_a_full_disk(commands: Commands, tmp_path: Path) -> None:
    with full(tmp_path / "place"):
        for arguments in commands(tmp_path / "place"):
            check(tmp_path / "place", arguments)


def test_commands_on_a_disk_that_can_only_be_read(commands: Commands, tmp_path: Path) -> None:
    with mounted(tmp_path / "place", "ro"):
        for arguments in commands(tmp_path / "place" / "below"):
            check(tmp_path / "place", arguments)


def test_commands_that_find_a_file_where_a_folder_should_be(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "place").touch()
    for arguments in commands(tmp_path / "place" / "below"):
        check(tmp_path / "place", arguments)


def test_phase_two_and_its_views_on_a_full_disk(workshop: Workshop, trained: Path, tmp_path: Path) -> None:
    """Both need what phase one left there, so the disk fills up only now."""
    place = tmp_path / "place"
    with mounted(place, "size=32m"):
        shutil.copytree(trained / "pretrain", place / "tiny" / "seed-0" / "pretrain")
        with contextlib.suppress(OSError), (place / "filling").open("wb", buffering=0) as filling:
            while filling.write(bytes(4096)):
                pass
        check(place, ["train-diffusion", workshop.recipe_file, "--data", workshop.data, "--runs", place])
