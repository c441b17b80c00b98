"""Answer the tasks of lmms-eval: its model ``ossicle``, which `lmms_eval.models` finds by entry point.

Run it as ``lmms-eval --model ossicle --model_args pretrained=FOLDER --tasks ...``. Other arguments are ``encoder``,
``llm`` and ``dtype``, as in `SpeechLLM.from_pretrained`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ossicle.errors import ConfigError, MissingPackageError, OssicleError

log = logging.getLogger(__name__)

MODEL = "ossicle"
"""Name of the model in lmms-eval."""
SETTINGS = ("max_new_tokens", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size")
SAMPLING = ("temperature", "top_p", "top_k")
"""Settings of a task that change its answers. The second are ignored in greedy decoding."""

Documents = Mapping[str, Mapping[str, Any]]
"""Task -> split -> documents by number."""


def manifest() -> Any:
    """Return the entry of the model in the registry of lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=f"{__name__}.OssicleModel")


def answers(
    model: Any,
    requests: Sequence[Any],
    documents: Documents,
    *,
    batch_size: int = 1,
    answered: Callable[[Any, str], None] = lambda request, answer: None,
) -> list[str]:
    """Return the answer to each request of lmms-eval, in their order.

    Requests of one recording and an instruction are decoded together, as `SpeechLLM.generate` takes them. Others are
    conversations and are decoded one by one. A recording that cannot be read or is too long gets an empty answer, and
    a warning names it.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM`.
        requests: Requests whose ``args`` are (context, doc_to_messages, generation settings, document, task, split).
        documents: Documents of each task.
        batch_size: Recordings that are decoded together.
        answered: Called with each request and its answer.

    Raises `ConfigError` for a task with images or videos.
    """
    found = [""] * len(requests)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        groups[repr(sorted(request.args[2].items(), key=str))].append(place)
    for places in groups.values():
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            for place, answer in zip(batch, _answer(model, [requests[p] for p in batch], documents), strict=True):
                found[place] = answer
                answered(requests[place], answer)
    return found


def decoding_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a task by the names of `SpeechLLM.generate`; unknown ones are left out.

    Decoding is greedy unless the task has a temperature above 0 and does not turn sampling off.
    """
    sampled = bool(settings.get("temperature")) and settings.get("do_sample") is not False
    names = (*SETTINGS, *SAMPLING) if sampled else SETTINGS
    kept = {name: settings[name] for name in names if settings.get(name) is not None}
    beams = settings.get("num_beams") or 1
    return kept if beams == 1 or sampled else {**kept, "num_beams": beams}


@dataclass(frozen=True)
class _Asked:
    """A request: messages, and the recording and instruction that they are if they have this form."""

    messages: list[dict[str, Any]]
    single: tuple[Any, str] | None
    name: str


def _answer(model: Any, requests: Sequence[Any], documents: Documents) -> list[str]:
    """Return the answers to requests with the same settings."""
    asked = [_read(request, documents) for request in requests]
    settings = requests[0].args[2]
    decoding, until = decoding_of(settings), settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    together = [each for each in asked if each.single is not None]
    texts: dict[int, str] = {}
    if len(together) > 1:
        try:
            given = [each.single for each in together if each.single is not None]
            said = model.generate([audio for audio, _ in given], [text for _, text in given], **decoding)
            texts = {id(each): text for each, text in zip(together, said, strict=True)}
        except OssicleError:
            log.debug("a batch failed, its recordings are decoded one by one")  # which names the recording
    return [_until(texts[id(each)] if id(each) in texts else _alone(model, each, decoding), stops) for each in asked]


def _alone(model: Any, asked: _Asked, decoding: Mapping[str, Any]) -> str:
    try:
        if asked.single is not None:
            audio, instruction = asked.single
            return str(model.generate(audio, instruction, **decoding)[0])
        return str(model.generate(None, messages=asked.messages, **decoding)[0])
    except OssicleError as error:
        log.warning("%s has an empty answer: %s", asked.name, error)
        return ""


def _until(text: str, stops: Sequence[str]) -> str:
    """Return ``text`` up to the first of ``stops``."""
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text


def _read(request: Any, documents: Documents) -> _Asked:
    _, doc_to_messages, _, number, task, split = request.args
    name = f"{task}, document {number}"
    messages = []
    for message in _messages(doc_to_messages, documents[task][split][number]):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        messages.append({"role": message["role"], "content": [_part(part, name) for part in parts]})
    single = None
    if len(messages) == 1 and [part["type"] for part in messages[0]["content"]] == ["audio", "text"]:
        audio, text = messages[0]["content"]
        single = audio["audio"], text["text"]
    return _Asked(messages, single, name)


def _messages(doc_to_messages: Any, document: Any) -> Any:
    """Return the messages about a document.

    Where a task has none of its own, lmms-eval takes what its ``doc_to_visual`` returns for images and videos, and
    refuses recordings that the library datasets decodes. Here it is audio.
    """
    task: Any = getattr(doc_to_messages, "__self__", None)
    config = getattr(task, "config", None)
    if config is None or config.doc_to_messages is not None or config.doc_to_visual is None:
        return doc_to_messages(document)
    parts: Iterator[dict[str, Any]] = ({"type": "audio", "url": each} for each in task.doc_to_visual(document) or [])
    return [{"role": "user", "content": [*parts, {"type": "text", "text": task.doc_to_text(document)}]}]


def _part(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    audio = part.get("url", part.get("audio"))
    if part["type"] != "audio" or type(audio).__module__.startswith("PIL."):
        raise ConfigError(f"{name}: has an image or a video, and this model hears audio only; choose tasks of speech")
    if hasattr(audio, "get_all_samples"):  # a decoder of the library datasets
        samples = audio.get_all_samples()
        audio = {"array": samples.data.mean(0), "sampling_rate": int(samples.sample_rate)}
    return {"type": "audio", "audio": audio}


def __getattr__(name: str) -> Any:
    """Return the class ``OssicleModel``, which needs lmms-eval; this module can be imported without it."""
    if name == "OssicleModel":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _model_class() -> type:
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise MissingPackageError("the model of lmms-eval needs lmms-eval: run pip install lmms-eval") from error
    from accelerate import Accelerator

    from ossicle.models.speech_llm import SpeechLLM

    class OssicleModel(lmms):  # type: ignore[misc]
        """A `SpeechLLM` as a chat model of lmms-eval."""

        is_simple = False

        def __init__(
            self,
            pretrained: str,
            encoder: str | None = None,
            llm: str | None = None,
            dtype: str = "auto",
            device: str | None = None,
            batch_size: int | str = 1,
            **others: Any,
        ) -> None:
            """Load the checkpoint ``pretrained``. Raises `ConfigError` for unknown arguments."""
            super().__init__()
            others.pop("max_batch_size", None)
            if others:
                raise ConfigError(
                    f"--model_args: no argument {', '.join(others)}: there are pretrained, encoder, llm and dtype"
                )
            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            place = device if device and self._world_size == 1 else self.accelerator.device
            self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
            self.model = SpeechLLM.from_pretrained(pretrained, encoder=encoder, llm=llm, device=place, dtype=dtype)

        def generate_until(self, requests: list[Any]) -> list[str]:
            """Return the answer to each request."""

            def remember(request: Any, answer: str) -> None:
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer)

            return answers(self.model, requests, self.task_dict, batch_size=self.batch_size, answered=remember)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            """Raise an error: the model generates answers only."""
            raise NotImplementedError(_only_generates("loglikelihood"))

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            """Raise an error: the model answers one round only."""
            raise NotImplementedError(_only_generates("generate_until_multi_round"))

    return OssicleModel


def _only_generates(kind: str) -> str:
    return f"the model {MODEL} of lmms-eval has no {kind}: choose tasks with the output type generate_until"
