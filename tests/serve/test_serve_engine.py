"""What the engine decodes together."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
import torch

from ossicle.errors import ConfigError
from ossicle.models.projectors import CTCConfig
from ossicle.models.running import RunningBatch
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.serve.engine import Engine
from ossicle.serve.settings import ServeSettings

pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")
SIZES = CTCConfig(width=16, heads=2, layers=2, ffn=24, kernel=3, dropout=0.0)


@pytest.fixture(scope="module")
def speller(folders) -> SpeechLLM:
    torch.manual_seed(0)
    config = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=SIZES)
    model = config.build().eval()
    with torch.no_grad():
        model.projector.tokens.weight.mul_(20)
    return model


def transcribe(server, content, **options):
    url = f"{server.url}/v1/audio/transcriptions"
    return httpx.post(url, files={"file": ("a.wav", content)}, timeout=60, **options)


def test_transcripts_of_a_model_that_spells_are_searched_together(speller, serving, spoken, monkeypatch):
    waveforms = [spoken.tones(seed, words=4 + 2 * seed) for seed in range(6)]
    alone = [
        speller.generate(waveform, "Transcribe the speech.", max_new_tokens=spoken.TOKENS)[0] for waveform in waveforms
    ]
    assert any(alone)
    sizes, go = [], threading.Event()
    generate = SpeechLLM.generate_batch

    def counted(self, batch, **decoding):
        sizes.append(len(batch))
        if len(sizes) == 1:
            go.wait(20)  # the others arrive meanwhile
        return generate(self, batch, **decoding)

    monkeypatch.setattr(SpeechLLM, "generate_batch", counted)
    with serving.start(speller) as server, ThreadPoolExecutor(6) as pool:
        first = pool.submit(transcribe, server, spoken.wav(waveforms[0]))
        serving.until(lambda: sizes)
        others = [pool.submit(transcribe, server, spoken.wav(waveform)) for waveform in waveforms[1:]]
        serving.until(lambda: server.engine._inbox.qsize() == 5)
        go.set()
        found = [answer.result(30).json()["text"] for answer in [first, *others]]
        text = transcribe(server, spoken.wav(waveforms[0]), data={"stream": "true"}).text
    assert sizes[:2] == [1, 5]
    assert found == alone
    assert '"type": "transcript.text.done"' in text


def test_transcripts_are_heard_at_the_speeds_of_the_server(speller, serving, spoken):
    waveform = spoken.tones(3, words=8)
    how = {"max_new_tokens": spoken.TOKENS, "speeds": [0.8]}
    expected = speller.generate(waveform, "Transcribe the speech.", **how)[0]
    assert expected != speller.generate(waveform, "Transcribe the speech.", max_new_tokens=spoken.TOKENS)[0]
    with serving.start(speller, speeds=(0.8,)) as server:
        assert transcribe(server, spoken.wav(waveform)).json()["text"] == expected


def test_speeds_that_the_model_cannot_use_are_refused_at_the_start(speller, served_model):
    with pytest.raises(ConfigError, match="only models that spell"):
        Engine(served_model, ServeSettings(speeds=(0.9,)))
    with pytest.raises(ConfigError, match="give a list of speeds"):
        Engine(speller, ServeSettings(speeds=(3.0,)))


def test_other_answers_of_such_a_model_are_decoded_beside_a_search(speller, serving, spoken):
    with serving.start(speller) as server, ThreadPoolExecutor(4) as pool:
        message = {"role": "user", "content": "hello"}
        chat = {"messages": [message], "max_tokens": 20}
        answers = [pool.submit(httpx.post, f"{server.url}/v1/chat/completions", json=chat) for _ in range(2)]
        transcripts = [pool.submit(transcribe, server, spoken.wav(spoken.tones(seed))) for seed in range(2)]
        assert [answer.result(30).status_code for answer in answers + transcripts] == [200] * 4
        expected = speller.generate(messages=[message], max_new_tokens=20)
        assert [answer.result().json()["choices"][0]["message"]["content"] for answer in answers] == expected * 2


def test_requests_join_a_batch_that_is_running(served_model, serving, monkeypatch):
    sizes = []
    step = RunningBatch.step

    def counted(self):
        time.sleep(0.005)  # the long answer must not end before the short ones
        stepped = step(self)
        sizes.append(len(stepped))
        return stepped

    monkeypatch.setattr(RunningBatch, "step", counted)

    def ask(server, tokens):
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
        return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()

    with serving.start(served_model) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, server, 300)
        serving.until(lambda: len(sizes) > 10)
        second = [pool.submit(ask, server, 20) for _ in range(3)]
        for answer in second:
            assert answer.result(30)["usage"]["completion_tokens"] == 20
        assert not first.done()
        assert first.result(30)["usage"]["completion_tokens"] == 300
    assert max(sizes) == 4
    assert sizes[0] == sizes[-1] == 1


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_an_llm_with_sliding_windows_is_served_one_answer_after_another(folders, serving, family):
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}
    from ossicle.models.projectors import QFormerConfig

    config = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders[family]), projector=QFormerConfig(**sizes))
    model = config.build().eval()
    messages = [{"role": "user", "content": f"hello {k}, how are you today?"} for k in range(3)]
    expected = [model.generate(messages=[message], max_new_tokens=30)[0] for message in messages]

    def ask(server, message):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [message], "max_tokens": 30})
        return answer.json()["choices"][0]["message"]["content"]

    with serving.start(model) as server, ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda message: ask(server, message), messages)] == expected


def test_requests_that_are_given_up_before_they_are_encoded_leave_nothing_behind(served_model, serving):
    """The server must also stop after that, which `serving.start` asserts."""
    body = {"messages": [{"role": "user", "content": "hello"}]}
    with serving.start(served_model) as server:
        url = f"{server.url}/v1/chat/completions"
        with server.engine.encoding.in_use, ThreadPoolExecutor(5) as pool:  # the first one waits for the encoder
            sent = [pool.submit(httpx.post, url, json=body, timeout=0.5) for _ in range(5)]
            for answer in sent:
                with pytest.raises(httpx.ReadTimeout):
                    answer.result()
            serving.until(lambda: server.engine._in_flight == 0)
        serving.until(lambda: server.engine._encoded == 0)
        assert httpx.post(url, json=body, timeout=30).status_code == 200
