"""Generate answers with the frozen LLM, under settings by the names of transformers' `GenerationConfig`.

Shape legend: B sequences, L positions, D width.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ossicle.batch import Padded
from ossicle.errors import ConfigError
from ossicle.models.prefix import read_once

MAX_NEW_TOKENS = 200
"""Default maximum length of an answer in tokens, as in the paper."""
SETTINGS = (
    "max_new_tokens", "min_new_tokens", "max_time", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p",
    "num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip
"""Fields of `GenerationConfig` that a caller can set. The others change what is returned, not which answer it is."""
NO_TOP_K = 0
"""Value of ``top_k`` that keeps all tokens. The default of transformers would keep 50."""


def settings_of(llm: Any, **given: Any) -> GenerationConfig:
    """Return the complete settings of decoding for an `LLM`: greedy, but for what is ``given``.

    A ``temperature`` above 0 selects sampling, as ``do_sample`` does; 0 selects greedy decoding. Settings that are None
    have their default. Raises `ConfigError` for an unknown setting or a value that cannot be used.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := [name for name in given if name not in SETTINGS]:
        near = difflib.get_close_matches(unknown[0], SETTINGS, 1)
        raise ConfigError(
            f"{unknown[0]} is not a setting of generation{f'; did you mean {near[0]}?' if near else ''} "
            f"(there are {', '.join(SETTINGS)})"
        )
    _check(given)
    temperature = given.pop("temperature", None)
    sampling = given.pop("do_sample", bool(temperature))
    settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": sampling}
    if sampling:
        settings |= {"top_k": NO_TOP_K, "temperature": temperature or 1.0}
    else:
        for name in ("top_k", "top_p", "min_p", "typical_p"):  # greedy decoding ignores them
            given.pop(name, None)
    padding = llm.tokenizer.eos_token_id
    return GenerationConfig(
        eos_token_id=llm.stop_ids,
        pad_token_id=min(llm.end_ids) if padding is None else padding,
        **(settings | given),
    )


def _check(given: dict[str, Any]) -> None:
    """Raise `ConfigError` for the first value of ``given`` that is of the wrong type or outside its range."""
    whole = {"max_new_tokens": 1, "min_new_tokens": 0, "top_k": 0, "num_beams": 1, "no_repeat_ngram_size": 0}
    for name, value in given.items():
        if name in ("do_sample", "early_stopping"):
            valid, wanted = isinstance(value, bool) or value == "never", "True or False"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            valid, wanted = False, "a number"
        elif name in whole:
            valid, wanted = float(value).is_integer() and value >= whole[name], f"a whole number from {whole[name]} on"
        elif name in ("top_p", "min_p", "typical_p"):
            valid, wanted = 0 < value <= 1 or (name == "min_p" and value == 0), "a number above 0 and at most 1"
        elif name == "temperature":
            valid, wanted = 0 <= value < float("inf"), "a number from 0 on"
        elif name == "length_penalty":
            valid, wanted = value == value, "a number"
        else:
            valid, wanted = value > 0, "a number above 0"
        if not valid:
            raise ConfigError(f"{name}={value!r}: give {wanted}")
    if given.get("do_sample") and given.get("temperature") == 0:
        raise ConfigError("do_sample=True with temperature=0: give a temperature above 0, or leave do_sample out")


@torch.no_grad()
def generate(
    llm: Any, prompt: Padded, *, rules: LogitsProcessor | None = None, per_prompt: int = 1, **given: Any
) -> list[str]:
    """Return the answers to each prompt, up to their first newline; see `ossicle.models.llm.LLM.generate`.

    ``per_prompt`` is the number of answers to each prompt, best first: 1, or up to ``num_beams`` in a beam search.
    """
    settings = settings_of(llm, **given)
    settings.num_return_sequences = per_prompt
    llm.check_context(prompt.values.shape[1], settings.max_new_tokens)
    # transformers fills what is unset from the model's own settings, such as beams or a penalty for repetition.
    own, llm.model.generation_config = llm.model.generation_config, GenerationConfig()
    try:
        ids = llm.model.generate(
            inputs_embeds=prompt.values.to(llm.model.dtype),
            attention_mask=prompt.mask.long(),
            generation_config=settings,
            logits_processor=LogitsProcessorList([rules] if rules is not None else []),
            **read_once(llm, prompt, settings.num_beams or 1),
        )
    finally:
        llm.model.generation_config = own
    if ids.shape[1] == settings.max_new_tokens and not _ended(ids[::per_prompt, -1], llm.stop_ids):
        warnings.warn(f"an answer was cut at max_new_tokens={settings.max_new_tokens}", stacklevel=3)
    return [answer_text(text) for text in llm.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def answer_text(text: str) -> str:
    """Return the answer in a decoded ``text``: its first line, without spaces around it."""
    return text.split("\n")[0].strip()


def _ended(last: torch.Tensor, stop_ids: list[int]) -> bool:
    return bool(torch.isin(last.cpu(), torch.tensor(stop_ids)).all())
