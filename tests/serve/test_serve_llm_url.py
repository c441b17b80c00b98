"""The LLM in another engine: what is sent, and the same tokens as by the model here."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2 as httpx
import pytest
import torch
from fastapi.testclient import TestClient

from ossicle.batch import Padded
from ossicle.listen.long import transcript_instruction
from ossicle.models.conversation import Message, Part
from ossicle.models.running import RunningBatch
from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import TEMPLATE_OPTIONS
from ossicle.serve import run
from ossicle.serve.llm_url import RemoteLLM, encoded, release_decoder
from ossicle.serve.prompts import contents
from ossicle.serve.settings import ServeSettings

pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")
SLOT = "\ue000"


def input_vectors(llm, messages, options) -> torch.Tensor:
    """Return what vLLM makes of messages: the template around text and around embeddings, which have one slot each."""
    rendered, embeds = [], []
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else []
        for part in content if not texts else []:
            assert part["type"] == "prompt_embeds"
            embeds.append(torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True))
            texts.append(SLOT)
        rendered.append({"role": message["role"], "content": "\n".join(texts)})
    text = llm.tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True, **options)
    vectors = []
    for k, piece in enumerate(text.split(SLOT)):
        vectors += [embeds[k - 1]] if k else []
        vectors.append(llm.embed(torch.tensor(llm.tokenizer(piece, add_special_tokens=False).input_ids)))
    return torch.cat(vectors)


@contextmanager
def engine_of(llm, status=200):
    """Serve chat completions with embeddings by ``llm``, and keep the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            self.send_response(status)
            self.end_headers()
            if status != 200:
                self.wfile.write(b'{"error": "secret of the engine"}')
                return
            vectors = input_vectors(llm, body["messages"], body["chat_template_kwargs"])
            prompt = Padded(vectors[None], torch.ones(1, len(vectors), dtype=torch.bool))
            (row,) = (running := RunningBatch(llm)).join(prompt, max_new_tokens=body["max_tokens"])
            while len(running):
                running.step()
                piece = llm.tokenizer.decode(row.ids[-1:], skip_special_tokens=True)
                self.send({"choices": [{"delta": {"content": piece}, "finish_reason": row.end}]})
            self.send({"choices": [], "usage": {"prompt_tokens": len(vectors), "completion_tokens": len(row.ids)}})
            self.wfile.write(b"data: [DONE]\n\n")

        def send(self, event):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()


@pytest.fixture
def chat(spoken):
    """``chat(server, text, seed)``: the answer to a recording, and one without a recording for the seed None."""

    def ask(server, text, seed=0, **options):
        parts = [{"type": "text", "text": text}]
        if seed is not None:
            data = base64.b64encode(spoken.wav(spoken.tones(seed))).decode()
            parts.insert(0, {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
        return httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages, **options}, timeout=60)

    return ask


def test_a_tensor_is_sent_as_vllm_reads_it():
    embeds = torch.randn(3, 8)[:, ::2]
    read = torch.load(io.BytesIO(base64.b64decode(encoded(embeds), validate=True)), weights_only=True)
    assert torch.equal(read, embeds)
    assert read.dtype == torch.float32
    assert len(encoded(torch.randn(1000, 4)[:2])) < 3000  # a view does not bring its whole storage


def test_the_content_of_a_turn_is_the_prompt_without_the_template(served_model, spoken):
    waveform = torch.from_numpy(spoken.tones(0))
    turn = [Message("user", [Part(waveform=waveform), Part("say it")])]
    (content,) = contents(served_model, turn)
    prompt = served_model.conversation(
        [{"role": "user", "content": [{"type": "audio", "audio": waveform}, {"type": "text", "text": "say it"}]}]
    )
    message = [{"role": "user", "content": [{"type": "prompt_embeds", "data": encoded(content)}]}]
    torch.testing.assert_close(input_vectors(served_model.llm, message, TEMPLATE_OPTIONS), prompt.values[0])


def test_answers_are_those_of_the_model_here(served_model, serving, spoken, chat):
    with serving.start(served_model) as here:
        expected = [chat(here, text, seed).json() for text in ("say it", "what") for seed in (0, 1, None)]
        content = {"file": ("a.wav", spoken.wav(spoken.tones(1)))}
        transcript = httpx.post(f"{here.url}/v1/audio/transcriptions", files=content).json()
    with engine_of(served_model.llm) as (url, requests):
        remote = RemoteLLM(url + "/", "the-llm", "engine-key")
        with serving.start(served_model, remote) as server:
            found = [chat(server, text, seed).json() for text in ("say it", "what") for seed in (0, 1, None)]
            assert httpx.post(f"{server.url}/v1/audio/transcriptions", files=content).json() == transcript
            streamed = chat(server, "say it", stream=True)
            assert httpx.post(f"{server.url}/ossicle/analysis", files=content, data={"text": "a"}).status_code == 404
    assert [f["choices"] for f in found] == [e["choices"] for e in expected]
    assert [f["usage"] for f in found] == [e["usage"] for e in expected]
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert (
        "".join(e["choices"][0]["delta"].get("content", "") for e in events)
        == (expected[0]["choices"][0]["message"]["content"])
    )
    path, headers, body = requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer engine-key"
    assert body["model"] == "the-llm"
    assert (body["temperature"], body["stop"], body["stream"]) == (0.0, ["\n"], True)
    assert (body["repetition_penalty"], body["top_k"]) == (1.0, -1)  # as the model's own settings may say otherwise
    assert body["chat_template_kwargs"] == TEMPLATE_OPTIONS
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["prompt_embeds"]


@pytest.mark.parametrize("running", [True, False])
def test_an_engine_that_fails_is_told_without_its_inside(served_model, serving, chat, running):
    with engine_of(served_model.llm, status=500) as (url, _):
        remote = RemoteLLM(url if running else "http://127.0.0.1:9/v1", "the-llm")
        with serving.start(served_model, remote) as server:
            answer = chat(server, "say it")
    assert answer.status_code == 502
    assert "secret" not in answer.text
    assert "engine" in answer.json()["error"]["message"]


def test_the_decoder_here_is_freed_and_speech_is_the_same(served_model, spoken, tmp_path):
    served_model.save(tmp_path)
    model = SpeechLLM.from_pretrained(tmp_path)
    turn = [Message("user", [Part(waveform=torch.from_numpy(spoken.tones(0))), Part("say it")])]
    (before,) = contents(model, turn)
    release_decoder(model)
    assert not any("layers" in name for name, _ in model.llm.model.named_parameters())
    assert torch.equal(contents(model, turn)[0], before)


@pytest.mark.parametrize(("name", "key"), [("the-llm", "engine-key"), (None, None)])
def test_the_server_of_the_command_uses_the_llm_elsewhere(served_model, spoken, tmp_path, monkeypatch, name, key):
    served_model.save(tmp_path)
    apps = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: apps.append(app))
    monkeypatch.delenv(run.LLM_KEY, raising=False)
    if key:
        monkeypatch.setenv(run.LLM_KEY, key)
    with engine_of(served_model.llm) as (url, requests):
        place = {"host": "127.0.0.1", "port": 0, "llm_url": url, "llm_model": name}
        run.run_server(tmp_path, ServeSettings(name="mine"), **place)
        with TestClient(apps[0], base_url="http://127.0.0.1") as client:
            content = {"file": ("a.wav", spoken.wav(spoken.tones(0)))}
            found = client.post("/v1/audio/transcriptions", files=content).json()["text"]
    (said,) = served_model.generate(spoken.tones(0), transcript_instruction(served_model))
    assert found == said
    assert [body["model"] for _, _, body in requests] == [name or served_model.config.llm]
    assert [headers.get("Authorization") for _, headers, _ in requests] == [f"Bearer {key}" if key else None]
    assert not any("layers" in part for part, _ in apps[0].state.service.model.llm.model.named_parameters())
