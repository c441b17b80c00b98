"""Live transcription, by the client of OpenAI over a real WebSocket."""

import asyncio
import base64
import json

import numpy as np
import pytest
import soxr

openai = pytest.importorskip("openai")
websockets = pytest.importorskip("websockets")
fastapi = pytest.importorskip("fastapi")
pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def pcm(waveform, rate_hz=24_000) -> list[str]:
    """Return a waveform at 16 kHz as messages of 50 ms, in the form in which the client sends them."""
    resampled = soxr.resample(waveform, 16_000, rate_hz, quality="HQ")
    samples = (np.clip(resampled, -1, 1) * 32767).astype("<i2")
    step = rate_hz // 20
    return [base64.b64encode(samples[k : k + step].tobytes()).decode() for k in range(0, len(samples), step)]


def session(**input_):
    return {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, **input_}}}


async def talk(server, actions, wanted=1, key="none"):
    """Run ``actions(connection)`` and collect the events until ``wanted`` utterances are transcribed."""
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key)
    events = []
    async with client.realtime.connect(model="tiny") as connection:
        sending = asyncio.create_task(actions(connection))
        async with asyncio.timeout(20):
            while sum(event.type == f"{TRANSCRIPTION}.completed" for event in events) < wanted:
                events.append(await connection.recv())
        await sending
    return events


def of(events, kind):
    return [event for event in events if event.type == kind]


def test_turns_are_found_and_transcribed_while_the_client_speaks(server, spoken):
    waveform = np.concatenate([spoken.tones(0, silence_s=0.8), spoken.tones(1, silence_s=0.8)])

    async def speak(connection):
        await connection.session.update(session=session(turn_detection={"type": "server_vad"}))
        for message in pcm(waveform):
            await connection.input_audio_buffer.append(audio=message)

    events = asyncio.run(talk(server, speak, wanted=2))
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    started = of(events, "input_audio_buffer.speech_started")
    stopped = of(events, "input_audio_buffer.speech_stopped")
    committed = of(events, "input_audio_buffer.committed")
    completed = of(events, f"{TRANSCRIPTION}.completed")
    # The tones are at 0.8 to 1.7 s and at 3.3 to 4.2 s. A turn begins 0.3 s earlier and is found 0.5 s later.
    assert [event.audio_start_ms for event in started] == pytest.approx([500, 3000], abs=100)
    assert [event.audio_end_ms for event in stopped] == pytest.approx([2200, 4700], abs=150)
    items = [event.item_id for event in committed]
    assert len(set(items)) == 2
    assert [event.item_id for event in started] == [event.item_id for event in stopped] == items
    assert [event.previous_item_id for event in committed] == [None, items[0]]
    assert [event.item_id for event in completed] == items
    for event in completed:
        deltas = [d.delta for d in of(events, f"{TRANSCRIPTION}.delta") if d.item_id == event.item_id]
        assert len(deltas) > 1
        assert "".join(deltas) == event.transcript
        assert event.usage.seconds == pytest.approx(1.7, abs=0.2)
    assert len({event.event_id for event in events}) == len(events)


def test_a_client_can_commit_by_itself(server, spoken, served_model):
    waveform = spoken.tones(0)

    async def speak(connection):
        await connection.session.update(session=session(turn_detection=None))
        await connection.input_audio_buffer.append(audio=pcm(spoken.tones(1))[8])
        await connection.input_audio_buffer.clear()
        for message in pcm(waveform):
            await connection.input_audio_buffer.append(audio=message)
        await connection.input_audio_buffer.commit()

    events = asyncio.run(talk(server, speak))
    assert not of(events, "input_audio_buffer.speech_started")
    assert of(events, "input_audio_buffer.cleared")
    (completed,) = of(events, f"{TRANSCRIPTION}.completed")
    assert completed.usage.seconds == pytest.approx(len(waveform) / 16_000, abs=0.01)
    assert completed.transcript


def test_other_rates_are_resampled(server, spoken):
    async def speak(connection):
        given = session(turn_detection=None)
        given["audio"]["input"]["format"]["rate"] = 16_000
        await connection.session.update(session=given)
        for message in pcm(spoken.tones(0), 16_000):
            await connection.input_audio_buffer.append(audio=message)
        await connection.input_audio_buffer.commit()

    events = asyncio.run(talk(server, speak))
    assert of(events, "session.updated")[0].session.audio.input.format.rate == 16_000
    assert of(events, f"{TRANSCRIPTION}.completed")[0].usage.seconds == pytest.approx(1.7, abs=0.01)


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ("not json", None),
        ("[1]", None),
        ('{"type": "response.create"}', "type"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "audio"),
        ('{"type": "input_audio_buffer.append"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "audio"),
        ('{"type": "input_audio_buffer.commit", "event_id": "mine"}', None),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "session.type"),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
            "session.audio.input.format.type",
        ),
    ],
)
def test_events_that_cannot_be_used_are_answered_with_an_error(server, event, param):
    async def send():
        async with websockets.connect(f"{server.url.replace('http', 'ws')}/v1/realtime") as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            await socket.send(event)
            answer = json.loads(await socket.recv())
            await socket.send('{"type": "input_audio_buffer.clear"}')  # the connection goes on
            return answer, json.loads(await socket.recv())

    answer, after = asyncio.run(send())
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
    assert answer["error"]["param"] == param
    assert answer["error"]["event_id"] == ("mine" if "mine" in event else None)
    assert after["type"] == "input_audio_buffer.cleared"


def test_a_connection_needs_the_key_and_the_same_origin(served_model, serving):
    async def connect(url, **options):
        async with websockets.connect(url, **options) as socket:
            return json.loads(await socket.recv())["type"], socket.subprotocol

    with serving.start(served_model, api_keys=("right",)) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/realtime"
        header = {"Authorization": "Bearer right"}
        assert asyncio.run(connect(url, additional_headers=header))[0] == "session.created"
        browser = ["realtime", "openai-insecure-api-key.right"]
        assert asyncio.run(connect(url, subprotocols=browser)) == ("session.created", "realtime")
        for options in (
            {},
            {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
            {"additional_headers": header, "origin": "http://evil.example"},
        ):
            with pytest.raises(websockets.exceptions.InvalidStatus) as error:
                asyncio.run(connect(url, **options))
            assert error.value.response.status_code == 403
        with pytest.raises(websockets.exceptions.InvalidStatus):
            asyncio.run(connect(f"{url}?model=other", additional_headers=header))


def test_connections_that_open_at_once_do_not_exceed_the_limit(served_model, serving, monkeypatch):
    accept = fastapi.WebSocket.accept

    async def accept_slowly(socket, **options):
        await asyncio.sleep(0.2)
        await accept(socket, **options)

    monkeypatch.setattr(fastapi.WebSocket, "accept", accept_slowly)

    async def connect_all(port, opened):
        tries = [websockets.connect(f"ws://127.0.0.1:{port}/v1/realtime") for _ in range(8)]
        found = await asyncio.gather(*tries, return_exceptions=True)
        refused = [each for each in found if isinstance(each, websockets.exceptions.InvalidStatus)]
        opened.extend(each for each in found if each not in refused)
        await asyncio.gather(*(each.close() for each in opened))
        return [each.response.status_code for each in refused]

    with serving.start(served_model, max_sockets=2) as server:
        opened = []
        assert asyncio.run(connect_all(server.port, opened)) == [429] * 6
        assert len(opened) == 2


def test_a_connection_that_breaks_leaves_nothing_behind(served_model, serving, spoken):
    async def speak(port):
        socket = await websockets.connect(f"ws://127.0.0.1:{port}/v1/realtime")
        for message in pcm(spoken.tones(0, silence_s=0.8)):
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": message}))
        socket.transport.abort()

    with serving.start(served_model, max_sockets=1) as server:
        for _ in range(3):  # one connection is allowed at a time
            asyncio.run(speak(server.port))
            serving.until(lambda: server.app.state.service.sockets == 0)
        serving.until(lambda: len(server.engine.running) == 0)
