"""Chat completions with recordings, by the client of OpenAI over a real socket."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def audio(spoken):
    """``audio(seed)``: a part with a recording."""

    def part(seed):
        data = base64.b64encode(spoken.wav(spoken.tones(seed))).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    return part


def text(content):
    return {"type": "text", "text": content}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def ask(client, *messages, **options):
    return client.chat.completions.create(model="tiny", messages=list(messages), **options)


def test_an_answer_is_the_models_own(client, served_model, spoken, audio):
    for seed in (0, 1):
        found = ask(client, user(audio(seed), text("say it")))
        expected = served_model.generate(spoken.tones(seed), "say it", max_new_tokens=spoken.TOKENS)
        assert [found.choices[0].message.content] == expected
        assert found.choices[0].message.role == "assistant"
        assert found.object == "chat.completion"
    assert found.usage.completion_tokens <= spoken.TOKENS
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_mp3_is_read(client, spoken):
    content = base64.b64encode(spoken.wav(spoken.tones(0), format="MP3")).decode()
    part = {"type": "input_audio", "input_audio": {"data": content, "format": "mp3"}}
    assert ask(client, user(part, text("say it"))).choices[0].message.content


def test_a_stream_has_the_pieces_of_the_answer(client, audio):
    message = user(audio(0), text("say it"))
    whole = ask(client, message)
    chunks = list(ask(client, message, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_conversation_of_several_turns_and_recordings(client, served_model, spoken, audio):
    given = [
        {"role": "system", "content": "be brief"},
        user(audio(0), text("say it")),
        {"role": "assistant", "content": "it is said"},
        user(text("and this"), audio(1), text("now")),
    ]
    own = [
        {"role": "system", "content": "be brief"},
        user({"type": "audio", "audio": spoken.tones(0)}, text("say it")),
        {"role": "assistant", "content": "it is said"},
        user(text("and this"), {"type": "audio", "audio": spoken.tones(1)}, text("now")),
    ]
    expected = served_model.generate(messages=own, max_new_tokens=spoken.TOKENS)
    assert [ask(client, *given).choices[0].message.content] == expected
    assert [ask(client, given[1]).choices[0].message.content] != expected


def test_a_chat_without_a_recording(client, served_model, spoken):
    message = {"role": "user", "content": "hello"}
    expected = served_model.generate(messages=[message], max_new_tokens=spoken.TOKENS)
    assert [ask(client, message).choices[0].message.content] == expected


def test_a_long_recording_is_asked_about_as_in_python(client, served_model, spoken):
    from ossicle.listen.long import ask as asked

    waveform = spoken.tones(3, words=150)  # 23 s: more than a window
    expected = asked(served_model, waveform, "say it", max_new_tokens=spoken.TOKENS)
    content = base64.b64encode(spoken.wav(waveform)).decode()
    part = {"type": "input_audio", "input_audio": {"data": content, "format": "wav"}}
    assert ask(client, user(part, text("say it"))).choices[0].message.content == expected


def test_concurrent_answers_are_those_of_single_requests(client, audio):
    messages = [
        user(audio(seed), text(word)) for seed in (0, 1) for word in ("say it", "say this", "what", "who is it")
    ]
    tokens = [3, 24, 9, 17, 24, 1, 12, 20]

    def answer(k):
        found = ask(client, messages[k], max_tokens=tokens[k])
        return found.choices[0].message.content

    alone = [answer(k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, [*range(8)] * 3)) == alone * 3
    assert len(set(alone)) > 5


def test_an_answer_ends_at_a_stop_text_or_at_its_largest_number_of_tokens(client, audio):
    message = user(audio(0), text("say it"))
    whole = ask(client, message).choices[0].message.content
    stop = whole[8:10]
    expected = whole[: whole.find(stop)].strip()
    for options in ({}, {"stream": True}):
        found = ask(client, message, stop=[stop, "zzzz"], **options)
        if options:
            chunks = list(found)
            answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            end = chunks[-1].choices[0].finish_reason
        else:
            answer, end = found.choices[0].message.content, found.choices[0].finish_reason
        assert (answer, end) == (expected, "stop")
    short = ask(client, message, max_completion_tokens=5)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 5
    assert whole.startswith(short.choices[0].message.content)


def test_samples_follow_their_seed(client, audio):
    def sampled(seed):
        found = ask(client, user(audio(0), text("say it")), temperature=1.8, top_p=0.9, seed=seed)
        return found.choices[0].message.content

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
    ],
)
def test_options_that_are_not_supported_are_refused(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, {"role": "user", "content": "hello"}, **options)
    assert error.value.param == param


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": "/etc/passwd", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "not base64!", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "exe"}},
        {"type": "text", "text": "half a character \ud800"},
        {"type": "text"},
    ],
)
def test_other_parts_are_refused(server, part):
    body = {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}, part]}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages")


def test_conversations_in_a_wrong_order_are_refused(server):
    url = f"{server.url}/v1/chat/completions"
    for messages in ([], [{"role": "assistant", "content": "yes"}], [{"role": "user", "content": []}], "hello", None):
        answer = httpx.post(url, json={"messages": messages})
        assert answer.status_code == 400, messages
    assert httpx.post(url, content=b"{", headers=JSON).status_code == 400
    assert httpx.post(url, content=b"[" * 100_000, headers=JSON).status_code == 400


def test_more_audio_than_the_llm_reads_is_refused_before_decoding(client, spoken):
    data = base64.b64encode(spoken.wav(spoken.tones(0, words=1200))).decode()  # 180 s are 3,600 speech tokens
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, user(part, text("say it")))
    assert "2048" in error.value.message
    assert "/" not in error.value.message.replace("/tmp", "/TMP")
