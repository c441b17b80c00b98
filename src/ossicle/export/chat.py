"""Write the chat template of an exported model: recordings as in the training, then the LLM's own template."""

from __future__ import annotations

import logging
from typing import Any

from ossicle.chat_template import SYSTEM
from ossicle.errors import ModelError
from ossicle.prompts import TEMPLATE_OPTIONS, split_turn

log = logging.getLogger(__name__)
INSTRUCTION = "Repeat the words, please."
"""Instruction with which the template is compared to the prompts of the training."""
_START = """\
{{%- set ossicle = namespace(messages=[]) -%}}
{{%- for message in messages -%}}
{{%- set turn = namespace(text='', heard=0, read=0, last='') -%}}
{{%- if message['content'] is string -%}}
{{%- set turn.text = message['content'] -%}}
{{%- else -%}}
{{%- for part in message['content'] -%}}
{{%- if not loop.first and not turn.text.endswith({gap}) -%}}
{{%- set turn.text = turn.text + {gap} -%}}
{{%- endif -%}}
{{%- if 'audio' in part['type'] -%}}
{{%- set turn.text = turn.text + {lead} + {audio} + {mark} -%}}
{{%- set turn.heard = turn.heard + 1 -%}}
{{%- else -%}}
{{%- set turn.text = turn.text + part['text'] -%}}
{{%- set turn.read = turn.read + 1 -%}}
{{%- endif -%}}
{{%- set turn.last = part['type'] -%}}
{{%- endfor -%}}
{{%- if turn.heard and turn.read and turn.last == 'text' -%}}
{{%- set turn.text = turn.text + {tail} -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- set ossicle.messages = ossicle.messages + [{{'role': message['role'], 'content': {content}}}] -%}}
{{%- endfor -%}}
"""
_SYSTEM = """\
{{%- if ossicle.messages[0]['role'] != 'system' -%}}
{{%- set ossicle.messages = [{{'role': 'system', 'content': {system}}}] + ossicle.messages -%}}
{{%- endif -%}}
"""
_MESSAGES = "{%- set messages = ossicle.messages -%}\n"
_OPTION = "{{%- if {name} is not defined -%}}{{%- set {name} = {value} -%}}{{%- endif -%}}\n"
_END = "{{%- if add_generation_prompt -%}}{{{{- {text} -}}}}{{%- endif -%}}"


def chat_template(prompter: Any, turn: str, audio: str) -> str:
    """Return a template of conversations with recordings, whose prompts are those of the training.

    Args:
        prompter: The `ossicle.prompts.Prompter` of the model.
        turn: Text of the user's turn, ``model.turn``.
        audio: The placeholder that stands for a recording.

    Raises `ModelError` if the template of the LLM cannot be completed to one that writes these prompts.
    """
    tokenizer = prompter.tokenizer
    expected = _expected(prompter, audio)
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": INSTRUCTION}]}]
    for system in (False, True):
        for in_parts in (False, True):
            start = _start(turn, audio, system=system, in_parts=in_parts)
            try:
                written = _render(tokenizer, messages, start + tokenizer.chat_template)
            except Exception:  # a template is a program, and may raise anything
                continue
            # Where the prompt of the training goes on, it closes an empty thought or writes a space.
            if expected.startswith(written):
                rest = expected[len(written) :]
                template: str = start + tokenizer.chat_template
                return template + (_END.format(text=ascii(rest)) if rest else "")
    raise ModelError(
        f"{tokenizer.name_or_path}: its chat template cannot be completed to one with recordings; export a model whose "
        "LLM has a template that keeps the content of messages as it is"
    )


def check_tokens(prompter: Any, tokenizer: Any, audio: str) -> None:
    """Warn if ``tokenizer``, which has the placeholder, splits a prompt into other tokens than the training."""
    token = tokenizer.convert_tokens_to_ids(audio)
    written = tokenizer(_expected(prompter, audio), add_special_tokens=False).input_ids
    turn = prompter.turn(INSTRUCTION, "")
    if written != [*turn.before, token, *turn.after]:
        log.warning(
            "%s: the tokenizer splits text after a special token differently, so that answers of the exported model "
            "can differ from those of the original",
            tokenizer.name_or_path,
        )


def _expected(prompter: Any, audio: str) -> str:
    template = prompter.template
    return f"{template.before}{audio}{template.between}{INSTRUCTION}{template.header}"


def _start(turn: str, audio: str, *, system: bool, in_parts: bool) -> str:
    """Return what turns messages with recordings into messages that the LLM's own template takes."""
    lead, between, tail = split_turn(turn)
    mark = between.rstrip()
    texts = {"lead": lead, "mark": mark, "gap": between[len(mark) :] or " ", "tail": tail, "audio": audio}
    written = {name: ascii(text) for name, text in texts.items()}
    content = "[{'type': 'text', 'text': %s}]" if in_parts else "%s"
    parts = [_START.format(content=content % "turn.text", **written)]
    if system:
        parts.append(_SYSTEM.format(system=content % ascii(SYSTEM)))
    parts.append(_MESSAGES)
    parts += [
        _OPTION.format(name=name, value=ascii(value).lower() if isinstance(value, bool) else ascii(value))
        for name, value in TEMPLATE_OPTIONS.items()
    ]
    return "".join(parts)


def _render(tokenizer: Any, messages: list[dict[str, Any]], template: str) -> str:
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return text
