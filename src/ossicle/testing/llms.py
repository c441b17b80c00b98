"""Create tiny random LLMs of every family, with byte-level tokenizers that encode any text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ossicle.testing import chats
from ossicle.testing.chats import PLAIN, ChatFormat

LLMFamily = Literal["llama", "qwen2", "mistral", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo2"]
WINDOW = 24
"""Length in tokens of the sliding windows, in families that have them. Most chat turns are longer."""


@dataclass(frozen=True)
class _Family:
    prefix: str
    chat: ChatFormat
    tied: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_HALF = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
_FAMILIES: dict[LLMFamily, _Family] = {
    "llama": _Family(
        "Llama",
        chats.LLAMA3,
        settings={"rope_parameters": {**_ROPE, "rope_theta": 5e5, "original_max_position_embeddings": 256}},
    ),
    "qwen2": _Family("Qwen2", chats.CHATML, tied=True),
    "mistral": _Family("Mistral", chats.MISTRAL, settings={"sliding_window": WINDOW}),
    "qwen3": _Family("Qwen3", chats.THINKING, tied=True, settings={"head_dim": 16}),
    "gemma2": _Family("Gemma2", chats.GEMMA, tied=True, settings=_HALF),
    "gemma3": _Family("Gemma3Text", chats.GEMMA, tied=True, settings={**_HALF, "sliding_window_pattern": 2}),
    "phi3": _Family(
        "Phi3",
        chats.PHI,
        tied=True,
        settings={"sliding_window": WINDOW, "partial_rotary_factor": 0.75, "attention_dropout": 0.1},
    ),
    "smollm3": _Family("SmolLM3", chats.THINKING, tied=True, settings={"no_rope_layer_interval": 2}),
    "olmo2": _Family("Olmo2", chats.OLMO),
}
LLMS: tuple[LLMFamily, ...] = tuple(_FAMILIES)


def tiny_llm(
    folder: Path,
    family: LLMFamily = "llama",
    *,
    layers: int = 2,
    dim: int = 32,
    seed: int = 0,
    own_chat: bool = False,
) -> Path:
    """Save a random causal LM with its tokenizer and chat template; return ``folder``.

    Tied embeddings, soft caps and sliding windows (of 24 tokens) are as in the family.

    Args:
        folder: Folder of the model.
        family: Architecture.
        layers: Number of transformer layers.
        dim: Width of a token embedding.
        seed: Seed of the weights.
        own_chat: Use special tokens and a template with the structure of the family's own (`chat_of`). By default all
            families have the same plain template.
    """
    import transformers

    architecture = _FAMILIES[family]
    tokenizer = tiny_tokenizer(architecture.chat if own_chat else PLAIN)
    torch.manual_seed(seed)
    name = architecture.prefix.removesuffix("Text")
    config = getattr(transformers, f"{architecture.prefix}Config")(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=architecture.tied,
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **architecture.settings,
    )
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_of(family: LLMFamily) -> ChatFormat:
    """Return the chat template of ``tiny_llm(folder, family, own_chat=True)``."""
    return _FAMILIES[family].chat


def tiny_tokenizer(chat: ChatFormat = PLAIN) -> Any:
    """Return a byte-level tokenizer without merges, which encodes any text. It has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.bos,
        eos_token=chat.eos,
        additional_special_tokens=list(chat.special),
    )
    fast.chat_template = chat.template
    return fast
