"""A session to search, and a client that asks it; test files take these in by `pytest_plugins`."""

import tempfile

import pytest
from fake_retriever import write_tone
from serving import client_of, make_clips, make_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A folder that tests only read."""
    made = make_session(make_clips(tmp_path_factory.mktemp("clips")))
    made.update()
    return made


@pytest.fixture(scope="module")
def client(session):
    return client_of(session)


@pytest.fixture
def own(tmp_path):
    """A small folder of one's own, not indexed yet."""
    for hz in (200, 900):
        write_tone(tmp_path / "clips" / f"{hz}.wav", hz, 2)
    return make_session(tmp_path / "clips")


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"
