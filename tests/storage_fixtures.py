"""Fixtures for indexes in object storage: a server, and a prefix of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_server import BUCKET, StorageServer

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def _server() -> Iterator[StorageServer]:
    pytest.importorskip("moto.server", reason="the S3 server of these tests is not installed: pip install 'diffatr[dev]'")
    server = StorageServer()
    yield server
    server.stop()


@pytest.fixture
def storage(_server: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageServer]:
    """The server, whole; what this process and its children need to reach it is in the environment, and the cache is empty."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (_server.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    yield _server
    _server.mend()


@pytest.fixture
def uri(storage: StorageServer) -> str:
    return f"s3://{BUCKET}/test {next(_NUMBERS)}"
