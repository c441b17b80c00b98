"""Import projectors that the paper's official code trained (``mm_speech_projector.bin``)."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ossicle.errors import CheckpointError
from ossicle.models.projectors import QFormerConfig, QFormerProjector
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
    """Load ``mm_speech_projector.bin`` as a projector in evaluation mode, called as ``(frames, frame_mask)``.

    Sizes come from the tensors. The number of heads is not stored in them: it is ``heads``, or the value in
    ``qformer_config.json`` beside the file, or the paper's 12.

    Raises `CheckpointError` for another kind of file; the message names missing and unexpected keys. Source: METHOD
    section 6.
    """
    path = Path(path)
    state = {_rename(_strip(key, path)): value.float() for key, value in _read_tensors(path).items()}
    heads = heads or _heads_beside(path)
    try:
        config, in_dim, out_dim = _sizes(state, heads)
    except KeyError as error:
        raise CheckpointError(f"{path}: not a projector of the official code: it lacks {error}") from error
    except (ValueError, IndexError) as error:  # tensors of other shapes, or a width that the heads do not divide
        raise CheckpointError(
            f"{path}: not a projector of the official code with {heads} heads; check the file, or give --heads"
        ) from error
    window = max(1, round(config.window_s * FRAME_RATE_HZ))
    projector = QFormerProjector(in_dim, out_dim, config, window=window)
    state["queries"] = state["queries"][0]  # (1, Q, D) -> (Q, D)
    try:
        missing, unexpected = projector.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a projector of the official code: its tensors have other shapes") from error
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: not a projector of the official code: missing keys {missing}, unexpected keys {unexpected}"
        )
    return projector.eval()


def import_official(
    path: str | Path, out: str | Path, *, encoder: str, llm: str, llm_dtype: str = "float32", heads: int | None = None
) -> SpeechLLM:
    """Save an official projector with ``encoder`` and ``llm`` as a checkpoint in the folder ``out``; return the model.

    Args:
        path: The file ``mm_speech_projector.bin``.
        out: Folder of the new checkpoint.
        encoder: Hub id or folder of the encoder.
        llm: Hub id or folder of the LLM.
        llm_dtype: Type of the LLM's weights, see `ModelConfig`.
        heads: Attention heads of the projector, see `load_official_projector`.

    Raises `CheckpointError` if the widths of the projector differ from those of the encoder and the LLM.
    """
    projector = load_official_projector(path, heads=heads)
    parts = {"encoder": encoder, "llm": llm, "llm_dtype": llm_dtype, "projector": asdict(projector.config)}
    model = TypeAdapter(ModelConfig).validate_python(parts).build()
    for width, part, name in ((projector.in_dim, model.encoder, encoder), (projector.out_dim, model.llm, llm)):
        if width != part.dim:
            raise CheckpointError(
                f"{path} was trained with a width of {width}, but {name} has {part.dim}: name the original model"
            )
    model.projector = projector
    model.eval().save(out)
    return model


def _strip(key: str, path: Path) -> str:
    """Remove the prefix, and any other prefix that ZeRO or PEFT added before it."""
    _, found, name = key.partition(ROOT)
    if not found:
        raise CheckpointError(f"{path}: key '{key}' does not contain '{ROOT}': not a projector of the official code")
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of PyTorch. Raises `CheckpointError` for any other content; no code in it runs."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; check the path")
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zipfile, pickle and torch each raise errors of their own
        raise CheckpointError(
            f"{path}: is damaged, or holds more than tensors, which could run code and is not loaded; save a plain "
            "dictionary of tensors with torch.save"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path}: not a projector of the official code: it is no dictionary of tensors")
    size = path.stat().st_size
    for name, value in tensors.items():
        if not isinstance(name, str) or value.numel() * value.element_size() > size:
            raise CheckpointError(f"{path}: the tensor {name} claims more values than the file has; it is damaged")
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: the tensor {name} contains infinite values or NaN; use another file")
    return tensors


def _heads_beside(path: Path) -> int:
    """Return the number of heads in ``qformer_config.json`` beside the file, or the paper's if there is none."""
    config = path.with_name("qformer_config.json")
    if not config.is_file():
        return DEFAULT_HEADS
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["heads"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{config}: has no number "heads"; fix the file, or give --heads') from error
