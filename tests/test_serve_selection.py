"""Choosing several sounds on the page, getting them out, and collections, in a real browser."""

import io
import json
import re
import zipfile

import pytest
import soundfile
from browser import PHONE, WIDE, ask, dragged, heard, must_have_browser, names, saved, serve, until
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import SearchSession

must_have_browser()
pytest_plugins = ["browser_fixtures"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, hz in enumerate(range(300, 4200, 300)):
        write_tone(folder / "tones" / f"{hz}.wav", hz, 12, seed=i)
    write_tone(folder / "<b>ä: 1.wav", 5500, 2)
    made = SearchSession(FakeRetriever(phase_two=True), FolderIndex(folder))
    made.update()
    return made


@pytest.fixture
def page(opened, session):
    (session.corpus / ".diffatr" / "collections.json").unlink(missing_ok=True)
    made = opened("?q=900+Hz", accept_downloads=True)
    made.wait_for_selector(".hit.chosen")
    made.evaluate("document.activeElement.blur(), choose(0)")
    return made


def chosen(page):
    """The places of what is selected, as people see it and as a screen reader hears it."""
    seen = page.evaluate("hits.map((hit, i) => hit.parts.article.classList.contains('selected') ? i : -1).filter(i => i >= 0)")
    heard = [i for i, each in enumerate(page.locator(".hit").all()) if each.get_attribute("aria-selected") == "true"]
    assert seen == heard
    assert page.locator("#bar").is_visible() == bool(seen)
    if seen:
        assert page.locator("#bar-count").text_content() == f"{len(seen)} chosen"
    return seen


def at(page):
    assert page.evaluate("document.activeElement === hits[chosen].parts.article")
    return page.evaluate("chosen")


def test_choosing_by_keyboard_as_in_a_file_manager(page):
    press = page.keyboard.press
    assert chosen(page) == []
    for key, selected, place in (
        ("Shift+ArrowDown", [0, 1], 1),
        ("Shift+ArrowDown", [0, 1, 2], 2),
        ("Shift+ArrowUp", [0, 1], 1),
        ("Control+ArrowDown", [0, 1], 2),
        ("Control+ArrowDown", [0, 1], 3),
        ("Control+Space", [0, 1, 3], 3),
        ("Shift+ArrowDown", [3, 4], 4),
        ("x", [3], 4),
        ("ArrowDown", [], 5),
        ("Shift+ArrowUp", [4, 5], 4),
        ("j", [], 5),
        ("Shift+Home", [0, 1, 2, 3, 4, 5], 0),
        ("Escape", [], 0),
        ("Control+a", list(range(10)), 0),
        ("Escape", [], 0),
        ("x", [0], 0),
    ):
        press(key)
        assert (key, chosen(page), at(page)) == (key, selected, place)
    assert page.locator("#said").text_content() == "1 sound chosen."
    press(" ")  # plays, as before
    until(page, "!audio.paused")
    press("Escape")
    until(page, "audio.paused")
    assert chosen(page) == []
    press("/")
    press("Control+a")  # is of the text there
    assert chosen(page) == []


def test_choosing_by_mouse(page):
    name = page.locator(".hit .name")
    name.nth(1).click()
    name.nth(3).click(modifiers=["Shift"])
    assert chosen(page) == [1, 2, 3]
    name.nth(6).click(modifiers=["ControlOrMeta"])
    name.nth(2).click(modifiers=["ControlOrMeta"])
    assert chosen(page) == [1, 3, 6]
    page.locator(".hit .sound").nth(5).click()  # to hear one leaves chosen what is
    assert chosen(page) == [1, 3, 6]
    name.nth(4).click()
    assert chosen(page) == []


def test_more_of_a_list_leaves_chosen_what_is_and_a_new_one_does_not(page):
    page.keyboard.press("Shift+ArrowDown")
    page.locator("#more").click()
    until(page, "hits.length === 14")
    assert chosen(page) == [0, 1]
    ask(page, "300 Hz")
    assert chosen(page) == []


def test_downloads_by_key_and_by_link(page, session):
    name = names(page)[0]
    original = (session.corpus / "tones" / name).read_bytes()
    assert saved(page, lambda: page.keyboard.press("e")) == (name, original)
    assert saved(page, lambda: page.locator(".chosen .file").click()) == (name, original)
    for act in (lambda: page.keyboard.press("w"), lambda: page.locator(".chosen .part").press("Enter")):
        called, part = saved(page, act)
        assert re.fullmatch(rf"{name[:-4]}_00m0[0-2]\.0s\.wav", called)
        assert soundfile.info(io.BytesIO(part)).duration == 10
    page.keyboard.press("Escape")
    page.evaluate("choose(0)")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    for act, cut in (
        (lambda: page.keyboard.press("e"), False),
        (lambda: page.keyboard.press("w"), True),
        (lambda: page.locator("#bar-zip").click(), False),
        (lambda: (page.locator("#cut").check(), page.locator("#bar-zip").click()), True),
    ):
        called, content = saved(page, act)
        assert called == "900 Hz.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            sounds = [each for each in packed.namelist() if each.endswith(".wav")]
            lengths = {soundfile.info(io.BytesIO(packed.read(each))).duration for each in sounds}
        assert len(sounds) == 3
        assert lengths == ({10} if cut else {12})


def test_lists_of_a_selection_are_downloaded(page):  # apart from the others: Chromium asks after ten downloads of one page
    page.evaluate("choose(0)")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    for kind, start in (("m3u8", b"#EXTM3U\n"), ("edl", b"TITLE: 900 Hz\r\n"), ("csv", b"file,query,")):
        called, content = saved(page, page.locator(f"#bar-{kind}").click)
        assert called == f"900 Hz.{kind}"
        assert content.startswith(start)


def test_dragging_into_another_program(page, server, session):
    ask(page, "5500 Hz")
    page.evaluate("choose(hits.findIndex(hit => hit.name.startsWith('<b>')))")
    key = page.evaluate("hits[chosen].key")
    address = f"{server.url}take/{key}"
    # Its form is MIME:NAME:ADDRESS, so no colon may be in the name.
    assert dragged(page, ".chosen .file") == [f"audio/wav:<b>ä_ 1.wav:{address}", address, True, False]
    given, uri, *_ = dragged(page, ".chosen .part")
    assert given == f"audio/wav:<b>ä_ 1 0.00.wav:{uri}"
    assert uri == f"{address}?start=0&end=2"
    answer = page.request.get(uri)
    assert soundfile.info(io.BytesIO(answer.body())).duration == 2
    page.keyboard.press("Control+a")
    given, uri, *_ = dragged(page, ".chosen .file")
    assert given == f"application/zip:5500 Hz.zip:{uri}"
    with zipfile.ZipFile(io.BytesIO(page.request.get(uri).body())) as packed:
        assert len(packed.namelist()) == 13
    assert dragged(page, "#bar-zip")[0].startswith("application/zip:5500 Hz.zip:http")


def test_the_folder_opens_only_from_this_machine(page, opened, session, monkeypatch):
    shown = []
    monkeypatch.setattr("diffatr_cli.web.taking.reveal", shown.append)
    page.keyboard.press("o")
    until(page, "document.querySelector('#said').textContent.startsWith('Shown in its folder')")
    page.locator(".chosen .actions .reveal").click()
    until(page, "document.querySelector('#said').textContent.startsWith('Shown in its folder')")
    assert shown[0] == session.corpus / "tones" / names(page)[0]
    guarded = serve(session, token="k3y")
    try:
        other = opened(address=guarded.url, query="?token=k3y")
        ask(other, "900 Hz")
        other.evaluate("choose(0)")
        assert other.locator(".chosen .actions .reveal").is_hidden()
        count = len(shown)
        other.keyboard.press("o")
        assert other.locator("#trouble").is_hidden()
        assert len(shown) == count
    finally:
        guarded.stop()


def stored(session):
    return json.loads((session.corpus / ".diffatr" / "collections.json").read_text())["collections"]


def test_favourites_and_collections_by_keyboard_alone(page, session):
    press, first = page.keyboard.press, names(page)[0]
    press("f")
    heard(page, f"{first}: favourite.")
    assert page.locator(".chosen .star").get_attribute("aria-pressed") == "true"
    press("Shift+ArrowDown")
    press("f")  # one of the two is none yet: both are now
    heard(page, "2 sounds: favourite.")
    press("a")
    page.wait_for_selector("#collections[open]")
    assert page.locator("#collections-title").text_content() == "Add 2 sounds to"
    page.locator("#collections-name").focus()
    page.keyboard.type("Rain <i>")
    press("Enter")
    heard(page, "2 sounds added to Rain <i>.")
    assert page.locator("#collections").is_hidden()
    assert [(each["name"], len(each["members"])) for each in stored(session)] == [("Favourites", 2), ("Rain <i>", 2)]
    press("Escape")
    press("g")
    page.wait_for_selector("#collections[open]")
    called = page.locator("#collections .called")
    assert called.all_text_contents() == ["Favourites", "Rain <i>"]
    called.nth(1).focus()
    press("Enter")
    page.wait_for_url("**/?collection=*")
    until(page, "hits.length === 2 && asked.collection")
    assert page.locator("#verdict h1").text_content() == "Collection Rain <i>"
    assert page.title() == "Rain <i> · DiffATR"
    assert at(page) == 0
    press("Enter")
    until(page, "!audio.paused")
    press("Escape")
    press("Delete")
    heard(page, "1 sound taken out of Rain <i>.")
    assert page.locator(".hit").count() == 1
    page.reload()
    until(page, "hits.length === 1 && asked.name === 'Rain <i>'")


def test_a_collection_is_renamed_and_deleted_after_a_question(page, session):
    page.keyboard.press("f")
    heard(page, ": favourite.")
    page.locator("#shelf").click()
    page.locator(".renames").click()
    page.locator("#collections li input").fill("Best")
    page.keyboard.press("Enter")
    page.locator("#collections .called", has_text="Best").wait_for()
    page.locator("#collections-name").fill("best")
    page.keyboard.press("Enter")
    page.locator("#collections-trouble", has_text="already").wait_for()
    assert saved(page, page.locator("#collections a", has_text="EDL").click)[0] == "Best.edl"
    page.locator(".deletes").click()
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Enter")
    assert [each["name"] for each in stored(session)] == ["Best"]
    page.locator(".deletes").click()
    page.locator(".sure").click()
    page.locator("#collections-list", has_text="There is none yet.").wait_for()
    assert stored(session) == []
    page.locator("#collections-close").click()
    assert page.locator(".star[aria-pressed=true]").count() == 0


def test_what_is_gone_is_listed_as_missing(page, session):
    name = names(page)[0]
    path = session.corpus / "tones" / name
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("f")
    heard(page, "2 sounds: favourite.")
    content = path.read_bytes()
    path.unlink()
    try:
        session.update()
        page.goto(page.url.partition("?")[0] + "?collection=favourites")
        page.wait_for_selector("#missing")
        assert page.locator("#missing .gone").text_content() == f"tones/{name} (not in the folder any more)"
        assert page.locator(".hit").count() == 1
        page.locator("#missing button").click()
        heard(page, "1 sound taken out of Favourites.")
        assert page.locator("#missing").count() == 0
    finally:
        path.write_bytes(content)
        session.update()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_nothing_that_axe_knows_keeps_anybody_out(opened, session, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}}

    def broken(page):
        found = axe.run(page, options=rules).response
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        return [
            (each["id"], [(node["target"], node["failureSummary"]) for node in each["nodes"]]) for each in found["violations"]
        ]

    (session.corpus / ".diffatr" / "collections.json").unlink(missing_ok=True)
    page = opened("?q=900+Hz", color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    page.wait_for_selector(".hit.chosen")
    page.evaluate("document.activeElement.blur(), choose(0)")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("f")
    heard(page, "favourite.")
    assert broken(page) == []
    page.keyboard.press("a")
    page.wait_for_selector("#collections[open]")
    assert broken(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.wait_for_selector("#collections[open]")
    assert broken(page) == []
    page.locator(".renames").click()
    assert broken(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.locator(".deletes").click()
    assert broken(page) == []
    page.keyboard.press("Escape")
    page.goto(page.url.partition("?")[0] + "?collection=favourites")
    until(page, "hits.length === 2")
    page.evaluate("choose(1)")
    assert broken(page) == []
