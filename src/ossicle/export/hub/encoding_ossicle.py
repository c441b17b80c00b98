"""Encode the features of recordings to frames with a speech encoder of transformers.

Shape legend: A recordings, S samples or feature vectors, C chunks, R chunks of all recordings, T frames, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_ossicle import OssicleConfig, frame_counts

CONTEXT_STEP, CONTEXT_MARGIN = 50, 50
"""Frames of Whisper's shortened context: it has a multiple of the first, and silence of the second after the audio."""


def encode(
    tower: Any, config: OssicleConfig, values: Tensor, mask: Tensor | None, layer_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the frames of recordings (A, T, D), and which of them are valid (A, T).

    Args:
        tower: The encoder.
        config: The configuration of the whole model.
        values: Features (A, S, D), or (A, D, S) of Whisper; or waveforms (A, S).
        mask: Their mask (A, S), or None if all are valid.
        layer_weights: Logits of the weights of all hidden states, for ``encoder_layer`` ``mix``.
    """
    if mask is None:
        length = values.shape[-1] if config.chunk or values.dim() == 2 else values.shape[1]
        mask = torch.ones(len(values), length, dtype=torch.long, device=values.device)
    lengths = frame_counts(mask.sum(-1), config.subsampling).clamp(min=0)
    values = values.to(tower.dtype)
    if config.chunk:
        frames = _in_chunks(tower, config, values, mask.bool(), lengths, layer_weights)
    else:
        inputs = {tower.main_input_name: values} | ({"attention_mask": mask} if config.attends_mask else {})
        frames = _hidden_state(tower, config, inputs, layer_weights)
    frames = frames[:, : max(1, int(lengths.max()))]
    return frames, torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]


def cut(tower: Any, config: OssicleConfig) -> Any:
    """Return the encoder without the layers that are not used, and without an adapter after its layers."""
    if hasattr(tower, "adapter"):
        tower.adapter = None
    parent, _, name = config.audio_layers.rpartition(".")
    layers: Any = tower.get_submodule(config.audio_layers)
    setattr(tower.get_submodule(parent), name, layers[: config.audio_config.num_hidden_layers])
    return tower


def _in_chunks(
    tower: Any, config: OssicleConfig, values: Tensor, mask: Tensor, lengths: Tensor, layer_weights: Tensor | None
) -> Tensor:
    """Return the frames (A, T, D) of features (A, D, C * chunk), encoded in chunks with at least one valid feature."""
    chunk: Any = config.chunk
    rows = torch.unflatten(values, 2, (-1, chunk)).transpose(1, 2)  # (A, C, D, chunk)
    used = torch.unflatten(mask, 1, (-1, chunk)).any(-1)  # (A, C)
    most = tower.config.max_source_positions
    contexts = torch.full_like(lengths, most)
    if config.encoder_context == "audio":
        contexts = (-(-lengths // CONTEXT_STEP) * CONTEXT_STEP + CONTEXT_MARGIN).clamp(max=most)
    widths, rows = contexts[:, None].expand_as(used)[used], rows[used]  # (R,), (R, D, chunk)
    groups = {width: widths == width for width in sorted(set(widths.tolist()))}
    parts = []
    for width, group in groups.items():
        shorter = tower if width == most else _shortened(tower, width)
        features = {"input_features": rows[group][..., : width * chunk // most]}
        parts.append(_hidden_state(shorter, config, features, layer_weights))
    frames = parts[0].new_zeros(len(rows), max(groups), tower.config.hidden_size)  # (R, T, D)
    for (width, group), part in zip(groups.items(), parts, strict=True):
        frames[group, :width] = part
    out = frames.new_zeros(*used.shape, *frames.shape[1:])  # (A, C, T, D)
    out[used] = frames
    return out.flatten(1, 2)


def _hidden_state(tower: Any, config: OssicleConfig, inputs: dict[str, Tensor], layer_weights: Tensor | None) -> Tensor:
    """Return the hidden state that the projector reads (A, T, D)."""
    last: Tensor
    if config.encoder_layer == "last":
        last = tower(**inputs).last_hidden_state
        return last
    layers: Any = tower.get_submodule(config.audio_layers)
    states: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        states[0] = given[0] if given else named["hidden_states"]

    handles = [layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    handles += [module.register_forward_hook(keep(index)) for index, module in enumerate(layers, 1)]
    try:
        last = tower(**inputs).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    if layer_weights is None:
        return states[int(config.encoder_layer)]
    states[len(layers)] = last  # after the final norm, where the encoder has one
    shares = enumerate(layer_weights.softmax(0))
    normed = (share * F.layer_norm(states[k].float(), states[k].shape[-1:]) for k, share in shares)
    return torch.stack(list(normed)).sum(0)


def _shortened(whisper: Any, positions: int) -> Any:
    """Return a copy of Whisper's encoder for shorter features, which shares all weights."""
    short = copy.copy(whisper)
    short._modules = dict(whisper._modules)
    short.config = copy.copy(whisper.config)
    weight = whisper.embed_positions.weight[:positions]
    short.embed_positions = nn.Embedding(positions, weight.shape[1], device="meta")
    short.embed_positions.weight = nn.Parameter(weight, requires_grad=False)
    short.config.max_source_positions = positions
    return short
