"""The keys and values that sequences share: of the tokens before the speech, and of a prompt with several answers.

A chat template begins every turn with the same system prompt. Attention is causal, so that the states of these tokens
do not depend on the speech. They are computed once, and the sequences of a batch start after them.

Shape legend: B sequences, F positions of the prefix, L positions of a prompt, D width of the LLM.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ossicle.batch import Padded
from ossicle.models.packing import Packing, Prefix

LEAST_TOKENS = 8
"""Shortest prefix that is shared. Computing a shorter one again costs less than attending to it apart."""
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Types of rotary embeddings whose rotation depends on the length of the whole sequence."""


def shared_prefix(llm: Any, ids: Padded, computed: dict[Any, Prefix]) -> Prefix:
    """Return the keys and values of each layer of the `LLM` ``llm`` for token ids (B, F) that all rows consist of.

    They come from ``computed``, which keeps the newest prefix. The result is empty where `LLM.hidden_states` cannot use
    them: if the rows differ or are shorter than `LEAST_TOKENS`, if the LLM trains or does not pack, if its rotary
    embeddings depend on the length of the sequence, and on a GPU, whose kernel for packed sequences takes no prefix.
    """
    if not (llm.packs and ids.values.device.type == "cpu" and bool(ids.mask.all())) or llm.trains:
        return ()
    tokens = tuple(ids.values[0].tolist())
    differ = not bool((ids.values == ids.values[:1]).all())
    if len(tokens) < LEAST_TOKENS or differ or _depends_on_length(llm):
        return ()
    key = tokens, llm.model.dtype, torch.is_autocast_enabled("cpu")
    if key not in computed:
        found = keys_values(llm.model.base_model, llm.embed(ids.values[:1]).detach())
        computed.clear()
        computed[key] = found
    return computed[key]


@torch.inference_mode(False)
@torch.no_grad()
def keys_values(base: Any, embeds: torch.Tensor) -> Prefix:
    """Return the keys and values of each layer of the decoder ``base`` for input vectors (1, F, D), without a graph.

    The list is empty if layers of ``base`` share keys and values.
    """
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    packing = Packing(mask, torch.arange(mask.numel(), device=mask.device), seen=seen)
    base(
        inputs_embeds=embeds,
        attention_mask=packing.empty_mask(),
        position_ids=packing.positions,
        packing=packing,
        use_cache=False,
    )
    return [seen[layer] for layer in sorted(seen)] if len(seen) == len(base.layers) else []


def read_once(llm: Any, prompt: Padded, beams: int) -> dict[str, Any]:
    """Return the keys and values of ``prompt`` (B, L, D) but for its last position, for ``beams`` answers to each row.

    transformers takes them as an argument, and would otherwise compute them for every beam. The result is empty where
    it cannot.
    """
    mask = prompt.mask[:, :-1]
    if beams == 1 or not mask.shape[1] or not merges(llm):
        return {}
    cache = DynamicCache(config=llm.model.config)
    cached = {cache_argument(llm.model): cache}
    llm.model.base_model(
        inputs_embeds=prompt.values[:, :-1].to(llm.model.dtype),
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(1) - 1).clamp_min(0),
        use_cache=True,
        **cached,
    )
    cache.batch_repeat_interleave(beams)
    return cached


def merges(llm: Any) -> bool:
    """Return True if the keys and values of different requests to ``llm`` can be decoded as one batch."""
    layers = DynamicCache(config=llm.model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers) and not _depends_on_length(llm)


def _depends_on_length(llm: Any) -> bool:
    rotary = str(llm.model.config.to_dict().get("rope_parameters"))  # some families nest it by the type of the layer
    return any(kind in rotary for kind in LENGTH_DEPENDENT)


def cache_argument(model: Any) -> str:
    """Return the name of the argument for keys and values: ``cache`` from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
