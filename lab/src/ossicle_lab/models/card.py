"""Write the card of the lab's weights from their scores, configurations and sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ossicle.files import write_text
from ossicle_lab.world.passages import vocabulary

_CARD = """---
license: apache-2.0
---

# The lab's encoder and LLM

Two tiny models for Ossicle's demo and tests, made by `make lab`. They know {words} English words in synthetic voices
and nothing else. They demonstrate the method and do not recognise other speech. Licence: Apache-2.0.

| | architecture | parameters | bfloat16 | loads through |
|---|---|---|---|---|
| `encoder/` | {encoder_shape} | {encoder_size} | `AutoModel`, `HubertForCTC`, `Wav2Vec2Processor` |
| `llm/` | {llm_shape} | {llm_size} | `AutoModelForCausalLM`, `AutoTokenizer` |

## Encoder

A HuBERT trained by CTC on characters, from random weights except for the first convolution, which started as a bank of
band-pass filters. Training data: {train_utterances} strings of the lab's words in random order ({train_hours} hours,
{train_speakers} synthetic voices), {steps} steps, seed {seed}. Error rates of greedy decoding
without a language model, on other strings in voices that did not train it:

{encoder_table}

Rates are in percent. Homophones (ant and aunt) cannot be distinguished in a random string; the last column counts them
as equal.

The speech was generated with espeak-ng, which is licensed under GPL-3. No part of espeak-ng and none of the speech is
included in the package. To speak new text, install it with `pip install "ossicle[tts]"`.

## LLM

A Llama trained on the text side of all the lab's instructions ({llm_steps} steps, seed {llm_seed}). Its scores on
text input, on passages without a sentence of its training split, are the upper bound of every speech result of the lab:

{llm_table}

The stages in `build_llm.py` record how these weights were trained: the run was stopped, changed and continued several
times. A run of all stages from the start, killed once and continued, gave other weights with similar scores: a WER of
0.06, BLEU 99.7 and 99.5, and exact answers to all questions about one, two and three sentences.
"""


def write_card(weights: Path) -> Path:
    """Write ``weights/README.md`` from the two models in ``weights``, and return its path."""
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
    write_text(path, card)
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
