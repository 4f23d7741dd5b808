"""What the page of `diffatr serve` has before anything is asked, and how it plays, in a real browser."""

import json

import pytest
from browser import PHONE, WIDE, ask, must_have_browser, names, serve, until
from fake_retriever import FakeRetriever, write_tone
from test_overview import teach

from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import SearchSession

must_have_browser()
pytest_plugins = ["browser_fixtures"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, hz in enumerate((300, 302, 304, 306, 900, 903, 906, 4000, 4010)):
        write_tone(folder / "tones" / f"{hz}.wav", hz, 2, seed=i)
    write_tone(folder / "<b>low<b>.wav", 150, 2)
    write_tone(folder / "deep" / "long.flac", 900, 25)
    model = teach(FakeRetriever(), tmp_path_factory.mktemp("model"), 300, 900, 2000, 4000)
    made = SearchSession(model, FolderIndex(folder))
    made.update()
    return made


def chips(page, part):
    return page.locator(f"#{part}-list button").all_text_contents()


def open_map(page):
    until(page, "state.files > 0")
    page.locator("#map > summary").click()
    page.wait_for_selector("#map-view", timeout=90_000)


def middle(page, name):
    """Where the dot of a file is on the screen."""
    box = page.locator("#map-canvas").bounding_box()
    x, y = page.evaluate(f"onScreen(sounds.dots.find(dot => dot.name === {json.dumps(name)}))")
    return box["x"] + x, box["y"] + y


def test_recent_searches_come_back_with_all_that_was_asked(opened):
    page = opened()
    until(page, "!document.getElementById('browse').hidden")
    assert page.locator("#recent").is_hidden()
    ask(page, "900 Hz length:<5")
    assert page.locator("#browse").is_hidden()
    page.evaluate("before = hits; ask({text: '300 Hz', not: '900 Hz', by: 'sound'})")
    until(page, "hits !== before")
    page.goto(page.url.split("?")[0])
    until(page, "!document.getElementById('recent').hidden")
    assert chips(page, "recent") == ["300 Hz, not 900 Hz by sound", "900 Hz length:<5"]
    page.locator("#recent-list button").first.click()
    until(page, "hits.length > 0")
    assert page.evaluate("[asked.text, asked.not, asked.by]") == ["300 Hz", "900 Hz", "sound"]
    assert "by=sound" in page.url
    page.go_back()
    until(page, "!document.getElementById('browse').hidden")
    for i in range(10):
        page.evaluate(f"keepRecent({{text: '<i>{i}</i> Hz'}})")
    page.evaluate("keepRecent({text: '<i>5</i> Hz'}); showRecent()")
    assert len(chips(page, "recent")) == 8
    assert chips(page, "recent")[:2] == ["<i>5</i> Hz", "<i>9</i> Hz"]
    page.locator("#recent-clear").click()
    assert page.locator("#recent").is_hidden()
    assert page.evaluate("localStorage.getItem(RECENT)") is None
    assert page.evaluate("document.activeElement.id") == "q"


def test_where_the_browser_keeps_nothing_or_nonsense_the_page_works(opened):
    page = opened()
    for there in ("nonsense", '{"a": 1}', '[1, null, {"text": 5}, {"text": "900 Hz", "by": [], "not": {}}]'):
        page.evaluate(f"localStorage.setItem(RECENT, {json.dumps(there)})")
        assert len(page.evaluate("recent()")) == ("900" in there)
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    page.reload()
    until(page, "state.files > 0")
    ask(page, "900 Hz")
    page.go_back()
    until(page, "!document.getElementById('browse').hidden")
    assert page.locator("#recent").is_hidden()


def test_the_kinds_found_are_buttons_that_search(opened):
    page = opened()
    until(page, "!document.getElementById('kinds').hidden")
    assert sorted(chips(page, "kinds")) == ["about 300 4", "about 4000 2", "about 900 4"]
    assert chips(page, "kinds")[-1] == "about 4000 2"
    assert page.locator("#kinds-of").is_hidden()
    page.locator("#kinds-list button", has_text="about 4000").click()
    until(page, "hits.length > 0")
    assert page.locator("#q").input_value() == "4000 Hz"
    assert {"4000.wav", "4010.wav"} == set(names(page)[:2])


def test_a_model_without_kinds_shows_none_and_the_map_all_the_same(opened, session):
    plain = SearchSession(FakeRetriever(), session.folder)
    plain.update()
    server = serve(plain)
    try:
        page = opened(address=server.url)
        until(page, "kinds !== null")
        assert page.locator("#kinds").is_hidden()
        open_map(page)
        page.locator("#map-all > summary").click()
        groups = page.locator("#map-list > li > details > summary").all_text_contents()
        assert groups
        assert all(group.startswith("On the ") for group in groups)
    finally:
        server.stop()


def test_the_map_by_mouse(opened):
    page = opened()
    open_map(page)
    assert page.locator("#map-of").text_content() == "11 different sounds."
    page.mouse.move(*middle(page, "4000.wav"))
    until(page, "pointed?.name === '4000.wav'")
    until(page, "sounding?.hit === pointed && !audio.paused && audio.currentTime > 0.05")
    assert page.locator("#map-name").text_content() == "4000.wav (about 4000) in tones"
    assert page.evaluate("audio.src").endswith("start=0&end=2#t=0")
    page.mouse.move(*middle(page, "<b>low<b>.wav"))
    until(page, "sounding?.hit.name === '<b>low<b>.wav' && !audio.paused")
    box = page.locator("#map-canvas").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] - 5)
    until(page, "audio.paused && pointed === null")
    page.mouse.click(*middle(page, "903.wav"))
    until(page, "picked?.name === '903.wav' && !audio.paused")
    until(page, "document.getElementById('map-toggle').textContent === 'Pause'")
    page.locator("#map-toggle").click()
    until(page, "audio.paused")
    until(page, "document.getElementById('map-toggle').textContent === 'Play'")
    before = page.evaluate("view.zoom")
    page.mouse.move(*middle(page, "903.wav"))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    until(page, f"view.zoom > {before} * 1.5")
    at = page.evaluate("[view.x, view.y]")
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.evaluate("[view.x, view.y]") != at
    page.locator("#map-whole").click()
    assert page.evaluate("[view.x, view.y, view.zoom]") == [0, 0, 1]
    page.locator("#q").fill("anything in:tones")
    page.mouse.click(*middle(page, "903.wav"))
    page.locator("#map-like").click()
    until(page, "hits.length > 0")
    assert page.locator("#verdict h1").text_content() == "More like 903.wav"
    assert page.locator("#q").input_value() == "in:tones"
    assert set(names(page)[:2]) == {"900.wav", "906.wav"}
    assert "<b>low<b>.wav" not in names(page)


def test_what_is_pointed_at_stays_silent_where_somebody_wants_that(opened):
    page = opened()
    open_map(page)
    page.locator("#map-play").uncheck()
    page.mouse.move(*middle(page, "4000.wav"))
    until(page, "pointed?.name === '4000.wav'")
    page.wait_for_timeout(500)
    assert page.evaluate("sounding") is None
    page.reload()
    assert not page.locator("#map-play").is_checked()


def test_the_map_by_keyboard(opened):
    page = opened()
    open_map(page)
    page.locator("#map-view").focus()
    page.keyboard.press("ArrowRight")
    until(page, "pointed !== null && sounding?.hit === pointed && !audio.paused")
    reached = set()
    for key in ["ArrowLeft"] * 6 + ["ArrowUp"] * 6 + ["ArrowRight"] * 6 + ["ArrowDown"] * 6:
        page.keyboard.press(key)
        reached.add(page.evaluate("pointed.name"))
    assert len(reached) > 3
    page.keyboard.press("+")
    assert page.evaluate("view.zoom") == 1.5
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("0")
    assert page.evaluate("[view.x, view.zoom]") == [0, 1]
    page.keyboard.press("Enter")
    until(page, "picked === pointed && sounding?.hit === picked && !audio.paused")
    page.keyboard.press("Escape")
    until(page, "audio.paused")
    name = page.evaluate("picked.name")
    page.keyboard.press("m")
    until(page, "hits.length > 0")
    assert page.locator("#verdict h1").text_content() == f"More like {name}"


def test_by_touch(opened):
    page = opened(viewport=PHONE, has_touch=True, is_mobile=True)
    open_map(page)
    page.locator("#map-view").scroll_into_view_if_needed()
    page.touchscreen.tap(*middle(page, "4000.wav"))
    until(page, "picked !== null && sounding?.hit === picked && !audio.paused")
    assert page.evaluate("kindOf(picked)") == "about 4000"
    page.evaluate("canvas.setPointerCapture = () => {}")  # which takes no pointer that is made up
    event = "{pointerId: id, pointerType: 'touch', clientX: x, clientY: y}"
    pinch = f"([id, type, x, y]) => canvas.dispatchEvent(new PointerEvent(type, {event}))"
    box = page.locator("#map-canvas").bounding_box()
    steps = [(1, "down", 100), (2, "down", 140), (2, "move", 220), (1, "up", 100), (2, "up", 220)]
    for finger, kind, x in steps:
        page.evaluate(pinch, [finger, f"pointer{kind}", box["x"] + x, box["y"] + 100])
    assert page.evaluate("view.zoom") == pytest.approx(3)


def test_the_list_has_all_that_the_map_has(opened):
    page = opened()
    open_map(page)
    page.locator("#map-all > summary").click()
    groups = page.locator("#map-list > li > details > summary")
    assert groups.first.text_content() in ("about 300 4 sounds", "about 900 4 sounds")
    for i in range(groups.count()):
        groups.nth(i).click()
    until(page, "document.querySelectorAll('#map-list .called').length === sounds.dots.length")
    listed = page.locator("#map-list .called bdi").all_text_contents()
    assert sorted(listed) == sorted(page.evaluate("sounds.dots.map(dot => dot.name)"))
    page.locator("#map-list .called", has_text="4010.wav").click()
    until(page, "sounding?.hit.name === '4010.wav' && !audio.paused")
    page.get_by_role("button", name="More like 4010.wav").click()
    until(page, "hits.length > 0")
    assert names(page)[0] == "4000.wav"


def test_a_long_group_comes_in_pieces(opened):
    page = opened()
    open_map(page)
    many = "Array.from({length: 250}, (_, i) => ({...sounds.dots[0], name: `${i}.wav`}))"
    page.evaluate(f"regions = [{{name: 'many', dots: {many}}}]; fillMapList()")
    page.locator("#map-all > summary").click()
    page.locator("#map-list > li > details > summary", has_text="many").click()
    for shown in (100, 200, 250):
        until(page, f"document.querySelectorAll('#map-list .called').length === {shown}")
        if shown < 250:
            page.locator("#map-list button", has_text="Show more").click()
            assert page.evaluate("document.activeElement.textContent") == f"{shown}.wav, play or pause"


def test_what_plays_goes_along_with_the_keys_from_what_was_fetched_before(opened):
    page = opened()
    ask(page, "900 Hz")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert page.evaluate("sounding") is None  # nothing played, and nothing begins to
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    until(page, "!audio.paused && audio.currentTime > 0.05")
    until(page, "standby.get(sourceOf(hits[1]).address)?.readyState === 4")
    page.evaluate("[upcoming = standby.get(sourceOf(hits[1]).address), earlier = audio]")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/clip/" in request.url or "/wav/" in request.url else None)
    page.keyboard.press("j")
    assert page.evaluate("audio === upcoming && sounding.hit === hits[1]")
    assert page.evaluate("[audio.paused, earlier.paused]") == [False, True]
    until(page, "document.querySelector('.chosen .play span').textContent === 'Pause'")
    assert not any(page.evaluate("hits[1].key") in url for url in asked)
    page.keyboard.press("k")
    assert page.evaluate("audio === earlier && !audio.paused")
    page.keyboard.press(" ")
    until(page, "audio.paused")
    page.keyboard.press("j")
    page.wait_for_timeout(200)
    assert page.evaluate("audio.paused")
    assert page.evaluate("standby.size") <= 2


def test_a_loop_has_no_gap(opened):
    page = opened()
    ask(page, "900 Hz")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, "!audio.paused && audio.currentTime > 0.05")
    page.keyboard.press("l")
    until(page, "ring !== null && audio.muted")
    assert page.evaluate("[ring.source.loop, ring.hit === hits[0]]") == [True, True]
    assert page.evaluate("ring.source.buffer.duration - (hits[0].end - hits[0].start)") == pytest.approx(0, abs=0.01)
    source = page.evaluate_handle("ring.source")
    end = page.evaluate("hits[0].end - hits[0].start")
    until(page, f"ring && ring.context.currentTime - ring.began + ring.from > {end} * 1.3")
    assert page.evaluate("source => ring.source === source && audio.muted", source)  # past the end, the same sound still
    assert page.evaluate("!audio.paused")
    page.keyboard.press("s")  # no speed without another pitch there
    assert page.evaluate("[ring, audio.muted, audio.playbackRate]") == [None, False, 0.5]
    for _ in range(5):
        page.keyboard.press("s")
    until(page, "ring !== null && audio.muted")
    page.keyboard.press(" ")
    until(page, "audio.paused && ring === null && !audio.muted")
    page.keyboard.press(" ")
    until(page, "ring !== null && audio.muted")
    page.keyboard.press("l")
    assert page.evaluate("[ring, audio.muted, audio.paused]") == [None, False, False]


def test_filters_in_the_search_field_hold_for_more_like_this_and_for_dropped_sounds(opened, session):
    page = opened()
    ask(page, "900 Hz in:tones")
    page.keyboard.press("ArrowDown")
    page.evaluate("before = hits")
    page.keyboard.press("m")
    until(page, "hits !== before")
    assert page.locator("#q").input_value() == "in:tones"
    assert "long.flac" not in names(page)
    page.evaluate("before = hits")
    page.locator("#file").set_input_files(session.corpus / "tones" / "900.wav")
    until(page, "hits !== before")
    assert len(names(page)) == 9
    assert page.locator("#q").input_value() == "in:tones"
    page.locator("#q").fill("in:nowhere")
    page.locator(".hit .name").first.click()
    page.keyboard.press("m")
    until(page, "document.getElementById('verdict').textContent.includes('No file fits the filters')")
    page.locator("#q").fill("length:x")
    page.locator("#file").set_input_files(session.corpus / "tones" / "900.wav")
    until(page, "!document.getElementById('trouble').hidden")
    assert page.evaluate("input.value.slice(input.selectionStart, input.selectionEnd)") == "x"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_nothing_that_axe_knows_keeps_anybody_out(opened, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}}
    page = opened(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    page.evaluate("keepRecent({text: '900 Hz', not: '300 Hz', by: 'name'})")
    until(page, "state.files > 0")
    page.evaluate("browse()")
    until(page, "!document.getElementById('kinds').hidden")
    open_map(page)
    page.locator("#map-view").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#map-all > summary").click()
    page.locator("#map-list > li > details > summary").first.click()
    found = axe.run(page, options=rules).response
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dots_stand_out_from_the_paper(opened, scheme):
    """WCAG 1.4.11: 3 to 1 at least, for what axe does not see."""
    page = opened(color_scheme=scheme)
    value = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    paper = luminance(page.evaluate(value, "--paper"))
    for name in [*(f"--hue-{i}" for i in range(6)), "--soft", "--accent", "--ink"]:
        low, high = sorted((paper, luminance(page.evaluate(value, name))))
        assert (high + 0.05) / (low + 0.05) >= 3, name
