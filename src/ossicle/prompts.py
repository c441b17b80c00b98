"""Write chat turns in the token ids of an LLM, and choose the instruction of each sample."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ossicle.batch import Chat, Sample, pad_ids
from ossicle.errors import ConfigError, ModelError

ASR_INSTRUCTIONS = (
    "Transcribe the speech.",
    "Write down what is said.",
    "Repeat the words of the speaker.",
    "What does the speaker say? Answer with the transcript only.",
)
TRANSLATE_INSTRUCTION = "Translate the speech to {language}."
TURN = "{speech} {instruction}"
"""Text of the user's turn."""
LANGUAGE_NAMES = {
    "ar": "Arabic", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "de": "German", "en": "English", "es": "Spanish",
    "et": "Estonian", "fa": "Persian", "fr": "French", "hi": "Hindi", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lv": "Latvian", "mn": "Mongolian", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sl": "Slovenian", "sv": "Swedish", "sv-SE": "Swedish",
    "ta": "Tamil", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese", "zh-CN": "Chinese",
}  # fmt: skip
"""English name of each language code, for instructions."""
TEMPLATE_OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Variables that chat templates read. Without the first, Qwen3 and SmolLM3 think before they answer, unlike the answers
in the data. Without the second, Llama 3 writes today's date into the prompt, so that prompts change from day to day."""


@dataclass(frozen=True)
class ChatTemplate:
    """The fixed text of one chat turn: ``before`` SPEECH ``between`` INSTRUCTION ``header`` ANSWER ``end``."""

    before: str
    between: str
    header: str
    end: str
    closed_thought: str = ""
    """Text at the end of ``header`` that completes the thought which a reasoning LLM's generation prompt opens."""

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """Split the tokenizer's own template, by rendering one turn with marked slots.

        Raises `ModelError` for a template that cannot be used, see `ossicle.chat_template.split_template`.
        """
        from ossicle.chat_template import split_template  # done once, and not on the path from data to loss

        return cls(**vars(split_template(tokenizer, TEMPLATE_OPTIONS)))


@dataclass(frozen=True)
class Turn:
    """Token ids of one chat turn."""

    before: list[int]
    after: list[int]
    answer: list[int]


class Prompter:
    """Write chat turns in the token ids of one LLM.

    The ids of an answer end with the template's end of turn, up to its first end-of-sequence id. Exactly these ids are
    labels.
    """

    def __init__(
        self,
        tokenizer: Any,
        end_ids: set[int],
        *,
        asr_instructions: tuple[str, ...] = ASR_INSTRUCTIONS,
        turn: str = TURN,
    ) -> None:
        from ossicle.chat_template import PlainText  # as in `ChatTemplate.of`

        self.tokenizer, self.asr_instructions = tokenizer, asr_instructions
        template, (lead, between, tail) = ChatTemplate.of(tokenizer), split_turn(turn)
        self.template = replace(template, before=template.before + lead, between=between, header=tail + template.header)
        self.plain = PlainText(tokenizer)
        self.before = self.ids(self.template.before)
        self.end = self._end(end_ids)

    def content_ids(self, text: str) -> list[int]:
        """Return the token ids of a transcript, an instruction or an answer; special tokens in it are only text."""
        return self.plain.ids(text) if self.plain.holds_token(text) else self.ids(text)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of ``text`` of a template. The tokenizer adds none, but reads special tokens in it."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def word_ids(self, words: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each word; concatenated, they are the ids of the words joined by spaces.

        A token that spans two words belongs to the later one. Special tokens in the text are only text. Raises
        `ModelError` if the tokenizer has no character offsets.
        """
        if not self.tokenizer.is_fast:
            name = self.tokenizer.name_or_path
            raise ModelError(f"{name}: the tokenizer has no offsets; mixed sequences need a fast tokenizer")
        text = " ".join(words)
        if self.plain.holds_token(text):
            encoded = self.plain.encode(text)
            tokens = zip(encoded.ids, encoded.offsets, strict=True)
        else:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            tokens = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        ends = list(accumulate((len(word) + 1 for word in words), initial=-1))[1:]  # last character of each word
        ids: list[list[int]] = [[] for _ in words]
        for token, (_, end) in tokens:
            ids[bisect_left(ends, end)].append(token)
        return ids

    @property
    def first_ids(self) -> list[int]:
        """Return the begin-of-sequence token as a list, which is empty if the LLM has none."""
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    def turn(self, instruction: str, answer: str) -> Turn:
        """Return one turn; ``answer`` is empty if it is to be generated."""
        return Turn(self.before, self._after(instruction), self.content_ids(answer) + self.end)

    def _after(self, instruction: str) -> list[int]:
        between, header = self.template.between, self.template.header
        if not self.plain.holds_token(instruction):
            return self.ids(f"{between}{instruction}{header}")
        first, special, tail = self.plain.split(between)
        head, *rest = self.plain.split(header)
        if not special:
            first, tail = "", first
        start, stop = self.ids(first + special), self.ids("".join(rest))
        return [*start, *self.plain.ids(f"{tail}{instruction}{head}"), *stop]

    def chat(self, samples: Sequence[Sample], epoch: int) -> Chat:
        """Return the padded chat turns of ``samples``, split where the speech goes."""
        turns = [self.turn(self.instruction(sample, epoch), answer_of(sample)) for sample in samples]
        return Chat(
            before=pad_ids([turn.before for turn in turns]),
            after=pad_ids([turn.after for turn in turns]),
            answer=pad_ids([turn.answer for turn in turns]),
        )

    def instruction(self, sample: Sample, epoch: int) -> str:
        """Return the sample's own instruction, or an ASR instruction drawn by the sample's id and the epoch."""
        if sample.instruction is not None:
            return sample.instruction
        draw = hashlib.blake2b(f"{sample.id}/{epoch}".encode(), digest_size=8).digest()
        return self.asr_instructions[int.from_bytes(draw, "little") % len(self.asr_instructions)]

    def _end(self, end_ids: set[int]) -> list[int]:
        ids = self.ids(self.template.end)
        for position, token in enumerate(ids):
            if token in end_ids:
                return ids[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{self.tokenizer.name_or_path} has no end of turn: its chat template ends an answer with "
                f"{self.template.end!r}, and its tokenizer has no eos_token; set one in tokenizer_config.json"
            )
        return [self.tokenizer.eos_token_id]


def split_turn(turn: str) -> tuple[str, str, str]:
    """Return the text of ``turn`` before the speech, between speech and instruction, and after the instruction.

    Raises `ConfigError` unless it has ``{speech}`` and then ``{instruction}``, each once.
    """
    lead, *rest = turn.split("{speech}")
    parts = rest[0].split("{instruction}") if len(rest) == 1 else []
    if len(parts) != 2:
        raise ConfigError(f"model.turn={turn!r}: write {{speech}} and then {{instruction}}, each once")
    return lead, parts[0], parts[1]


def answer_of(sample: Sample) -> str:
    """Return the target text: the first answer of a task, or the transcript (ASR)."""
    return sample.answers[0] if sample.answers else sample.text or ""


def task_key(task: str, target_language: str | None = None) -> str:
    """Return the key of a task in `SpeechLLM.instructions`, such as ``asr`` or ``st/de``."""
    return f"{task}/{target_language}" if task == "st" else task


def learned_instructions(samples: Iterable[Sample]) -> dict[str, str]:
    """Return the most frequent instruction of each task in ``samples``, the wording that the model learns best."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        if sample.task is not None and sample.instruction is not None:
            counts[task_key(sample.task, sample.target_language)][sample.instruction] += 1
    # Each question is about one utterance, so that no question is the instruction of the task.
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items() if not key.startswith("qa")}
