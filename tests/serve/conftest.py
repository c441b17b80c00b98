"""A server with a tiny random model, on a real socket."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM

if find_spec("uvicorn") is None or find_spec("fastapi") is None:  # pip install 'ossicle[serve]'
    collect_ignore_glob = ["test_*.py"]

RATE_HZ = 16_000
TOKENS = 24
PROJECTOR = {"width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}


def tones(seed: int, words: int = 6, silence_s: float = 0.4) -> np.ndarray:
    """Return a waveform (S,) of tones that differ by seed, between silences: the detector of speech finds them."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(0.15 * RATE_HZ)) / RATE_HZ
    envelope = np.sin(np.pi * time_s / 0.15)
    said = [0.4 * envelope * np.sin(2 * np.pi * rng.uniform(150, 2000) * time_s) for _ in range(words)]
    silence = np.zeros(int(silence_s * RATE_HZ))
    return np.concatenate([silence, *said, silence]).astype(np.float32)


def wav(waveform: np.ndarray, rate_hz: int = RATE_HZ, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format=format, subtype="FLOAT" if format == "WAV" else None)
    return file.getvalue()


@pytest.fixture(scope="session")
def spoken() -> Any:
    """``spoken.tones(seed)`` and ``spoken.wav(waveform)``."""
    return SimpleNamespace(tones=tones, wav=wav, TOKENS=TOKENS)


@pytest.fixture(autouse=True)
def by_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tones are found by their energy, also where Silero VAD is installed, to which they are no speech.

    Each test patches for itself, because a patch of the session would reach the tests of other folders.
    """
    from ossicle.listen import pauses
    from ossicle.serve import turns

    for module in (pauses, turns):
        monkeypatch.setattr(module, "find_detector", lambda name="auto": pauses.energy_speech)


@pytest.fixture(scope="session")
def served_model(folders) -> SpeechLLM:
    """A random model that writes letters, other ones for other sounds and other instructions."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=QFormerConfig(**PROJECTOR)
    )
    model = config.build().eval()
    texts = model.llm.tokenizer.batch_decode([[i] for i in range(len(model.llm.tokenizer))])
    letters = torch.tensor([float(len(text) == 1 and text.islower()) for text in texts])
    torch.manual_seed(5)
    with torch.no_grad():
        model.projector.out.weight.mul_(300)
        for layer in model.llm.model.base_model.layers:
            for weight in layer.parameters():
                weight.mul_(12 if weight.dim() == 2 else 1)
        head = model.llm.model.lm_head.weight
        head.copy_(torch.randn_like(head) * letters[:, None])
    model.instructions = {"asr": "repeat", "st/de": "say it in German"}
    return model


@contextmanager
def running(model: SpeechLLM, remote: Any = None, **settings: Any) -> Iterator[Any]:
    """Serve ``model`` on a free port while the block runs."""
    import uvicorn

    from ossicle.serve.app import create_app
    from ossicle.serve.engine import Engine
    from ossicle.serve.settings import ServeSettings

    given = ServeSettings(**{"name": "tiny", "default_tokens": TOKENS, **settings})
    engine = Engine(model, given)
    app = create_app(engine, given, remote)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}", port=port, engine=engine, app=app, server=server, thread=thread
        )
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def serving() -> Any:
    """``serving(model, **settings)`` as a context manager, and ``serving.until(condition)``."""
    return SimpleNamespace(start=running, until=until)


@pytest.fixture(scope="module")
def server(served_model) -> Iterator[Any]:
    with running(served_model) as found:
        yield found


@pytest.fixture
def client(server) -> Any:
    openai = pytest.importorskip("openai", reason="the client of OpenAI is missing")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found
