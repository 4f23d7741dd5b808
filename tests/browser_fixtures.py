"""A browser, and a server of the `session` that a test file makes; taken in by `pytest_plugins`."""

import os
import re

import pytest
from browser import BROWSER, WIDE, serve


@pytest.fixture(scope="module")
def server(session):
    made = serve(session)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def chromium():
    options = [
        "--autoplay-policy=no-user-gesture-required",
        *(["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []),
    ]
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, server):
    """Opens the page; in the end, nothing may have failed in it, and it may have asked nobody else."""
    contexts, complaints, asked = [], [], set()

    def open_page(query="", address=None, **options):
        context = chromium.new_context(viewport=options.pop("viewport", WIDE), **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
        page.on("request", lambda request: asked.add(re.match(r"(data:|[a-z]+://[^/]+/)", request.url)[0]))
        page.goto((address or server.url) + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(place.startswith(("http://127.0.0.1:", "data:")) for place in asked)
