"""Convert weights in the formats of other programs (CTranslate2, GGUF) to Hugging Face folders."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ossicle.errors import ModelError

CTRANSLATE2_VERSION = 6
TYPES = ("float32", "int8", "int16", "int32", "float16")
"""Names of CTranslate2's types, by number."""
SPECIAL = {
    "pad_token_id": "<|endoftext|>",
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|endoftext|>",
    "decoder_start_token_id": "<|startoftranscript|>",
}
"""Tokens of Whisper that a configuration names by id. The ids differ between the English and the other models."""


def convert_gguf(path: Path, out: Path) -> None:
    """Write the LLM of a GGUF file and its tokenizer to ``out``, dequantised to bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # transformers reads the parts of a GGUF file by its name in a folder.
    place: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    plain = GgufConfig(dequantize=True)
    AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16, quantization_config=plain).save_pretrained(out)
    AutoTokenizer.from_pretrained(**place).save_pretrained(out)


def convert_whisper(path: Path, tokenizer: Path, out: Path) -> None:
    """Write a `WhisperForConditionalGeneration` and its feature extractor to ``out``, from CTranslate2 weights.

    ``tokenizer`` is the ``tokenizer.json`` of the model. Raises `ModelError` if the file is not such a model.
    """
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    variables = read_ctranslate2(path)
    ids = Tokenizer.from_file(str(tokenizer))
    width = variables["encoder/conv1/weight"].shape[0]
    layers = sum(name.startswith("encoder/layer_") and name.endswith("/ffn/linear_0/weight") for name in variables)
    config = WhisperConfig(
        vocab_size=variables["decoder/embeddings/weight"].shape[0],
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        **{name: ids.token_to_id(token) for name, token in SPECIAL.items()},
    )
    model = WhisperForConditionalGeneration(config)
    found = model.load_state_dict(_whisper_state(variables, layers), strict=False)
    if found.missing_keys != ["proj_out.weight"] or found.unexpected_keys:  # proj_out shares the token embeddings
        raise ModelError(f"{path.name}: is not a Whisper model: {found}")
    model.tie_weights()
    model.to(torch.float16).save_pretrained(out)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(out)


def _whisper_state(variables: Mapping[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """Return the weights under transformers' names."""
    state: dict[str, torch.Tensor] = {}

    def copy(to: str, source: str) -> None:
        state[to] = torch.from_numpy(variables[source].copy())

    def norm(to: str, source: str) -> None:
        copy(f"{to}.weight", f"{source}/gamma")
        copy(f"{to}.bias", f"{source}/beta")

    def linear(to: str, source: str) -> None:
        for kind in ("weight", "bias"):
            copy(f"{to}.{kind}", f"{source}/{kind}")

    def split(to: str, source: str, joined: str) -> None:
        """Split a linear layer into the projections that it joins, such as ``qkv``."""
        for kind in ("weight", "bias"):
            parts = np.split(variables[f"{source}/{kind}"], len(joined))
            for name, part in zip(joined, parts, strict=True):
                if (name, kind) != ("k", "bias"):  # Whisper's keys have no bias
                    state[f"{to}.{name}_proj.{kind}"] = torch.from_numpy(part.copy())

    for conv in ("conv1", "conv2"):
        linear(f"model.encoder.{conv}", f"encoder/{conv}")
    copy("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        copy(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(layers):
            to, source = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            split(f"{to}.self_attn", f"{source}/self_attention/linear_0", "qkv")
            linear(f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            linear(f"{to}.fc1", f"{source}/ffn/linear_0")
            linear(f"{to}.fc2", f"{source}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")
            if side == "decoder":
                linear(f"{to}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split(f"{to}.encoder_attn", f"{source}/attention/linear_1", "kv")
                linear(f"{to}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
    return state


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Return the variables of a CTranslate2 model file by name. Raises `ModelError` for another format."""
    content = memoryview(path.read_bytes())
    position = 0

    def number(kind: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from("<" + kind, content, position)
        position += struct.calcsize("<" + kind)
        return int(value)

    def string() -> str:
        nonlocal position
        length = number("H")
        value = bytes(content[position : position + length - 1]).decode()  # without the zero byte at its end
        position += length
        return value

    try:
        version, _, _ = number("I"), string(), number("I")  # version of the format, name and revision of the model
        if version != CTRANSLATE2_VERSION:
            raise ValueError(f"version {version} of the format")
        variables = {}
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            dtype = np.dtype(TYPES[number("B")])
            size = number("I")
            variables[name] = np.frombuffer(content, dtype, size // dtype.itemsize, position).reshape(shape)
            position += size
    except (struct.error, ValueError, IndexError) as error:
        raise ModelError(f"{path.name}: is not a CTranslate2 model that can be read ({error})") from error
    return variables
