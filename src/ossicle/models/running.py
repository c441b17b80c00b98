"""Decode answers in a batch that requests join and leave between two steps (continuous batching).

`LLM.generate` decodes a batch until its longest answer ends. A server cannot wait for that. `RunningBatch` decodes one
token of every answer per step. A new request joins before the next step, and a finished one leaves at once.

Shape legend: R rows, N new rows, L positions of the longest prompt, T positions in the cache, H heads, D width of the
LLM, d width of a head.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from ossicle.batch import Padded
from ossicle.errors import ConfigError
from ossicle.models.generation import settings_of
from ossicle.models.prefix import cache_argument, merges
from ossicle.models.text_stream import TextStream


@dataclass(eq=False)
class Row:
    """One answer that is being decoded.

    Attributes:
        ids: The tokens of the answer so far. The last one may be a stop token, which may hold text before a newline.
        end: ``stop`` after a stop token, ``length`` after the last allowed token or second, ``left`` if it was taken
            out, and None while the answer is incomplete.
    """

    prompt: Tensor  # (L, D)
    settings: GenerationConfig
    rules: LogitsProcessorList
    random: torch.Generator | None
    ids: list[int] = field(default_factory=list)
    end: str | None = None
    started_s: float | None = None


class RunningBatch:
    """The answers that an `LLM` decodes at the moment.

    The tokens of a greedy answer are those of `LLM.generate` for the same prompt alone. An LLM of which some layers do
    not keep all keys (sliding windows), or whose rotary embeddings depend on the longest sequence, decodes one answer
    after another.

    Args:
        llm: The `LLM`.
        most_rows: Largest number of answers that are decoded together.
    """

    def __init__(self, llm: Any, most_rows: int = 32) -> None:
        self.llm = llm
        self.most_rows = most_rows if merges(llm) else 1
        self.rows: list[Row] = []
        self.waiting: list[Row] = []
        self._stops = set(llm.stop_ids)
        self._cache_name = cache_argument(llm.model)
        self._options: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in inspect.signature(llm.model.forward).parameters:
            self._options["logits_to_keep"] = 1
        self._cache: Any = None
        self._mask = torch.empty(0)  # (R, T) bool

    def __len__(self) -> int:
        return len(self.rows) + len(self.waiting)

    @property
    def free(self) -> int:
        """Number of rows that can still join before `most_rows` are running."""
        return self.most_rows - len(self)

    def join(self, prompt: Padded, *, seed: int | None = None, **settings: Any) -> list[Row]:
        """Add an answer for each row of ``prompt`` (N, L, D); decoding begins with the next `step`.

        Rows beyond `most_rows` wait until others have left.

        Args:
            prompt: Input vectors, with padding on any side.
            seed: Seed of the random numbers of these answers. None draws one.
            settings: Settings of `LLM.generate`, except for ``num_beams``.

        Raises `DataError` if a prompt and its answer exceed the LLM's context, and `ConfigError` for other settings.
        """
        known = settings_of(self.llm, **settings)
        if known.num_beams not in (None, 1):
            raise ConfigError(f"num_beams={known.num_beams}: beams are not decoded in a running batch; leave it out")
        self.llm.check_context(int(prompt.mask.sum(1).max()), known.max_new_tokens)
        rules, dtype = rules_of(known, prompt.values.device), self.llm.model.dtype
        rows = zip(prompt.values.to(dtype), prompt.mask, strict=True)
        joined = [Row(values[mask], known, rules, _random(known, seed)) for values, mask in rows]
        self.waiting += joined
        return joined

    def stream(self, prompt: Padded, *, seed: int | None = None, **settings: Any) -> Iterator[str]:
        """Yield the answer to ``prompt`` (1, L, D) in pieces; arguments and errors as of `join`.

        Joined, the pieces are what `LLM.generate` returns. Other answers of the batch are decoded beside it.
        """
        (row,) = self.join(prompt, seed=seed, **settings)
        return self._pieces(row)

    def _pieces(self, row: Row) -> Iterator[str]:
        text = TextStream(self.llm.tokenizer)
        try:
            while row.end is None:
                self.step()
                piece = text.push(row.ids) if row.end is None else text.finish(row.ids)
                if piece:
                    yield piece
        finally:
            self.leave(row)

    def leave(self, row: Row) -> None:
        """Take an answer out before it is complete, such as after a cancellation. Complete ones have left already."""
        if row.end is None:
            row.end = "left"
            if row in self.waiting:
                self.waiting.remove(row)
            else:
                self._keep([other for other in self.rows if other.end is None])

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Decode one token of every answer and return those that got one, with the token at the end of their ``ids``.

        Answers that wait join first, as far as there is room. Complete answers leave; their ``end`` is set.
        """
        if self.rows:
            self._append(self._next_logits(), self.rows)
        stepped = self.rows
        if room := self.most_rows - len(self.rows):
            new, self.waiting = self.waiting[:room], self.waiting[room:]
            stepped = stepped + new
            if new:
                self._admit(new)
        self._keep([row for row in self.rows if row.end is None])
        return stepped

    def _next_logits(self) -> Tensor:
        """Return the logits (R, vocabulary) after the newest token of each row."""
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._mask.device)
        self._mask = F.pad(self._mask, (0, 1), value=True)
        return self._forward({"input_ids": ids}, self._mask, self._cache)

    def _append(self, logits: Tensor, rows: list[Row]) -> None:
        """Choose the next token of each row by its logits (R, vocabulary), and mark the rows that are complete."""
        now_s = time.monotonic()
        for row, scores, best in zip(rows, logits, logits.argmax(-1).tolist(), strict=True):
            row.started_s = now_s if row.started_s is None else row.started_s
            token = _choose(row, scores) if row.rules or row.random is not None else best
            row.ids.append(token)
            limit_s = row.settings.max_time
            if token in self._stops:
                row.end = "stop"
            elif len(row.ids) >= row.settings.max_new_tokens or (limit_s and now_s - row.started_s >= limit_s):
                row.end = "length"

    def _admit(self, new: list[Row]) -> None:
        """Read the prompts of ``new`` rows, choose their first tokens, and merge their keys and values."""
        prompt = _padded_left([row.prompt for row in new])
        cache = DynamicCache(config=self.llm.model.config)
        self._append(self._forward({"inputs_embeds": prompt.values}, prompt.mask, cache), new)
        if self.rows:
            self._mask = _merge(self._cache, cache, self._mask, prompt.mask)
        else:
            self._cache, self._mask = cache, prompt.mask
        self.rows = self.rows + new

    def _forward(self, inputs: dict[str, Tensor], mask: Tensor, cache: Any) -> Tensor:
        """Run the LLM on new positions, extend ``cache``, and return the logits (R, vocabulary) of the last one."""
        new = next(iter(inputs.values())).shape[1]
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -new:]
        options = {**inputs, **self._options, self._cache_name: cache}
        out = self.llm.model(attention_mask=mask.long(), position_ids=positions, **options)
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _keep(self, kept: list[Row]) -> None:
        """Drop all other rows, and the padding that the rest shares."""
        if len(kept) == len(self.rows):
            return
        if not kept:
            self.rows, self._cache, self._mask = [], None, torch.empty(0)
            return
        order = torch.tensor([self.rows.index(row) for row in kept], device=self._mask.device)
        mask = self._mask[order]
        first = int(mask.any(0).long().argmax())
        for layer in self._cache.layers:
            layer.keys, layer.values = (each[order, :, first:].contiguous() for each in (layer.keys, layer.values))
        self.rows, self._mask = kept, mask[:, first:]


def _padded_left(rows: list[Tensor]) -> Padded:
    """Stack rows (L_i, D) of different lengths into (N, L, D), padded with zeros on the left."""
    length = max(map(len, rows))
    values = torch.stack([F.pad(row, (0, 0, length - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=values.device)
    return Padded(values, torch.arange(length, device=values.device) >= length - lengths[:, None])


def _merge(cache: Any, new: Any, mask: Tensor, new_mask: Tensor) -> Tensor:
    """Append the rows of the cache ``new`` to ``cache``, both padded on the left, and return the mask (R + N, T)."""
    length = max(mask.shape[1], new_mask.shape[1])

    def widened(values: Tensor) -> Tensor:  # (R, H, T, d)
        return F.pad(values, (0, 0, length - values.shape[2], 0))

    for old, added in zip(cache.layers, new.layers, strict=True):
        old.keys, old.values = (
            torch.cat([widened(getattr(old, name)), widened(getattr(added, name))]) for name in ("keys", "values")
        )
    return torch.cat([F.pad(each, (length - each.shape[1], 0)) for each in (mask, new_mask)])


def rules_of(settings: GenerationConfig, device: torch.device) -> LogitsProcessorList:
    """Return what ``settings`` do to the scores of the next token, in the order of transformers.

    The rules read the tokens of the answer and the scores (1, vocabulary).
    """
    rules = LogitsProcessorList()
    if (settings.repetition_penalty or 1.0) != 1.0:
        rules.append(transformers.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        rules.append(transformers.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.min_new_tokens:
        least = transformers.MinNewTokensLengthLogitsProcessor
        rules.append(least(0, settings.min_new_tokens, settings.eos_token_id, device=str(device)))
    if not settings.do_sample:
        return rules
    if (settings.temperature or 1.0) != 1.0:
        rules.append(transformers.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        rules.append(transformers.TopKLogitsWarper(settings.top_k))
    if (settings.top_p or 1.0) < 1.0:
        rules.append(transformers.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        rules.append(transformers.MinPLogitsWarper(settings.min_p))
    if (settings.typical_p or 1.0) < 1.0:
        rules.append(transformers.TypicalLogitsWarper(settings.typical_p))
    return rules


def _random(settings: GenerationConfig, seed: int | None) -> torch.Generator | None:
    """Return the source of random numbers of one answer, or None for greedy decoding."""
    if not settings.do_sample:
        return None
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _choose(row: Row, scores: Tensor) -> int:
    """Return the next token of ``row`` by its logits (vocabulary,).

    Random numbers come from the CPU, so that a seed means the same on every device.
    """
    ids = torch.tensor([row.ids], dtype=torch.long, device=scores.device)
    ruled: Tensor = row.rules(ids, scores[None])[0]
    if row.random is None:
        return int(ruled.argmax())
    return int(torch.multinomial(ruled.softmax(-1).cpu(), 1, generator=row.random))
