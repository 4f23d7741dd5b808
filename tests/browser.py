"""A browser for tests of the page, and what they do in it."""

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


def until(page, condition):
    """Wait for an expression. Not by `wait_for_function`, which evaluates text in the page: its policy forbids that."""
    end = time.monotonic() + 10
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
