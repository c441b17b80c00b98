"""Helpers for tests of the server's page: what it sent, and answers for `page.route`."""

import io
import json
import re

import soundfile


def sent(page, path):
    return [one for one in page.evaluate("window.sent") if one["path"] == f"/{path}"]


def wav_of(request):
    return soundfile.read(io.BytesIO(bytes(request["fields"]["file"])))


def choose(page, voice):
    page.set_input_files("#file", voice)
    page.wait_for_selector("#transcript-actions:not([hidden])")


def expect(page, selector, text):
    """Wait until an element has this text. A script cannot wait for it, since the page permits none."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=10_000)


def events(*items):
    """A stream of server-sent events for `page.route`."""
    body = "".join(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in items)
    return {"status": 200, "content_type": "text/event-stream", "body": body}


def heard(text, *segments):
    parts = [{"type": "transcript.text.segment", "start": s, "end": e, "text": t} for s, e, t in segments]
    return events(
        {"type": "transcript.text.delta", "delta": text}, *parts, {"type": "transcript.text.done", "text": text}
    )


def said(text):
    pieces = re.findall(r"\s*\S+", text)
    return events(*({"choices": [{"delta": {"content": piece}}]} for piece in pieces), "[DONE]")
