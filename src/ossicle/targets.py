"""Reuse of the frozen side: encoder frames are computed once and kept on disk.

A cache folder belongs to one encoder: its name is the encoder's fingerprint, so frames of other weights are never
found. Inside, every call of `FrameCache.fill` adds one memory-mapped safetensors file and its index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ossicle.batch import Sample
from ossicle.data.collate import pad
from ossicle.data.dataset import Skipped, SpeechDataset, Utterance
from ossicle.models.encoder import Encoder

CACHE_DTYPE = torch.bfloat16
SHARD_FRAMES = 200_000
"""Frames per file, about an hour of audio: what a killed run loses at most."""


class FrameCache:
    """Encoder frames by utterance."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.encoder = encoder
        self.folder = folder / f"frames-{encoder.fingerprint}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._open: dict[Path, Any] = {}
        for index in sorted(self.folder.glob("*.json")):
            self._add_index(index)

    def __contains__(self, sample: Sample) -> bool:
        return key_of(sample) in self._where

    def __getitem__(self, sample: Sample) -> Tensor:
        """Frames (T, D) of ``sample``, bfloat16."""
        path, start, stop = self._where[key_of(sample)]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt").get_slice("frames")
        frames: Tensor = self._open[path][start:stop]
        return frames

    def fill(self, dataset: SpeechDataset, device: torch.device, *, batch_s: float = 60.0) -> None:
        """Encode what is missing of ``dataset``, sorted by length; skipped utterances stay missing."""
        missing = [i for i, sample in enumerate(dataset.samples) if sample not in self]
        if not missing:
            return
        durations = dataset.durations_s
        missing.sort(key=lambda i: durations[i])
        self.encoder.to(device)
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("Encoding speech", total=sum(durations[i] for i in missing))
            shard: list[tuple[Sample, Tensor]] = []
            for indices in _chunks(missing, durations, batch_s):
                shard += self._encode([dataset[i] for i in indices], dataset, device)
                progress.advance(task, sum(durations[i] for i in indices))
                if sum(len(frames) for _, frames in shard) > SHARD_FRAMES:
                    self._write(shard)
                    shard = []
            if shard:
                self._write(shard)

    def _encode(
        self, items: list[Utterance | Skipped], dataset: SpeechDataset, device: torch.device
    ) -> Iterable[tuple[Sample, Tensor]]:
        dataset.record(item for item in items if isinstance(item, Skipped))
        utterances = [item for item in items if isinstance(item, Utterance)]
        if not utterances:
            return []
        waveforms = pad([u.waveform for u in utterances if u.waveform is not None])
        frames = self.encoder(waveforms.to(device))
        lengths = frames.mask.sum(1).tolist()
        values = frames.values.to(CACHE_DTYPE).cpu()
        return [(u.sample, row[:n]) for u, row, n in zip(utterances, values, lengths, strict=True)]

    def _write(self, shard: list[tuple[Sample, Tensor]]) -> None:
        """The tensors first, then the index that makes them count."""
        keys = [key_of(sample) for sample, _ in shard]
        name = hashlib.blake2b("".join(keys).encode(), digest_size=8).hexdigest()
        save_file({"frames": torch.cat([frames for _, frames in shard])}, self.folder / f"{name}.safetensors")
        lengths = {key: len(frames) for key, (_, frames) in zip(keys, shard, strict=True)}
        index = self.folder / f"{name}.json"
        index.write_text(json.dumps(lengths))
        self._add_index(index)

    def _add_index(self, index: Path) -> None:
        start = 0
        for key, length in json.loads(index.read_text()).items():
            self._where[key] = (index.with_suffix(".safetensors"), start, start + length)
            start += length


class CachedDataset(Dataset[Utterance | Skipped]):
    """The utterances of a `SpeechDataset` with frames instead of waveforms."""

    def __init__(self, dataset: SpeechDataset, cache: FrameCache) -> None:
        self.cache = cache
        self.samples = [sample for sample in dataset.samples if sample in cache]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Utterance:
        sample = self.samples[index]
        return Utterance(sample, frames=self.cache[sample].float())


def key_of(sample: Sample) -> str:
    """Identity of a stretch of audio: file, size, time of change and segment. A file that changes is encoded anew."""
    stat = sample.audio.stat()
    parts = (sample.audio.resolve(), stat.st_size, stat.st_mtime_ns, sample.start_s, sample.end_s)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _chunks(indices: list[int], durations_s: list[float], batch_s: float) -> Iterator[list[int]]:
    """Runs of ``indices`` (sorted by duration) of at most ``batch_s`` padded seconds, or a single longer one."""
    chunk: list[int] = []
    for index in indices:
        if chunk and (len(chunk) + 1) * durations_s[index] > batch_s:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
