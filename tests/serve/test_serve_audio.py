"""Transcriptions and translations, by the client of OpenAI over a real socket."""

import io
import json
import struct

import httpx2 as httpx
import numpy as np
import pytest

from ossicle.listen.long import transcribe

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")


@pytest.fixture
def heard(served_model, spoken):
    """``heard(waveform, task)``: the model's own answer."""

    def answer(waveform, asked="repeat"):
        return served_model.generate(waveform, asked, max_new_tokens=spoken.TOKENS)[0]

    return answer


def upload(content, name="clip.wav"):
    return (name, io.BytesIO(content))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_transcript_is_the_models_own_answer(client, spoken, heard, seed):
    waveform = spoken.tones(seed)
    found = client.audio.transcriptions.create(file=upload(spoken.wav(waveform)), model="tiny")
    assert found.text == heard(waveform)
    assert found.text != heard(spoken.tones(1 - seed))
    assert found.usage.seconds == pytest.approx(len(waveform) / 16_000, abs=0.001)


def test_other_formats_and_rates_are_read(client, spoken):
    waveform = spoken.tones(0)
    texts = [
        client.audio.transcriptions.create(file=upload(content, name), model="whisper-1").text
        for name, content in (("a.flac", spoken.wav(waveform, format="FLAC")), ("a", spoken.wav(waveform)))
    ]
    assert texts[0] == texts[1]
    assert client.audio.transcriptions.create(file=upload(spoken.wav(waveform[::2], 8_000)), model="tiny").text


def test_the_forms_of_a_transcript(client, spoken, heard):
    srt, webvtt = pytest.importorskip("srt"), pytest.importorskip("webvtt")
    waveform = spoken.tones(1)
    text, duration_s = heard(waveform), len(waveform) / 16_000

    def form(name):
        return client.audio.transcriptions.create(
            file=upload(spoken.wav(waveform)), model="tiny", response_format=name, language="en"
        )

    assert form("text").rstrip("\n") == text
    whole = form("verbose_json")
    assert (whole.text, whole.language, whole.segments[0].text) == (text, "en", text)
    assert whole.duration == pytest.approx(duration_s, abs=0.001)
    assert 0 <= whole.segments[0].start < whole.segments[0].end <= duration_s + 0.001
    cues = list(srt.parse(form("srt")))
    assert " ".join(" ".join(cue.content for cue in cues).split()) == " ".join(text.split())
    assert cues[0].start.total_seconds() >= 0
    assert cues[-1].end.total_seconds() == pytest.approx(duration_s, abs=0.001)
    captions = webvtt.from_buffer(io.StringIO(form("vtt")))
    assert len(captions) == len(cues)


def test_a_stream_has_the_pieces_of_the_transcript(client, spoken, heard):
    waveform = spoken.tones(0)
    events = list(client.audio.transcriptions.create(file=upload(spoken.wav(waveform)), model="tiny", stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 2
    assert kinds[-1] == "transcript.text.done"
    assert "".join(deltas) == events[-1].text == heard(waveform)
    assert events[-1].usage.output_tokens > 0


def test_a_long_recording_is_heard_window_by_window(client, spoken, served_model):
    whole = np.concatenate([spoken.tones(seed, words=50, silence_s=0.6) for seed in range(4)])
    expected = list(transcribe(served_model, whole, max_new_tokens=spoken.TOKENS))
    assert len(expected) > 1
    events = list(client.audio.transcriptions.create(file=upload(spoken.wav(whole)), model="tiny", stream=True))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [s.text for s in segments] == [s.text for s in expected]
    assert [s.start for s in segments] == [round(s.start_s, 3) for s in expected]
    assert [s.end for s in segments] == [round(s.end_s, 3) for s in expected]
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == events[-1].text == " ".join(s.text for s in expected)


def test_silence_has_no_text(client, spoken):
    content = spoken.wav(np.zeros(32_000, np.float32))
    assert client.audio.transcriptions.create(file=upload(content), model="tiny").text == ""


def test_a_translation_follows_its_instruction(client, spoken, heard):
    waveform = spoken.tones(1)
    german = client.audio.translations.create(
        file=upload(spoken.wav(waveform)), model="tiny", extra_body={"to_language": "de"}
    )
    english = client.audio.translations.create(file=upload(spoken.wav(waveform)), model="tiny")
    assert german.text == heard(waveform, "say it in German")
    assert english.text == heard(waveform, "say it in English")


def test_sampling_follows_the_seed(client, spoken):
    def sampled(seed):
        body = {"seed": seed}
        content = upload(spoken.wav(spoken.tones(0)))
        return client.audio.transcriptions.create(file=content, model="tiny", temperature=1.5, extra_body=body).text

    assert sampled(1) == sampled(1) != sampled(2)


def test_hints_that_cannot_be_used_are_named(client, spoken, server):
    content = spoken.wav(spoken.tones(0))
    plain = client.audio.transcriptions.create(file=upload(content), model="tiny").text
    data = {"model": "tiny", "prompt": "names: Anna", "keywords[]": ["Anna"], "languages[]": ["en", "de"]}
    answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": ("a.wav", content)}, data=data)
    assert answer.json()["text"] == plain
    assert answer.headers["X-Ossicle-Ignored"] == "prompt, keywords, languages"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"timestamp_granularities": ["segment"]}, "timestamp_granularities[]"),
        ({"include": ["logprobs"]}, "include[]"),
        ({"language": "klingon"}, "language"),
        ({"temperature": 3.0}, "temperature"),
        ({"chunking_strategy": {"type": "chance"}}, "chunking_strategy"),
        ({"stream": True, "response_format": "srt"}, "response_format"),
    ],
)
def test_options_that_are_not_supported_are_refused(client, spoken, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.transcriptions.create(file=upload(spoken.wav(spoken.tones(0))), model="tiny", **options)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert param.strip("[]").split("[")[0] in error.value.message


def test_another_model_is_not_found(client, spoken):
    with pytest.raises(openai.NotFoundError) as error:
        client.audio.transcriptions.create(file=upload(spoken.wav(spoken.tones(0))), model="gpt-9")
    assert error.value.code == "model_not_found"
    assert "'tiny'" in error.value.message


def malformed(spoken) -> dict[str, bytes]:
    good = spoken.wav(spoken.tones(0))
    flac_bomb = spoken.wav(np.zeros(4_000_000, np.float32), 1000, format="FLAC")
    assert len(flac_bomb) < 100_000
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "only a header": good[:44],
        "text": b"this is no recording" * 50,
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "huge header": b"RIFF" + struct.pack("<I", 2**32 - 1) + good[8:40] + struct.pack("<I", 2**31) + good[44:400],
        "NaN": spoken.wav(np.full(16_000, np.nan, np.float32)),
        "infinite": spoken.wav(np.full(16_000, np.inf, np.float32)),
        "decompression bomb": flac_bomb,
        "no samples": spoken.wav(np.zeros(0, np.float32)),
        "zeros": bytes(1000),
    }


KINDS = ["empty", "truncated", "only a header", "text", "picture", "huge header", "NaN", "infinite"]
KINDS += ["decompression bomb", "no samples", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_uploads_are_refused(server, spoken, kind):
    content = malformed(spoken)[kind]
    for path in ("transcriptions", "translations"):
        answer = httpx.post(f"{server.url}/v1/audio/{path}", files={"file": ("a.wav", content)}, data={"model": "tiny"})
        assert 400 <= answer.status_code < 500, (kind, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert "/tmp" not in error["message"]
        assert "Traceback" not in answer.text
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_request_without_a_file_or_with_a_path_is_refused(server):
    url = f"{server.url}/v1/audio/transcriptions"
    for answer in (
        httpx.post(url, data={"model": "tiny"}),
        httpx.post(url, data={"model": "tiny", "file": "/etc/passwd"}),
        httpx.post(url, content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=x"}),
        httpx.post(url, content=json.dumps({"file": "http://localhost/a.wav"})),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
