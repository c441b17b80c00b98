"""The card of the lab's weights, from what the builders left: scores, configurations, sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ossicle_lab.world.passages import vocabulary

_CARD = """---
license: apache-2.0
---

# The lab's encoder and LLM

Two tiny models for Ossicle's demo and tests, made by `make lab`. They know {words} English words in synthetic voices
and nothing else: use them to see the method work, not to recognise speech. Licence: Apache-2.0, like the package.

| | architecture | parameters | bfloat16 | loads through |
|---|---|---|---|---|
| `encoder/` | {encoder_shape} | {encoder_size} | `AutoModel`, `HubertForCTC`, `Wav2Vec2Processor` |
| `llm/` | {llm_shape} | {llm_size} | `AutoModelForCausalLM`, `AutoTokenizer` |

## Encoder

A HuBERT trained by CTC on characters, from random weights but for the first convolution, which started as a bank of
band-pass filters: {train_utterances} strings of the lab's words in random order ({train_hours} hours,
{train_speakers} synthetic voices), {steps} steps, seed {seed}. Greedy decoding without a language model, on other
strings in voices it has never heard:

{encoder_table}

Rates are in percent. Words that sound alike (ant and aunt) cannot be told apart in a random string; the last column
counts them as one.

The speech was generated with espeak-ng, which is licensed under GPL-3. No part of espeak-ng and none of the speech is
shipped; whoever speaks new text installs it with `pip install "ossicle[lab]"`.

## LLM

A Llama trained on the text side of all the lab's instructions ({llm_steps} steps, seed {llm_seed}). On passages
without a sentence of its training split, text in, text out: the bound for every speech result of the lab.

{llm_table}

The stages in `build_llm.py` record the run of these weights as it happened: it was stopped, its recipe changed and
continued several times. Replayed from the start by the one command, killed once and continued, they gave a WER of
0.06, BLEU 99.7 and 99.5, and exact answers to all questions about one, two and three sentences: scores like these,
not these weights.
"""


def write_card(weights: Path) -> Path:
    """Write ``weights/README.md`` from the two folders below ``weights``; returns its path."""
    encoder, llm = (_described(weights / name) for name in ("encoder", "llm"))
    scores, llm_scores = encoder["scores"], llm["scores"]
    card = _CARD.format(
        words=len(vocabulary()),
        encoder_shape=_shape(encoder["config"]),
        encoder_size=encoder["size"],
        llm_shape=_shape(llm["config"]),
        llm_size=llm["size"],
        encoder_table=_table({name: part for name, part in scores.items() if isinstance(part, dict)}),
        llm_table=_table(llm_scores["test"]),
        llm_steps=llm_scores["steps"],
        llm_seed=llm_scores["seed"],
        **{name: scores[name] for name in ("train_utterances", "train_hours", "train_speakers", "steps", "seed")},
    )
    path = weights / "README.md"
    path.write_text(card, encoding="utf-8")
    return path


def _described(folder: Path) -> dict[str, Any]:
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
    return {
        "size": f"{parameters / 1e6:.2f} M | {weights.stat().st_size / 1e6:.1f} MB",
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "scores": json.loads((folder / "scores.json").read_text(encoding="utf-8")),
    }


def _shape(config: dict[str, Any]) -> str:
    return f"{config['model_type']}, {config['num_hidden_layers']} layers of {config['hidden_size']}"


def _table(rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *(column.replace("_", " ") for column in columns)], ["---"] * (len(columns) + 1)]
    lines += [[name, *(str(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
