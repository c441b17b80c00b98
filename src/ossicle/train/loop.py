"""Train: manifest line -> `Sample` -> `collate` -> `Batch` -> `objective(model, batch)` -> `total.backward()`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from ossicle.batch import Batch, LossOutput
from ossicle.data.collate import padding_share
from ossicle.errors import ConfigError
from ossicle.models.dropout import by_utterance
from ossicle.models.lora import describe
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective, names_of
from ossicle.precision import new_accelerator
from ossicle.private import reset_accelerator_state
from ossicle.prompts import learned_instructions
from ossicle.train.batches import Data
from ossicle.train.recipe import Config
from ossicle.train.state import Position, Trainer, trainable
from ossicle.train.steps import any_process, is_finite, mean_of_all, values_of, weigh

if TYPE_CHECKING:
    from ossicle.train.tracking import Tracker

# Checkpoints, metrics, evaluation and signals are imported by the functions that need them: they do not touch the loss.


def train(
    config: Config, *, objective: Objective | None = None, resume: bool = False, allow_changed_data: bool = False
) -> Path:
    """Train the projector and return the run's folder, which `SpeechLLM.from_pretrained` loads.

    Args:
        config: The run's settings.
        objective: A callable ``(model, batch) -> LossOutput`` that replaces the configured objective.
        resume: Continue the run from its newest checkpoint, with the losses that it would have had without a stop.
        allow_changed_data: Resume even if the data have changed since the checkpoint; the epoch then starts again.

    Ctrl-C and SIGTERM save a checkpoint and return. Raises `ConfigError` for settings that do not fit together or to
    the run's folder, `DataError` for invalid data, `ModelError` for models that do not load, `CheckpointError` for a
    checkpoint that does not fit, and `TrainingError` if losses stay non-finite or files cannot be written.
    """
    if config.train.analyze_every or config.train.best_by == "retrieval":
        from ossicle.train import dev_alignment  # it needs all of `ossicle.inspect`, which few runs use

        dev_alignment.check_settings(config)
    if config.train.fsdp:
        from ossicle.train import sharding

        sharding.check_settings(config)
    from ossicle.train.run_folder import claimed

    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    try:
        with claimed(config, objective, accelerator, resume=resume):
            _run(config, accelerator, objective, resume=resume, allow_changed_data=allow_changed_data)
            accelerator.wait_for_everyone()
    except BaseException as error:
        if accelerator.num_processes > 1:
            clear_frames(error.__traceback__)  # they keep the gradient reducer alive
        raise
    finally:
        # The gradient reducer must be freed before its process group: in the other order the process can hang.
        accelerator.free_memory()
        accelerator.end_training()
        reset_accelerator_state()  # the next run of this process may have another precision
    return config.folder


def _run(
    config: Config, accelerator: Accelerator, objective: Objective | None, *, resume: bool, allow_changed_data: bool
) -> None:
    from ossicle.train import checkpoint, early_checks, regroup
    from ossicle.train.tracking import Tracker

    early_checks.say_fallbacks(config, accelerator)
    early_checks.check_files(config)
    early_checks.check_dropout(config)
    if objective is None:
        early_checks.check_layers(config)
    set_seed(config.train.seed)
    start = config.train.init_from if not resume or checkpoint.latest(config.folder) is None else None
    planned_for = checkpoint.planned_for(config.folder) if resume else 0
    model = _load_model(config, accelerator, start)
    chosen: Objective = objective or config.objective.build()
    data = Data.load(config.data, model, accelerator, objective=chosen, planned_for=planned_for)
    dev = Data.load_dev(config.data, model, accelerator, objective=chosen, planned_for=planned_for)
    if objective is None:
        early_checks.check_targets(config.objective, data, dev)
    if dev is not None and config.train.analyze_every:
        from ossicle.train import dev_alignment  # as in `train`

        dev_alignment.check_transcripts(dev)

    accumulate = config.train.accumulate * data.sampler.batches_per_round
    steps = config.train.steps or math.ceil(config.train.epochs * data.batches_per_epoch / accumulate)
    unprepared = Step(model, chosen)
    optimizer, schedule = config.optim.build(trainable(unprepared), steps=steps)
    if config.train.fsdp:
        from ossicle.train.sharding import prepare  # as in `Loop.step`

        step, optimizer = prepare(unprepared, optimizer, accelerator)
    else:
        step, optimizer = accelerator.prepare(unprepared, optimizer)
    if rank := accelerator.process_index:
        set_seed(config.train.seed + rank)  # with one seed for all processes, their dropout masks would be the same
    module = chosen if isinstance(chosen, nn.Module) else None
    found = checkpoint.fingerprints(config, data, dev)
    division = data.sampler.planned_for, data.sampler.batches_per_round
    trainer = Trainer(optimizer, schedule, Position(), module, accelerator.scaler, found, *division)
    if resume:
        checkpoint.restore(config.folder, model, trainer, accelerator, allow_changed_data=allow_changed_data)
    done = trainer.position.step
    if done > steps:
        raise ConfigError(
            f"{config.folder}: the checkpoint is of step {done}, and the run has {steps}: raise train.steps"
        )
    regroup.check_division(
        data.sampler, None if dev is None else dev.sampler, trainer.position, (steps - done) * accumulate
    )
    from ossicle.data.table import outlines

    model.instructions |= learned_instructions(outlines(data.dataset.samples))
    model.objectives = names_of(config.objective) if objective is None else ()

    loop = Loop(config, accelerator, step, trainer, steps, accumulate)
    shown, board = accelerator.is_main_process, config.train.tensorboard
    with Tracker(config.folder, steps=steps, tensorboard=board, start=done, enabled=shown) as tracker:
        tracker.say(_summary(config, model, data, steps, done))
        if division_line := regroup.describe(data.sampler):
            tracker.say(division_line)
        loop.run(data, dev, model, tracker)


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
    accumulate: int
    """Number of batches of this process per optimiser step."""
    batch: Batch | None = None

    def __post_init__(self) -> None:
        self._outputs: list[LossOutput] = []
        self._padding: list[float] = []
        self._audio_s, self._window_started_s = 0.0, time.perf_counter()

    def run(self, data: Data, dev: Data | None, model: SpeechLLM, tracker: Tracker) -> None:
        """Train until all steps are done or the user interrupts, and save the result."""
        from ossicle.train import checkpoint
        from ossicle.train.interrupts import Interruptible
        from ossicle.train.profiling import profiled

        settings, position, folder = self.config.train, self.trainer.position, self.config.folder
        with (
            Interruptible() as interrupted,
            checkpoint.machine_errors(folder, lambda: self.batch),
            profiled(self.config, self.steps - position.step) as end_step,
        ):
            batches = data.stream(position)
            model.train()
            # A signal may reach one process only, and all processes have to stop at the same step.
            while position.step < self.steps and not any_process(interrupted(), self.accelerator):
                tracker.advance(position.step)
                self.step(batches, tracker)
                end_step()
                if dev is not None and self.is_due(settings.eval_every):
                    self.evaluate(dev, model, tracker)
                if dev is not None and settings.analyze_every and self.is_due(settings.analyze_every):
                    self.analyze(dev, model, tracker)
                if self.is_due(settings.save_every):
                    checkpoint.save(folder, model, self.trainer, self.accelerator, keep=settings.keep)
            tracker.advance(position.step)
            self._finish(model, tracker)
            if model.text_cache is not None:
                model.text_cache.flush()
        for part in (data, dev):
            if part is not None and part.dataset.skipped:
                tracker.say(part.dataset.report())

    def is_due(self, every: int) -> bool:
        """Return True every ``every`` steps and at the last step."""
        step = self.trainer.position.step
        return step == self.steps or step % every == 0

    def step(self, batches: Iterator[Batch], tracker: Tracker) -> None:
        """Take one optimiser step: forward and backward over `accumulate` batches, clip, update, log.

        A step whose loss or gradient is not finite changes no weight.
        """
        position = self.trainer.position
        read = weigh([next(batches) for _ in range(self.accumulate)], self.accelerator)
        outputs = [self._backward(batch, i == self.accumulate - 1) for i, batch in enumerate(read)]
        totals = [output.total for output in outputs]
        if self.config.train.fsdp and self.accelerator.num_processes > 1:
            from ossicle.train.sharding import average_gradients  # few runs need it

            average_gradients(trainable(self.module))
        norm = self.accelerator.clip_grad_norm_(trainable(self.module), self.config.optim.clip)
        finite = is_finite(totals, norm, self.trainer, self.accelerator)
        if finite or self.trainer.scaler is not None:  # the scaler itself skips a step whose gradient is not finite
            self.trainer.optimizer.step()
        self.trainer.schedule.step()
        self.trainer.optimizer.zero_grad()
        position.step += 1
        self._note(read, outputs if finite else [])
        if finite:
            position.nonfinite_in_a_row = 0
        else:
            from ossicle.train.nonfinite import note_skipped

            note_skipped(read, totals, self.config, position, tracker, last=position.step == self.steps)
        if position.step % self.config.train.log_every == 0 or position.step in (1, self.steps):
            self._log(tracker, norm)

    def _backward(self, batch: Batch, last: bool) -> LossOutput:
        """Add the gradient of ``batch`` and return its loss; the ``last`` batch of a step exchanges the gradients."""
        self.batch = batch
        settings, step = self.config.train, self.trainer.position.step
        masks = by_utterance(settings.seed, step) if settings.dropout == "utterance" else contextlib.nullcontext()
        with masks, contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
            output: LossOutput = self.module(batch.to(self.accelerator.device))
            self.accelerator.backward(output.total / self.accumulate)
        return LossOutput(output.total.detach(), {name: part.detach() for name, part in output.parts.items()})

    def evaluate(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Log the mean loss on the development data, and save the projector if it is the best so far."""
        from ossicle.train.evaluation import evaluate

        values = evaluate(self.module, model, dev, self.accelerator)
        if values is None:
            tracker.say(f"step {self.trainer.position.step}: data.dev was not evaluated. {dev.dataset.report()}")
            return
        tracker.log(self.trainer.position.step, values, split="dev")
        if self.config.train.best_by == "loss":
            self._keep_best(model, values["loss"])

    def analyze(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Log the alignment of speech and text on the development data."""
        from ossicle.train import dev_alignment  # as in `train`

        values = dev_alignment.measure(model, dev, self.accelerator)
        model.train()
        if not values:
            tracker.say(f"step {self.trainer.position.step}: data.dev was not analysed. {dev.dataset.report()}")
            return
        tracker.log(self.trainer.position.step, values, split="alignment")
        if self.config.train.best_by == "retrieval":
            self._keep_best(model, -values[dev_alignment.R_AT_1])

    def _keep_best(self, model: SpeechLLM, value: float) -> None:
        """Save the projector if ``value`` is the lowest so far."""
        from ossicle.train import checkpoint

        position = self.trainer.position
        if value < position.best:
            position.best = value
            if self.accelerator.is_main_process:
                checkpoint.save_best(self.config.folder, model, position)

    def _finish(self, model: SpeechLLM, tracker: Tracker) -> None:
        """Save the projector to the folder of a finished run, or a checkpoint of an interrupted one."""
        from ossicle.train import checkpoint

        folder, step = self.config.folder, self.trainer.position.step
        if step < self.steps:
            saved = checkpoint.save(folder, model, self.trainer, self.accelerator, keep=self.config.train.keep)
            tracker.say(f"stopped at step {step}; saved {saved}. Run the same command with --resume to continue.")
        elif self.accelerator.is_main_process:
            checkpoint.save_final(folder, model)

    def _note(self, batches: list[Batch], outputs: list[LossOutput]) -> None:
        seconds = sum(batch.audio_s for batch in batches) * self.accelerator.num_processes
        self.trainer.position.audio_s += seconds
        self._audio_s += seconds
        self._padding += [padding_share(batch) for batch in batches]
        self._outputs += outputs

    def _log(self, tracker: Tracker, norm: Tensor | None) -> None:
        now, position = time.perf_counter(), self.trainer.position
        values = mean_of_all(values_of(self._outputs) or {"loss": math.nan}, self.accelerator)
        values["audio_s_per_s"] = self._audio_s / (now - self._window_started_s)
        values["padding"] = sum(self._padding) / len(self._padding)
        values["lr"] = float(self.trainer.schedule.get_last_lr()[0])
        if norm is not None:
            values["grad_norm"] = float(norm)
        if position.nonfinite:
            values["skipped_steps"] = position.nonfinite
        tracker.log(position.step, values)
        self._outputs, self._padding, self._audio_s, self._window_started_s = [], [], 0.0, now


def _load_model(config: Config, accelerator: Accelerator, start: str | None) -> SpeechLLM:
    if config.train.fsdp and accelerator.num_processes > 1:
        from ossicle.train import sharding  # as in `Loop.step`

        model = sharding.build(config.model, accelerator.device, config.train.fsdp)
    else:
        model = config.model.build(accelerator.device)
    if start is not None:
        model.load_projector(start)
    if config.train.gradient_checkpointing:
        model.llm.checkpoint_gradients()
    if config.data.cache_text:
        from ossicle.train.cache import TextCache  # most runs use no cache

        model.text_cache = TextCache(Path(config.data.cache_dir), model.llm, limit_gb=config.data.cache_text_gb)
    return model


def _summary(config: Config, model: SpeechLLM, data: Data, steps: int, start: int) -> str:
    count = sum(parameter.numel() for parameter in trainable(model))
    resumed = f", resumed at {start}" if start else ""
    projector = sum(parameter.numel() for parameter in model.projector.parameters())
    lines = [
        f"{config.folder}: {len(data.sampler.durations_s)} utterances ({data.hours:.2f} h), {steps} steps{resumed}, "
        f"{count / 1e6:.2f} M parameters train ({config.model.encoder} -> {config.model.llm})",
        f"projector ({config.model.projector.name}): {projector:,} parameters, {model.token_rate_hz:.1f} tokens/s",
        *describe(model),
    ]
    return "\n  trains: ".join(lines)
