"""Manifests -> batches: the dataset, its order and its collation, put together for one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ossicle.batch import Batch, Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.manifest import read_manifest
from ossicle.data.mixed import Mixing, mixable
from ossicle.data.sampler import BatchSampler
from ossicle.errors import ConfigError
from ossicle.models.encoder import Encoder
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives.base import Objective
from ossicle.train.cache import CachedDataset, FrameCache
from ossicle.train.checkpoint import Progress
from ossicle.train.recipe import DataConfig


@dataclass
class Data:
    """Utterances and their batches."""

    dataset: SpeechDataset
    sampler: BatchSampler
    collator: Collator
    loader: DataLoader[Batch]

    @classmethod
    def load(cls, config: DataConfig, model: SpeechLLM, accelerator: Accelerator, *, objective: Objective) -> Data:
        """The training data: subset, file checks, frame cache if asked for, plan of batches.

        Batches are as ``objective`` needs them: with negatives they hold at least two utterances and are drawn at
        random, and those for mixed sequences bring them.
        """
        samples = subset(read_all(config.train), config.fraction, seed=config.seed)
        if objective.needs_mixed:
            _refuse_for_mixed(config)
        data = cls._make(samples, config, model, accelerator, objective=objective)
        data.collator.augment = config.augment.build(seed=config.seed)
        model.augment = config.augment
        return data

    @classmethod
    def load_dev(
        cls, config: DataConfig, model: SpeechLLM, accelerator: Accelerator, *, objective: Objective
    ) -> Data | None:
        """The development data, all of it, or None where the configuration names none."""
        return cls._make(read_all(config.dev), config, model, accelerator, objective=objective) if config.dev else None

    @classmethod
    def _make(
        cls,
        samples: list[Sample],
        config: DataConfig,
        model: SpeechLLM,
        accelerator: Accelerator,
        *,
        objective: Objective,
    ) -> Data:
        dataset = SpeechDataset(
            samples,
            min_duration_s=config.min_duration_s,
            max_duration_s=config.max_duration_s,
            on_error=config.on_error,
        )
        if objective.needs_mixed:
            _keep_mixable(dataset, config)
        source: SpeechDataset | CachedDataset = dataset
        if config.cache_frames:
            cache = frame_cache(config, model.encoder)
            with accelerator.main_process_first():
                cache.fill(dataset, accelerator.device)
            source = CachedDataset(dataset, cache)
        if not source.samples:
            raise ConfigError(f"data: no utterance is left. {dataset.report()}")
        sampler = BatchSampler(
            durations_s=[sample.duration_s or 0.0 for sample in source.samples],
            batch_size=config.batch_size,
            max_batch_s=config.max_batch_s,
            order=config.order or ("random" if objective.needs_negatives else "duration"),
            min_batch_size=2 if objective.needs_negatives else 1,
            curriculum_epochs=config.curriculum_epochs,
            tasks=[sample.task for sample in source.samples],
            mixture_weights=config.mixture or None,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        prompter = model.prompter(tuple(config.asr_instructions))
        collator = Collator(prompter, Mixing(prompter, seed=config.seed) if objective.needs_mixed else None)
        # Its own generator: the loader's draws must not move the random state that dropout resumes from.
        loader: DataLoader[Batch] = DataLoader(
            source,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=config.workers,
            generator=torch.Generator(),
        )
        return cls(dataset, sampler, collator, loader)

    @property
    def hours(self) -> float:
        """Of audio in one pass."""
        return sum(self.sampler.durations_s) / 3600

    @property
    def batches_per_epoch(self) -> int:
        """Of this process, in an epoch of the whole data."""
        self.sampler.set_epoch(self.sampler.curriculum_epochs)
        return len(self.sampler)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from the ``start``-th on; those of which no utterance could be read are empty."""
        self.sampler.set_epoch(epoch)
        self.sampler.start(start)
        self.collator.epoch = epoch
        for batch in self.loader:
            self.dataset.record(batch.skipped)
            yield batch

    def stream(self, progress: Progress) -> Iterator[Batch]:
        """Batches without end from where ``progress`` stands, which moves along.

        Raises `ConfigError` after an epoch of which no utterance could be read.
        """
        while True:
            usable, whole = False, progress.batch == 0
            for batch in self.epoch(progress.epoch, start=progress.batch):
                progress.batch += 1
                if len(batch) > 0:
                    usable = True
                    yield batch
            if whole and not usable:
                raise ConfigError(f"data: no utterance could be read. {self.dataset.report()}")
            progress.epoch += 1
            progress.batch = 0


def frame_cache(config: DataConfig, encoder: Encoder) -> FrameCache:
    """The cache of ``data.cache_frames``. Raises `ConfigError` where the frames are other ones in each epoch."""
    changing = [name for name in config.augment.waveform_options + config.augment.model_options if "mask" not in name]
    if changing:
        raise ConfigError(
            f"data.augment.{changing[0]} makes other frames in each epoch, and data.cache_frames keeps those of one: "
            "set data.cache_frames=false (time_masks and feature_masks work with it)"
        )
    return FrameCache(Path(config.cache_dir), encoder)


def _refuse_for_mixed(config: DataConfig) -> None:
    unfit = ["speed"] * bool(config.augment.speed) + config.augment.model_options
    if unfit:
        raise ConfigError(
            f"data.augment.{unfit[0]} is for whole utterances, and mixed sequences are made of spans at known times: "
            "turn it off (noise and gain work)"
        )


def _keep_mixable(dataset: SpeechDataset, config: DataConfig) -> None:
    if config.cache_frames:
        raise ConfigError(
            "data.cache_frames keeps the frames of whole utterances, but mixed sequences encode each span of speech by "
            "itself, without what is around it: set data.cache_frames=false"
        )
    dataset.samples, unfit = mixable(dataset.samples)
    dataset.record(unfit)


def read_all(manifests: list[str]) -> list[Sample]:
    """The samples of several manifests."""
    return [sample for path in manifests for sample in read_manifest(Path(path))]
