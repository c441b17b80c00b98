"""Load a model and serve it until the process is told to stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ossicle.serve.settings import ServeSettings

SOCKET_BYTES = 2**24
"""Largest message of a WebSocket: 15 MB of audio in base64, as OpenAI allows."""
LLM_KEY = "OSSICLE_LLM_API_KEY"
"""Variable with the key of the LLM's engine."""


def run_server(
    run: Path,
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    llm_url: str | None = None,
    llm_model: str | None = None,
    **model: Any,
) -> None:
    """Serve the model ``run`` at ``host`` and ``port``.

    On SIGTERM or SIGINT it takes no more requests, finishes those that it accepted, and returns. A second signal ends
    it at once.

    Args:
        run: Folder of a run or of a checkpoint, or the name of a packaged one.
        settings: Names, limits and keys.
        host: Address to listen on.
        port: Port to listen on.
        llm_url: API of an engine that decodes for the LLM.
        llm_model: Name of the LLM there.
        model: Arguments of `SpeechLLM.from_pretrained`.

    Raises `MissingPackageError` without the packages of the extra ``serve``, and as `SpeechLLM.from_pretrained`.
    """
    require_packages()
    import uvicorn

    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.serve.app import create_app
    from ossicle.serve.engine import Engine
    from ossicle.serve.llm_url import RemoteLLM, release_decoder

    loaded = SpeechLLM.from_pretrained(run, **model)
    remote = None
    if llm_url is not None:
        remote = RemoteLLM(llm_url, llm_model or loaded.config.llm, os.environ.get(LLM_KEY))
        release_decoder(loaded)
    app = create_app(Engine(loaded, settings), settings, remote)
    uvicorn.run(app, host=host, port=port, log_level="info", ws_max_size=SOCKET_BYTES, server_header=False)


def require_packages() -> None:
    """Raise `MissingPackageError` unless the packages of the extra ``serve`` are installed."""
    from importlib.util import find_spec

    from ossicle.errors import MissingPackageError

    needed = ("fastapi", "uvicorn", "python_multipart", "websockets", "prometheus_client")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise MissingPackageError(f"the server needs {', '.join(missing)}: run pip install 'ossicle[serve]'")
