"""Replace the models of a recipe by small random ones of the same architectures, and missing data by generated data."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ossicle.models.frozen import LAB
from ossicle.models.speech_llm import ModelConfig
from ossicle.objectives import ObjectiveConfig, terms_of
from ossicle.testing import EncoderFamily, LLMFamily, tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train.recipe import Config, DataConfig

ENCODERS: tuple[tuple[str, EncoderFamily], ...] = (
    ("w2v-bert", "wav2vec2-bert"),
    ("wav2vec2-bert", "wav2vec2-bert"),
    ("whisper", "whisper"),
    ("parakeet", "parakeet"),
    ("wavlm", "wavlm"),
    ("wav2vec2", "wav2vec2"),
    ("hubert", "hubert"),
    (LAB, "hubert"),
)
"""Part of a hub id or of transformers' ``model_type``, and its family; the first match counts."""
LLMS: tuple[tuple[str, LLMFamily], ...] = (
    ("qwen3", "qwen3"),
    ("qwen", "qwen2"),
    ("gemma-2", "gemma2"),
    ("gemma2", "gemma2"),
    ("gemma", "gemma3"),
    ("smollm3", "smollm3"),
    ("smollm", "llama"),
    ("phi", "phi3"),
    ("olmo", "olmo2"),
    ("mistral", "mistral"),
    ("ministral", "mistral"),
    ("llama", "llama"),
    (LAB, "llama"),
)
SIZES = {"width": 16, "heads": 2, "layers": 1, "ffn": 16}
UTTERANCES, BATCH = 12, 4
Family = TypeVar("Family", EncoderFamily, LLMFamily)
SHORTEST_S = 0.1


def shrink(config: Config, folder: Path) -> tuple[Config, list[str]]:
    """Return ``config`` with models and data that are generated in ``folder``, and notes on the changes."""
    data, notes = _data(config, folder)
    model, more = _model(config, folder)
    train = replace(config.train, cpu=True)
    if config.train.init_from is not None:
        train = replace(train, init_from=None)
        more.append(f"a new projector replaces that of {config.train.init_from}")
    return replace(config, model=model, data=data, train=train), [*more, *notes]


def _model(config: Config, folder: Path) -> tuple[ModelConfig, list[str]]:
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    given = config.model
    encoder, encoder_guessed = _family(given.encoder, ENCODERS)
    llm, llm_guessed = _family(given.llm, LLMS)
    depth = max(2, *_layers(config.objective))
    disable_progress_bar()
    tiny_encoder(folder / "encoder", encoder, norm=_norm(given.encoder))
    tiny_llm(folder / "llm", llm, layers=depth, own_chat=True)
    enable_progress_bar()
    sizes: dict[str, Any] = {f.name: SIZES[f.name] for f in fields(given.projector) if f.name in SIZES}
    model = replace(
        given,
        encoder=str(folder / "encoder"),
        llm=str(folder / "llm"),
        encoder_layer=min(given.encoder_layer, 1) if isinstance(given.encoder_layer, int) else given.encoder_layer,
        projector=replace(given.projector, **sizes),
        # The tiny models have other layer numbers.
        trainable=[re.sub(r"\.\d+(?=\.)", ".*", pattern) for pattern in given.trainable],
        lora=replace(given.lora, modules=[re.sub(r"\.\d+(?=\.)", ".*", pattern) for pattern in given.lora.modules]),
        llm_dtype="bfloat16" if given.llm_dtype in ("int8", "int4") else given.llm_dtype,
    )
    notes = [
        f"encoder {given.encoder}: a random {encoder} with 2 layers{encoder_guessed}",
        f"LLM {given.llm}: a random {llm} with {depth} layers and a byte tokenizer{llm_guessed}",
    ]
    return model, notes


def _data(config: Config, folder: Path) -> tuple[DataConfig, list[str]]:
    """Return the data settings, with generated manifests if one of them is missing."""
    data = replace(config.data, batch_size=min(config.data.batch_size, BATCH), cache_dir=str(folder / "cache"))
    if all(Path(path).is_file() for path in (*data.train, *data.dev)):
        return data, []
    tasks = ("asr", "st", "qa") if config.objective.name == "next_token" else ()
    made = [str(tiny_manifest(folder / "data", UTTERANCES, tasks=tasks, words=True, seed=seed)) for seed in (0, 1)]
    dev = made[1:] if data.dev else []
    note = f"{', '.join(data.train)}: missing, {UTTERANCES} generated utterances of tones replace them"
    return replace(data, train=made[:1], dev=dev, min_duration_s=SHORTEST_S, fraction=1.0), [note]


def _family(name: str, known: tuple[tuple[str, Family], ...]) -> tuple[Family, str]:
    """Return the family by config.json or else by name, and a remark if neither is known and the last is assumed."""
    told = _read_config(name).get("model_type", name.rpartition("/")[2])
    for fragment, family in known:
        if fragment in told.lower():
            return family, ""
    return known[-1][1], " (a guess: neither its name nor a config.json shows the architecture)"


def _norm(encoder: str) -> str:
    """Return the norm in the front end of HuBERT-like encoders: "group" in the base models, else "layer"."""
    told = _read_config(encoder).get("feat_extract_norm")
    return told or ("group" if "base" in encoder.lower() else "layer")


def _read_config(name: str) -> dict[str, Any]:
    path = Path(name) / "config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _layers(objective: ObjectiveConfig) -> list[int]:
    """Return the layer numbers that the objective names, or [0]."""
    named = [getattr(single, "layers", None) for single in terms_of(objective)]
    return [i for one in named for i in ([one] if isinstance(one, int) else one if isinstance(one, list) else [0])]
