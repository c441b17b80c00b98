"""Chat templates with the structure of published ones, and the special tokens of their tokenizers.

The structure is the start tokens, role headers and ends of turn; the wording is our own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and its special tokens."""

    template: str
    eos: str
    """End of sequence of the tokenizer. Some models end a turn with another token."""
    bos: str | None = None
    """Begin of sequence, or None."""
    special: tuple[str, ...] = ()
    """Further special tokens, each with one id."""
    before: str = ""
    """Text before the speech in the user turn."""
    header: str = ""
    """Text between the instruction and the answer."""
    end: str = ""
    """End of turn, which is a label."""


def _header(name: str) -> str:
    return f"<|start_header_id|>{name}<|end_header_id|>\n\n"


PLAIN = ChatFormat(
    template="<s>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    eos="<|end|>",
    bos="<s>",
    special=("<|user|>", "<|assistant|>"),
    before="<s><|user|>",
    header="<|end|><|assistant|>",
    end="<|end|>",
)
# Llama 3.1 to 3.3 begin with a system turn that contains a date, and trim the content of messages.
LLAMA3 = ChatFormat(
    template="{{ bos_token }}{% if date_string is not defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday is ' + date_string + '.\n\n<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    special=("<|start_header_id|>", "<|end_header_id|>"),
    before=f"<|begin_of_text|>{_header('system')}Today is 26 Jul 2024.\n\n<|eot_id|>{_header('user')}",
    header=f"<|eot_id|>{_header('assistant')}",
    end="<|eot_id|>",
)
# Qwen2 and Qwen2.5 have no begin-of-sequence token, a default system turn, and a newline after each turn.
CHATML = ChatFormat(
    template="{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    eos="<|im_end|>",
    special=("<|im_start|>", "<|endoftext|>"),
    before="<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n",
    header="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)
# Qwen3 and SmolLM3 think by default. Without thinking, the template writes an empty thought before the answer.
THINKING = ChatFormat(
    template="{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    eos="<|im_end|>",
    special=("<|im_start|>", "<think>", "</think>"),
    before="<|im_start|>user\n",
    header="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    end="<|im_end|>",
)
# Mistral writes a space before the answer that its generation prompt lacks, and has no header for the assistant.
MISTRAL = ChatFormat(
    template="{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + '[/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    eos="</s>",
    bos="<s>",
    special=("[INST]", "[/INST]"),
    before="<s>[INST] ",
    header="[/INST] ",
    end="</s>",
)
# Gemma raises an error for a system turn and for two turns of the same role. It calls the assistant "model", and ends a
# turn with another token than the tokenizer's end of sequence.
GEMMA = ChatFormat(
    template="{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    eos="<eos>",
    bos="<bos>",
    special=("<start_of_turn>", "<end_of_turn>"),
    before="<bos><start_of_turn>user\n",
    header="<end_of_turn>\n<start_of_turn>model\n",
    end="<end_of_turn>",
)
# Phi-3 and Phi-4-mini write the end of sequence after the end of the last turn.
PHI = ChatFormat(
    template="{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    eos="<|endoftext|>",
    special=("<|user|>", "<|assistant|>", "<|end|>"),
    before="<|user|>",
    header="<|end|><|assistant|>",
    end="<|end|>",
)
# OLMo 2 starts with its end of sequence, and its role headers are ordinary text.
OLMO = ChatFormat(
    template="{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    eos="<|endoftext|>",
    bos="<|endoftext|>",
    before="<|endoftext|><|user|>\n",
    header="\n<|assistant|>\n",
    end="<|endoftext|>",
)
