"""Read a tokenizer's chat template, and tokenise content in which the text of special tokens stays text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ossicle.errors import ModelError

SPEECH, INSTRUCTION, ANSWER = "{speech}", "{instruction}", "{answer}"
SYSTEM = "You are a helpful assistant."
"""System turn for templates that refuse a chat without one."""
MOST_MESSAGE = 200
"""Characters of a template's own error that a message repeats."""
_MARKUP = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_THOUGHT = re.compile(
    r"([<\[◁])(\|?[\w ]*(?:think|thought|reason|ponder|reflect|scratch)\w*\|?)([>\]▷])", re.IGNORECASE
)
_TAG = re.compile(r"(<)([A-Za-z][\w-]*)(>)")


@dataclass(frozen=True)
class TemplateText:
    """The fixed text of a chat turn, see `ossicle.prompts.ChatTemplate`."""

    before: str
    between: str
    header: str
    end: str
    closed_thought: str
    """End of an empty thought in ``header``, if the template's generation prompt opens one; empty otherwise."""


def split_template(tokenizer: Any, options: dict[str, Any]) -> TemplateText:
    """Render one turn with marked slots by the template of ``tokenizer``, with its variables ``options``, and split it.

    A template that takes content in parts, or that requires a system turn, gets them. A generation prompt that opens a
    thought is completed by an empty one, because the answers in the data have no thoughts.

    Raises `ModelError` with the reason for a template that fails, loses, changes or repeats the content of messages, or
    whose generation prompt writes other text than stands before an answer.
    """
    name = tokenizer.name_or_path
    reasons = []
    for system in (False, True):
        for parts in (False, True):
            try:
                prompt, whole = _render(tokenizer, options, system=system, parts=parts)
            except Exception as error:  # a template is a program, and may raise anything
                first = next(iter(str(error).splitlines()), "")
                reasons.append(f"the chat template fails: {first[:MOST_MESSAGE] or type(error).__name__}")
                continue
            if reason := _reason_against(prompt, whole):
                reasons.append(reason)
                continue
            return _split(prompt, whole, name)
    raise ModelError(f"{name}: {reasons[0]}; use an instruction-tuned LLM with another template")


def _render(tokenizer: Any, options: dict[str, Any], *, system: bool, parts: bool) -> tuple[str, str]:
    """Return the turn up to the answer, and the turn with its answer."""

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}

    turns = [message("system", SYSTEM)] * system + [message("user", f"{SPEECH} {INSTRUCTION}")]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    turns.append(message("assistant", ANSWER))
    return prompt, tokenizer.apply_chat_template(turns, tokenize=False, **options)


def _reason_against(prompt: str, whole: str) -> str:
    """Return what is wrong with a rendered turn, or an empty string."""
    counts = [prompt.count(SPEECH), prompt.count(INSTRUCTION), whole.count(INSTRUCTION), whole.count(ANSWER)]
    if min(counts) == 0:
        return "the chat template does not keep the content of messages"
    if max(counts) > 1:
        return f"the chat template writes the content of a message {max(counts)} times"
    return ""


def _split(prompt: str, whole: str, name: str) -> TemplateText:
    before, rest = prompt.split(SPEECH)
    between, header = rest.split(INSTRUCTION)
    lead, end = whole.split(INSTRUCTION)[1].split(ANSWER)
    extra, written = "", ""
    if lead.startswith(header):  # Mistral's template writes a space before the answer that its generation prompt lacks
        written = lead[len(header) :] if _end_of_thought(header, "") else ""
        header = lead
    else:
        extra = _extra(header, lead)
    closing = _end_of_thought(header, extra)
    if extra and not closing and not _THOUGHT.search(extra):
        raise ModelError(
            f"{name}: the generation prompt of the chat template ends with {extra!r}, which the template does not "
            "write before an answer; use an instruction-tuned LLM with another template"
        )
    return TemplateText(before, between, header + closing, end, written + closing)


def _extra(header: str, lead: str) -> str:
    """Return the text of ``header`` that is not at the start of ``lead``, apart from spaces."""
    own, other = ("".join(text.split()) for text in (header, lead))
    same = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    return own[same:]


def _end_of_thought(header: str, extra: str) -> str:
    """Return the text that completes an open thought at the end of ``header`` as an empty one, or an empty string."""
    found = [*_THOUGHT.finditer(header)] or [m for m in _TAG.finditer(header) if extra == m[0]]
    if not found:
        return ""
    left, tag, right = found[-1].groups()
    if tag.startswith("|"):
        if "begin" not in tag and "start" not in tag:
            return ""
        closing = left + tag.replace("begin", "end").replace("start", "end") + right
    else:
        closing = f"{left}/{tag}{right}"
    rest = header[found[-1].end() :]
    if closing in rest:
        return ""
    if left == "[":
        return closing
    return f"{'' if rest.endswith(chr(10) * 2) else chr(10) if rest.endswith(chr(10)) else chr(10) * 2}{closing}\n\n"


class PlainText:
    """Tokenise content so that the text of a special token does not become that token.

    Special tokens, and other added tokens that look like markup (``<think>`` of Qwen3), belong to the template alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        marked = {i: t.content for i, t in added if t.content and (t.special or _MARKUP.fullmatch(t.content))}
        self.tokens, self._ids = set(marked.values()), set(marked)
        self._firsts = {token[0] for token in self.tokens}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copied tokenizer out: pickling it would lose the setting that makes special tokens text."""
        return {name: value for name, value in self.__dict__.items() if name != "_fast"}

    def holds_token(self, text: str) -> bool:
        """Return True if the tokenizer would read a part of ``text`` as one of the special tokens."""
        return not self._firsts.isdisjoint(text) and any(token in text for token in self.tokens)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of ``text``, none of which is a special token."""
        ids = self._encode(text)
        if self._ids.isdisjoint(ids):
            return ids
        # The vocabulary itself spells a special token as one piece: tokenise its first character apart.
        for token in self.tokens:
            text = text.replace(token, f"{token[0]}\0{token[1:]}")
        return [i for part in text.split("\0") if part for i in self._encode(part)]

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer.is_fast:
            return list(self.encode(text).ids)
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return list(self.tokenizer(text, **options).input_ids)

    def encode(self, text: str) -> Any:
        """Return the encoding (``ids``, ``offsets``) of ``text`` by a fast tokenizer, without special tokens."""
        return self._fast.encode(text, add_special_tokens=False)

    def split(self, text: str) -> tuple[str, str, str]:
        """Split the text of a template into the part up to its first special token, its special part, and the rest."""
        places = [m for token in self.tokens for m in re.finditer(re.escape(token), text)]
        first = min((place.start() for place in places), default=len(text))
        last = max((place.end() for place in places), default=len(text))
        return text[:first], text[first:last], text[last:]

    @cached_property
    def _fast(self) -> Any:
        """A copy of the tokenizer in which every such token is special, and special tokens are read as text."""
        from tokenizers import Tokenizer

        tree = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in tree["added_tokens"]:
            token["special"] = token["content"] in self.tokens
        copied = Tokenizer.from_str(json.dumps(tree))
        copied.encode_special_tokens = True
        copied.no_truncation()
        copied.no_padding()
        return copied
