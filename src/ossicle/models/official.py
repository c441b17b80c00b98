"""Import of projectors that the paper's official code trained (``mm_speech_projector.bin``)."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ossicle.models.projector import QFormerConfig, QFormerProjector
from ossicle.models.speech_llm import ModelConfig, SpeechLLM

ROOT = "mm_speech_projector.Qformer."
FRAME_RATE_HZ = 50.0
WINDOW_S = 1 / 3
DEFAULT_HEADS = 12
NAMES = {
    "query_tokens": "queries",
    "ln_speech": "norm_frames",
    "speech_proj": "out",
    "Qformer.bert.embeddings.LayerNorm": "norm_queries",
    "attention.self": "self_attention",
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_attention.norm",
    "crossattention.self": "cross_attention",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate_query.dense": "up",
    "output_query.dense": "down",
    "output_query.LayerNorm": "norm",
}
_LAYER = re.compile(r"Qformer\.bert\.encoder\.layer\.(\d+)\.(.+)")


def load_official_projector(path: str | Path, *, heads: int | None = None) -> QFormerProjector:
    """Read ``mm_speech_projector.bin`` and return the same module, called as ``(frames, frame_mask)``, in eval mode.

    Sizes come from the tensors. The number of heads is in none of them: it comes from ``heads``, else from a
    ``qformer_config.json`` beside the file, else it is the paper's 12. Raises `ValueError` for a file of another kind,
    naming the keys that are missing or left over. Source: METHOD section 6.
    """
    path = Path(path)
    tensors = {_strip(key, path): value.float() for key, value in torch.load(path, weights_only=True).items()}
    state = {_rename(key): value for key, value in tensors.items()}
    try:
        config, in_dim, out_dim = _sizes(state, heads or _heads_beside(path))
    except KeyError as error:
        raise ValueError(f"{path}: not a projector of the official code: it lacks {error}") from error
    window = max(1, round(config.window_s * FRAME_RATE_HZ))
    projector = QFormerProjector(in_dim, out_dim, config, window=window)
    state["queries"] = state["queries"][0]  # (1, Q, D) -> (Q, D)
    missing, unexpected = projector.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"{path}: not a projector of the official code: missing {missing}, left over {unexpected}")
    return projector.eval()


def import_official(
    path: str | Path, out: str | Path, *, encoder: str, llm: str, llm_dtype: str = "float32", heads: int | None = None
) -> SpeechLLM:
    """Save an official projector as a checkpoint in ``out``, between ``encoder`` and ``llm``; return the model.

    Raises `ValueError` where the projector does not fit between the two.
    """
    projector = load_official_projector(path, heads=heads)
    parts = {"encoder": encoder, "llm": llm, "llm_dtype": llm_dtype, "projector": asdict(projector.config)}
    model = TypeAdapter(ModelConfig).validate_python(parts).build()
    for width, part, name in ((projector.in_dim, model.encoder, encoder), (projector.out_dim, model.llm, llm)):
        if width != part.dim:
            raise ValueError(f"{path} was trained with a width of {width}, {name} has {part.dim}")
    model.projector = projector
    model.eval().save(out)
    return model


def _strip(key: str, path: Path) -> str:
    """Drop the prefix, before which ZeRO or PEFT may have put another."""
    _, found, name = key.partition(ROOT)
    if not found:
        raise ValueError(f"{path}: key '{key}' does not hold '{ROOT}': not a projector of the official code")
    return name


def _rename(key: str) -> str:
    layer = _LAYER.fullmatch(key)
    prefix, name = (f"layers.{layer[1]}.", layer[2]) if layer else ("", key)
    if name in NAMES:
        return prefix + NAMES[name]
    module, _, parameter = name.rpartition(".")
    if module in NAMES:
        return f"{prefix}{NAMES[module]}.{parameter}"
    block, _, projection = module.rpartition(".")  # attention.self.query
    return f"{prefix}{NAMES.get(block, block)}.{projection}.{parameter}"


def _sizes(state: dict[str, Tensor], heads: int) -> tuple[QFormerConfig, int, int]:
    out_dim, width = state["out.weight"].shape
    config = QFormerConfig(
        width=width,
        heads=heads,
        layers=1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        ffn=len(state["layers.0.up.weight"]),
        queries=state["queries"].shape[1],
        window_s=WINDOW_S,
    )
    return config, len(state["norm_frames.weight"]), out_dim


def _heads_beside(path: Path) -> int:
    config = path.with_name("qformer_config.json")
    return int(json.loads(config.read_text())["heads"]) if config.is_file() else DEFAULT_HEADS
