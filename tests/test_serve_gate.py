"""Who may ask the page's server, and for what."""

import pytest
from fake_retriever import write_tone
from serving import client_of, make_session, refusal

from diffatr_cli.corpus.session import key_of

pytest_plugins = ["serving_fixtures"]


@pytest.mark.parametrize("address", ["/", "/api/state", "/nowhere", "/clip/0", "/api/search?q=900+Hz"])
def test_every_answer_is_guarded(client, address):
    is_guarded(client.get(address).headers)


def test_so_is_that_to_a_fault(client, session, monkeypatch):
    monkeypatch.setattr(session, "by_text", lambda *_: 1 / 0)
    answer = client.get("/api/search?q=900+Hz")
    assert answer.status_code == 500
    is_guarded(answer.headers)


def is_guarded(headers):
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_only_its_own_name_is_answered_to(client, session):
    for host in ("127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765"):
        assert client.get("/api/state", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example:8765", ""):
        refusal(client.get("/api/state", headers={"Host": host}), 403, "own name only")
    assert client_of(session, hosts=None, token="k").get("/?token=k", headers={"Host": "studio.lan"}).status_code == 200


def test_other_pages_may_not_ask(client):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ):
        refusal(client.post("/api/refresh", headers=headers), 403, "Other pages")
        refusal(client.get(f"/clip/{key_of('900.wav')}", headers=headers), 403, "Other pages")
    assert (
        client.get("/api/state", headers={"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}).status_code == 200
    )
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_a_token_opens_the_page_once_and_a_cookie_from_then_on(session):
    guarded = client_of(session, hosts=None, token="s3cret-ключ".encode().hex())
    token = "s3cret-ключ".encode().hex()
    for address in ("/", "/api/state", f"/clip/{key_of('900.wav')}", "/?token=wrong", "/?token=", f"/api/state?token={token}"):
        answer = guarded.get(address)
        refusal(answer, 401, "needs its key")
        assert "set-cookie" not in answer.headers
        assert "content-security-policy" in answer.headers
    refusal(guarded.get("/", headers={"Cookie": "diffatr-0=x; token=" + token}), 401, "needs its key")
    refusal(guarded.get("/?token=%C3%A4"), 401, "needs its key")
    refusal(guarded.post(f"/?token={token}"), 401, "needs its key")
    opened = guarded.get(f"/?token={token}")
    assert opened.status_code == 200
    cookie = opened.headers["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert cookie.partition("=")[2].startswith(token)
    assert guarded.get("/api/state").status_code == 200  # the client keeps the cookie
    assert guarded.get("/").headers.get("set-cookie") is None


@pytest.mark.parametrize(
    "path",
    [
        "/clip/../secret.txt",
        "/clip/..%2Fsecret.txt",
        "/clip/%2e%2e/%2e%2e/secret.txt",
        "/clip/900.wav",
        "/clip/deep",
        "/clip/",
        "/clip/.diffatr",
        "//etc/passwd",
        "/web/look/page.html",
        "/look/page.css",
        "/spectrogram/..%2Fsecret.txt?start=0&end=1",
        "/wav/%2Fetc%2Fpasswd?start=0&end=1",
        "/api/outline/..%5C..%5Csecret.txt?start=0&end=1",
    ],
)
def test_no_address_spells_a_path(client, session, path):
    (session.corpus.parent / "secret.txt").write_text("secret")
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "secret" not in answer.text.replace("secret.txt", "")


def test_links_are_served_where_the_index_took_them_in(own, tmp_path):
    corpus = tmp_path / "clips"
    write_tone(tmp_path / "elsewhere" / "450.wav", 450, 2)
    (tmp_path / "elsewhere" / "secret.wav").write_text("secret")
    (corpus / "link.wav").symlink_to(tmp_path / "elsewhere" / "450.wav")
    (corpus / "inside.wav").symlink_to(corpus / "200.wav")
    (corpus / "folder").symlink_to(tmp_path / "elsewhere")
    own.update()
    client = client_of(own)
    for name in ("link.wav", "folder/450.wav"):
        assert client.get(f"/clip/{key_of(name)}").content == (tmp_path / "elsewhere" / "450.wav").read_bytes()
    assert client.get(f"/clip/{key_of('inside.wav')}").content == (corpus / "200.wav").read_bytes()
    refusal(client.get(f"/clip/{key_of('folder/secret.wav')}"), 404, "no such clip")  # is no sound, so is not in the index

    for name in ("link.wav", "900.wav"):  # something else in the place of what was indexed
        (corpus / name).unlink()
        (corpus / name).symlink_to(tmp_path / "elsewhere" / "secret.wav")
        for address in ("/clip/{}", "/wav/{}?start=0&end=1", "/spectrogram/{}?start=0&end=1", "/api/outline/{}?start=0&end=1"):
            refusal(client.get(address.format(key_of(name))), 403, "a link leads out of the folder")
    (corpus / "200.wav").unlink()
    refusal(client.get(f"/clip/{key_of('200.wav')}"), 404, "the file is gone")
    refusal(client.get(f"/clip/{key_of('inside.wav')}"), 404, "the file is gone")
    own.update()
    refusal(client.get(f"/clip/{key_of('900.wav')}"), 404, "no such clip")


def test_an_index_of_before_vouches_for_no_link(own, tmp_path):
    write_tone(tmp_path / "450.wav", 450, 2)
    (tmp_path / "clips" / "link.wav").symlink_to(tmp_path / "450.wav")
    own.update()
    again = make_session(tmp_path / "clips")
    again._load(settled=False)  # as at the start, while the update has not seen every file yet
    client = client_of(again)
    assert client.get(f"/clip/{key_of('900.wav')}").status_code == 200
    refusal(client.get(f"/clip/{key_of('link.wav')}"), 403, "a link leads out of the folder")
    again.update()
    assert client.get(f"/clip/{key_of('link.wav')}").status_code == 200
