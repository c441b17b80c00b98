"""Keys, limits, a full queue, clients that leave, and the end of the server."""

import asyncio
import base64
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ossicle.errors import ConfigError
from ossicle.serve.settings import check_host
from places import ROOT

openai = pytest.importorskip("openai")
KEYS = ("first-key", "second-key")


def body(content="hello", **options):
    return {"messages": [{"role": "user", "content": content}], **options}


def post(server, json=None, **options):
    return httpx.post(f"{server.url}/v1/chat/completions", json=json or body(), timeout=60, **options)


def metrics(server):
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture
def slow(served_model, monkeypatch):
    """Decoding takes 20 ms per token and never ends early."""
    from ossicle.models.running import RunningBatch

    step = RunningBatch.step

    def slowly(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slowly)


def test_without_a_key_the_server_listens_on_this_machine_only():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        check_host(host, ())
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(ConfigError, match="OSSICLE_API_KEY"):
            check_host(host, ())
        check_host(host, KEYS)


def test_a_request_needs_one_of_the_keys(served_model, serving):
    with serving.start(served_model, api_keys=KEYS) as server:
        for key in KEYS:
            assert post(server, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        for headers in ({}, {"Authorization": "Bearer third-key"}, {"Authorization": KEYS[0]}):
            answer = post(server, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_a_name_that_points_to_this_machine_is_refused_without_a_key(server):
    assert post(server, headers={"Host": "evil.example"}).status_code == 403
    assert post(server, headers={"Host": "localhost:1234"}).status_code == 200


def test_models_are_listed(client, server):
    (found,) = client.models.list().data
    assert (found.id, found.owned_by) == ("tiny", "ossicle")
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{server.url}/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405


def test_too_large_a_body_is_refused_by_its_header_and_while_it_arrives(served_model, serving, spoken):
    with serving.start(served_model, max_upload_bytes=50_000) as server:
        url = f"{server.url}/v1/audio/transcriptions"

        def parts():
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield bytes(10_000)

        for options in (
            {"files": {"file": ("a.wav", bytes(100_000))}},
            {"content": parts(), "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        ):
            answer = httpx.post(url, **options)
            assert answer.status_code == 413, answer.text
            assert answer.json()["error"]["code"] == "body_too_large"
        assert post(server, json=body("a" * 100_000)).status_code == 413


def test_too_long_a_recording_and_too_many_channels_are_refused(served_model, serving, spoken):
    import numpy as np

    with serving.start(served_model, max_audio_s=2.0) as server:
        url = f"{server.url}/v1/audio/transcriptions"

        def status(waveform, rate_hz=16_000):
            answer = httpx.post(url, files={"file": ("a.wav", spoken.wav(waveform, rate_hz))})
            return answer.status_code, answer.text

        assert status(spoken.tones(0))[0] == 200
        assert status(np.zeros(16_000 * 3, np.float32)) == (400, status(np.zeros(16_000 * 3, np.float32))[1])
        assert "more than 2 s" in status(np.zeros(16_000 * 3, np.float32))[1]
        assert "channels" in status(np.zeros((16_000, 32), np.float32))[1]


def test_tokens_are_limited(served_model, serving):
    with serving.start(served_model, max_tokens=7) as server:
        assert post(server, json=body(max_tokens=500)).json()["usage"]["completion_tokens"] == 7
    with serving.start(served_model, max_decode_s=0.01, max_tokens=1500) as server:
        found = post(server, json=body(max_tokens=1500)).json()
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] < 1000


def test_a_full_queue_is_refused_with_a_time_to_come_back(served_model, serving, slow):
    with serving.start(served_model, max_rows=1, max_queue=2) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: post(server, json=body(max_tokens=20)), range(8)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 3 + [429] * 5
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        create = client.chat.completions.create
        with pytest.raises(openai.RateLimitError), ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: create(model="tiny", **body(max_tokens=20)), range(8)))
        serving.until(lambda: metrics(server)[("ossicle_requests_in_flight",)] == 0)
        assert metrics(server)[("ossicle_requests_refused_total",)] >= 5
        assert post(server).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(served_model, serving, slow):
    with serving.start(served_model, request_timeout_s=0.3) as server:
        assert post(server, json=body(max_tokens=3)).status_code == 200
        answer = post(server, json=body(max_tokens=200))
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body(max_tokens=200, stream=True)
        ) as stream:
            last = [line for line in stream.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        serving.until(lambda: len(server.engine.running) == 0)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_place(served_model, serving, slow, streamed):
    with serving.start(served_model, max_rows=1) as server:
        sent = json.dumps(body(max_tokens=1000, stream=streamed)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n"
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + sent)
        if streamed:
            assert b"200 OK" in raw.recv(1000)
        serving.until(lambda: server.engine.running.rows)
        raw.close()
        serving.until(lambda: metrics(server)[("ossicle_requests_in_flight",)] == 0, timeout_s=5)
        serving.until(lambda: len(server.engine.running) == 0, timeout_s=5)
        assert metrics(server)[("ossicle_requests_cancelled_total",)] == 1
        assert post(server, json=body(max_tokens=2)).status_code == 200


def _read_forever(port):
    with httpx.stream(
        "POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=body(max_tokens=1000, stream=True)
    ) as stream:
        for _ in stream.iter_lines():
            pass


@pytest.mark.slow
def test_a_killed_client_frees_its_place(served_model, serving, slow):
    with serving.start(served_model) as server:
        process = multiprocessing.get_context("spawn").Process(target=_read_forever, args=(server.port,))
        process.start()
        serving.until(lambda: server.engine.running.rows, timeout_s=60)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        serving.until(lambda: len(server.engine.running) == 0, timeout_s=5)
        serving.until(lambda: metrics(server)[("ossicle_requests_in_flight",)] == 0, timeout_s=5)


def test_the_server_finishes_what_it_accepted_before_it_stops(served_model, serving, slow):
    with serving.start(served_model) as server, ThreadPoolExecutor(3) as pool:
        whole = [pool.submit(post, server, body(max_tokens=40)) for _ in range(2)]
        serving.until(lambda: len(server.engine.running.rows) == 2)
        server.server.should_exit = True
        for answer in whole:
            assert answer.result(20).json()["usage"]["completion_tokens"] == 40
        server.thread.join(20)
        assert not server.thread.is_alive()
        assert not server.engine.is_alive
        with pytest.raises(httpx.ConnectError):
            post(server)


def test_an_error_of_the_server_shows_nothing_of_its_inside(served_model, serving, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("secret detail in /home/someone/model")

    with serving.start(served_model) as server:
        with monkeypatch.context() as patched:
            patched.setattr("ossicle.serve.encoding.prompt_of", broken)
            answer = post(server)
            streamed = post(server, json=body(stream=True))
        for found in (answer, streamed):
            assert found.status_code == 500
            error = found.json()["error"]
            assert "secret" not in found.text
            assert error["type"] == "server_error"
            assert error["code"] in error["message"]
            assert f"error {error['code']}" in caplog.text
        assert "secret detail" in caplog.text
        assert post(server).status_code == 200


def test_decoding_that_fails_is_told_to_all_its_requests_and_the_next_one_works(served_model, serving, monkeypatch):
    from ossicle.models.running import RunningBatch

    step, broken = RunningBatch.step, threading.Event()

    def failing(self):
        if broken.is_set():
            broken.clear()
            raise RuntimeError("out of memory")
        time.sleep(0.01)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", failing)
    with serving.start(served_model) as server, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, server, body(max_tokens=200)) for _ in range(2)]
        serving.until(lambda: len(server.engine.running.rows) == 2)
        broken.set()
        assert [answer.result(20).status_code for answer in answers] == [500, 500]
        assert post(server).status_code == 200


def test_one_bad_recording_does_not_spoil_the_others_in_its_batch(served_model, serving, spoken, slow):
    """Several requests are encoded together. One is shorter than a frame of the encoder."""
    import numpy as np

    def ask(waveform):
        data = base64.b64encode(spoken.wav(waveform)).decode()
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        return body([part, {"type": "text", "text": "say it"}], max_tokens=5)

    with serving.start(served_model) as server, ThreadPoolExecutor(4) as pool:
        blocking = pool.submit(post, server, body(max_tokens=10))
        waveforms = [spoken.tones(0), np.ones(20, np.float32) * 0.1, spoken.tones(1)]
        answers = [pool.submit(post, server, ask(waveform)) for waveform in waveforms]
        assert [answer.result(20).status_code for answer in answers] == [200, 400, 200]
        assert blocking.result(20).status_code == 200


def test_what_is_counted(served_model, serving, spoken):
    with serving.start(served_model) as server:
        post(server, json=body(max_tokens=5))
        httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": ("a.wav", spoken.wav(spoken.tones(0)))})
        httpx.post(f"{server.url}/v1/audio/transcriptions")
        found = metrics(server)
    assert found[("ossicle_requests_total", "/v1/chat/completions", "200")] == 1
    assert found[("ossicle_requests_total", "/v1/audio/transcriptions", "200")] == 1
    assert found[("ossicle_requests_total", "/v1/audio/transcriptions", "400")] == 1
    assert found[("ossicle_tokens_total",)] == pytest.approx(5 + spoken.TOKENS, abs=spoken.TOKENS)
    assert found[("ossicle_audio_seconds_total",)] == pytest.approx(1.7, abs=0.01)


def test_the_malformed_uploads_of_the_benchmark_are_all_refused(server):
    spec = importlib.util.spec_from_file_location("serve_benchmark", ROOT / "benchmarks" / "serve.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    statuses = asyncio.run(benchmark.send_malformed(server.url, 60))
    assert sum(statuses.values()) == 60
    assert all(400 <= status < 500 for status in statuses), statuses
    assert httpx.get(f"{server.url}/health").status_code == 200
