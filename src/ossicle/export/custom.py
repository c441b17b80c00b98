"""Export a model as a class of its own for Transformers, with its code (``trust_remote_code=True``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.errors import ModelError
from ossicle.export.chat import chat_template
from ossicle.export.code import NAMES, write_code
from ossicle.export.settings import (
    extractor_config,
    generation_config,
    model_config,
    processor_config,
    tokenizer_with_audio,
)
from ossicle.export.weights import in_type, merged, refuse_adapters, refuse_quantised, save_weights
from ossicle.files import write_json, write_text
from ossicle.models.encoder import FAMILIES


def write_custom(model: Any, folder: Path, *, merge: bool) -> None:
    """Write ``model`` to ``folder``; see `ossicle.export.run.export` for ``merge`` and the errors."""
    name = model.config.projector.name
    if name not in NAMES:
        raise ModelError(f"model.projector.name={name}: only {', '.join(NAMES)} can be exported")
    if (kind := model.encoder.model.config.model_type) not in FAMILIES and kind != "parakeet_encoder":
        raise ModelError(f"model.encoder: a {kind} can be exported with --as granite_speech only")
    tensors = _tensors(model, merge=merge)
    tokenizer, audio = tokenizer_with_audio(model)
    config = model_config(model, tokenizer.convert_tokens_to_ids(audio), merge=merge)
    write_code(folder)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(model))
    save_weights(tensors, folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "chat_template.jinja", chat_template(model.prompter(), model.config.turn, audio))
    write_json(folder / "preprocessor_config.json", {**extractor_config(model), "processor_class": "OssicleProcessor"})
    write_json(folder / "processor_config.json", processor_config(model, config, audio))


def _tensors(model: Any, *, merge: bool) -> dict[str, Tensor]:
    """Return the tensors of the exported model by name, in the types of the recipe."""
    tensors = {f"model.projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    if model.encoder.mix is not None:
        tensors["model.layer_weights"] = model.encoder.mix.weights
    if model.config.projector.name == "ctc":
        tensors["model.spoken_ids"] = torch.tensor(model.projector.spoken.ids)
    if not merge:
        refuse_adapters(model)
        return tensors
    refuse_quantised(model)
    encoder, llm = (getattr(torch, model.config.encoder_dtype), getattr(torch, model.config.llm_dtype))
    for name, tensor in merged(model.encoder.model).items():
        tensors[f"model.audio_tower.{name}"] = in_type(tensor, encoder)
    base = model.llm.model.base_model
    for name, tensor in merged(base).items():
        tensors[f"model.language_model.{name}"] = in_type(tensor, llm)
    head = model.llm.model.get_output_embeddings().weight
    if head is not base.get_input_embeddings().weight:
        tensors["lm_head.weight"] = in_type(head, llm)
    return tensors
