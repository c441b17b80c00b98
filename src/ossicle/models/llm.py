"""The frozen LLM: any causal language model of Hugging Face transformers that has a chat template.

Shape legend: B sequences, L positions, D width, K labelled positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from ossicle.batch import HiddenStates, Padded
from ossicle.errors import ConfigError, ContextError
from ossicle.models import packing
from ossicle.models.frozen import Fingerprint, freeze, layer_outputs, resolve_layers
from ossicle.models.packing import Prefix
from ossicle.private import shallow_copy
from ossicle.prompts import ChatTemplate

SCALE_TOKENS = 64
"""Number of token embeddings from which the scale of the embedding layer is measured."""
STATISTICS_ROWS = 2**15
"""Number of token embeddings that are copied to float32 at once, to measure their size and mean."""
Bits = Literal[4, 8]
PRECISIONS: dict[str, Any] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "int8": {"dtype": torch.bfloat16, "bits": 8},
    "int4": {"dtype": torch.bfloat16, "bits": 4},
}
"""Arguments of `load_llm` for each ``model.llm_dtype``."""


class LLM(nn.Module):
    """A frozen LLM in evaluation mode that reads vectors. Gradients pass through it to the input vectors.

    Attributes:
        dim: Width of a token embedding.
        num_layers: Number of transformer layers.
        tokenizer: The tokenizer of transformers.
        name: Hub id or folder of the weights, for messages.
        fingerprint: Hash of the weights; ``former_fingerprint`` is that of Ossicle 0.1. See `Fingerprint`.
        context: Most positions that the LLM reads, or None if its configuration has no limit.
        packs: True if batches run packed, without computation for padding (`ossicle.models.packing`).
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        super().__init__()
        self.model: Any = freeze(model)
        self.tokenizer, self.name = tokenizer, name
        self.num_layers: int = model.config.num_hidden_layers
        self.dim: int = model.config.hidden_size
        fingerprint = Fingerprint.of(model)
        self.fingerprint, self.former_fingerprint = fingerprint.content, fingerprint.by_name
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.packs = packing.can_pack(model)
        if self.packs:
            packing.register()
            model.set_attn_implementation(packing.ATTENTION)
        elif model.config.to_dict().get("attn_logit_softcapping"):
            model.set_attn_implementation("eager")  # sdpa ignores the cap, in older transformers without a warning
        model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        self._logit_cap: float | None = model.config.to_dict().get("final_logit_softcapping")
        self._trunks: dict[int, Any] = {}
        self._recomputed: list[nn.Module] = []
        self._prefixes: dict[Any, Prefix] = {}

    @property
    def trains(self) -> bool:
        """True if any part of the LLM trains. Its states of texts then change and cannot be cached."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @cached_property
    def embedding_scale(self) -> float:
        """Factor that the LLM applies to its token embeddings at look-up: sqrt(D) in Gemma, 1 in most models.

        The output of `embed` has that scale, and vectors that replace tokens must have it too.
        """
        weight = self.model.get_input_embeddings().weight[:SCALE_TOKENS].detach()
        read = self.embed(torch.arange(len(weight), device=weight.device)).detach()
        return float(read.float().norm() / weight.float().norm())

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the scaled token embeddings, which is the scale of input that the LLM expects."""
        mean = self._mean_embedding(lambda rows: rows.square().mean())
        return self.embedding_scale * float(mean.sqrt())

    @cached_property
    def embedding_mean(self) -> Tensor:
        """Mean of the scaled token embeddings (D,)."""
        return self.embedding_scale * self._mean_embedding(lambda rows: rows.mean(0))

    def _mean_embedding(self, average: Callable[[Tensor], Tensor]) -> Tensor:
        """Average over parts of the embeddings, so that there is no copy of all of them in float32."""
        weight: Tensor = self.model.get_input_embeddings().weight.detach()
        parts = [average(part.float()) * (len(part) / len(weight)) for part in torch.split(weight, STATISTICS_ROWS)]
        return torch.stack(parts).sum(0)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the token embeddings of ``ids`` (B, L): (B, L, D)."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    @torch.no_grad()
    def read(self, ids: Padded, layers: Iterable[int], **options: Any) -> HiddenStates:
        """Return the hidden states of token ids (B, N) without a graph; arguments as in `hidden_states`."""
        return self.hidden_states(Padded(self.embed(ids.values), ids.mask), layers, **options)

    def prefix(self, ids: Padded) -> Prefix:
        """Return the keys and values of token ids (B, F) that all sequences start with, as by `shared_prefix`."""
        from ossicle.models.prefix import shared_prefix  # only chat turns have one

        return shared_prefix(self, ids, self._prefixes)

    def hidden_states(
        self,
        embeds: Padded,
        layers: Iterable[int],
        *,
        bos: bool = False,
        start: int = 0,
        prefix: Prefix = (),
        packed: packing.Packing | None = None,
    ) -> HiddenStates:
        """Run ``embeds`` (B, L, D) through the LLM and return the hidden states of ``layers``.

        Layer 0 is the input and ``num_layers`` the output after the final norm, as in ``output_hidden_states`` of
        transformers. Layers above the highest of ``layers`` and the logits are not computed. Where the model allows it
        (``packs``), nothing is computed for padding.

        Args:
            embeds: Input vectors with padding on the right.
            layers: Indices of hidden states.
            bos: Prepend the begin-of-sequence token, and leave its position out of the result.
            start: First position id.
            prefix: Keys and values of tokens before each sequence, from `prefix`; without ``bos`` and ``start``.
            packed: Positions that are computed once for several sequences; alone, and used where the model packs.

        Raises `ConfigError` for a layer that the model does not have, or if ``bos`` is set for an LLM without a
        begin-of-sequence token, and `DataError` for a sequence that is longer than the LLM's context.
        """
        wanted = resolve_layers(sorted(set(layers)), self.num_layers, field="layers")
        start = prefix[0][0].shape[2] if prefix else start
        self.check_context(embeds.values.shape[1] + (start if prefix else bos))
        if wanted == [0]:
            return HiddenStates({0: embeds.values}, embeds.mask)
        if bos:
            hidden = self.hidden_states(self._after_bos(embeds), wanted, start=start)
            return HiddenStates({layer: state[:, 1:] for layer, state in hidden.states.items()}, embeds.mask)
        values = embeds.values.to(self.model.dtype)
        trunk = partial(self._trunk(wanted[-1]), use_cache=False)
        with layer_outputs(self.model.base_model.layers, (layer for layer in wanted if layer)) as states:
            if self.packs:
                packed = packed or packing.Packing.of(embeds.mask, prefix)
                states[wanted[-1]] = trunk(
                    inputs_embeds=packed.pack(values)[None],
                    attention_mask=packed.empty_mask(),
                    position_ids=packed.positions + start,
                    packing=packed,
                ).last_hidden_state
                states = {layer: packed.unpack(state[0]) for layer, state in states.items()}
            else:
                positions = torch.arange(start, start + values.shape[1], device=values.device)[None]
                out = trunk(inputs_embeds=values, attention_mask=embeds.mask.long(), position_ids=positions)
                states[wanted[-1]] = out.last_hidden_state
        states[0] = values
        return HiddenStates({layer: states[layer] for layer in wanted}, embeds.mask)

    def check_context(self, positions: int, answer: int = 0) -> None:
        """Raise `ContextError` if ``positions`` and an answer of ``answer`` tokens do not fit into `context`."""
        if self.context is not None and positions + answer > self.context:
            parts = f"{positions} positions" + (f" and an answer of up to {answer} tokens" if answer else "")
            raise ContextError(
                f"{parts} exceed the context of {self.name}, which is {self.context}: use shorter audio "
                "(data.max_duration_s), a projector with fewer tokens per second, or an LLM with a longer context"
            )

    def _after_bos(self, embeds: Padded) -> Padded:
        if self.tokenizer.bos_token_id is None:
            raise ConfigError(f"objective.bos: {self.name} has no begin-of-sequence token: set objective.bos=false")
        first = self.embed(torch.tensor([self.tokenizer.bos_token_id], device=embeds.values.device))
        values = torch.cat([first.to(embeds.values.dtype).expand(len(embeds.mask), 1, -1), embeds.values], 1)
        return Padded(values, torch.cat([embeds.mask.new_ones(len(embeds.mask), 1), embeds.mask], 1))

    def train(self, mode: bool = True) -> LLM:
        """Stay in evaluation mode; ``mode`` only switches the recomputation of `checkpoint_gradients` on or off."""
        super().train(False)
        for layer in self._recomputed:
            layer.training = mode
        return self

    def checkpoint_gradients(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations.

        This needs less memory and about 1.5 times the computation. transformers checkpoints layers in train mode only.
        `train` sets that mode on the layers but not on their children, so that every dropout stays off.
        """
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._recomputed = list(self.model.base_model.layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits (K, vocabulary) of final hidden states (K, D), with the model's soft cap if it has one."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits if self._logit_cap is None else self._logit_cap * torch.tanh(logits / self._logit_cap)

    def _trunk(self, depth: int) -> Any:
        """Return the decoder truncated after ``depth`` layers; it shares every weight with the whole decoder."""
        base = self.model.base_model
        if depth == self.num_layers:
            return base
        if depth not in self._trunks:
            trunk = shallow_copy(base)
            trunk.layers = base.layers[:depth]
            trunk.norm = nn.Identity()  # the final norm belongs to the last layer of the whole model
            trunk.config.num_hidden_layers = depth
            self._trunks[depth] = trunk
        return self._trunks[depth]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: end of turn, end of sequence, and every token that contains a newline."""
        stops = self.end_ids.copy()
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        return sorted(stops.union(i for i, text in enumerate(texts) if "\n" in text))

    @cached_property
    def end_ids(self) -> set[int]:
        """Ids of end of turn and end of sequence, from the chat template, the generation config and the tokenizer.

        The template is read because Gemma and Phi end a turn with another token than the tokenizer's end of sequence.
        """
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [*(configured if isinstance(configured, list) else [configured]), self.tokenizer.eos_token_id]
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        end = self.tokenizer(ChatTemplate.of(self.tokenizer).end, add_special_tokens=False).input_ids
        return {i for i in [*ids, *[i for i in end if i in special][:1]] if i is not None}

    def generate(
        self, prompt: Padded, *, rules: LogitsProcessor | None = None, per_prompt: int = 1, **settings: Any
    ) -> list[str]:
        """Generate ``per_prompt`` texts for each prompt, best first, each up to its first newline.

        No other settings than these apply: those of the model's ``generation_config.json`` are ignored.

        Args:
            prompt: Input vectors (B, L, D), padded on the **left**.
            rules: Changes the scores of the next token, as `ossicle.models.joint` does.
            per_prompt: Number of texts for a prompt. More than 1 needs a beam search with so many ``num_beams``.
            settings: Settings by the names of `ossicle.models.generation.SETTINGS`: ``max_new_tokens`` (200),
                ``temperature`` (0: greedy), ``top_p``, ``num_beams`` and so on.

        A warning says if an answer was cut at ``max_new_tokens``. Raises `DataError` if prompt and answer do not fit
        into the LLM's context, and `ConfigError` for settings that cannot be used.
        """
        from ossicle.models.generation import generate  # not on the path from data to loss

        return generate(self, prompt, rules=rules, per_prompt=per_prompt, **settings)


def _contiguous(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the last positions of a batch (B, 1, D): for views of them, PyTorch on CPUs copies the weights B times."""
    return (inputs[0].contiguous(), *inputs[1:])


class TextStates(Protocol):
    """A cache of the frozen LLM's states of transcripts, such as `ossicle.train.cache.TextCache`."""

    def pooled(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> Tensor:
        """Return the mean state over the valid tokens of ``ids`` (B, N) at each of ``layers``: (K, B, D), float32."""

    def tokens(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> HiddenStates:
        """Return the states of every token of ``ids`` (B, N) at ``layers``."""

    def bank(self, count: int, layers: Sequence[int], *, bos: bool, without: Padded) -> Tensor:
        """Return pooled states of up to ``count`` random texts that are not in ``without``: (K, count, D)."""

    def flush(self) -> None:
        """Write states that are still in memory to disk."""


def load_llm(
    name: str, *, dtype: torch.dtype = torch.float32, bits: Bits | None = None, device: torch.device | None = None
) -> LLM:
    """Load an LLM and its tokenizer from a hub id or a folder.

    Only the language model is loaded from a model that also reads images (Gemma 3, Mistral Small).

    Args:
        name: Hub id or folder.
        dtype: Type of the weights, or of the computation if they are quantised.
        bits: Quantise the weights to 4 (NF4) or 8 bits with bitsandbytes; this requires an NVIDIA GPU.
        device: Where the weights are loaded to, without a copy in the memory of the CPU. Default: the CPU.

    Raises `ModelError` if the model does not load, the tokenizer has no usable chat template or the files lack weights,
    `ConfigError` if ``bits`` is set without a GPU, and `MissingPackageError` if bitsandbytes is not installed.
    """
    from ossicle.models.loading import load_causal_lm, loading_model  # not on the path from data to loss

    with loading_model("model.llm", name):
        model, tokenizer = load_causal_lm(name, dtype, bits, device)
        return LLM(model, tokenizer, name=name)
