"""Let an engine that is already running, such as vLLM, decode for the frozen LLM.

The content of each turn with speech is sent as one part ``prompt_embeds`` of a chat completion: the speech tokens, and
the embeddings of the words around them. The engine renders the chat template around it. A part for the speech alone
would not do, because engines join the parts of a message with newlines that the model has not seen in training.

The encoding is that of vLLM: base64 of ``torch.save`` of a float tensor (tokens, width). vLLM needs the option
``--enable-prompt-embeds``.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import torch
from torch import Tensor, nn

from ossicle.errors import MissingPackageError
from ossicle.models.conversation import Message
from ossicle.prompts import TEMPLATE_OPTIONS
from ossicle.serve.errors import RequestError
from ossicle.serve.jobs import Decoding, Done, Piece
from ossicle.serve.prompts import contents

log = logging.getLogger(__name__)
PLAIN = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}
"""Settings without effect. vLLM would otherwise take those of the model's ``generation_config.json``."""
CONNECT_S = 10.0


class RemoteLLM:
    """A chat-completions endpoint that takes embeddings.

    Args:
        url: Address of the API, such as ``http://localhost:8000/v1``.
        model: Name of the LLM there.
        key: API key, or None.

    Raises `MissingPackageError` without the package httpx2.
    """

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        try:
            import httpx2 as httpx
        except ImportError as error:
            raise MissingPackageError("--llm-url needs httpx2: run pip install 'ossicle[serve]'") from error
        self.url, self.model, self._httpx = url.rstrip("/") + "/chat/completions", model, httpx
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_S))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def messages(self, model: Any, conversation: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages of a request: text as it is, and turns with speech as embeddings by ``model``."""
        found: list[dict[str, Any]] = []
        for message, content in zip(conversation, contents(model, conversation), strict=True):
            parts = content if isinstance(content, str) else [{"type": "prompt_embeds", "data": encoded(content)}]
            found.append({"role": message.role, "content": parts})
        return found

    def request(self, messages: list[dict[str, Any]], decoding: Decoding, end_ids: set[int]) -> dict[str, Any]:
        """Return the body of the request for an answer, which is streamed."""
        settings = decoding.settings
        sampled: dict[str, Any] = {name: settings[name] for name in ("top_p", "top_k") if name in settings}
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": settings["max_new_tokens"],
            "temperature": settings.get("temperature", 0.0),
            "stop": ["\n", *decoding.stop],
            "stop_token_ids": sorted(end_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": TEMPLATE_OPTIONS,
            **PLAIN,
            **sampled,
            **({} if decoding.seed is None else {"seed": decoding.seed}),
        }

    async def events(self, body: dict[str, Any], *, streamed: bool) -> AsyncGenerator[Piece | Done, None]:
        """Send a request and yield the events of its answer.

        Raises `RequestError` with the status 502 if the engine cannot be reached or does not answer as expected.
        """
        text, raw, end = "", "", "stop"
        usage: dict[str, int] = {}
        async with aclosing(self._chunks(body)) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", [])[:1]:
                    raw += (choice.get("delta") or {}).get("content") or ""
                    end = "length" if choice.get("finish_reason") == "length" else end
                    now = raw.split("\n")[0].strip()
                    if streamed and len(now) > len(text):
                        yield Piece(now[len(text) :])
                    text = now
        yield Done(text, end, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        failed = RequestError("the LLM's engine does not answer as expected: ask who runs this server", 502)
        try:
            async with self._client.stream("POST", self.url, json=body) as response:
                if response.status_code != 200:
                    said = (await response.aread())[:500].decode(errors="replace")
                    log.error("%s answered with the status %d: %s", self.url, response.status_code, said)
                    raise failed
                async for line in response.aiter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        yield json.loads(data)
        except (self._httpx.HTTPError, ValueError) as error:
            log.error("%s: %s", self.url, error)
            raise failed from error


def encoded(embeds: Tensor) -> str:
    """Return a float tensor (tokens, width) as vLLM reads it: base64 of what ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(embeds.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode()


def release_decoder(model: Any) -> None:
    """Free the layers of the LLM, which decodes elsewhere. Its embeddings and its tokenizer stay."""
    model.llm.model.base_model.layers = nn.ModuleList()
