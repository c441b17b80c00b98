"""The loop: manifest line -> `Sample` -> `collate` -> `Batch` -> `objective(model, batch)` -> `total.backward()`."""

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
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from ossicle.batch import Batch, LossOutput
from ossicle.data.collate import padding_share
from ossicle.errors import ConfigError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.models.trainable import describe
from ossicle.objectives import Objective
from ossicle.precision import new_accelerator, replaced
from ossicle.prompts import learned_instructions
from ossicle.train import checkpoint, live
from ossicle.train import recipe as configuration
from ossicle.train.batches import Data
from ossicle.train.cache import TextCache
from ossicle.train.checkpoint import Progress, Trainer
from ossicle.train.recipe import Config
from ossicle.train.tracking import Tracker, mean, write_provenance

CONFIG_FILE = "config.yaml"


def train(config: Config, *, objective: Objective | None = None, resume: bool = False) -> Path:
    """Train the projector and return the run's folder, itself a checkpoint that `SpeechLLM.from_pretrained` loads.

    ``objective`` replaces the configured one by any callable ``(model, batch) -> LossOutput``. With ``resume`` the run
    continues from its newest checkpoint with the losses it would have had. Ctrl-C saves and returns.
    """
    live.check_settings(config)
    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    _claim_folder(config, objective, resume=resume, first=accelerator.is_main_process)
    set_seed(config.train.seed)
    model = _load_model(config, accelerator.device)
    chosen: Objective = objective or config.objective.build()
    data = Data.load(config.data, model, accelerator, objective=chosen)
    dev = Data.load_dev(config.data, model, accelerator, objective=chosen)
    analyzed = dev if config.train.analyze_every else None
    if analyzed is not None:
        live.check_transcripts(analyzed)

    model.instructions |= learned_instructions(data.dataset.samples)
    steps = config.train.steps or math.ceil(config.train.epochs * data.batches_per_epoch / config.train.accumulate)
    unprepared = Step(model, chosen)
    optimizer, schedule = config.optim.build(checkpoint.trainable(unprepared), steps=steps)
    step, optimizer = accelerator.prepare(unprepared, optimizer)
    trainer = Trainer(optimizer, schedule, Progress(), chosen if isinstance(chosen, nn.Module) else None)
    start = checkpoint.latest(config.folder) if resume else None
    if start is not None:
        checkpoint.load(start, model, trainer)

    progress = trainer.progress
    loop = Loop(config, accelerator, step, trainer, steps)
    shown, board = accelerator.is_main_process, config.train.tensorboard
    tracker = Tracker(config.folder, steps=steps, tensorboard=board, enabled=shown)
    with tracker, Interruptible() as interrupted:
        tracker.say(_summary(config, model, data, steps, progress.step))
        if slow := replaced(config.precisions, accelerator.device):
            tracker.say(slow)
        batches = data.stream(progress)
        model.train()
        while progress.step < steps and not interrupted():
            tracker.advance(progress.step)
            loop.step(batches, tracker)
            if dev is not None and loop.is_due(config.train.eval_every):
                loop.evaluate(dev, model, tracker)
            if analyzed is not None and loop.is_due(config.train.analyze_every):
                loop.analyze(analyzed, model, tracker)
            if accelerator.is_main_process and loop.is_due(config.train.save_every):
                checkpoint.save(config.folder, model, trainer, keep=config.train.keep)
        tracker.advance(progress.step)
        if accelerator.is_main_process:
            _finish(config, model, trainer, tracker, done=progress.step == steps)
        if model.text_cache is not None:
            model.text_cache.flush()
        if data.dataset.skipped:
            tracker.say(data.dataset.report())
    accelerator.end_training()
    AcceleratorState._reset_state()  # or the next run of this process could not have another precision
    return config.folder


class Step(nn.Module):
    """Model and objective as one module, so that distributed wrappers see a single ``forward``."""

    def __init__(self, model: SpeechLLM, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> LossOutput:
        """Loss of ``batch``."""
        return self.objective(self.model, batch)


@dataclass
class Loop:
    """One optimiser step, and one evaluation."""

    config: Config
    accelerator: Accelerator
    module: nn.Module
    trainer: Trainer
    steps: int

    def __post_init__(self) -> None:
        self._window: list[dict[str, float]] = []
        self._window_started_s = time.perf_counter()

    def is_due(self, every: int) -> bool:
        """Whether this step is one of those that come ``every`` so many, or the last."""
        step = self.trainer.progress.step
        return step == self.steps or step % every == 0

    def step(self, batches: Iterator[Batch], tracker: Tracker) -> None:
        """Forward and backward over ``accumulate`` batches, clip, update, log."""
        accumulate, progress = self.config.train.accumulate, self.trainer.progress
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
        progress.step += 1
        if progress.step % self.config.train.log_every == 0 or progress.step in (1, self.steps):
            self._log(tracker, norm)

    @torch.no_grad()
    def evaluate(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Mean loss on the development data."""
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
        tracker.log(self.trainer.progress.step, values, split="dev")
        if self.config.train.best_by == "loss":
            self._keep_best(model, values["loss"])

    def analyze(self, dev: Data, model: SpeechLLM, tracker: Tracker) -> None:
        """Alignment of speech and text on the development data."""
        values = live.measure(model, dev, self.accelerator)
        model.train()
        tracker.log(self.trainer.progress.step, values, split="alignment")
        if self.config.train.best_by == "retrieval":
            self._keep_best(model, -values[live.R_AT_1])

    def _keep_best(self, model: SpeechLLM, value: float) -> None:
        """Save the projector if ``value`` is the lowest so far."""
        progress = self.trainer.progress
        if value < progress.best:
            progress.best = value
            if self.accelerator.is_main_process:
                checkpoint.save_best(self.config.folder, model, progress)

    def _note(self, output: LossOutput, batch: Batch) -> None:
        seconds = batch.audio_s * self.accelerator.num_processes
        self.trainer.progress.audio_s += seconds
        self._window.append({**_values(output), "audio_s": seconds, "padding": padding_share(batch)})

    def _log(self, tracker: Tracker, norm: torch.Tensor | None) -> None:
        now = time.perf_counter()
        values = mean(self._window)
        values["audio_s_per_s"] = sum(v["audio_s"] for v in self._window) / (now - self._window_started_s)
        values["lr"] = float(self.trainer.schedule.get_last_lr()[0])
        if norm is not None:
            values["grad_norm"] = float(norm)
        tracker.log(self.trainer.progress.step, values)
        self._window, self._window_started_s = [], now


class Interruptible:
    """Ctrl-C (or SIGTERM) ends the loop after the running step; a second one stops at once."""

    def __enter__(self) -> Interruptible:
        self._seen = False
        try:
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread, where signals never arrive
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether the user asked to stop."""
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
        model.text_cache = TextCache(Path(config.data.cache_dir), model.llm, limit_gb=config.data.cache_text_gb)
    return model


def _claim_folder(config: Config, objective: Objective | None, *, resume: bool, first: bool) -> None:
    """Make the run's folder. Raises `ConfigError` for a run that exists, or that is resumed with other settings."""
    saved = config.folder / CONFIG_FILE
    if resume and not saved.is_file():
        raise ConfigError(f"{config.folder}: there is no run to resume")
    if resume:
        changed = differences(configuration.to_dict(configuration.load(saved)), configuration.to_dict(config))
        if changed:
            raise ConfigError(f"{config.folder} was started with other settings: {', '.join(changed)}")
    elif checkpoint.latest(config.folder) is not None:
        raise ConfigError(f"{config.folder} holds a run: continue it with --resume, or choose another name=…")
    if first:
        config.folder.mkdir(parents=True, exist_ok=True)
        configuration.save(config, saved)
        write_provenance(config.folder, objective)


def differences(old: object, new: object, path: str = "") -> list[str]:
    """Where two trees of plain values differ: the dotted path of each value, and both."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in old | new for d in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path} ({old} then, {new} now)"]


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
    """A finished run's folder holds the projector; an interrupted one's, a checkpoint to resume from."""
    if done:
        model.save(config.folder)
        return
    saved = checkpoint.save(config.folder, model, trainer, keep=config.train.keep)
    tracker.say(
        f"stopped at step {trainer.progress.step}; saved {saved}. Run the same command with --resume to continue."
    )
