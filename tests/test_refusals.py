"""Full disks, folders that can only be read, and places that are taken: one sentence that names the place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from audio_files import sine, table, tone, write

from diffatr_cli.data.folder import prepare_folder
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.data.prepare import claim
from diffatr_cli.errors import DiffATRError

ROOT = Path(__file__).parents[1]


def in_a_mount(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount disks, which are gone afterwards; $D is the command `diffatr prepare`."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no disks can be mounted here")
    script = f'set -e; D="{sys.executable} -m diffatr_cli prepare"; ' + script
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def many_sounds(root: Path, count: int = 40) -> Path:
    for number in range(count):
        write(root / f"{number}.flac", sine(2.0, 44_100, 300 + 10 * number), 44_100)
    table(root / "captions.csv", "file,caption", [[f"{number}.flac", f"tone {number}"] for number in range(count)])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, workers: int) -> None:
    given, disk = many_sounds(tmp_path / "in"), tmp_path / "disk"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=2m tmpfs "$2"; '
        'if $D folder --from "$1" --data "$2" --name set --workers $3; then exit 9; fi; '
        'find "$2/set" -name "*.wav" -not -name ".*" | wc -l; find "$2/set" -name ".*.tmp" | wc -l; '
        'mount -o remount,size=20m "$2"; $D folder --from "$1" --data "$2" --name set --workers $3 --json'
    )
    done = in_a_mount(script, given, disk, str(workers))
    assert done.returncode == 0, done.stderr
    finished, left, told = done.stdout.split("\n", 2)
    report = json.loads(told)
    assert 5 < int(finished) < 17  # of 128 KB each
    assert int(left) == 0
    assert report["kept"] + report["converted"] == 40
    assert report["kept"] == int(finished) if workers == 1 else 0 < report["kept"] <= int(finished)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"diffatr: {disk}/set/")
    assert line.endswith("the disk is full. Free some space and run the command again; nothing else is lost.")


def test_a_disk_that_can_only_be_read(tmp_path: Path) -> None:
    given, disk = many_sounds(tmp_path / "in", 3), tmp_path / "disk"
    prepare_folder(disk / "set", given, workers=1)
    script = (
        'mount --bind "$2" "$2"; mount -o remount,ro,bind "$2"; '
        'for name in set new; do if $D folder --from "$1" --data "$2" --name $name; then exit 9; fi; done; '
        'if $D synthetic --data "$2"; then exit 9; fi'
    )
    done = in_a_mount(script, given, disk)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 3
    for line, name in zip(done.stderr.splitlines(), ("set", "new", "synthetic"), strict=True):
        assert line.startswith(f"diffatr: {disk}/{name}")
        assert line.endswith("that disk can only be read. Name another place.")
    assert len(load_dataset(disk, "set").clips) == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("place", ["mkdir", "journal", "manifest"])
def test_whatever_the_system_refuses_is_one_sentence_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    tone(tmp_path / "in" / "a.wav")
    table(tmp_path / "in" / "c.csv", "file,caption", [["a.wav", "a tone"]])
    owner, name = {
        "mkdir": (Path, "mkdir"),
        "journal": (Path, "open"),
        "manifest": (__import__("pyarrow.parquet").parquet, "write_table"),
    }[place]
    genuine = getattr(owner, name)

    def refuse(*arguments: object, **options: object) -> object:
        path = Path(str(arguments[0] if owner is Path else arguments[1].name))
        if path.is_relative_to(tmp_path / "data") and (place != "journal" or path.name == "prepare.journal"):
            raise OSError(number, os.strerror(number), str(path))
        return genuine(*arguments, **options)

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(DiffATRError) as caught:
        prepare_folder(tmp_path / "data" / "set", tmp_path / "in", workers=1)
    assert str(caught.value).startswith(f"{tmp_path}/data/set")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_place_that_is_taken_costs_its_clip(tmp_path: Path) -> None:
    """By what an earlier table's clips were called, or by somebody else."""
    for name in ("a.wav", "b.wav", "c.wav"):
        tone(tmp_path / "in" / "x" / name)
    rows = [[f"x/{name}", name, "train"] for name in ("a.wav", "b.wav", "c.wav")]
    table(tmp_path / "in" / "c.csv", "file,caption,split", rows)
    out = tmp_path / "data" / "set"
    (out / "train" / "x" / "a.wav" / "deep").mkdir(parents=True)
    report = prepare_folder(out, tmp_path / "in", workers=1)
    assert [skip.reason.split(" (")[0] for skip in report.skipped] == ["cannot be written under its name"]
    assert {clip.captions[0] for clip in load_dataset(tmp_path / "data", "set").clips} == {"b.wav", "c.wav"}
    out = tmp_path / "data" / "other"
    (out / "train").mkdir(parents=True)
    (out / "train" / "x").write_text("a file where a folder should be")
    report = prepare_folder(out, tmp_path / "in", workers=1)
    assert [skip.reason.split(" (")[0] for skip in report.skipped] == ["cannot be written under its name"] * 3


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("diffatr_cli.data.prepare.FileLock.__enter__", refuse)
    with pytest.raises(DiffATRError, match=r"set: that disk has no locks"), claim(tmp_path / "set", "folder"):
        pass
