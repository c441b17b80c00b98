"""What the page says when something goes wrong, and what can be done then."""

import pytest

from pages import choose, events, heard, said

pytest_plugins = ["page_fixtures"]


def test_what_a_model_writes_is_text_and_never_markup(open_page, voice):
    page = open_page()
    written = '<img src="x" onerror="document.title=1"><b>bold</b>'
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(**heard(written)))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**said(written)))
    choose(page, voice)
    page.click("#chips button >> nth=0")
    page.wait_for_selector("#forget:not([hidden])")

    assert page.inner_text("#heard") == page.inner_text(".answer") == written
    assert page.query_selector("#main img, #main b") is None


def test_a_server_with_keys_asks_for_one_and_the_request_is_repeated(open_page, voice):
    page = open_page()

    def guarded(route):
        if route.request.headers.get("authorization") == "Bearer secret":
            return route.fulfill(**heard("let in"))
        return route.fulfill(status=401, json={"error": {"message": "no key"}})

    page.route("**/v1/audio/transcriptions", guarded)
    page.set_input_files("#file", voice)
    page.wait_for_selector("#key-form:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    page.wait_for_selector("#transcript-actions:not([hidden])")

    assert page.inner_text("#heard") == "let in"
    assert page.is_hidden("#notice")


@pytest.mark.parametrize(
    ("answer", "title", "advice"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}, "json": {}}, "The server is busy", "in 7 seconds"),
        ({"status": 500, "json": {"error": {"message": "number 12"}}}, "The server failed", "Number 12."),
        (events({"error": {"message": "too slow"}}), "The answer broke off", "Too slow."),
        (events({"type": "transcript.text.delta", "delta": "half"}), "The answer broke off", "Try again"),
    ],
)
def test_a_problem_says_what_to_do_and_can_be_tried_again(open_page, voice, answer, title, advice):
    page = open_page()
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(**answer))
    page.set_input_files("#file", voice)
    page.wait_for_selector("#notice:not([hidden])")

    assert page.inner_text("#notice-title") == title
    assert advice in page.inner_text("#notice-text")
    page.unroute("**/v1/audio/transcriptions")
    page.click("#again")
    page.wait_for_selector("#transcript-actions:not([hidden])")
    assert page.is_hidden("#notice")


def test_a_file_that_is_no_recording_is_explained(open_page, tmp_path):
    file = tmp_path / "notes.wav"
    file.write_bytes(b"no sound at all" * 100)
    page = open_page()
    page.set_input_files("#file", file)
    page.wait_for_selector("#notice:not([hidden])")

    assert page.inner_text("#notice-title") == "The server cannot use this"
    assert page.is_hidden("#again")  # it would fail again


def test_a_refused_microphone_is_explained(open_page):
    page = open_page(microphone=False)
    page.click("#record")
    page.wait_for_selector("#notice:not([hidden])")

    assert page.inner_text("#notice-title") == "The microphone is blocked"
    assert "choose a file" in page.inner_text("#notice-text")
    assert page.get_attribute("body", "data-state") == "empty"


def test_a_device_without_a_network_says_so(open_page, voice):
    page = open_page()
    page.context.set_offline(True)
    page.set_input_files("#file", voice)
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#notice-title") == "This device is offline"

    page.context.set_offline(False)
    page.wait_for_selector("#notice", state="hidden")


def test_a_stream_can_be_stopped(open_page, voice):
    page = open_page()
    page.route("**/v1/audio/transcriptions", lambda route: None)  # never answers
    page.set_input_files("#file", voice)
    page.click("#stop")

    assert page.inner_text("#state") == "Stopped."
    assert page.is_hidden("#notice")
    page.unroute("**/v1/audio/transcriptions")
    choose(page, voice)  # the next one works


def test_a_server_that_has_ended_is_named(open_page, voice):
    page = open_page()
    page.route("**/v1/audio/transcriptions", lambda route: route.abort("connectionrefused"))
    page.set_input_files("#file", voice)
    page.wait_for_selector("#notice:not([hidden])")

    assert page.inner_text("#notice-title") == "The server does not answer"
    assert "ossicle serve" in page.inner_text("#notice-text")


def test_two_fast_clicks_open_one_microphone(open_page):
    page = open_page()
    page.evaluate(
        """() => {
          window.opened = 0;
          const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = (wanted) => (window.opened++, open(wanted));
          for (const _ of [1, 2]) document.getElementById("record").click();
        }"""
    )
    page.wait_for_selector("#timer:not([hidden])")

    assert page.evaluate("window.opened") == 1
