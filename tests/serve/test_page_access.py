"""The page for everybody: contrast, keyboard, phone, motion, and no other server."""

import re
from urllib.request import urlopen

import pytest

from ossicle.serve.page_files import FOLDER as PAGE
from pages import choose, heard

pytest_plugins = ["page_fixtures"]


def fill(page, voice):
    """Bring the page into its fullest state."""
    choose(page, voice)
    page.click("#chips button >> nth=0")
    page.wait_for_selector("#forget:not([hidden])")
    page.click("#look")
    page.wait_for_selector(".map svg")
    for summary in page.query_selector_all("summary"):
        summary.click()
    page.evaluate("window.dispatchEvent(new Event('offline'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_is_accessible_and_fits(open_page, voice, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="accessibility is tested with axe").Axe()
    page = open_page(width=width, color_scheme=scheme)
    text = "it was a cold night and the wind was unbelievablystrongandwithoutasinglespace"
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(**heard(text)))
    for bring in (lambda: None, lambda: fill(page, voice)):
        bring()
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_everything_is_reached_by_keyboard_with_a_visible_focus(open_page, voice):
    page = open_page()
    choose(page, voice)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        here = page.evaluate(
            """() => {
              const focused = document.activeElement;
              const outlined = each => getComputedStyle(each).outlineStyle !== "none";
              const seen = outlined(focused) || outlined(focused.parentElement);
              return [focused === document.body ? "" : focused.id || focused.textContent.trim(), seen];
            }"""
        )
        if not here[0] or here[0] in [name for name, _ in reached]:
            break
        reached.append(here)

    names = [name for name, _ in reached]
    order = [
        "record",
        "choose",
        "play",
        "seek",
        "copy",
        "TXT",
        "SRT",
        "VTT",
        "language",
        "translate",
        "question",
        "ask",
    ]
    assert [name for name in names if name in order] == order
    assert names[-1] == "look"
    assert all(seen for _, seen in reached), reached


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_if_the_reader_prefers_less_motion(open_page, motion, moves):
    page = open_page(reduced_motion=motion)
    page.click("#record")
    page.wait_for_selector("#timer:not([hidden])")
    page.wait_for_timeout(200)

    assert (page.evaluate("document.getAnimations().length") > 0) is moves


def test_the_page_needs_no_other_server(server):
    with urlopen(server.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        index = answer.read().decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";") if " " in rule.strip())
    assert rules["default-src"] == "'none'" or rules["default-src"] == "'self'"
    assert "unsafe" not in policy
    assert "http" not in policy
    assert index == (PAGE / "index.html").read_text()
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/", "").replace("https:// ", "")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|eval\(", text), file.name
    assert not re.search(r"<script(?![^>]*src)|\son\w+=|\sstyle=", index)
