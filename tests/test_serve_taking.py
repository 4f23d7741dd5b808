"""What the page's server gives out, shows in a folder and keeps in collections."""

import csv
import io
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
from fake_retriever import write_tone
from fastapi.testclient import TestClient
from serving import LOCAL, client_of, make_clips, make_session, refusal

from diffatr_cli.corpus.collections import FAVOURITES, Collections, Member
from diffatr_cli.corpus.session import key_of
from diffatr_cli.web import reveal as revealing
from diffatr_cli.web.app import make_app
from diffatr_cli.web.taking import attachment

pytest_plugins = ["serving_fixtures"]
LONG, TONE = key_of("deep/very long.wav"), key_of("900.wav")


@pytest.fixture
def mine(tmp_path):
    """A folder that a test may change, and a client of it."""
    made = make_session(make_clips(tmp_path / "clips"))
    made.update()
    return made, client_of(made)


def kept_as(answer):
    return re.fullmatch(
        r"attachment; filename=\"(.*?)\"; filename\*=UTF-8''(\S*)", answer.headers["content-disposition"]
    ).groups()


def test_a_file_to_keep(client, session):
    answer = client.get(f"/take/{LONG}")
    assert answer.content == (session.corpus / "deep" / "very long.wav").read_bytes()
    assert kept_as(answer) == ("very long.wav", "very%20long.wav")
    assert answer.headers["content-type"] == "audio/wav"


def test_a_part_to_keep(client, session):
    answer = client.get(f"/take/{LONG}?start=70&end=80")
    part, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    original, original_rate = soundfile.read(session.corpus / "deep" / "very long.wav", dtype="int16")
    assert rate == original_rate
    assert np.array_equal(part, original[70 * rate : 80 * rate])
    assert kept_as(answer)[0] == "very long_01m10.0s.wav"
    refusal(client.get(f"/take/{LONG}?start=70&end=700.5"), 400, "Take the whole file")
    refusal(client.get(f"/take/{LONG}?start=70&end=60"), 400, "ends after its start")
    refusal(client.get("/take/0000000000000000"), 404, "no such clip")


def test_a_name_for_every_browser():
    assert attachment('a"b\\c ä\n.wav') == "attachment; filename=\"a_b_c __.wav\"; filename*=UTF-8''a%22b%5Cc%20%C3%A4%0A.wav"


@pytest.mark.parametrize("cut", ["false", "true"])
def test_a_zip_of_a_selection(mine, cut):
    session, client = mine
    (session.corpus / "450.wav").unlink()
    keys = [TONE, key_of("450.wav"), LONG]
    answer = client.get(f"/export.zip?cut={cut}&title=rain&" + "&".join(f"sound={key}-0-1.5" for key in keys))
    assert kept_as(answer)[0] == "rain.zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
        sounds = [name for name in packed.namelist() if name.endswith(".wav")]
        assert len(sounds) == 2
        assert packed.read("rain skipped.txt") == b"450.wav: the file is gone. Refresh the index.\n"
        if cut == "true":
            assert [soundfile.info(io.BytesIO(packed.read(name))).duration for name in sounds] == [1.5, 1.5]
        else:
            assert packed.read("900.wav") == (session.corpus / "900.wav").read_bytes()


def test_lists_of_a_selection_where_it_lies(client, session):
    asked = f"title=rain&sound={TONE}-0-1.5&sound={LONG}-70-80"
    lines = client.get(f"/export.m3u8?{asked}").text.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        str(session.corpus.resolve() / name) for name in ("900.wav", "deep/very long.wav")
    ]
    rows = list(csv.DictReader(io.StringIO(client.get(f"/export.csv?{asked}&query=rain, heavy").text)))
    assert [(row["query"], row["start"]) for row in rows] == [("rain, heavy", "0.0"), ("rain, heavy", "70.0")]
    edl = client.get(f"/export.edl?{asked}").text
    assert "002  VERYLONG AA    C        00:01:10:00 00:01:20:00 01:00:01:13 01:00:11:13" in edl or "01:00:11:12" in edl


@pytest.mark.parametrize("sound", ["", "x", f"{TONE}-0", f"{TONE}-2-1", f"{TONE}-0-1e9", "../900.wav-0-1"])
def test_what_is_no_selection(client, sound):
    refusal(client.get("/export.zip", params={"sound": sound}), 400, "")
    refusal(client.get("/export.zip?" + f"sound={TONE}-0-1&" * 201), 400, "200")


def test_a_link_that_leads_out_since_is_not_taken(mine, tmp_path):
    session, client = mine
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (session.corpus / "900.wav").unlink()
    (session.corpus / "900.wav").symlink_to(tmp_path / "secret.wav")
    refusal(client.get(f"/take/{TONE}"), 403, "link")
    answer = client.get(f"/export.zip?sound={TONE}-0-1")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
        assert not any(name.endswith(".wav") for name in packed.namelist())


# the file manager


def test_only_a_page_for_this_machine_opens_folders(session, monkeypatch):
    shown = []
    monkeypatch.setattr("diffatr_cli.web.taking.reveal", shown.append)
    for options, local in (
        ({"hosts": LOCAL, "token": None}, True),
        ({"hosts": LOCAL, "token": "k" * 20}, False),
        ({"hosts": None, "token": "k" * 20}, False),
        ({"hosts": None, "token": None}, False),
    ):
        client = TestClient(make_app(session, **options), base_url="http://127.0.0.1:8765")
        client.headers["authorization"] = "Bearer " + "k" * 20
        assert client.get("/api/state").json()["local"] is local
        answer = client.post(f"/api/reveal/{TONE}")
        assert answer.status_code == (200 if local else 403)
    assert shown == [session.corpus / "900.wav"]
    refusal(client_of(session).post("/api/reveal/0000000000000000"), 404, "no such clip")
    foreign = {"origin": "http://evil.example"}
    refusal(client_of(session).post(f"/api/reveal/{TONE}", headers=foreign), 403, "Other pages")
    assert client_of(session).get(f"/api/reveal/{TONE}").status_code == 405


def test_the_commands_that_show_a_file(tmp_path):
    path = tmp_path / 'a; rm -rf $HOME `x` "y".wav'
    assert revealing.opener(path, "linux") == ["xdg-open", str(tmp_path)]
    assert revealing.opener(path, "darwin") == ["open", "-R", str(path)]
    assert revealing.opener(tmp_path / "a b.wav", "win32") == f'explorer /select,"{tmp_path / "a b.wav"}"'


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="of xdg-open")
def test_a_file_manager_is_started_without_a_shell(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "xdg-open"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > "{tmp_path}/asked"\nexit $(cat "{tmp_path}/code")\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    folder = tmp_path / "$(touch x); 'y'"
    folder.mkdir()
    (tmp_path / "code").write_text("0")
    revealing.reveal(folder / "a.wav")
    assert (tmp_path / "asked").read_text() == str(folder)
    (tmp_path / "code").write_text("3")
    with pytest.raises(revealing.DiffATRError, match="exit code 3"):
        revealing.reveal(folder / "a.wav")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(revealing.DiffATRError, match="no xdg-open here"):
        revealing.reveal(folder / "a.wav")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    program.write_text("#!/bin/sh\nexec sleep 0.5\n")
    monkeypatch.setattr(revealing, "_PATIENCE", 0.05)
    assert subprocess.run(["true"], check=True)
    revealing.reveal(folder / "a.wav")  # it is the file manager, and stays


# collections


def test_collections_by_the_page(mine):
    session, client = mine
    assert client.get("/api/collections").json() == {"collections": [], "starred": [], "changed": None}
    one, two = f"{TONE}-0-1.5", f"{LONG}-70-80"
    starred = client.post("/api/collections/favourites/add", json={"sounds": [one]}).json()
    assert starred["starred"] == [[TONE, 0.0]]
    made = client.post("/api/collections", json={"name": "Rain", "sounds": [one, two]}).json()
    assert [(each["name"], each["count"]) for each in made["collections"]] == [("Favourites", 1), ("Rain", 2)]
    rain = made["changed"]
    shown = client.get(f"/api/collections/{rain}").json()
    assert [(hit["key"], hit["start"], hit["end"], hit["rank"]) for hit in shown["hits"]] == [
        (TONE, 0, 1.5, 1),
        (LONG, 70, 80, 2),
    ]
    (session.corpus / "900.wav").rename(session.corpus / "renamed.wav")
    (session.corpus / "deep" / "very long.wav").unlink()
    session.update()
    shown = client.get(f"/api/collections/{rain}").json()
    assert [hit["name"] for hit in shown["hits"]] == ["renamed.wav"]
    assert [(each["name"], each["reason"]) for each in shown["missing"]] == [("very long.wav", "not in the folder any more")]
    assert client.get("/api/collections").json()["starred"] == [[key_of("renamed.wav"), 0.0]]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/collections/{rain}/export.zip?cut=true").content)) as packed:
        assert packed.namelist() == ["renamed_00m00.0s.wav", "Rain.csv", "Rain.m3u8", "Rain.edl", "Rain skipped.txt"]
    assert client.get(f"/api/collections/{rain}/export.edl").text.startswith("TITLE: Rain\r\n")
    assert client.post(f"/api/collections/{rain}/rename", json={"name": "Wet"}).json()["collections"][1]["name"] == "Wet"
    gone = [[each["content"], each["start"]] for each in shown["missing"]]
    assert client.post(f"/api/collections/{rain}/remove", json={"members": gone}).json()["collections"][1]["count"] == 1
    assert len(client.post(f"/api/collections/{rain}/delete").json()["collections"]) == 1
    refusal(client.get(f"/api/collections/{rain}"), 400, "no such collection")
    off = client.post("/api/collections/favourites/remove", json={"sounds": [f"{key_of('renamed.wav')}-0-1.5"]}).json()
    assert off["starred"] == []


def test_a_part_of_a_collection_is_in_its_file(mine):
    session, client = mine
    beyond = f"{TONE}-100-200"
    for address, document in (("", {"name": "Rain"}), ("/favourites/add", {})):
        answer = client.post(f"/api/collections{address}", json=document | {"sounds": [beyond]})
        refusal(answer, 400, "900.wav: has 2.0 s of sound, and the part 100-200 is not in it")
    kept = Collections(session.folder)  # what an earlier version took is taken out all the same
    kept.add(FAVOURITES, [Member(session.folder.contents()["900.wav"], "900.wav", 100.0, 200.0)])
    left = client.post("/api/collections/favourites/remove", json={"sounds": [beyond]}).json()
    assert [each["count"] for each in left["collections"]] == [0]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"name": 3}', b'{"name": "a", "sounds": ["x"]}', b'{"name": "\\ud800"}', b'{"name": "' + b"a" * 70_000],
)
def test_what_is_no_collection(mine, content):
    session, client = mine
    refusal(client.post("/api/collections", content=content), 400, "")
    refusal(client.post("/api/collections", content=content, headers={"origin": "http://evil.example"}), 403, "Other pages")
    assert not (session.corpus / ".diffatr" / "collections.json").exists()


def test_a_long_member_comes_whole(mine):
    session, client = mine
    folder = session.folder
    from diffatr_cli.corpus.collections import Collections, Member

    content = folder.contents()["deep/very long.wav"]
    Collections(folder).make("Long", [Member(content, "deep/very long.wav", 0, 601), Member(content, "deep/very long.wav", 1)])
    shown = client.get("/api/collections/Long").json()["hits"]
    assert shown[1]["whole"]
    with zipfile.ZipFile(io.BytesIO(client.get("/api/collections/Long/export.zip?cut=true").content)) as packed:
        assert packed.read("very long.wav") == (session.corpus / "deep" / "very long.wav").read_bytes()


def test_a_worker_that_follows_knows_the_same(tmp_path):
    write_tone(tmp_path / "clips" / "a.wav", 900, 2)
    made = make_session(tmp_path / "clips")
    made.update()
    one, other = client_of(made), client_of(make_session(tmp_path / "clips"))
    one.post("/api/collections", json={"name": "Rain", "sounds": [f"{key_of('a.wav')}-0-1"]})
    assert other.get("/api/collections").json()["collections"][0]["count"] == 1
