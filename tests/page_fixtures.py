"""The server's page in a real browser: ``pytest_plugins = ["page_fixtures"]``, beside the fixture ``server``."""

import shutil
from pathlib import Path

import pytest

from ossicle.serve import examples

SPY = """
window.sent = [];
const send = window.fetch;
window.fetch = async (url, options = {}) => {
  const one = {path: new URL(url, location).pathname, headers: options.headers ?? {}, body: null, fields: {}};
  if (options.body instanceof FormData) {
    for (const [name, value] of options.body)
      one.fields[name] = typeof value === "string" ? value : Array.from(new Uint8Array(await value.arrayBuffer()));
  } else one.body = options.body ?? null;
  window.sent.push(one);
  return send(url, options);
};
window.lengths = [];
addEventListener("DOMContentLoaded", () => new MutationObserver(
  () => window.lengths.push(document.getElementById("heard").textContent.length)
).observe(document.getElementById("heard"), {childList: true, subtree: true}));
"""
"""Keeps what the page sends, since the browser does not hand files to playwright, and how the transcript grows."""


@pytest.fixture(scope="module")
def voice(tmp_path_factory) -> Path:
    """A recording of a generated voice."""
    if not examples.available():
        pytest.skip("the page is tested with a generated voice (extra 'tts')")
    path = tmp_path_factory.mktemp("voice") / "night.wav"
    path.write_bytes(examples.spoken("night"))
    return path


@pytest.fixture(scope="module")
def browser(voice):
    """Chromium whose microphone hears the voice, over and over. Tests of other modules may run event loops again."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium to test the page with")
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={voice}"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """``open_page(width=390, ...)``: the page in a new window. Errors of its scripts fail the test."""
    contexts, problems = [], []

    def note(message):
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def make(*, width=1100, microphone=True, connected=True, **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, accept_downloads=True, **options)
        contexts.append(context)
        if microphone:
            context.grant_permissions(["microphone"], origin=server.url)
        context.add_init_script(SPY)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        if connected:
            page.wait_for_selector(".light.on")
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems
