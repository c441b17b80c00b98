"""Answer recordings and conversations: what `SpeechLLM.generate` accepts, as prompts for the frozen LLM.

Shape legend: B recordings, N text tokens, M speech tokens, L positions of a prompt, D width of the LLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ossicle.batch import Batch, Padded, Sample, pad, pad_ids
from ossicle.chat_template import SYSTEM
from ossicle.errors import ConfigError, DataError, ModelError
from ossicle.models.joint import SEARCH_SETTINGS, asks_transcript, generate_jointly, searches
from ossicle.models.limits import warn_of_limits
from ossicle.models.packing import join
from ossicle.models.recordings import batch_of, is_list, is_text, read_recording
from ossicle.models.running import RunningBatch
from ossicle.prompts import TEMPLATE_OPTIONS, Prompter, split_turn

ROLES = ("system", "user", "assistant")
PARTS = "give a string, or parts {'type': 'text', 'text': ...} and {'type': 'audio', 'audio': RECORDING}"
EMPTY_TRANSCRIPT = "."
"""Text for the LLM if nothing was heard, because the LLM needs at least one token."""
SLOT = re.compile(r"\{part(\d+)\}")
"""Place of a part in the content of a message, before its tokens are known."""


@dataclass(frozen=True)
class Part:
    """A text or a recording in a message."""

    text: str = ""
    waveform: Tensor | None = None  # (S,) float32 at 16 kHz


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    parts: list[Part] = field(default_factory=list)


def answer(  # noqa: PLR0913 - those of `SpeechLLM.generate`
    model: Any,
    audio: Any,
    instruction: str | list[str] | None,
    *,
    messages: Any = None,
    sampling_rate: int | None = None,
    streamed: bool = False,
    own_transcript: bool = False,
    **decoding: Any,
) -> list[str] | Iterator[str]:
    """Return the answers to recordings or to a conversation, or the pieces of one answer; see `SpeechLLM.generate`."""
    if (messages is None) == (audio is None) or (messages is not None and instruction is not None):
        raise ConfigError("give either recordings and an instruction, or messages, which have their own recordings")
    if messages is not None:
        conversation = read_messages(messages, sampling_rate)
        single = _single_turn(conversation)
        if single is None and own_transcript:
            raise ConfigError("own_transcript=True with a longer conversation: give one recording and an instruction")
        if single is None:
            return _answer_prompt(model, prompt_of(model, conversation), streamed, decoding)
        audio, instruction = single
    batch = batch_of(model, audio, cast("str", instruction), sampling_rate)
    if batch is None:
        return iter(()) if streamed else []
    batch = batch.to(_device(model))
    if not streamed:
        answers: list[str] = model.generate_batch(batch, own_transcript=own_transcript, **decoding)
        return answers
    if len(batch) != 1:
        raise ConfigError(f"stream=True with {len(batch)} recordings: give one, or leave stream out")
    joint = _is_joint(model, own_transcript, decoding)
    if joint and asks_transcript(model, batch.samples[0].instruction):
        whole: list[str] = model.generate_batch(batch, **decoding)
        return iter(whole)  # a beam search knows its text at the end
    if joint:  # only transcripts use them
        decoding = {name: value for name, value in decoding.items() if name not in SEARCH_SETTINGS}
    with torch.no_grad():
        heard = model.text(transcribed(model, batch)) if own_transcript else model.speech(batch)
        prompt = model.prompt(batch.chat, heard)
    return _answer_prompt(model, prompt, streamed, decoding)


def answer_batch(
    model: Any, batch: Batch, *, from_text: bool = False, own_transcript: bool = False, **decoding: Any
) -> list[str]:
    """Return the answer to every chat turn of ``batch``; see `SpeechLLM.generate_batch`.

    Raises `DataError` for a recording without a frame, and for an empty text.
    """
    if (chat := batch.chat) is None:
        raise ValueError("the batch has no chat turns")
    if own_transcript and not from_text:
        batch, from_text = transcribed(model, batch), True
    joint = _is_joint(model, from_text, decoding)
    if joint:
        batch = replace(batch, frames=model.frames(batch))  # the spelling needs them too
    heard = model.text(batch) if from_text else model.speech(batch)
    if empty := [s.source for s, valid in zip(batch.samples, heard.mask.any(1).tolist(), strict=True) if not valid]:
        raise DataError(f"{', '.join(empty[:3])}: the audio is shorter than a frame, or the text is empty")
    if joint:
        return generate_jointly(model, replace(batch, speech=heard), **decoding)
    answers: list[str] = model.llm.generate(model.prompt(chat, heard), **decoding)
    return answers


def _is_joint(model: Any, from_text: bool, decoding: dict[str, Any]) -> bool:
    """Return True if transcripts are found by joint search. Raises `ConfigError` for speeds that nothing would use."""
    joint = not from_text and searches(model, **decoding)
    if decoding.get("speeds") and not joint:
        raise ConfigError("speeds: only models that spell (projector ctc) use them, from speech and without sampling")
    return joint


def transcribed(model: Any, batch: Batch) -> Batch:
    """Return ``batch`` with the transcripts that ``model`` itself finds in the place of its texts.

    A recording in which it hears nothing has the text `EMPTY_TRANSCRIPT`, because the LLM needs at least one token.
    """
    prompter = model.prompter()
    samples = [replace(sample, task="asr", instruction=model.instructions.get("asr")) for sample in batch.samples]
    asked = replace(batch, samples=samples, chat=prompter.chat(samples, 0)).to(_device(model))
    texts = [text if prompter.content_ids(text) else EMPTY_TRANSCRIPT for text in answer_batch(model, asked)]
    return replace(batch, text=pad_ids([prompter.content_ids(text) for text in texts])).to(_device(model))


def _answer_prompt(model: Any, prompt: Padded, streamed: bool, decoding: dict[str, Any]) -> list[str] | Iterator[str]:
    if streamed:
        return RunningBatch(model.llm, most_rows=1).stream(prompt, **decoding)
    answers: list[str] = model.llm.generate(prompt, **decoding)
    return answers


def read_messages(messages: Any, sampling_rate: int | None = None) -> list[Message]:
    """Return a conversation whose recordings are read.

    Args:
        messages: Dictionaries with ``role`` (``system``, ``user`` or ``assistant``) and ``content``: a string, or parts
            ``{"type": "text", "text": ...}`` and ``{"type": "audio", "audio": RECORDING}``. The last is of the user.
        sampling_rate: Rate of waveforms without a rate of their own, in Hz.

    Raises `ConfigError` for another form, which names the message, and `AudioError` for audio that cannot be read.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError("messages: give a list of {'role': ..., 'content': ...}")
    found = []
    for number, message in enumerate(messages, 1):
        where = f"messages, message {number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ConfigError(f"{where}: give a dictionary with a 'role' ({', '.join(ROLES)}) and 'content'")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not parts:
            raise ConfigError(f"{where}: {PARTS}")
        read = [_read_part(part, f"{where}, part {k}", sampling_rate) for k, part in enumerate(parts, 1)]
        if message["role"] != "user" and any(part.waveform is not None for part in read):
            raise ConfigError(f"{where}: only messages of the user have recordings")
        found.append(Message(message["role"], read))
    if found[-1].role != "user":
        raise ConfigError("messages: the last message must be of the user, for the model answers it")
    return found


def _read_part(part: Any, where: str, sampling_rate: int | None) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str) and is_text(part["text"]):
        return Part(part["text"])
    if kind == "audio" and part.get("audio") is not None:
        if is_list(part["audio"]):
            raise ConfigError(f"{where}: holds several recordings: give a part for each")
        rate = part.get("sampling_rate", sampling_rate)
        return Part(waveform=read_recording(part["audio"], rate, where))
    raise ConfigError(f"{where}: {PARTS}")


def _single_turn(conversation: Sequence[Message]) -> tuple[Any, str] | None:
    """Return the recording and the instruction of a conversation that is one turn as in training, else None."""
    if len(conversation) == 1 and len(parts := conversation[0].parts) == 2:
        first, second = parts
        if first.waveform is not None and second.waveform is None:
            return first.waveform, second.text
    return None


@torch.no_grad()
def prompt_of(model: Any, conversation: Sequence[Message]) -> Padded:
    """Return the prompt (1, L, D) of a conversation that `read_messages` returned, up to the answer."""
    waveforms = [part.waveform for message in conversation for part in message.parts if part.waveform is not None]
    speech: list[Padded] = []
    if waveforms:
        names = [f"recording {i}" for i in range(1, len(waveforms) + 1)]
        warn_of_limits(model, waveforms, names)
        samples = [Sample(id=name, audio=Path(), source=name) for name in names]
        batch = Batch(samples=samples, waveforms=pad(waveforms))
        heard = model.speech(batch.to(_device(model)))
        speech = [Padded(heard.values[k : k + 1], heard.mask[k : k + 1]) for k in range(len(waveforms))]
    return join_prompt(model, token_ids(model.prompter(), conversation, model.config.turn), speech)


def join_prompt(model: Any, ids: Sequence[Sequence[int]], speech: Sequence[Padded]) -> Padded:
    """Return the prompt (1, L, D) of token ids with ``speech`` (1, M, D) between them, one less than ``ids``."""
    device = _device(model)
    parts = []
    for k, between in enumerate(ids):
        values = model.llm.embed(torch.tensor([list(between)], dtype=torch.long, device=device))
        parts.append(Padded(values, torch.ones(values.shape[:2], dtype=torch.bool, device=device)))
        parts += speech[k : k + 1]
    return join(parts, pad="left")[0]


def token_ids(prompter: Prompter, conversation: Sequence[Message], turn: str) -> list[list[int]]:
    """Return the token ids of the stretches of text between the recordings of a conversation."""
    contents, end = with_slots(conversation, turn)
    parts = [part for message in conversation for part in message.parts]
    rendered = _render(prompter, [message.role for message in conversation], contents, len(parts))
    template = SLOT.split(rendered)[0::2]
    # The end of the prompt is that of training, which may close an empty thought.
    template[-1] = end + prompter.template.header.removeprefix(split_turn(turn)[2])
    stretches, start = [], 0
    for place in [*(k for k, part in enumerate(parts) if part.waveform is not None), len(parts)]:
        texts = [part.text for part in parts[start:place]]
        stretches.append(_ids(prompter, template[start : place + 1], texts))
        start = place + 1
    return stretches


def with_slots(conversation: Sequence[Message], turn: str) -> tuple[list[str], str]:
    """Return the content of each message with numbered slots for its parts, and the text after the last slot.

    Recordings are marked as ``turn`` marks the speech.
    """
    lead, between, tail = split_turn(turn)
    mark = between.rstrip()
    gap = between[len(mark) :] or " "
    contents, end, number = [], "", 0
    for message in conversation:
        content = ""
        for k, part in enumerate(message.parts):
            heard = part.waveform is not None
            content += (gap if k and not content.endswith(gap) else "") + (lead if heard else "") + f"{{part{number}}}"
            end = mark if heard else ""
            content += end
            number += 1
        if len({part.waveform is None for part in message.parts}) == 2 and message.parts[-1].waveform is None:
            content, end = content + tail, tail
        contents.append(content)
    return contents, end


def _render(prompter: Prompter, roles: Sequence[str], contents: Sequence[str], count: int) -> str:
    """Return the conversation in the tokenizer's chat template. Raises `ModelError` if it loses one of the parts.

    A template that takes content in parts, or that requires a system turn, gets them.
    """
    reason = ""
    for system in (False, True)[: 1 if "system" in roles else 2]:
        for in_parts in (False, True):
            messages = [("system", SYSTEM)] * system + list(zip(roles, contents, strict=True))
            turns = [
                {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
                for role, text in messages
            ]
            try:
                rendered: str = prompter.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, **TEMPLATE_OPTIONS
                )
            except Exception as error:  # a template is a program, and may raise anything
                reason = reason or f"fails: {next(iter(str(error).splitlines()), '')[:200]}"
                continue
            if SLOT.split(rendered)[1::2] == [str(number) for number in range(count)]:
                return rendered
            reason = reason or "loses, repeats or moves the content of a message"
    raise ModelError(
        f"{prompter.tokenizer.name_or_path}: its chat template {reason}; give a conversation that it accepts, such as "
        "one in which user and assistant take turns"
    )


def _ids(prompter: Prompter, template: Sequence[str], contents: Sequence[str]) -> list[int]:
    """Return the token ids of a stretch: pieces of the template with contents between them, one less.

    The text of a special token in a content stays text.
    """
    plain = prompter.plain
    if not any(map(plain.holds_token, contents)):
        pairs = zip(template, [*contents, ""], strict=True)
        return prompter.ids("".join(piece + content for piece, content in pairs))
    ids: list[int] = []
    pending = ""  # text since the last special token
    for k, piece in enumerate(template):
        first, special, tail = plain.split(piece)
        if not special:
            pending += piece
        else:
            ids += prompter.ids(first + special) if k == 0 else plain.ids(pending + first)
            last = k == len(template) - 1
            ids += [] if k == 0 else prompter.ids(special + (tail if last else ""))
            pending = "" if last else tail
        pending += contents[k] if k < len(contents) else ""
    return ids + (plain.ids(pending) if pending else [])


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.projector.parameters()).device
    return device
