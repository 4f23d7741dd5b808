"""Manifests and journals that are damaged anyhow: records that are well formed, or an error in words."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from fuzzing import corpus, fuzz

from diffatr_cli.data.earlier import JOURNAL, Earlier
from diffatr_cli.data.manifest import MANIFEST, Record, load_dataset, read_manifest
from diffatr_cli.errors import DiffATRError


def check_manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name, "set").mkdir()
        Path(name, "set", MANIFEST).write_bytes(data)
        with contextlib.suppress(DiffATRError):
            records, info = read_manifest(Path(name, "set"))
            assert isinstance(info, dict)
            assert all(isinstance(record, Record) for record in records)
            for record in records:
                assert all(isinstance(text, str) for text in (record.clip_id, record.split, record.path, *record.captions))
                assert type(record.frames) is type(record.source_size) is type(record.source_mtime_ns) is int
        with contextlib.suppress(DiffATRError):
            assert all(clip.seconds >= 0 for clip in load_dataset(Path(name), "set").clips)
        Earlier(Path(name, "set"))


def check_journal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name, JOURNAL).write_bytes(data)
        earlier = Earlier(Path(name))
        for record in earlier._records.values():
            values = record._asdict()
            assert all(type(values[key]) is int for key in ("frames", "source_size", "source_mtime_ns"))
            assert all(isinstance(values[key], str) for key in ("clip_id", "split", "path", "md5"))
        pending = [record._replace(md5=None, frames=0) for record in earlier._records.values()]
        assert earlier.take_over(pending) == pending  # no files are there


@pytest.mark.parametrize("path", corpus("manifest"), ids=lambda path: path.name)
def test_the_corpus_of_manifests(path: Path) -> None:
    check_manifest(path.read_bytes())


@pytest.mark.parametrize("path", corpus("journal"), ids=lambda path: path.name)
def test_the_corpus_of_journals(path: Path) -> None:
    check_journal(path.read_bytes())


@pytest.mark.slow
def test_fuzz_manifests() -> None:
    fuzz(check_manifest, "manifest", [b"diffatr", b"diffatr_sha256", b"PAR1", b"captions", b"train"])


@pytest.mark.slow
def test_fuzz_journals() -> None:
    fuzz(check_journal, "journal", [b'"frames": ', b'"clip_id": ', b"null", b"1e9", b"[", b"{", b"\n", b'"skipped": "x"'])
