"""Decode recordings with a model and with its export, and compare the token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ossicle.models.recordings import batch_of
from ossicle.models.speech_llm import SpeechLLM

INSTRUCTION = "Repeat it."
TOKENS = 12


def large(module: torch.nn.Module) -> None:
    for weight in module.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)


def clips(count: int, *, least: int = 3000, most: int = 20_000, seed: int = 0) -> list[np.ndarray]:
    """Noises of different lengths in samples."""
    rng = np.random.default_rng(seed)
    return [(0.3 * rng.standard_normal(rng.integers(least, most))).astype(np.float32) for _ in range(count)]


def original_ids(model: SpeechLLM, prompts: Any) -> list[list[int]]:
    """Return the ids that `LLM.generate` decodes, up to the end of the answer."""
    found = []
    generate = model.llm.model.generate

    def keep(*arguments: Any, **settings: Any) -> Any:
        found.append(generate(*arguments, **settings))
        return found[-1]

    model.llm.model.generate = keep
    try:
        model.llm.generate(prompts, max_new_tokens=TOKENS)
    finally:
        del model.llm.model.generate
    return answers(found[0], model)


def heard(model: SpeechLLM, waveforms: list[np.ndarray], instruction: str = INSTRUCTION) -> Any:
    """Return the prompts of recordings as the original model makes them."""
    batch = batch_of(model, waveforms, instruction)
    with torch.no_grad():
        return model.prompt(batch.chat, model.speech(batch))


def spoken(model: SpeechLLM, waveform: np.ndarray) -> torch.Tensor:
    """Return the speech tokens (M, D) of a recording as the original model computes them."""
    with torch.no_grad():
        tokens = model.speech(batch_of(model, waveform, INSTRUCTION))
    return tokens.values[tokens.mask]


def answers(ids: torch.Tensor, model: SpeechLLM) -> list[list[int]]:
    """Return the ids (B, L) up to the first that ends an answer."""
    stops, rows = set(model.llm.stop_ids), []
    for row in ids.tolist():
        end = next((k + 1 for k, token in enumerate(row) if token in stops), len(row))
        rows.append(row[:end])
    return rows


def turn(waveform: Any, instruction: str = INSTRUCTION) -> list[dict[str, Any]]:
    parts = [{"type": "audio", "audio": waveform}, {"type": "text", "text": instruction}]
    return [{"role": "user", "content": parts}]


def exported_ids(exported: Any, processor: Any, model: SpeechLLM, waveforms: list[np.ndarray]) -> list[list[int]]:
    """Return the ids that an exported model decodes for recordings, by the public functions of transformers."""
    turns = [turn(waveform) for waveform in waveforms]
    inputs = processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)
    ids = exported.generate(**inputs, max_new_tokens=TOKENS)
    return answers(ids[:, inputs["input_ids"].shape[1] :], model)


def load(folder: Path) -> tuple[Any, Any]:
    """Load an export with its own code."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=True)
