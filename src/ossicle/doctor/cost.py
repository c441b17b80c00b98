"""Estimate the memory, the time and the disk space of a run, from one measured step and from the LLM's shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ossicle.doctor.batch import Loaded
from ossicle.doctor.finding import Report
from ossicle.doctor.memory import estimate
from ossicle.models.projectors import aligned_share
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive
from ossicle.train.recipe import Config
from ossicle.train.state import trainable

NORMS = {2: 4.4, 4: 2.2}
"""Values that norms and residuals keep per token and layer, in multiples of the LLM's width, for 2-byte and 4-byte
numbers; measured by benchmarks/memory.py."""
MOMENTS_B = 8
"""Bytes per trained parameter of Adam's two moments in float32."""
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Shapes:
    """Sizes of an LLM that determine the activation memory per token and layer."""

    width: int
    ffn: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together."""
    layers: int
    number_b: int
    """Bytes per number."""

    @classmethod
    def of(cls, model: SpeechLLM) -> Shapes:
        """Return the sizes of the LLM in ``model``."""
        config = model.llm.model.config
        head = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
        return cls(
            width=config.hidden_size,
            ffn=config.intermediate_size,
            queries=config.num_attention_heads * head,
            keys=config.num_key_value_heads * head,
            layers=model.llm.num_layers,
            number_b=model.llm.model.dtype.itemsize,
        )

    def token_b(self, *, checkpointing: bool) -> float:
        """Return the bytes that a token keeps in a layer until the backward pass.

        They are those of feed-forward, attention and norms, or only the layer's input with ``checkpointing``.
        """
        if checkpointing:
            return self.width * self.number_b
        kept = 3 * self.ffn + self.queries + 2 * self.keys + NORMS[self.number_b] * self.width
        return kept * self.number_b


@dataclass(frozen=True)
class Measured:
    """Measurements of one step of the run."""

    saved_b: int
    """Bytes that the forward pass keeps for the backward pass."""
    step_s: float
    """Seconds per batch, forward and backward."""


def report_cost(config: Config, model: SpeechLLM, loaded: Loaded, report: Report, measured: Measured) -> None:
    """Report the memory, the steps, the hours and the disk space of the run."""
    batches = loaded.data.batches_per_epoch
    steps = config.train.steps or math.ceil(config.train.epochs * batches / config.train.accumulate)
    here_s = loaded.batch.audio_s
    layers, tokens = _layers_run(config, model), here_s * model.token_rate_hz
    if isinstance(config.objective, Contrastive):
        tokens *= aligned_share(model.projector)
    estimated_b = tokens * layers * Shapes.of(model).token_b(checkpointing=config.train.gradient_checkpointing)
    weights_b = sum(map(_bytes, (model.encoder, model.llm, model.projector)))
    trained = sum(parameter.numel() for parameter in trainable(model))
    largest = estimate(config, model, loaded)
    step_b = max(largest.step_b, largest.encoder_b)  # the encoder is done before the rest of the step begins
    report.ok(
        "memory",
        f"about {_size(weights_b + MOMENTS_B * trained + step_b)} at the largest batch ({largest.audio_s:.0f} s of "
        f"audio, {largest.positions:.0f} positions in the LLM): weights {_size(weights_b)}, Adam's moments "
        f"{_size(MOMENTS_B * trained)}, activations and gradient {_size(largest.step_b)}, or before them "
        f"{_size(largest.encoder_b)} in the encoder",
    )
    report.ok(
        "activations",
        f"{_size(measured.saved_b)} measured in this batch ({here_s:.0f} s); {_size(estimated_b)} of it estimated for "
        f"{tokens:.0f} speech tokens x {layers} LLM layers; the rest is text, projector and objective",
    )
    hours, device = steps * config.train.accumulate * measured.step_s / 3600, loaded.accelerator.device.type
    report.ok("time", f"{steps:,} steps; {measured.step_s:.2f} s per batch on this {device}: about {_span(hours)}")
    report.ok("disk", _disk(config, model, loaded, trained))


def _layers_run(config: Config, model: SpeechLLM) -> int:
    """Return the number of LLM layers that process speech; contrast at the input embeddings needs none."""
    if isinstance(config.objective, Contrastive):
        return max(config.objective.weights(model.llm.num_layers))
    return model.llm.num_layers


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


def _disk(config: Config, model: SpeechLLM, loaded: Loaded, trained: int) -> str:
    kept = (config.train.keep + 1) * 3 * 4 * trained + 4 * trained  # checkpoints with Adam's moments, and the result
    parts = [f"checkpoints {_size(kept)}"]
    if config.data.cache_frames:
        frames = loaded.data.hours * 3600 * model.encoder.frame_rate_hz
        parts.append(f"frame cache {_size(frames * model.encoder.dim * 2)}")
    if config.data.cache_text:
        parts.append(f"text cache at most {config.data.cache_text_gb:g} GB")
    return ", ".join(parts)


def _size(bytes_: float) -> str:
    return f"{bytes_ / GB:.2f} GB" if bytes_ >= 0.1 * GB else f"{bytes_ / MB:.2f} MB"


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
