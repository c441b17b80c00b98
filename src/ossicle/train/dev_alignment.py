"""Measure the alignment of speech and text on the development data during training (``train.analyze_every``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

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
"""Number of development utterances that are measured, always the first ones: R@1 depends on the number."""
R_AT_1 = "r_at_1"
"""Name of the value that ``train.best_by: retrieval`` compares."""


def check_settings(config: Config) -> None:
    """Raise `ConfigError` if the analysis is turned on and a setting that it needs is missing."""
    if config.train.analyze_every and not config.data.dev:
        raise ConfigError("train.analyze_every measures alignment on data.dev: name its manifests there, or set 0")
    if config.train.best_by == "retrieval" and not config.train.analyze_every:
        raise ConfigError("train.best_by=retrieval needs train.analyze_every, in steps; it is 0, which means never")


def check_transcripts(dev: Data) -> None:
    """Raise `ConfigError` if the development data cannot be analysed: it needs two different transcripts."""
    missing = next((sample for sample in dev.dataset.samples if not sample.text), None)
    if missing is not None:
        raise ConfigError(
            f'{missing.source}: {missing.id!r} has no "text", which train.analyze_every needs: add it, or set 0'
        )
    if len({sample.text for sample in dev.dataset.samples}) < 2:
        raise ConfigError("train.analyze_every needs two different transcripts in data.dev: add some, or set it to 0")


def measure(model: SpeechLLM, dev: Data, accelerator: Accelerator) -> dict[str, float]:
    """Return R@1 in both directions and the modality gap of every layer, and ``r_at_1``, the mean of all R@1.

    R@1 is in percent, among the first 500 utterances of ``dev`` in all processes. The result is empty if fewer than two
    utterances could be read. The model is left in evaluation mode.
    """
    batches = _first(dev, accelerator)
    first = next(batches, None)
    own = [] if first is None else [pooled_states(model, chain([first], batches))]
    found = gather_object(own)
    if sum(len(part.transcripts) for part in found) < 2:
        return {}
    together = PooledStates.joined(found)
    return values_of(alignment_report(together.text, together.speech, together.transcripts))


def values_of(rows: list[AlignmentRow]) -> dict[str, float]:
    """Return the values of a report that are logged."""
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
    """Yield the first batches of this process's share, on its device."""
    left = -(-MOST_UTTERANCES // accelerator.num_processes)
    for batch in dev.epoch(0):
        if len(batch):
            left -= len(batch)
            yield batch.to(accelerator.device)
        if left <= 0:
            return
