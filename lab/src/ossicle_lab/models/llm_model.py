"""Define the lab's LLM, and a forward pass for training that is faster on a CPU than the one of ``transformers``.

`hidden_states` computes the same function as `transformers.LlamaForCausalLM` with plain softmax attention in bfloat16
and any attention pattern; a test compares the two. Shapes: R rows, L positions, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ossicle_lab.models.llm_data import RowBatch

_HIDDEN, _LAYERS, _HEADS, _MLP = 256, 5, 8, 640
_ROPE_THETA = 10_000.0


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a randomly initialised Llama in float32, of 4.3 million parameters with the lab's tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=_MLP,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def answer_loss(model: LlamaForCausalLM, batch: RowBatch, noise: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return the weighted mean of the cross-entropy. Logits are computed only at positions with a weight."""
    hidden = hidden_states(model, batch, noise, dtype)
    weights = batch.weights[:, 1:]
    predicting = weights > 0
    head = model.lm_head.weight.to(dtype)
    logits = F.linear(hidden[:, :-1][predicting], head).float()
    losses = F.cross_entropy(logits, batch.targets[:, 1:][predicting], reduction="none")
    chosen = weights[predicting]
    return (losses * chosen).sum() / chosen.sum()


def hidden_states(model: LlamaForCausalLM, batch: RowBatch, noise: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return the output of the last norm, of shape (R, L, D), in ``dtype``.

    Noise with the standard deviations of the batch is added to the embeddings.
    """
    embeddings = F.embedding(batch.ids, model.model.embed_tokens.weight)  # (R, L, D)
    rms = model.model.embed_tokens.weight.detach().pow(2).mean().sqrt()
    disturbance = torch.randn(embeddings.shape, generator=noise) * (batch.noise * rms)[:, :, None]
    x = (embeddings + disturbance).to(dtype)
    cos, sin = (table.to(dtype) for table in _rotations(batch.positions, _HIDDEN // _HEADS))
    bias = torch.zeros(batch.visible.shape, dtype=dtype).masked_fill_(~batch.visible, -1e4)[:, None]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        y = _norm(x, layer.input_layernorm.weight)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (_heads(F.linear(y, projection.weight.to(dtype))) for projection in projections)
        scores = (_rotate(q, cos, sin) * (_HIDDEN // _HEADS) ** -0.5) @ _rotate(k, cos, sin).transpose(-1, -2)
        mixed = (torch.softmax(scores + bias, dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, attention.o_proj.weight.to(dtype))
        y = _norm(x, layer.post_attention_layernorm.weight)
        gated = F.silu(F.linear(y, mlp.gate_proj.weight.to(dtype))) * F.linear(y, mlp.up_proj.weight.to(dtype))
        x = x + F.linear(gated, mlp.down_proj.weight.to(dtype))
    return _norm(x, model.model.norm.weight)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), 1e-6)


def _heads(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], _HEADS, -1).transpose(1, 2)  # (R, H, L, D / H)


def _rotations(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles, each of shape (R, 1, L, width)."""
    frequencies = _ROPE_THETA ** (-torch.arange(0, width, 2) / width)
    angles = positions[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
