"""What a service tells of itself: /health and /metrics, in one process."""

import collections

import pytest
from fake_retriever import tone
from serving import client_of, refusal, wav_bytes

from diffatr_cli.corpus.session import key_of
from diffatr_cli.corpus.stopwatch import measured, stage
from diffatr_cli.web import metrics as module
from diffatr_cli.web.metrics import Metrics

pytest_plugins = ["serving_fixtures"]
KEY = "k" * 20


def samples(client, **options):
    """Every sample of /metrics, read by the parser of the library that others read it with."""
    parser = pytest.importorskip("prometheus_client.parser", reason="the extra `service` is not installed")
    answer = client.get("/metrics", **options)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in parser.text_string_to_metric_families(answer.text):
        for each in family.samples:
            found[each.name, *sorted(each.labels.items())] = each.value
    return found


def requests(found):
    """(method, route, status) -> how many."""
    counted = collections.Counter()
    for (name, *labels), value in found.items():
        if name == "diffatr_http_requests_total":
            by = dict(labels)
            counted[by["method"], by["route"], by["status"]] = int(value)
    return counted


def test_metrics_count_what_was_sent(session, monkeypatch):
    client = client_of(session)
    sent = collections.Counter()

    def send(method, address, route, **options):
        answer = client.request(method, address, **options)
        sent[method, route, str(answer.status_code)] += 1

    for _ in range(3):
        send("GET", "/api/search?q=900+Hz", "/api/search")
    send("GET", "/api/search?q=!!", "/api/search")
    send("GET", "/api/search", "/api/search")
    send("GET", f"/api/like/{key_of('900.wav')}", "/api/like/{key}")
    send("POST", "/api/sound", "/api/sound", content=wav_bytes(tone(900, 0.5)))
    send("POST", "/api/sound", "/api/sound", content=b"no sound")
    for name in ("900.wav", "200.wav"):
        send("GET", f"/clip/{key_of(name)}", "/clip/{key}")
    send("GET", "/clip/none", "/clip/{key}")
    send("GET", "/no/such/place", "none")
    send("GET", "/api/state", "none", headers={"Host": "evil.example"})
    send("BREW", "/", "none")
    monkeypatch.setattr(session, "by_text", lambda *_: 1 / 0)
    send("GET", "/api/search?q=900+Hz", "/api/search")
    found = samples(client)
    got = requests(found)
    brewed = [key for key in got if key[0] == "other"]  # any word may be a method: they share one row
    assert [got.pop(key) for key in brewed] == [1]
    sent = collections.Counter({key: count for key, count in sent.items() if key[0] != "BREW"})
    assert got == sent
    for (name, *labels), value in found.items():
        if name == "diffatr_http_request_seconds_count":
            route = dict(labels)["route"]
            if route not in ("none", "/"):
                assert value == sum(count for key, count in sent.items() if key[1] == route), route
    assert found["diffatr_errors_total", ("type", "ZeroDivisionError")] == 1
    searches = 3 + 1 + 1  # that came to an end
    for name in ("whole", "wait", "cosine"):
        assert found["diffatr_search_seconds_count", ("stage", name)] == searches, name
    assert found["diffatr_search_seconds_count", ("stage", "embed")] == searches - 1  # of a clip of the index it is known
    assert found["diffatr_search_seconds_count", ("stage", "diffusion")] == 3
    parts = sum(found["diffatr_search_seconds_sum", ("stage", name)] for name in ("wait", "embed", "cosine", "diffusion"))
    assert 0 < parts <= found["diffatr_search_seconds_sum", ("stage", "whole")]


def test_metrics_tell_of_the_index(session):
    found = samples(client_of(session))
    status = session.status
    assert found["diffatr_index_files",] == status.files == 7
    assert found["diffatr_index_windows",] == status.windows
    assert found["diffatr_index_updating",] == found["diffatr_index_problem",] == 0
    assert found["diffatr_uptime_seconds",] >= 0
    assert found["diffatr_index_age_seconds",] >= 0
    (build,) = [dict(labels) for name, *labels in found if name == "diffatr_build_info"]
    assert (build["model"], build["index"]) == (session.model.model_id, session.version[0])


def test_an_answer_that_breaks_off_is_counted_too(session, monkeypatch):
    async def broken(path, first, stop):
        yield b"x"
        raise OSError("the disk is gone")

    monkeypatch.setattr("diffatr_cli.web.ranges._pieces", broken)
    client = client_of(session)
    with pytest.raises(OSError, match="the disk is gone"):
        client.get(f"/clip/{key_of('900.wav')}")
    found = samples(client)
    assert requests(found)["GET", "/clip/{key}", "200"] == 1
    assert found["diffatr_errors_total", ("type", "OSError")] == 1


def test_without_the_extra_the_page_serves_and_says_what_is_missing(session, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    client = client_of(session)
    assert client.get("/api/search?q=900+Hz").status_code == 200
    refusal(client.get("/metrics"), 501, "pip install 'diffatr[service]'")
    assert type(module.make_metrics()) is Metrics


def test_health(session, own):
    document = client_of(session).get("/health").json()
    assert document["ok"] is True
    assert (document["files"], document["windows"]) == (session.status.files, session.status.windows)
    assert (document["worker"], document["workers"], document["problem"]) == (0, 1, None)
    assert document["model"] == {"name": "fake", "id": "model-a"}
    assert document["index"]["version"] == session.version[0]
    answer = client_of(own).get("/health")  # nothing is searched, and nobody works on it
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    own.update()
    assert client_of(own).get("/health").status_code == 200


def test_the_version_changes_with_what_the_index_holds(own, tmp_path):
    versions = [own.version]
    own.update()
    versions.append(own.version)
    own.update()
    assert own.version == versions[-1]
    (tmp_path / "clips" / "900.wav").rename(tmp_path / "clips" / "901.wav")
    own.update()
    versions.append(own.version)
    assert len({version for version, _ in versions}) == 3
    assert versions == sorted(versions, key=lambda each: each[1])


def test_without_the_key_health_says_only_whether_it_is_well(session):
    client = client_of(session, hosts=None, token=KEY)
    assert client.get("/health").json() == {"ok": True}
    refusal(client.get("/metrics"), 401, "needs its key")
    refusal(client.post("/health"), 401, "needs its key")
    refusal(client.get("/health", headers={"Origin": "http://evil.example"}), 403, "Other pages")
    with_key = {"Authorization": f"Bearer {KEY}"}
    assert client.get("/health", headers=with_key).json()["files"] == session.status.files
    assert client.get("/api/search?q=900+Hz", headers=with_key).status_code == 200
    assert samples(client, headers=with_key)["diffatr_index_files",] == 7
    for wrong in (f"Bearer {KEY}x", "Bearer ", "Bearer", f"Basic {KEY}", KEY, ""):
        refusal(client.get("/metrics", headers={"Authorization": wrong}), 401, "needs its key")


@pytest.mark.parametrize("address", ["/metrics", "/health"])
def test_no_other_page_gets_at_them(client, address):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Host": "evil.example"},
    ):
        assert client.get(address, headers=headers).status_code == 403


def test_stages_add_up_and_are_measured_only_where_somebody_asks():
    @stage("embed")
    def work():
        with stage("wait"):
            pass

    work()
    with measured() as seconds:
        work()
        once = dict(seconds)
        work()
        with measured() as inner:
            pass
        with stage("cosine"):
            pass
    assert inner == {}
    assert set(seconds) == {"embed", "wait", "cosine"}
    assert seconds["embed"] > once["embed"] >= once["wait"] > 0
