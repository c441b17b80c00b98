"""Alignment on the development data while a model trains (``train.analyze_every``): what is cheap of `analyze`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import gather_object

from ossicle.batch import Batch
from ossicle.errors import ConfigError
from ossicle.inspect.alignment import AlignmentRow, alignment_report
from ossicle.inspect.states import PooledStates, pooled_states
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.batches import Data
from ossicle.train.recipe import Config

MOST_UTTERANCES = 500
"""Of the development data, the same ones each time: R@1 depends on how many there are to choose from."""
R_AT_1 = "r_at_1"
"""The value that ``train.best_by: retrieval`` goes by."""


def check_settings(config: Config) -> None:
    """Raise `ConfigError` where the analysis is asked for and something it needs is not set."""
    if config.train.analyze_every and not config.data.dev:
        raise ConfigError("train.analyze_every measures alignment on data.dev: name its manifests there, or set 0")
    if config.train.best_by == "retrieval" and not config.train.analyze_every:
        raise ConfigError("train.best_by=retrieval needs train.analyze_every, in steps; it is 0, which means never")


def check_transcripts(dev: Data) -> None:
    """Raise `ConfigError` where the development data cannot be analysed."""
    missing = next((sample for sample in dev.dataset.samples if not sample.text), None)
    if missing is not None:
        raise ConfigError(
            f'{missing.source}: {missing.id!r} has no "text", which train.analyze_every needs: add it, or set 0'
        )
    if len({sample.text for sample in dev.dataset.samples}) < 2:
        raise ConfigError("train.analyze_every needs two different transcripts in data.dev at least")


def measure(model: SpeechLLM, dev: Data, accelerator: Accelerator) -> dict[str, float]:
    """R@1 in both directions and the modality gap by layer, and ``r_at_1``, the mean of all R@1. Leaves eval mode on.

    Percentages, among the first 500 utterances of ``dev``, those of all processes together.
    """
    states = pooled_states(model, _first(dev, accelerator))
    together = PooledStates.joined(gather_object([states]))
    return values_of(alignment_report(together.text, together.speech, together.transcripts))


def values_of(rows: list[AlignmentRow]) -> dict[str, float]:
    """What is logged of a report."""
    values = {R_AT_1: sum(row.speech_to_text_r1 + row.text_to_speech_r1 for row in rows) / (2 * len(rows))}
    for row in rows:
        place = f"layer_{row.layer:02d}"
        values |= {
            f"speech_to_text_r1/{place}": row.speech_to_text_r1,
            f"text_to_speech_r1/{place}": row.text_to_speech_r1,
        }
        if row.modality_gap is not None and math.isfinite(row.modality_gap):
            values[f"modality_gap/{place}"] = row.modality_gap
    return values


def _first(dev: Data, accelerator: Accelerator) -> Iterator[Batch]:
    """Batches of this process's share, on its device."""
    left = -(-MOST_UTTERANCES // accelerator.num_processes)
    for batch in dev.epoch(0):
        if len(batch):
            left -= len(batch)
            yield batch.to(accelerator.device)
        if left <= 0:
            return
