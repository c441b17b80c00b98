"""Export a model in the format of Ultravox, which vLLM loads and llama.cpp converts.

The format has a Whisper encoder and the projector ``stack-mlp``. Its names and fields are those of Ultravox 0.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.errors import ModelError
from ossicle.export.chat import chat_template
from ossicle.export.settings import generation_config, sub_config, tokenizer_with_audio
from ossicle.export.weights import in_type, merged, refuse_adapters, refuse_quantised, save_weights
from ossicle.files import write_json, write_text
from ossicle.models.saving import absolute_name

CODE = "fixie-ai/ultravox-v0_5-llama-3_2-1b"
"""Repository of Ultravox whose code the exported model names: vLLM takes the processor from there."""
NAMES = {"norm_frames": "ln_pre", "up": "linear_1", "norm": "ln_mid", "out": "linear_2"}
"""Our names of the projector's layers, and those of Ultravox."""


def write_ultravox(model: Any, folder: Path, *, merge: bool) -> None:
    """Write ``model`` to ``folder`` in the format of Ultravox.

    Raises `ModelError` if the format cannot express the model; the message names the setting.
    """
    check(model)
    if merge:
        refuse_quantised(model)
    else:
        refuse_adapters(model)
    tokenizer, audio = tokenizer_with_audio(model)
    write_json(folder / "config.json", _config(model, tokenizer.convert_tokens_to_ids(audio), merge=merge))
    write_json(folder / "generation_config.json", generation_config(model))
    save_weights(_tensors(model, merge=merge), folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "chat_template.jinja", chat_template(model.prompter(), model.config.turn, audio))


def check(model: Any) -> None:
    """Raise `ModelError` with the reason if Ultravox's format cannot express ``model``."""
    kind, name = model.encoder.model.config.model_type, model.config.projector.name
    if name != "stack-mlp":
        raise ModelError(
            f"model.projector.name={name}: Ultravox has the projector stack-mlp: train with it, or export as 'custom'"
        )
    if kind != "whisper" or model.encoder.layer != "last":
        raise ModelError(
            f"model.encoder={model.encoder.name}: Ultravox has a Whisper encoder with all layers, and no place for a "
            f"{kind} (hidden state {model.encoder.layer}): export the model as 'custom'"
        )


def _config(model: Any, audio_token_id: int, *, merge: bool) -> dict[str, Any]:
    projector, config = model.projector, model.config
    files = {"AutoConfig": "ultravox_config.UltravoxConfig", "AutoModel": "ultravox_model.UltravoxModel"}
    files["AutoProcessor"] = "ultravox_processing.UltravoxProcessor"
    encoder, llm = absolute_name(model.encoder.name), absolute_name(model.llm.name)
    own: dict[str, Any] = {"audio_model_id": encoder, "text_model_id": llm}
    if merge:
        audio = sub_config(model.encoder.model.config, config.encoder_dtype) | {"_name_or_path": encoder}
        own = {"audio_config": audio, "text_config": sub_config(model.llm.model.config, config.llm_dtype)}
    return {
        "architectures": ["UltravoxModel"],
        "auto_map": {name: f"{CODE}--{place}" for name, place in files.items()},
        "model_type": "ultravox",
        **own,
        "audio_token_index": audio_token_id,
        "hidden_size": projector.up.out_features,
        "ignore_index": -100,
        "norm_init": 1.0,
        "num_projector_layers": 0,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "stack_factor": projector.frames_per_token,
        "vocab_size": model.llm.model.config.vocab_size,
        "dtype": config.llm_dtype if config.llm_dtype not in ("int8", "int4") else "bfloat16",
    }


def _tensors(model: Any, *, merge: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in model.projector.state_dict().items():
        layer, _, part = name.partition(".")
        tensors[f"multi_modal_projector.{NAMES[layer]}.{part}"] = value
    if merge:
        types = [getattr(torch, dtype) for dtype in (model.config.encoder_dtype, model.config.llm_dtype)]
        parts = {"audio_tower": model.encoder.model, "language_model": model.llm.model}
        for (prefix, part), dtype in zip(parts.items(), types, strict=True):
            weights = merged(part)
            if part.config.tie_word_embeddings:
                weights.pop("lm_head.weight", None)
            for name, value in weights.items():
                tensors[f"{prefix}.{name}"] = in_type(value, dtype)
    return tensors
