import json
from itertools import pairwise

import pytest

from ossicle.listen.forms import MOST_CUE_CHARACTERS, clock, cues, render
from ossicle.listen.long import Segment

SEGMENTS = [Segment(0.5, 2.0, "Hello & welcome"), Segment(3661.5, 3662.25, "a --> b\nthe end")]


def test_text_and_json():
    assert render("text", SEGMENTS, duration_s=4000.0) == "Hello & welcome a --> b\nthe end"
    assert json.loads(render("json", SEGMENTS, duration_s=4000.0)) == {"text": "Hello & welcome a --> b\nthe end"}
    told = json.loads(render("verbose_json", SEGMENTS, duration_s=4000.0, language="en"))
    assert (told["task"], told["language"], told["duration"]) == ("transcribe", "en", 4000.0)
    assert told["segments"][1] == {"id": 1, "start": 3661.5, "end": 3662.25, "text": "a --> b\nthe end"}


def test_subtitles_have_times_and_no_markup():
    assert render("srt", SEGMENTS, duration_s=4000.0).splitlines() == [
        "1", "00:00:00,500 --> 00:00:02,000", "Hello & welcome", "",
        "2", "01:01:01,500 --> 01:01:02,250", "a -> b the end",
    ]  # fmt: skip
    assert render("vtt", SEGMENTS, duration_s=4000.0).split("\n\n") == [
        "WEBVTT",
        "00:00:00.500 --> 00:00:02.000\nHello &amp; welcome",
        "01:01:01.500 --> 01:01:02.250\na -&gt; b the end",
    ]
    assert render("tsv", SEGMENTS, duration_s=4000.0).splitlines()[1:] == [
        "500\t2000\tHello & welcome",
        "3661500\t3662250\ta -> b the end",
    ]


def test_nothing_heard():
    assert render("srt", [], duration_s=1.0) == ""
    assert render("vtt", [], duration_s=1.0) == "WEBVTT"
    assert json.loads(render("verbose_json", [], duration_s=1.0))["segments"] == []


def test_long_segments_become_several_subtitles_that_do_not_overlap():
    text = " ".join(f"word{k}" for k in range(60))
    found = list(cues([Segment(0.0, 20.0, text), Segment(18.0, 21.0, "x" * 200)]))
    assert " ".join(cue.text for cue in found) == f"{text} {'x' * 200}"
    assert all(len(cue.text) <= MOST_CUE_CHARACTERS or " " not in cue.text for cue in found)
    assert [found[0].start_s, found[-2].end_s, found[-1].start_s] == [0.0, pytest.approx(18.0), 18.0]
    assert all(before.end_s <= after.start_s + 1e-9 for before, after in pairwise(found))
    assert len(max(render("srt", [Segment(0.0, 20.0, text)], duration_s=20.0).splitlines(), key=len)) <= 45


def test_times_carry_over():
    assert clock(59.9996, ",") == "00:01:00,000"
    assert clock(3599.9999, ".") == "01:00:00.000"


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="docx is not one of text, json"):
        render("docx", [], duration_s=1.0)
