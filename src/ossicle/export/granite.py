"""Export a model as Granite Speech, a class of Transformers that vLLM and llama.cpp know too.

Its projector is a window-level Q-Former without a norm of the frames, whose last window is filled with zeros. Its
encoder is Granite's conformer, and no other.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.errors import ModelError
from ossicle.export.chat import chat_template
from ossicle.export.settings import generation_config, tokenizer_with_audio
from ossicle.export.weights import in_type, merged, refuse_quantised, save_weights
from ossicle.files import write_json, write_text
from ossicle.models.projectors import BERT_NORM_EPS

ENCODER = "granite_speech_encoder"
NAMES = (
    (r"^queries$", "query"),
    (r"^out\.", "linear."),
    (r"^norm_queries\.", "qformer.layernorm."),
    (r"^layers\.(\d+)\.self_attention\.(query|key|value)\.", r"qformer.encoder.layer.\1.attention.attention.\2."),
    (r"^layers\.(\d+)\.self_attention\.out\.", r"qformer.encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.self_attention\.norm\.", r"qformer.encoder.layer.\1.attention.output.LayerNorm."),
    (r"^layers\.(\d+)\.cross_attention\.(query|key|value)\.", r"qformer.encoder.layer.\1.crossattention.attention.\2."),
    (r"^layers\.(\d+)\.cross_attention\.out\.", r"qformer.encoder.layer.\1.crossattention.output.dense."),
    (r"^layers\.(\d+)\.cross_attention\.norm\.", r"qformer.encoder.layer.\1.crossattention.output.LayerNorm."),
    (r"^layers\.(\d+)\.up\.", r"qformer.encoder.layer.\1.intermediate_query.dense."),
    (r"^layers\.(\d+)\.down\.", r"qformer.encoder.layer.\1.output_query.dense."),
    (r"^layers\.(\d+)\.norm\.", r"qformer.encoder.layer.\1.output_query.LayerNorm."),
)
"""Our names of the Q-Former's tensors, and those of Granite Speech."""


def write_granite(model: Any, folder: Path, *, merge: bool) -> None:
    """Write ``model`` to ``folder`` as ``GraniteSpeechForConditionalGeneration``.

    Raises `ModelError` if the class cannot express the model; the message names the setting.
    """
    check(model, merge=merge)
    from transformers import GraniteSpeechForConditionalGeneration

    tokenizer, audio = tokenizer_with_audio(model)
    config = _config(model, tokenizer.convert_tokens_to_ids(audio))
    tensors = _tensors(model)
    with torch.device("meta"):
        names = set(GraniteSpeechForConditionalGeneration(config).state_dict()) - {"lm_head.weight"}
    if missing := sorted(names - tensors.keys()):
        raise ModelError(f"{model.llm.name}: Granite Speech has no place for this LLM: it lacks {missing[0]}")
    write_json(folder / "config.json", _plain(config))
    write_json(folder / "generation_config.json", generation_config(model))
    dtype = getattr(torch, model.config.llm_dtype)
    save_weights({_published(name): in_type(tensor, dtype) for name, tensor in tensors.items()}, folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "chat_template.jinja", chat_template(model.prompter(), model.config.turn, audio))
    window, queries = model.projector.window, model.projector.num_queries
    extractor = {"feature_extractor_type": "GraniteSpeechFeatureExtractor", "sampling_rate": 16_000}
    sizes = {"projector_window_size": window, "projector_downsample_rate": window // queries}
    write_json(folder / "preprocessor_config.json", extractor | sizes | {"processor_class": "GraniteSpeechProcessor"})
    write_json(folder / "processor_config.json", {"processor_class": "GraniteSpeechProcessor", "audio_token": audio})


def check(model: Any, *, merge: bool) -> None:
    """Raise `ModelError` with the reason if ``model`` is no Granite Speech model."""
    given, kind = asdict(model.config.projector), model.encoder.model.config.model_type
    wanted: dict[str, Any] = {"name": "qformer", "frame_norm": "none", "pad_windows": "zero"}
    wanted |= {"window_positions": False, "free_queries": 0}
    if wrong := [name for name, value in wanted.items() if given.get(name) != value]:
        settings = ", ".join(f"{name}={wanted[name]} (it is {given.get(name)})" for name in wrong)
        raise ModelError(
            f"model.projector: Granite Speech needs {settings}: train with the recipe real/granite, or export the "
            "model as 'custom'"
        )
    if model.projector.window % model.projector.num_queries:
        raise ModelError(
            f"model.projector: Granite Speech needs windows that its {model.projector.num_queries} queries divide, not "
            f"{model.projector.window} frames: train with window_s=0.3 and queries=3, or export it as 'custom'"
        )
    if kind != ENCODER or model.encoder.layer != "last":
        raise ModelError(
            f"model.encoder={model.encoder.name}: the class GraniteSpeechForConditionalGeneration has the conformer of "
            f"Granite Speech (all layers), and no place for a {kind} (hidden state {model.encoder.layer}): train with "
            "the encoder of Granite Speech, or export the model as 'custom'"
        )
    if not merge:
        raise ModelError("granite_speech has all weights in its own files: add --merge")
    refuse_quantised(model)


def _config(model: Any, audio_token_id: int) -> Any:
    from transformers import Blip2QFormerConfig, GraniteSpeechConfig

    projector, config = model.projector, model.config.projector
    qformer = Blip2QFormerConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        encoder_hidden_size=projector.in_dim,
        cross_attention_frequency=1,
        layer_norm_eps=BERT_NORM_EPS,
    )
    return GraniteSpeechConfig(
        text_config=model.llm.model.config.to_dict() | {"_attn_implementation": None},
        encoder_config=model.encoder.model.config.to_dict(),
        projector_config=qformer.to_dict(),
        audio_token_index=audio_token_id,
        has_lora_adapter=False,
        window_size=projector.window,
        downsample_rate=projector.window // projector.num_queries,
        tie_word_embeddings=bool(model.llm.model.config.tie_word_embeddings),
        dtype=model.config.llm_dtype,
    )


def _tensors(model: Any) -> dict[str, Tensor]:
    """Return all weights under the names in the class."""
    tensors = {f"model.encoder.{name}": value for name, value in merged(model.encoder.model).items()}
    tensors |= {f"model.language_model.{n}": value for n, value in merged(model.llm.model.base_model).items()}
    for name, value in model.projector.state_dict().items():
        tensors[f"model.projector.{_renamed(name)}"] = value[None] if name == "queries" else value
    head, embeddings = model.llm.model.get_output_embeddings(), model.llm.model.get_input_embeddings()
    if head.weight is not embeddings.weight:
        tensors["lm_head.weight"] = head.weight
    return tensors


def _published(name: str) -> str:
    """Return the name in published checkpoints of a tensor of the class."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


def _plain(config: Any) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    tree.pop("transformers_version", None)
    return tree | {"architectures": ["GraniteSpeechForConditionalGeneration"]}


def _renamed(name: str) -> str:
    return next(re.sub(ours, theirs, name) for ours, theirs in NAMES if re.match(ours, name))
