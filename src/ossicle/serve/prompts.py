"""Turn conversations into what the frozen LLM reads, in memory that does not grow with the length of a recording.

Shape legend: S audio samples, M speech tokens, L positions of a prompt, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Padded, Sample, pad
from ossicle.errors import DataError
from ossicle.listen.inputs import Recording
from ossicle.listen.long import speech_of, window_s
from ossicle.models.conversation import SLOT, Message, join_prompt, token_ids, with_slots


def is_long(model: Any, waveform: Tensor) -> bool:
    """Return True if ``waveform`` (S,) is encoded window by window."""
    return len(waveform) > window_s(model) * SAMPLE_RATE_HZ


@torch.no_grad()
def speech_tokens(model: Any, waveform: Tensor) -> Padded:
    """Return the speech tokens (1, M, D) of a recording (S,).

    Raises `DataError` if there are none, or more than the LLM reads.
    """
    if is_long(model, waveform):
        return speech_of(model, Recording(waveform.numpy(), name="the recording"))
    sample = Sample(id="the recording", audio=Path(), source="the recording")
    batch = Batch(samples=[sample], waveforms=pad([waveform]))
    heard: Padded = model.speech(batch.to(_device(model)))
    if not bool(heard.mask.any()):
        raise DataError("the recording is shorter than a frame of the encoder: send a longer one")
    return heard


def prompt_of(model: Any, conversation: Sequence[Message]) -> Padded:
    """Return the prompt (1, L, D) of a conversation, up to the answer. Raises as `speech_tokens`."""
    speech = [speech_tokens(model, waveform) for waveform in waveforms(conversation)]
    return join_prompt(model, token_ids(model.prompter(), conversation, model.config.turn), speech)


def waveforms(conversation: Sequence[Message]) -> list[Tensor]:
    """Return the recordings of a conversation, in order."""
    return [part.waveform for message in conversation for part in message.parts if part.waveform is not None]


@torch.no_grad()
def contents(model: Any, conversation: Sequence[Message]) -> list[str | Tensor]:
    """Return the content of each message, without the chat template around it.

    It is text, or input vectors (L, D) where the message has speech. Raises as `speech_tokens`.
    """
    texts = [part.text for message in conversation for part in message.parts]
    heard = [part.waveform is not None for message in conversation for part in message.parts]
    speech = iter([speech_tokens(model, waveform) for waveform in waveforms(conversation)])
    found: list[str | Tensor] = []
    for slots in with_slots(conversation, model.config.turn)[0]:
        text, vectors = "", []
        for n, piece in enumerate(SLOT.split(slots)):  # text around the parts, and their numbers, in turn
            if n % 2 and heard[int(piece)]:
                tokens = next(speech)
                vectors += [_embedded(model, text), tokens.values[tokens.mask].float()]
                text = ""
            else:
                text += texts[int(piece)] if n % 2 else piece
        found.append(torch.cat([*vectors, _embedded(model, text)]) if vectors else text)
    return found


def _embedded(model: Any, text: str) -> Tensor:
    """Return the input vectors (L, D) of text, in which special tokens are only text."""
    ids = torch.tensor(model.prompter().content_ids(text), dtype=torch.long, device=_device(model))
    vectors: Tensor = model.llm.embed(ids).float()
    return vectors


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.projector.parameters()).device
    return device
