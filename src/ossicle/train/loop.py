"""Train: manifest line -> `Sample` -> `collate` -> `Batch` -> `objective(model, batch)` -> `total.backward()`."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ossicle.batch import Batch, LossOutput
from ossicle.data.collate import padding_share
from ossicle.models.lora import describe
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective
from ossicle.precision import describe_fallbacks, new_accelerator
from ossicle.private import reset_accelerator_state
from ossicle.prompts import learned_instructions
from ossicle.train import checkpoint
from ossicle.train.batches import Data
from ossicle.train.checkpoint import Position, Trainer
from ossicle.train.recipe import Config
from ossicle.train.tracking import Tracker, mean


def train(config: Config, *, objective: Objective | None = None, resume: bool = False) -> Path:
    """Train the projector and return the run's folder, which `SpeechLLM.from_pretrained` loads.

    Args:
        config: The run's settings.
        objective: A callable ``(model, batch) -> LossOutput`` that replaces the configured objective.
        resume: Continue the run from its newest checkpoint, with the losses that it would have had without a stop.

    Ctrl-C saves a checkpoint and returns. Raises `ConfigError` for settings that do not fit together or to the run's
    folder, `DataError` for invalid data, and `ModelError` for models that do not load.
    """
    if config.train.analyze_every or config.train.best_by == "retrieval":
        from ossicle.train import dev_alignment  # it needs all of `ossicle.inspect`, which few runs use

        dev_alignment.check_settings(config)
    from ossicle.train.run_folder import claim_folder  # here, because it is done once and does not touch the loss

    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    claim_folder(config, objective, resume=resume, first=accelerator.is_main_process)
    set_seed(config.train.seed)
    model = _load_model(config, accelerator.device)
    chosen: Objective = objective or config.objective.build()
    data = Data.load(config.data, model, accelerator, objective=chosen)
    dev = Data.load_dev(config.data, model, accelerator, objective=chosen)
    if dev is not None and config.train.analyze_every:
        dev_alignment.check_transcripts(dev)

    model.instructions |= learned_instructions(data.dataset.samples)
    steps = config.train.steps or math.ceil(config.train.epochs * data.batches_per_epoch / config.train.accumulate)
    unprepared = Step(model, chosen)
    optimizer, schedule = config.optim.build(checkpoint.trainable(unprepared), steps=steps)
    step, optimizer = accelerator.prepare(unprepared, optimizer)
    trainer = Trainer(optimizer, schedule, Position(), chosen if isinstance(chosen, nn.Module) else None)
    start = checkpoint.latest(config.folder) if resume else None
    if start is not None:
        checkpoint.load(start, model, trainer)

    loop = Loop(config, accelerator, step, trainer, steps)
    shown, board = accelerator.is_main_process, config.train.tensorboard
    with Tracker(config.folder, steps=steps, tensorboard=board, enabled=shown) as tracker:
        tracker.say(_summary(config, model, data, steps, trainer.position.step))
        if fallbacks := describe_fallbacks(config.precisions, accelerator.device):
            tracker.say(fallbacks)
        loop.run(data, dev, model, tracker)
    accelerator.end_training()
    reset_accelerator_state()  # the next run of this process may have another precision
    return config.folder


class Step(nn.Module):
    """Model and objective as one module, because distributed wrappers need a single ``forward``."""

    def __init__(self, model: SpeechLLM, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of ``batch``."""
        return self.objective(self.model, batch)


@dataclass
class Loop:
    """Run optimiser steps, evaluations and checkpoints."""

    config: Config
    accelerator: Accelerator
    module: nn.Module
    trainer: Trainer
    steps: int

    def __post_init__(self) -> None:
        self._window: list[dict[str, float]] = []
        self._window_started_s = time.perf_counter()

    def run(self, data: Data, dev: Data | None, model: SpeechLLM, tracker: Tracker) -> None:
        """Train until all steps are done or the user interrupts, and save the result."""
        settings, position, first = self.config.train, self.trainer.position, self.accelerator.is_main_process
        with Interruptible() as interrupted:
            batches = data.stream(position)
            model.train()
            while position.step < self.steps and not interrupted():
                tracker.advance(position.step)
                self.step(batches, tracker)
                if dev is not None and self.is_due(settings.eval_every):
                    self.evaluate(dev, model, tracker)
                if dev is not None and settings.analyze_every and self.is_due(settings.analyze_every):
                    self.analyze(dev, model, tracker)
                if first and self.is_due(settings.save_every):
                    checkpoint.save(self.config.folder, model, self.trainer, keep=settings.keep)
            tracker.advance(position.step)
            if first:
                _finish(self.config, model, self.trainer, tracker, done=position.step == self.steps)
            if model.text_cache is not None:
                model.text_cache.flush()
            if data.dataset.skipped:
                tracker.say(data.dataset.report())

    def is_due(self, every: int) -> bool:
        """Return True every ``every`` steps and at the last step."""
        step = self.trainer.position.step
        return step == self.steps or step % every == 0

    def step(self, batches: Iterator[Batch], tracker: Tracker) -> None:
        """Take one optimiser step: forward and backward over ``accumulate`` batches, clip, update, log."""
        accumulate, position = self.config.train.accumulate, self.trainer.position
        for i in range(accumulate):
            batch = next(batches).to(self.accelerator.device)
            with contextlib.nullcontext() if i == accumulate - 1 else self.accelerator.no_sync(self.module):
                output = self.module(batch)
                self.accelerator.backward(output.total / accumulate)
            self._note(output, batch)
        parameters = checkpoint.trainable(self.module)
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.optim.clip)
        self.trainer.optimizer.step()
        self.trainer.schedule.step()
        self.trainer.optimizer.zero_grad()
        position.step += 1
        if position.step % self.config.train.log_every == 0 or position.step in (1, self.steps):
            self._log(tracker, norm)

    @torch.no_grad()
    def evaluate(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Log the mean loss on the development data, and save the projector if it is the best so far."""
        model.eval()
        totals: dict[str, float] = {}
        count = 0
        for batch in dev.epoch(0):
            if len(batch) == 0:
                continue
            output = self.module(batch.to(self.accelerator.device))
            for name, part in _values(output).items():
                totals[name] = totals.get(name, 0.0) + part * len(batch)
            count += len(batch)
        model.train()
        names = sorted(totals)
        sums = torch.tensor([*(totals[name] for name in names), float(count)], device=self.accelerator.device)
        *sums_of_parts, everything = self.accelerator.reduce(sums, reduction="sum").tolist()
        values = {name: value / everything for name, value in zip(names, sums_of_parts, strict=True)}
        tracker.log(self.trainer.position.step, values, split="dev")
        if self.config.train.best_by == "loss":
            self._keep_best(model, values["loss"])

    def analyze(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Log the alignment of speech and text on the development data."""
        from ossicle.train import dev_alignment  # as in `train`

        values = dev_alignment.measure(model, dev, self.accelerator)
        model.train()
        tracker.log(self.trainer.position.step, values, split="alignment")
        if self.config.train.best_by == "retrieval":
            self._keep_best(model, -values[dev_alignment.R_AT_1])

    def _keep_best(self, model: SpeechLLM, value: float) -> None:
        """Save the projector if ``value`` is the lowest so far."""
        position = self.trainer.position
        if value < position.best:
            position.best = value
            if self.accelerator.is_main_process:
                checkpoint.save_best(self.config.folder, model, position)

    def _note(self, output: LossOutput, batch: Batch) -> None:
        seconds = batch.audio_s * self.accelerator.num_processes
        self.trainer.position.audio_s += seconds
        self._window.append({**_values(output), "audio_s": seconds, "padding": padding_share(batch)})

    def _log(self, tracker: Tracker, norm: torch.Tensor | None) -> None:
        now = time.perf_counter()
        values = mean(self._window)
        values["audio_s_per_s"] = sum(v["audio_s"] for v in self._window) / (now - self._window_started_s)
        values["lr"] = float(self.trainer.schedule.get_last_lr()[0])
        if norm is not None:
            values["grad_norm"] = float(norm)
        tracker.log(self.trainer.position.step, values)
        self._window, self._window_started_s = [], now


class Interruptible:
    """End the loop after the running step at Ctrl-C or SIGTERM; a second signal stops the process at once."""

    def __enter__(self) -> Interruptible:
        self._seen = False
        try:
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread, and only the main thread receives signals
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return True if the user asked to stop."""
        return self._seen

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True


def _values(output: LossOutput) -> dict[str, float]:
    return {
        "loss": float(output.total.detach()),
        **{f"part/{name}": float(part) for name, part in output.parts.items()},
    }


def _load_model(config: Config, device: torch.device) -> SpeechLLM:
    model = config.model.build(device)
    if config.train.init_from is not None:
        model.load_projector(config.train.init_from)
    if config.train.gradient_checkpointing:
        model.llm.checkpoint_gradients()
    if config.data.cache_text:
        from ossicle.train.cache import TextCache  # most runs use no cache

        model.text_cache = TextCache(Path(config.data.cache_dir), model.llm, limit_gb=config.data.cache_text_gb)
    return model


def _summary(config: Config, model: SpeechLLM, data: Data, steps: int, start: int) -> str:
    count = sum(parameter.numel() for parameter in checkpoint.trainable(model))
    resumed = f", resumed at {start}" if start else ""
    projector = sum(parameter.numel() for parameter in model.projector.parameters())
    lines = [
        f"{config.folder}: {len(data.sampler.durations_s)} utterances ({data.hours:.2f} h), {steps} steps{resumed}, "
        f"{count / 1e6:.2f} M parameters train ({config.model.encoder} -> {config.model.llm})",
        f"projector ({config.model.projector.name}): {projector:,} parameters, {model.token_rate_hz:.1f} tokens/s",
        *describe(model),
    ]
    return "\n  trains: ".join(lines)


def _finish(config: Config, model: SpeechLLM, trainer: Trainer, tracker: Tracker, *, done: bool) -> None:
    """Save the projector to the folder of a finished run, or a checkpoint of an interrupted one."""
    if done:
        model.save(config.folder)
        return
    saved = checkpoint.save(config.folder, model, trainer, keep=config.train.keep)
    tracker.say(
        f"stopped at step {trainer.position.step}; saved {saved}. Run the same command with --resume to continue."
    )
