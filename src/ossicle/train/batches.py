"""Turn manifests into the batches of one process: the dataset, its order and its collation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ossicle.batch import Batch, Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.sampler import BatchSampler
from ossicle.errors import ConfigError
from ossicle.models.encoder import Encoder
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective
from ossicle.train.recipe import DataConfig
from ossicle.train.state import Position

if TYPE_CHECKING:
    from ossicle.train.cache import CachedDataset, FrameCache

# Caches and mixed sequences are imported by the functions that need them: most runs use neither.


@dataclass
class Data:
    """The utterances of one data set and their batches."""

    dataset: SpeechDataset
    sampler: BatchSampler
    collator: Collator
    loader: DataLoader[Any]
    label_rates: dict[str, float] | None = None
    """Labels per utterance, which the evaluation counts once."""

    @classmethod
    def load(
        cls,
        config: DataConfig,
        model: SpeechLLM,
        accelerator: Accelerator,
        *,
        objective: Objective,
        planned_for: int = 0,
    ) -> Data:
        """Load the training data: draw the subset, check the files, fill the frame cache, and plan the batches.

        If ``objective`` needs negatives, a batch has at least two utterances and the default order is random. If it
        needs mixed sequences, batches contain them. ``planned_for`` is the number of processes of the run that is
        resumed, if it may differ. Raises `ConfigError` for settings that exclude each other and if no utterance is
        left, and `DataError` for invalid data.
        """
        samples = subset(read_all(config.train), config.fraction, seed=config.seed)
        if objective.needs_mixed:
            _refuse_for_mixed(config)
        sampler = partial(BatchSampler, planned_for=planned_for)
        data = cls._make(samples, config, model, accelerator, objective=objective, sampler=sampler)
        if data.batches_per_epoch == 0:
            raise ConfigError(_no_batch(config, len(data.sampler.durations_s)))
        data.collator.augment = config.augment.build(seed=config.seed)
        model.augment = config.augment
        model.asr_instructions = tuple(config.asr_instructions)
        model.longest_s = max(model.longest_s or 0.0, *data.sampler.durations_s) or None
        return data

    @classmethod
    def load_dev(
        cls,
        config: DataConfig,
        model: SpeechLLM,
        accelerator: Accelerator,
        *,
        objective: Objective,
        planned_for: int = 0,
    ) -> Data | None:
        """Load the development data, or return None if the configuration names none.

        An epoch has every usable utterance once: the subset, the curriculum and the mixture are those of training.
        Raises `ConfigError` if there are too few utterances for ``objective``.
        """
        if not config.dev:
            return None
        from ossicle.train.dev_sampler import DevSampler, check_size  # many runs have no development data

        plain = replace(config, curriculum_epochs=0, mixture={})
        sampler = partial(DevSampler, planned_for=planned_for)
        data = cls._make(read_all(config.dev), plain, model, accelerator, objective=objective, sampler=sampler)
        check_size(data.sampler, data.dataset.report())
        return data

    @classmethod
    def _make(
        cls,
        samples: Sequence[Sample],
        config: DataConfig,
        model: SpeechLLM,
        accelerator: Accelerator,
        *,
        objective: Objective,
        sampler: partial[Any],
    ) -> Data:
        dataset = SpeechDataset(
            samples,
            min_duration_s=config.min_duration_s,
            max_duration_s=config.max_duration_s,
            on_error=config.on_error,
        )
        if objective.needs_mixed:
            _keep_mixable(dataset, config)
        source = _with_cached_frames(dataset, config, model, accelerator) if config.cache_frames else dataset
        if not source.samples:
            name = "data.train" if sampler.func is BatchSampler else "data.dev"
            raise ConfigError(f"{name}: no utterance is left. {dataset.report()}")
        from ossicle.data.table import outlines

        collator = _collator(config, model, mixed=objective.needs_mixed)
        planned = sampler(
            durations_s=source.durations_s,
            batch_size=config.batch_size,
            max_batch_s=config.max_batch_s,
            **_token_bound(config, source.samples, source.durations_s, model, collator),
            order=config.order or ("random" if objective.needs_negatives else "duration"),
            min_batch_size=2 if objective.needs_negatives else 1,
            curriculum_epochs=config.curriculum_epochs,
            tasks=[outline.task for outline in outlines(source.samples)],
            mixture_weights=config.mixture or None,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        from ossicle.train.interrupts import outlive_signal

        # The loader has its own generator, so that it does not change the random state from which dropout resumes.
        loader: DataLoader[Any] = DataLoader(
            source,
            batch_sampler=planned,
            collate_fn=collator,
            num_workers=config.workers,
            worker_init_fn=outlive_signal,
            generator=torch.Generator(),
            pin_memory=accelerator.device.type == "cuda",
        )
        return cls(dataset, planned, collator, loader)

    @property
    def hours(self) -> float:
        """Return the hours of audio in one pass over the data."""
        return sum(self.sampler.durations_s) / 3600

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of this process's batches in an epoch that has all utterances."""
        self.sampler.set_epoch(self.sampler.curriculum_epochs)
        return len(self.sampler)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from index ``start`` on; a batch is empty if none of it could be read."""
        self.sampler.set_epoch(epoch)
        self.sampler.start(start)
        self.collator.epoch = epoch
        for batch in self.loader:
            self.dataset.record(batch.skipped)
            yield batch

    def stream(self, position: Position) -> Iterator[Batch]:
        """Yield batches without end, starting at ``position``, which is updated with each batch.

        A batch that unreadable files leave too small for the objective is left out. Raises `ConfigError` after an epoch
        of which no utterance could be read.
        """
        while True:
            usable, whole = False, position.batch == 0
            for batch in self.epoch(position.epoch, start=position.batch):
                position.batch += 1
                if len(batch) >= self.sampler.smallest:
                    usable = True
                    yield batch
            # An early epoch of a curriculum may be too small for a batch.
            if whole and not usable and len(self.sampler):
                raise ConfigError(f"data: no utterance could be read. {self.dataset.report()}")
            position.epoch += 1
            position.batch = 0


def _token_bound(
    config: DataConfig, samples: Sequence[Sample], durations_s: Sequence[float], model: SpeechLLM, collator: Collator
) -> dict[str, Any]:
    """Return the arguments of the sampler for ``data.max_batch_tokens``."""
    if config.max_batch_tokens is None:
        return {}
    from ossicle.train.token_counts import token_counts

    counts = token_counts(samples, durations_s, model, collator.prompter)
    return {"max_batch_tokens": config.max_batch_tokens, "tokens": counts, "pads_tokens": not model.llm.packs}


def _no_batch(config: DataConfig, utterances: int) -> str:
    if config.batch_size < 2:
        reason = f"data.batch_size is {config.batch_size}: set it to 2 or more"
    elif utterances < 2:
        reason = "data.train has 1 usable utterance: add some"
    elif config.max_batch_tokens is not None:
        reason = "data.max_batch_s or data.max_batch_tokens has no room for two utterances: raise it"
    else:
        reason = f"data.max_batch_s={config.max_batch_s:g} has no room for two utterances: raise it"
    return f"no batch has two utterances, which the objective compares with each other: {reason}"


def frame_cache(config: DataConfig, encoder: Encoder) -> FrameCache:
    """Return the cache of ``data.cache_frames``. Raises `ConfigError` if augmentation changes the frames."""
    from ossicle.train.cache import FrameCache

    changing = [name for name in config.augment.waveform_options + config.augment.model_options if "mask" not in name]
    if changing:
        raise ConfigError(
            f"data.augment.{changing[0]} changes the frames in every epoch, and data.cache_frames keeps those of one: "
            "set data.cache_frames=false (time_masks and feature_masks work with it)"
        )
    return FrameCache(Path(config.cache_dir), encoder)


def _with_cached_frames(
    dataset: SpeechDataset, config: DataConfig, model: SpeechLLM, accelerator: Accelerator
) -> CachedDataset:
    from ossicle.train.cache import CachedDataset

    cache, ranks = frame_cache(config, model.encoder), accelerator.num_processes
    if ranks > 1:
        accelerator.wait_for_everyone()  # so that all processes divide the same work
        cache.fill(dataset, accelerator.device, rank=accelerator.process_index, ranks=ranks)
    with accelerator.main_process_first():
        cache.fill(dataset, accelerator.device)
    return CachedDataset(dataset, cache)


def _collator(config: DataConfig, model: SpeechLLM, *, mixed: bool) -> Collator:
    prompter = model.prompter(tuple(config.asr_instructions))
    if not mixed:
        return Collator(prompter)
    from ossicle.data.mixed import Mixing

    return Collator(prompter, Mixing(prompter, seed=config.seed))


def _refuse_for_mixed(config: DataConfig) -> None:
    unfit = ["speed"] * bool(config.augment.speed) + config.augment.model_options
    if unfit:
        raise ConfigError(
            f"data.augment.{unfit[0]} does not work with mixed sequences, whose spans are cut at known times: turn it "
            "off (noise and gain work)"
        )


def _keep_mixable(dataset: SpeechDataset, config: DataConfig) -> None:
    from ossicle.data.mixed import mixable

    if config.cache_frames:
        raise ConfigError(
            "data.cache_frames keeps the frames of whole utterances, but mixed sequences encode each span of speech "
            "alone: set data.cache_frames=false"
        )
    dataset.samples, unfit = mixable(dataset.samples)
    dataset.record(unfit)


def read_all(manifests: list[str]) -> Sequence[Sample]:
    """Return the samples of all ``manifests``. Raises `ManifestError`."""
    from ossicle.data.table import open_manifests

    return open_manifests(manifests)
