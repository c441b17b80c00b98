"""Tiny random models and data, for tests of Ossicle and of what is built on it. Nothing is downloaded.

The models have the real architectures and load through the ordinary classes, so `ossicle train model.llm=FOLDER` works
on them; they know nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle.data.manifest import write_manifest
from ossicle.testing.encoders import ENCODERS, EncoderFamily, tiny_encoder

__all__ = [
    "ENCODERS",
    "LLMS",
    "EncoderFamily",
    "LLMFamily",
    "tiny_encoder",
    "tiny_llm",
    "tiny_manifest",
    "tiny_tokenizer",
]
LLMFamily = Literal["llama", "qwen2", "mistral"]
LLMS: tuple[LLMFamily, ...] = ("llama", "qwen2", "mistral")
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "red",
    "green",
    "blue",
    "dog",
    "cat",
    "bird",
    "sees",
    "takes",
    "wants",
]
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_llm(folder: Path, family: LLMFamily = "llama", *, layers: int = 2, dim: int = 32, seed: int = 0) -> Path:
    """Save a random causal LM of width ``dim`` with a byte-level tokenizer and a chat template."""
    import transformers

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    prefix = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}[family]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    getattr(transformers, f"{prefix}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer without merges: it spells any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_manifest(folder: Path, count: int = 8, *, tasks: Sequence[str] = (), seed: int = 0) -> Path:
    """Write ``count`` utterances of 0.3 to 1.2 s, one tone per word, and their manifest.

    With ``tasks`` ("asr", "st", "qa") the lines carry stage-2 fields, the tasks in turn.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i in range(count):
        words = rng.choice(len(WORDS), size=rng.integers(2, 7))
        waveform = np.concatenate([_tone(200.0 + 100 * int(word)) for word in words])
        path = folder / f"{seed}-{i}.wav"
        soundfile.write(path, waveform, SAMPLE_RATE_HZ)
        text = " ".join(WORDS[word] for word in words)
        task = tasks[i % len(tasks)] if tasks else None
        instruction, answers, target = _task(task, text)
        samples.append(
            Sample(
                id=f"{seed}-{i}",
                audio=path,
                text=text,
                language="en",
                speaker=f"speaker{i % 2}",
                duration_s=len(waveform) / SAMPLE_RATE_HZ,
                task=task,
                instruction=instruction,
                answers=answers,
                target_language=target,
            )
        )
    manifest = folder / f"manifest-{seed}.jsonl"
    write_manifest(manifest, samples)
    return manifest


def _task(task: str | None, text: str) -> tuple[str | None, tuple[str, ...], str | None]:
    match task:
        case None:
            return None, (), None
        case "asr":
            return "repeat", (text,), None
        case "st":
            return "translate to german", (text.upper(),), "de"
        case _:
            return "what is the first word", (text.split()[0],), None


def _tone(frequency_hz: float) -> np.ndarray:
    time_s = np.arange(int(0.15 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)
