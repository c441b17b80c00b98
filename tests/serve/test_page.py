"""The page in a real browser, against the real server: recordings, transcripts, questions and the token map."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ossicle.serve import examples
from pages import choose, expect, heard, said, sent, wav_of

pytest_plugins = ["page_fixtures"]
RATE_HZ = 16_000
WINDOW_S = 0.1


def test_what_the_microphone_hears_is_transcribed_as_it_streams(open_page, client):
    page = open_page()
    page.click("#record")
    expect(page, "#timer-value", "0:02")
    assert page.get_attribute("body", "data-state") == "recording"
    page.click("#record")
    page.wait_for_selector("#transcript-actions:not([hidden])")

    (request,) = sent(page, "v1/audio/transcriptions")
    waveform, rate_hz = wav_of(request)
    assert rate_hz == RATE_HZ
    assert waveform.ndim == 1
    assert 2 <= len(waveform) / rate_hz < 4
    assert np.abs(waveform).max() > 0.1  # the voice, not silence
    assert request["fields"]["model"] == "tiny"
    text = page.inner_text("#heard")
    wav = ("recording.wav", bytes(request["fields"]["file"]))
    assert text == client.audio.transcriptions.create(file=wav, model="tiny").text.strip()
    grown = page.evaluate("window.lengths")
    assert grown[-1] > grown[len(grown) // 2] > 0
    assert page.inner_text("#record") == "Record"


def test_a_file_is_sent_as_mono_at_16_khz(open_page, tmp_path, voice):
    waveform, _ = soundfile.read(voice)
    file = tmp_path / "stereo recording.flac"
    tripled = np.repeat(waveform, 3)  # 48 kHz
    soundfile.write(file, np.stack([tripled, tripled * 0.5], 1), 48_000)
    page = open_page()

    choose(page, file)

    (request,) = sent(page, "v1/audio/transcriptions")
    got, rate_hz = wav_of(request)
    assert rate_hz == RATE_HZ
    assert len(got) == pytest.approx(len(waveform), abs=2)
    size = min(len(got), len(waveform))
    assert np.corrcoef(got[:size], waveform[:size])[0, 1] > 0.9
    assert np.abs(got).max() == pytest.approx(0.75 * np.abs(waveform).max(), rel=0.1)
    assert page.inner_text("#clip-name") == "stereo recording.flac"
    assert page.inner_text("#length") == f"0:{int(len(waveform) / RATE_HZ):02d}"


def test_an_example_is_heard_with_one_click(open_page):
    page = open_page()
    page.click("#examples-list button:has-text('night')")
    page.wait_for_selector("#transcript-actions:not([hidden])")

    expected, _ = soundfile.read(io.BytesIO(examples.spoken("night")))
    got, _ = wav_of(sent(page, "v1/audio/transcriptions")[0])
    assert got == pytest.approx(expected, abs=1e-4)
    assert examples.SENTENCES["night"] in page.inner_text("#clip-name")


def test_segments_have_times_and_become_subtitles(open_page, voice):
    page = open_page()
    segments = [(0.0, 1.25, "one <two> & three"), (61.5, 3661.007, "four")]
    text = " ".join(part for _, _, part in segments)
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(**heard(text, *segments)))
    choose(page, voice)

    assert [button.inner_text() for button in page.query_selector_all(".stamp")] == ["0:00", "1:01"]
    expected = {
        "txt": f"{text}\n",
        "srt": "1\n00:00:00,000 --> 00:00:01,250\none <two> & three\n\n2\n00:01:01,500 --> 01:01:01,007\nfour\n",
        "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\none &lt;two&gt; &amp; three\n\n"
        "00:01:01.500 --> 01:01:01.007\nfour\n",
    }
    for form, content in expected.items():
        with page.expect_download() as download:
            page.click(f"[data-download={form}]")
        assert download.value.suggested_filename == f"night.{form}"
        assert Path(download.value.path()).read_text() == content


def test_questions_are_a_conversation_that_begins_with_the_recording(open_page, voice):
    page = open_page()
    choose(page, voice)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**said("It is night.")))
    page.fill("#question", "When is it?")
    page.press("#question", "Enter")
    page.wait_for_selector("#forget:not([hidden])")
    page.fill("#question", "Are you sure?")
    page.click("#ask")
    expect(page, ".turn >> nth=1 >> .answer", "It is night.")

    first, second = (json.loads(one["body"]) for one in sent(page, "v1/chat/completions"))
    (message,) = first["messages"]
    audio, text = message["content"]
    waveform, _ = soundfile.read(io.BytesIO(base64.b64decode(audio["input_audio"]["data"])))
    assert (message["role"], audio["type"], audio["input_audio"]["format"]) == ("user", "input_audio", "wav")
    assert len(waveform) == len(soundfile.read(voice)[0])
    assert text == {"type": "text", "text": "When is it?"}
    assert second["messages"] == [
        message,
        {"role": "assistant", "content": "It is night."},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert first["stream"] is True
    page.click("#forget")
    assert page.query_selector_all(".turn") == []


def test_the_model_answers_a_question(open_page, voice):
    page = open_page()
    choose(page, voice)
    page.click("#chips button >> nth=1")
    page.wait_for_selector("#forget:not([hidden])")

    assert page.inner_text(".question") == "What is the speaker talking about?"
    assert page.inner_text(".answer").strip()


def test_english_has_its_endpoint_and_other_languages_are_instructions(open_page, voice):
    page = open_page()
    choose(page, voice)
    page.route("**/v1/audio/translations", lambda route: route.fulfill(json={"text": "in English"}))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**said("auf Deutsch")))
    for language, text in (("en", "in English"), ("de", "auf Deutsch")):
        page.select_option("#language", language)
        page.click("#translate")
        expect(page, "#translated", text)
        assert page.get_attribute("#translated", "lang") == language

    (request,) = sent(page, "v1/chat/completions")
    assert json.loads(request["body"])["messages"][0]["content"][1]["text"] == "Translate the speech to German."
    assert len(sent(page, "v1/audio/translations")) == 1


def test_the_token_map_has_a_row_for_each_word_and_follows_the_layer(open_page, voice):
    page = open_page()
    text = "it was a cold night"
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(**heard(text)))
    choose(page, voice)
    page.click("#look")
    page.wait_for_selector(".map svg")

    assert [label.text_content() for label in page.query_selector_all(".word")] == text.split()
    assert sent(page, "ossicle/analysis")[0]["fields"]["text"] == text
    rows = page.locator("#figures table").first.locator("tbody tr").count()
    seconds = len(soundfile.read(voice)[0]) / RATE_HZ
    assert rows == pytest.approx(2 * seconds / WINDOW_S, abs=2)  # two tokens for each window
    marks = page.locator(".mark").evaluate_all("all => all.map(mark => mark.outerHTML).join()")
    other = page.locator(".layers input:not(:checked)").first.get_attribute("value")
    page.check(f".layers input[value='{other}']", force=True)
    assert f"layer {other}:" in page.get_attribute(".map svg", "aria-label")
    assert page.locator(".mark").evaluate_all("all => all.map(mark => mark.outerHTML).join()") != marks
    assert page.locator(".plot polyline").count() == 4
    page.focus("#seek")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.input_value("#seek") == "1"  # second
    left, right = (float(page.get_attribute(".rule >> nth=0", name)) for name in ("x1", "x2"))
    at = left + (right - left) / seconds
    assert float(page.get_attribute(".cursor", "x1")) == pytest.approx(at, abs=2)
    assert page.locator(".word.spoken").count() == 1
