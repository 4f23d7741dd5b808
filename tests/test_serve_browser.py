"""The page of `diffatr serve` in a real browser, against a real server."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import PHONE, WIDE, ask, must_have_browser, names, place_of, serve, until
from fake_retriever import RATE, FakeRetriever, tone, write_tone

from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.corpus.session import SearchSession

must_have_browser()
pytest_plugins = ["browser_fixtures"]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, hz in enumerate(range(300, 4200, 300)):
        write_tone(folder / "tones" / f"{hz}.wav", hz, 2, seed=i)
    soundfile.write(folder / "long.flac", [*tone(300, 30), *tone(7000, 10), *tone(300, 30)], RATE)
    soundfile.write(folder / "other.aiff", tone(200, 2), RATE)
    write_tone(folder / "<img src=x onerror=alert(1)> with a name far too long for the width of a telephone.wav", 5500, 2)
    made = SearchSession(FakeRetriever(phase_two=True), FolderIndex(folder))
    made.update()
    return made


def test_type_and_see(opened):
    page = opened()
    assert page.locator("#state").text_content() == "16 recordings"
    page.keyboard.type("900 Hz")  # the search box has the focus from the start
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit.chosen")
    assert len(names(page)) == 10
    assert page.title() == "900 Hz · DiffATR"
    assert "10 sounds of 16, best first" in page.locator("#said").text_content()
    assert page.locator(".score").first.text_content().count(".") == 1
    until(page, "document.querySelector('.hit img').naturalWidth > 100 && document.querySelector('.hit .wave-in')")
    page.locator("#more").click()
    until(page, "hits.length === 16")
    assert page.locator("#more").is_hidden()
    ask(page, "7000 Hz")
    hit = page.locator(".hit").nth(place_of(page, "long.flac"))
    assert "of 1:10" in hit.locator(".meta").text_content()
    sound, window = hit.locator(".sound").bounding_box(), hit.locator(".window").bounding_box()
    assert window["width"] == pytest.approx(sound["width"] / 6, rel=0.02)  # 10 of the 60 seconds in view
    page.go_back()
    until(page, "asked?.text === '900 Hz' && hits.length === 10")
    assert page.locator("#q").input_value() == "900 Hz"


def test_by_keyboard_alone(opened, session):
    page = opened()
    press = page.keyboard.press
    press("?")  # is only a letter while one writes
    assert page.locator("#q").input_value() == "?"
    press("Backspace")
    page.keyboard.type("1500 Hz")
    press("Enter")
    page.wait_for_selector(".hit.chosen")
    assert page.evaluate("document.activeElement.id") == "q"
    press("ArrowDown")
    assert page.evaluate("[chosen, document.activeElement === hits[0].parts.article]") == [0, True]
    ring = page.evaluate("(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))")
    assert ring[0] == "solid"
    assert ring[1] >= 2
    for key, place in (("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("End", 9), ("Home", 0), ("j", 1)):
        press(key)
        assert page.evaluate("[chosen, document.activeElement === hits[chosen].parts.article]") == [place, True]
    assert page.locator("[aria-current]").count() == 1
    press("Enter")
    until(page, "!audio.paused && audio.currentTime > 0.05")
    assert page.locator(".chosen .play span").text_content() == "Pause"
    press(" ")
    until(page, "audio.paused")
    press("c")
    until(page, "document.querySelector('.chosen .copy span').textContent === 'Copied'")
    path = page.evaluate("hits[1].path")
    assert page.evaluate("navigator.clipboard.readText()") == path
    assert Path(path).is_file()
    assert Path(path).is_relative_to(session.corpus)
    assert "Copied" in page.locator("#said").text_content()
    liked = names(page)[1]
    page.evaluate("before = hits")
    press("m")
    until(page, "hits !== before")
    assert page.locator("#verdict").text_content() == f"More like {liked}"
    assert liked not in names(page)
    assert page.evaluate("[chosen, document.activeElement === hits[0].parts.article]") == [0, True]
    press("?")
    assert page.locator("#keys").is_visible()
    press("j")  # goes nowhere behind the dialog
    press("Escape")
    assert page.locator("#keys").is_hidden()
    assert page.evaluate("chosen") == 0
    press("/")
    assert page.evaluate("document.activeElement.id") == "q"


def test_play_from_the_hit(opened):
    page = opened("?q=7000+Hz")
    page.wait_for_selector(".hit.chosen")
    place = place_of(page, "long.flac")
    page.locator(".hit").nth(place).locator(".name").click()
    page.locator(".chosen .play").click()
    until(page, "!audio.paused && audio.currentTime > 30.2")
    hit = page.locator(".hit").nth(place)
    assert page.evaluate("audio.currentTime") < 35
    needle, window = hit.locator(".needle").bounding_box(), hit.locator(".window").bounding_box()
    assert window["x"] - 2 <= needle["x"] < window["x"] + window["width"]
    page.keyboard.press("Escape")
    until(page, "audio.paused")
    sound = hit.locator(".sound").bounding_box()
    page.mouse.click(sound["x"] + sound["width"] * 0.95, sound["y"] + 20)  # from a place in the picture
    until(page, "!audio.paused && audio.currentTime > 55")


def test_what_no_browser_plays_comes_as_wav(opened):
    page = opened("?q=200+Hz")
    page.wait_for_selector(".hit.chosen")
    page.locator("#more").click()
    until(page, "hits.length === 16")
    page.locator(".hit").nth(place_of(page, "other.aiff")).locator(".sound").click()
    until(page, "!audio.paused && audio.currentTime > 0.1")
    assert "/wav/" in page.evaluate("audio.src")


def drop(page, name, content):
    page.evaluate(
        """([name, content]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(content), each => each.charCodeAt(0))], name));
            for (const type of ["dragenter", "dragover", "drop"]) {
                document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
                if (type === "dragover") window.invited = !document.getElementById("drop").hidden;
            }
        }""",
        [name, base64.b64encode(content).decode()],
    )


def test_drop_a_sound(opened):
    from serving import wav_bytes

    page = opened()
    drop(page, "heard.flac", wav_bytes(tone(2100, 1), "FLAC"))
    page.wait_for_selector(".hit.chosen")
    assert page.evaluate("invited")
    assert page.locator("#drop").is_hidden()
    assert names(page)[0] == "2100.wav"
    assert page.locator("#verdict").text_content() == "What sounds like heard.flac"
    assert page.locator("#way").is_hidden()
    drop(page, "cut.wav", wav_bytes(tone(900, 1))[:30_000])
    until(page, "document.querySelector('#verdict').textContent.includes('cut.wav: truncated; what there is')")
    assert names(page)[0] == "900.wav"
    drop(page, "letter.wav", b"Dear all, this is no sound.")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.locator("#trouble").text_content() == "letter.wav: not audio"
    assert names(page) == []
    page.evaluate("state.upload = 10")
    drop(page, "big.wav", b"more than ten bytes")
    until(page, "document.querySelector('#trouble').textContent.includes('larger than')")
    ask(page, "900 Hz")
    assert page.locator("#trouble").is_hidden()


def ink(page, canvas):
    """What is drawn, to see whether it moves."""
    return page.evaluate("id => document.getElementById(id).toDataURL()", canvas)


def test_the_answer_comes_out_of_noise(opened):
    page = opened("?q=1200+Hz")
    page.wait_for_selector("#way:not([hidden])")
    assert not page.evaluate("document.getElementById('way').open")
    assert page.evaluate("way") is None  # nothing was asked for it
    page.locator("#way summary").click()
    until(page, "way !== null")
    assert "The list leads with " in page.locator("#lead").text_content()
    # In the page itself, because a busy machine may take longer to ask than the animation lasts.
    moved = page.evaluate(
        """async () => {
            const drawn = () => document.getElementById("chart-x").toDataURL();
            stopWay(); goTo(0);
            const first = drawn();
            runWay();
            while (step < 1) await new Promise(requestAnimationFrame);
            return [drawn() !== first, document.getElementById("run").textContent, step < way.levels.length - 1];
        }"""
    )
    assert moved[0]
    assert moved[1:] in (["Pause", True], ["Play", False])
    until(page, "step === way.levels.length - 1 && !running")
    assert page.locator("#run").text_content() == "Play"
    assert page.locator("#now").text_content().startswith("Step 10 of 10, noise level 1: ")
    last = ink(page, "chart-x")
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    assert page.locator("#now").text_content().startswith("Step 1 of 10, noise level 10: ")
    assert ink(page, "chart-x") != last
    page.keyboard.press("ArrowRight")
    assert page.evaluate("step") == 1
    assert "Step 2 of 10" in page.locator("#scrub").get_attribute("aria-valuetext")
    page.locator("#scrub").blur()
    page.keyboard.press("d")
    until(page, "step > 1.2")
    marked = page.evaluate("drawWay() || way.clips.filter(clip => clip.key === hits[chosen].key).length")
    assert marked == 1


def test_who_wants_no_motion_sees_the_answer_at_once(opened):
    page = opened("?q=1200+Hz", reduced_motion="reduce")
    page.locator("#way summary").click()
    until(page, "way !== null")
    assert page.locator("#now").text_content().startswith("Step 10 of 10")
    assert page.evaluate("running") == 0


def test_nothing_here_sounds_like_that(opened):
    page = opened()

    def doubtful(route):
        document = route.fetch().json() | {"present": 0.2, "calibrated": True, "certain": False, "verdict": "absent"}
        for hit, score in zip(document["hits"], (0.31, 0.004, 0.996), strict=False):
            hit["score"] = score
        for hit in document["hits"]:
            hit["by"] = "sound"
        route.fulfill(json=document)

    page.route("**/api/search?*", doubtful)
    ask(page, "900 Hz")
    assert page.locator("#verdict h1").text_content() == "Nothing here sounds like that."
    assert page.locator("#columns").get_attribute("class").count("weak") == 1
    assert set(page.locator(".score").all_text_contents()) == {""}  # no percentages beside what is no match
    assert page.locator(".hit:visible").count() == 0
    assert page.locator("#said").text_content().startswith("None of 16 · ")
    assert page.locator("#near").text_content() == "Nearest, but probably not: 10 sounds"
    page.locator("#near").click()
    assert page.locator(".hit:visible").count() == 10
    assert page.locator("#near").is_hidden()


def test_what_is_called_so_is_shown_where_nothing_sounds_like_it(opened):
    page = opened()

    def doubtful(route):
        document = route.fetch().json() | {"present": 0.2, "calibrated": True, "certain": False, "verdict": "absent"}
        for i, hit in enumerate(document["hits"]):
            hit["by"] = "name" if i < 2 else "sound"
        route.fulfill(json=document)

    page.route("**/api/search?*", doubtful)
    ask(page, "900 Hz")
    assert page.locator("#verdict").text_content() == "Nothing here sounds like that.These are called so."
    assert page.locator(".hit:visible").count() == 2
    assert page.locator(".hit:visible .found").all_text_contents() == ["by name"] * 2


def test_names_and_metadata_are_found_and_shown_as_text(opened, tmp_path):
    for hz in (200, 450, 900):
        write_tone(tmp_path / "field" / f"{hz}.wav", hz, 2)
    write_tone(tmp_path / "5000 wolf.wav", 5000, 8)
    with soundfile.SoundFile(tmp_path / "field" / "6000.flac", "w", RATE, 2) as file:
        file.comment = "wolf <img src=x onerror=alert(1)>"
        file.write(np.stack([tone(6000, 2)] * 2, 1))
    made = SearchSession(FakeRetriever(), FolderIndex(tmp_path))
    made.update()
    server = serve(made)
    try:
        page = opened(address=server.url)
        ask(page, "200 wolf")
        badges = dict(zip(names(page), page.locator(".found").all_text_contents(), strict=True))
        assert badges == {
            "200.wav": "by sound and name",
            "450.wav": "by sound",
            "900.wav": "by sound",
            "5000 wolf.wav": "by sound and name",
            "6000.flac": "by sound and name",
        }
        page.locator("#by").select_option("name")
        until(page, "hits.length === 3")
        assert set(page.locator(".found").all_text_contents()) == {"by name"}
        place = place_of(page, "6000.flac")
        page.locator(".hit").nth(place).focus()
        page.locator(".hit").nth(place).locator(".facts summary").click()
        told = page.locator(".hit").nth(place).locator(".facts dd").all_text_contents()
        assert told[:3] == ["flac", "stereo", "32 kHz"]
        assert told[4:] == ["wolf <img src=x onerror=alert(1)>"]
        assert page.locator(".facts img").count() == 0
        page.go_back()
        until(page, "hits.length === 5")
        ask(page, '200 wolf in:field channels:1 -"900"')
        assert names(page) == ["200.wav", "450.wav"]
        assert page.locator("#said").text_content().startswith("2 sounds of 2")
        page.locator("#q").fill("200 wolf lenght:<5")
        page.keyboard.press("Enter")
        page.locator("#trouble:visible").wait_for()
        assert "Did you mean length:?" in page.locator("#trouble").text_content()
        assert page.evaluate("[input.selectionStart, input.selectionEnd, document.activeElement === input]") == [9, 15, True]
        page.locator("#q").fill("200 wolf length:>99")
        page.keyboard.press("Enter")
        page.locator("#verdict h1", has_text="Nothing was found.").wait_for()
        assert "No file fits the filters." in page.locator("#verdict").text_content()
        page.locator("#filters summary").click()
        assert page.locator("#filters dd").first.is_visible()
        page.goto(f"{server.url}?q=200+wolf&by=name&not=rain")  # an unwanted sound says nothing of names: it is left out
        until(page, "hits.length === 3")
        assert page.locator("#trouble").is_hidden()
        assert "not rain" not in page.title()
    finally:
        server.stop()


def test_what_is_probably_not_it_is_folded_away(opened):
    page = opened()

    def judged(route):
        document = route.fetch().json() | {"present": 0.9, "calibrated": True, "certain": True, "verdict": "found"}
        for hit, score in zip(document["hits"], (0.84, 0.61, 0.43, 0.3, 0.02, *[0.01] * 5), strict=True):
            hit["score"] = score
        route.fulfill(json=document)

    page.route("**/api/search?*", judged)
    ask(page, "900 Hz")
    assert page.locator(".hit:visible").count() == 3  # as probable as not, or half as probable as the best
    assert page.locator("#near").text_content() == "Nearest, but probably not: 7 sounds"
    score = page.locator(".hit .score button").first
    assert score.get_attribute("title") == "Of ten sounds with this percentage, about 8 are what was asked for."
    score.click()
    assert page.locator(".meaning").text_content() == score.get_attribute("title")
    page.locator(".hit").nth(2).focus()
    page.keyboard.press("j")  # the keys go on into what is folded
    assert page.evaluate("chosen") == 3
    assert page.locator(".hit:visible").count() == 10


def test_skipped_files_are_told_with_their_reasons(opened, tmp_path):
    write_tone(tmp_path / "good.wav", 900, 2)
    (tmp_path / "empty.wav").write_bytes(b"")
    made = SearchSession(FakeRetriever(), FolderIndex(tmp_path))
    made.update()
    server = serve(made)
    try:
        page = opened(address=server.url)
        page.locator("#skipped", has_text="1 skipped").click()
        page.locator("#reasons li").first.wait_for()
        told = page.locator("#reasons li").all_text_contents()
        assert len(told) == 1
        assert told[0].startswith("empty.wav")
        assert len(told[0]) > len("empty.wav")
        page.keyboard.press("Escape")
        assert page.locator("#unread").is_hidden()
    finally:
        server.stop()


def test_over_and_over_slower_and_level(opened):
    page = opened("?q=7000+Hz")
    page.wait_for_selector(".hit.chosen .wave-in")
    page.locator(".hit .name").nth(place_of(page, "long.flac")).click()
    for key, button, state in (("l", "loop", "true"), ("v", "level", "true"), ("v", "level", "false"), ("l", "loop", "false")):
        page.keyboard.press(key)
        assert {each.get_attribute("aria-pressed") for each in page.locator(f".{button}").all()} == {state}
    page.keyboard.press("s")
    assert page.evaluate("audio.playbackRate") == 0.5
    assert page.locator(".chosen .speed span").text_content() == "0.5×"
    page.keyboard.press("v")
    page.keyboard.press("Enter")
    until(page, "!audio.paused && audio.currentTime > 0 && levels.gain.gain.value !== 1")
    loud = page.evaluate("sounding.hit.loud * levels.gain.gain.value")
    assert loud == pytest.approx(250, rel=0.01)
    page.keyboard.press("l")
    ended = page.evaluate("sounding.hit.end - sounding.offset")
    page.evaluate(f"audio.currentTime = {ended} - 0.2")
    until(page, f"audio.currentTime < {ended} - 1")  # back at the beginning of the hit


def test_what_was_meant_is_one_click_away(opened):
    page = opened()
    unknown = {"present": 0.1, "calibrated": True, "certain": False, "verdict": "unknown", "suggestion": "900 Hz"}
    unknown |= {"remark": 'no sound by that name was learned; nearest: 700 Hz. Did you mean "900 Hz"?'}
    answers = {"q=90 Hzz": unknown, "q=900 Hz but not 300 Hz": {"certain": False, "verdict": "negated"}}
    answers["q=900 Hz but not 300 Hz"] |= {"negation": {"wanted": "900 Hz", "unwanted": "300 Hz"}, "remark": "it names"}

    def judged(route):
        asked = route.request.url
        extra = next((extra for text, extra in answers.items() if asked.endswith(text.replace(" ", "%20"))), {})
        route.fulfill(json=route.fetch().json() | extra)

    page.route("**/api/search?*", judged)
    ask(page, "90 Hzz")
    assert page.locator("#verdict h1").text_content() == "No sound by that name was learned."
    assert "Nearest: 700 Hz." in page.locator("#verdict").text_content()
    page.locator("#meant").click()
    page.wait_for_url("**/?q=900%20Hz")
    page.locator(".score", has_text=".").first.wait_for()  # certain again: no verdict, and scores
    ask(page, "900 Hz but not 300 Hz")
    assert page.locator("#verdict h1").text_content() == "This names what you do not want."
    page.locator("#meant").click()
    page.wait_for_url("**/?q=900%20Hz&not=300%20Hz")
    page.locator("#verdict h1", has_text="Without what sounds like 300 Hz").wait_for()
    assert page.title() == "900 Hz, not 300 Hz · DiffATR"


def test_errors_are_told(opened):
    page = opened("?q=%3F!")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.locator("#trouble").text_content().startswith("Nothing to search for in the text")
    page.route("**/api/search?*", lambda route: route.abort())
    page.locator("#q").fill("900 Hz")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#trouble').textContent.includes('does not answer')")


def test_names_are_text_and_nothing_else(opened):
    page = opened("?q=5500+Hz")
    page.wait_for_selector(".hit.chosen")
    assert any(name.startswith("<img src=x onerror=alert(1)> with") for name in names(page))
    assert page.locator("#hits img:not([alt^='Spectrogram'])").count() == 0


def test_dark_and_light(opened):
    seen = {}
    for scheme in ("light", "dark"):
        page = opened("?q=900+Hz", color_scheme=scheme)
        until(page, "document.querySelector('.hit img')?.naturalWidth > 0")
        colours = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.documentElement))")
        paper, text = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
        seen[scheme] = paper, text, page.evaluate("document.querySelector('.hit img').currentSrc.split('theme=')[1]")
    assert seen["light"][0] > 700 > 100 > seen["light"][1]
    assert seen["dark"][0] < 100 < 600 < seen["dark"][1]
    assert (seen["light"][2], seen["dark"][2]) == ("light", "dark")


def test_at_a_telephones_width(opened):
    page = opened(viewport=PHONE, has_touch=True, is_mobile=True)

    def fits():
        return page.evaluate("document.documentElement.scrollWidth") <= 360

    assert fits()
    ask(page, "5500 Hz")
    assert fits()
    assert not page.evaluate("document.getElementById('way').open")
    first, panel = page.locator(".hit").first.bounding_box(), page.locator("#way").bounding_box()
    assert first["y"] < panel["y"]  # the sounds come first
    page.locator("#way summary").tap()
    until(page, "document.getElementById('chart-x').width > 100")
    assert fits()
    page.locator(".hit .name").nth(1).tap()
    assert page.evaluate("chosen") == 1
    for button in page.locator(".chosen .actions button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["height"] >= 32
    page.locator("#help").tap()
    assert fits()


def test_a_refresh_shows_what_is_new(opened, session):
    page = opened("?q=900+Hz")
    page.wait_for_selector(".hit.chosen")
    path = session.corpus / "new.wav"
    write_tone(path, 901, 2)
    try:
        page.locator("#state").click()  # out of the search box
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("r")
        until(page, "document.querySelector('#state').textContent === '17 recordings'")
        assert "Up to date" in page.locator("#said").text_content()
        ask(page, "901 Hz")
        assert "new.wav" in names(page)
    finally:
        path.unlink()
        session._thread.join()
        session.update()


def test_the_key_stays_out_of_the_address(opened, session):
    guarded = serve(session, token="k3y")
    try:
        page = opened(address=guarded.url, query="?token=k3y")
        ask(page, "900 Hz")
        assert "k3y" not in page.evaluate("location.href")
        assert page.evaluate("document.cookie") == ""
        until(page, "document.querySelector('.hit img').naturalWidth > 0")
        page.reload()
        page.wait_for_selector(".hit.chosen")
    finally:
        guarded.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_nothing_that_axe_knows_keeps_anybody_out(opened, scheme, viewport):
    """WCAG 2.1 A and AA: contrast, labels, roles, focus, by axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}

    def broken(page):
        found = axe.run(page, options=rules).response
        return [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]]

    page = opened(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    assert broken(page) == []
    ask(page, "900 Hz")
    page.locator("#way summary").click()
    until(page, "way !== null")
    assert broken(page) == []
    page.evaluate("fold(1)")
    assert broken(page) == []
    page.locator("#help").click()
    assert broken(page) == []
