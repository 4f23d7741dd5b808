"""A browser for tests of the page, and what they do in it."""

import json
import shutil
import time

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


def must_have_browser():
    """Skip the test file that calls this where nothing can open the page."""
    if BROWSER is None:
        pytest.skip("no Chromium to open the page in (Debian's package: chromium)", allow_module_level=True)
    pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


def serve(session, token=None):
    from serving import Running

    from diffatr_cli.web.app import make_app

    return Running(make_app(session, hosts=frozenset(("127.0.0.1",)), token=token))


def until(page, condition, seconds=10):
    """Wait for an expression. Not by `wait_for_function`, which evaluates text in the page: its policy forbids that."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never: {condition}"
        page.wait_for_timeout(20)


def ask(page, text):
    page.evaluate("before = hits")
    page.locator("#q").fill(text)
    page.keyboard.press("Enter")
    until(page, "hits !== before && hits.length > 0")


def names(page):
    return page.locator(".name bdi:not(.of)").all_text_contents()


def place_of(page, name):
    (place,) = [i for i, each in enumerate(names(page)) if each == name]
    return place


def saved(page, act):
    """The name and the content of what `act` downloads."""
    with page.expect_download() as waiting:
        act()
    download = waiting.value
    return download.suggested_filename, open(download.path(), "rb").read()


def dragged(page, selector):
    """What another program is given of something that is dragged from the page."""
    return page.evaluate(
        """selector => {
            const transfer = new DataTransfer(), element = document.querySelector(selector);
            const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
            if (!element.draggable) return null;
            element.dispatchEvent(new DragEvent("dragstart", options));
            document.body.dispatchEvent(new DragEvent("dragenter", options));
            const given = ["DownloadURL", "text/uri-list"].map(type => transfer.getData(type)), still = $("drop").hidden;
            element.dispatchEvent(new DragEvent("dragend", options));
            return [...given, still, carrying];
        }""",
        selector,
    )


def heard(page, text):
    """Wait until the page says so, also to those who do not see it."""
    until(page, f"document.querySelector('#said').textContent.includes({json.dumps(text)})")
