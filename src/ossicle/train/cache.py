"""Cache the output of the frozen models on disk: encoder frames, and the LLM's states of transcripts.

A cache folder belongs to one encoder or LLM. Its name is a fingerprint of the weights and of all settings that change
the values, so that values of other weights are never found.

Shape legend: B utterances, T frames, N text tokens, K layers, D width.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ossicle.addresses import version_of
from ossicle.batch import HiddenStates, Padded, Sample, Skipped, Utterance, pad
from ossicle.data.dataset import SpeechDataset
from ossicle.data.table import take
from ossicle.errors import CacheError, ConfigError
from ossicle.losses.contrastive import mean_pool
from ossicle.models.encoder import Encoder
from ossicle.models.llm import LLM
from ossicle.progress import Progress
from ossicle.train.cache_store import CacheStore

logger = logging.getLogger(__name__)

CACHE_DTYPE = torch.bfloat16
SHARD_FRAMES = 200_000
"""Number of frames per file, about an hour of audio. A killed run loses at most this many."""
SHARD_TEXTS, SHARD_TOKENS = 1_000, 100_000
"""Number of pooled texts and of tokens per file. Large states fill a file earlier (`SHARD_BYTES`)."""
BATCH_S = 60.0
"""Seconds of audio, padding included, that the encoder reads together."""
FLUSH_S = 60.0
"""Seconds after which new states are written, so that other processes find them."""

Kind = Literal["mean", "tokens"]


class FrameCache:
    """Encoder frames by utterance. Raises `ConfigError` if a part of the encoder trains."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        if encoder.trains:
            raise ConfigError(
                "data.cache_frames keeps the output of a frozen encoder, but a part of this one trains "
                "(model.encoder_layer: mix, model.trainable or model.lora): set data.cache_frames=false"
            )
        self.encoder = encoder
        self.folder = folder / f"frames-{encoder.fingerprint}{encoder.variant}"
        about = {"encoder": encoder.fingerprint + encoder.variant, "values": "frames (T, D)"}
        self._store = CacheStore(self.folder, about, shard_rows=SHARD_FRAMES)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs to read: the encoder stays where it is."""
        return {**self.__dict__, "encoder": None}

    def __contains__(self, sample: Sample) -> bool:
        return audio_key(sample) in self._store

    def __getitem__(self, sample: Sample) -> Tensor:
        """Return the frames (T, D) of ``sample`` in bfloat16."""
        return self._store[audio_key(sample)]

    def fill(
        self, dataset: SpeechDataset, device: torch.device, *, batch_s: float = BATCH_S, rank: int = 0, ranks: int = 1
    ) -> None:
        """Encode the utterances of ``dataset`` that are missing, in batches of ``batch_s`` padded seconds.

        Each of ``ranks`` processes that start together encodes every ``ranks``-th batch, from that of its ``rank`` on.
        Utterances that the dataset skips stay missing. Frames that another process has written since are found.
        """
        self._store.refresh()
        missing = [i for i, sample in enumerate(dataset.samples) if sample not in self]
        if not missing:
            return
        durations = dataset.durations_s
        missing.sort(key=lambda i: durations[i])
        self.encoder.to(device)
        batches = list(in_chunks(missing, durations, batch_s))[rank::ranks]
        total_s = sum(durations[i] for indices in batches for i in indices)
        with Progress("Encoding speech", total_s, unit="s of audio", enabled=rank == 0) as progress:
            for indices, items in read_ahead(dataset, batches):
                self._store.add(self._encode(items, dataset, device))
                progress.advance(sum(durations[i] for i in indices))
            self._store.flush()

    def _encode(
        self, items: list[Utterance | Skipped], dataset: SpeechDataset, device: torch.device
    ) -> Iterable[tuple[str, Tensor]]:
        dataset.record(item for item in items if isinstance(item, Skipped))
        utterances = [item for item in items if isinstance(item, Utterance)]
        if not utterances:
            return []
        waveforms = pad([u.waveform for u in utterances if u.waveform is not None])
        frames = self.encoder(waveforms.to(device))
        lengths = frames.mask.sum(1).tolist()
        values = frames.values.to(CACHE_DTYPE).cpu()
        return [(audio_key(u.sample), row[:n]) for u, row, n in zip(utterances, values, lengths, strict=True)]


def read_ahead(dataset: Any, batches: Iterable[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Yield each of ``batches`` with its items of ``dataset``; threads read one batch ahead."""
    reading: deque[tuple[Sequence[int], Iterator[Any]]] = deque()
    with ThreadPoolExecutor() as pool:
        for indices in batches:
            reading.append((indices, pool.map(dataset.__getitem__, indices)))
            if len(reading) == 2:
                due, items = reading.popleft()
                yield due, list(items)
        for due, items in reading:
            yield due, list(items)


class CachedDataset(Dataset[Utterance | Skipped]):
    """The utterances of a `SpeechDataset` with frames instead of waveforms."""

    def __init__(self, dataset: SpeechDataset, cache: FrameCache) -> None:
        self.cache = cache
        cached = [index for index, sample in enumerate(dataset.samples) if sample in cache]
        self.samples = take(dataset.samples, cached)
        durations_s = dataset.durations_s
        self.durations_s = [durations_s[index] for index in cached]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Utterance:
        sample = self.samples[index]
        return Utterance(sample, frames=self.cache[sample].float())


class TextCache:
    """The frozen LLM's states of transcripts, by their token ids; training fills the cache as it goes.

    All states together are kept up to ``limit_gb`` on disk, and recomputed for texts beyond it; layer 0 of single
    tokens is always read from the embeddings. Values keep the precision in which they were computed, so that the cache
    changes no loss. Processes that share the folder find each other's states. Raises `ConfigError` if a part of the LLM
    trains. If states cannot be written, the cache warns and keeps no more of them, or raises `CacheError` if it is
    ``strict``.
    """

    def __init__(self, folder: Path, llm: LLM, *, limit_gb: float = 50.0, strict: bool = False) -> None:
        if llm.trains:
            raise ConfigError(
                "data.cache_text keeps the states of a frozen LLM, but a part of this one trains (model.trainable or "
                "model.lora): set data.cache_text=false"
            )
        self.folder, self.llm, self.limit_gb, self.strict = folder, llm, limit_gb, strict
        self._full = False
        self._stores: dict[str, CacheStore] = {}
        self._used: dict[str, dict[str, None]] = {}
        """Keys of each store in a reproducible order: those on disk at the start, then those that this process used."""
        self._flushed_s = time.monotonic()

    def pooled(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> Tensor:
        """Return the mean over the valid tokens of ``ids`` (B, N) at each of ``layers``: (K, B, D), float32."""
        name, keys = self._store("mean", layers, bos), text_keys(ids)
        rows = self._cached(name, keys)
        if missing := _first_of_each(keys, rows):
            hidden = self.llm.read(_rows(ids, missing), layers, bos=bos)
            means = torch.stack([mean_pool(hidden.states[layer], hidden.mask) for layer in layers], 1)  # (B, K, D)
            rows |= self._keep(name, {keys[i]: row.cpu() for i, row in zip(missing, means[:, None], strict=True)})
        return torch.cat([rows[key] for key in keys]).transpose(0, 1).to(ids.values.device)

    def tokens(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> HiddenStates:
        """Return the states of every token of ``ids`` (B, N) at ``layers``."""
        deep = [layer for layer in layers if layer > 0]
        states = {0: self.llm.embed(ids.values)} if 0 in layers else {}
        if deep:
            states |= self._deep(ids, deep, bos)
        return HiddenStates({layer: states[layer] for layer in layers}, ids.mask)

    def bank(self, count: int, layers: Sequence[int], *, bos: bool, without: Padded) -> Tensor:
        """Return pooled states of up to ``count`` random texts that are not in ``without`` (B, N): (K, count, D)."""
        name, present = self._store("mean", layers, bos), set(text_keys(without))
        store = self._stores[name]
        keys = [key for key in self._used[name] if key in store]
        drawn = [keys[i] for i in torch.randperm(len(keys))[: count + len(present)].tolist()]
        chosen = [key for key in drawn if key not in present][:count]
        if not chosen:
            return torch.zeros(len(layers), 0, self.llm.dim, device=without.values.device)
        return torch.cat([store[key] for key in chosen]).transpose(0, 1).to(without.values.device)

    def flush(self) -> None:
        """Write the states that are still in memory."""
        for store in self._stores.values():
            self._write(store.flush)
        self._flushed_s = time.monotonic()

    def _deep(self, ids: Padded, layers: list[int], bos: bool) -> dict[int, Tensor]:
        name, keys = self._store("tokens", layers, bos), text_keys(ids)
        lengths = ids.mask.sum(1).tolist()
        rows = self._cached(name, keys)
        if missing := _first_of_each(keys, rows):
            hidden = self.llm.read(_rows(ids, missing), layers, bos=bos)
            computed = torch.stack([hidden.states[layer] for layer in layers], 2)  # (B, N, K, D)
            fresh = {keys[i]: row[: lengths[i]] for i, row in zip(missing, computed, strict=True)}
            rows |= self._keep(name, fresh)
        values = pad([rows[key].to(ids.values.device) for key in keys]).values  # (B, N, K, D)
        short = ids.values.shape[1] - values.shape[1]
        values = torch.nn.functional.pad(values, (0, 0, 0, 0, 0, short))
        return {layer: values[:, :, k] for k, layer in enumerate(layers)}

    def _cached(self, name: str, keys: list[str]) -> dict[str, Tensor]:
        """Return the cached rows of ``keys`` in the store ``name``, and note that they are used."""
        store = self._stores[name]
        if not all(key in store for key in keys):
            store.refresh(at_once=False)
        self._used[name] |= dict.fromkeys(keys)
        return {key: store[key] for key in keys if key in store}

    def _keep(self, name: str, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add ``rows`` to the store ``name`` if there is room for them, and return them."""
        size = sum(row.numel() * row.element_size() for row in rows.values())
        if sum(store.size_bytes for store in self._stores.values()) + size <= self.limit_gb * 1e9:
            self._write(lambda: self._stores[name].add(rows.items()))
        elif not self._full and self.limit_gb > 0:
            self._full = True
            logger.warning("data.cache_text_gb=%g is used up: further texts are computed in every step", self.limit_gb)
        if time.monotonic() - self._flushed_s > FLUSH_S:
            self.flush()
        return rows

    def _write(self, action: Callable[[], None]) -> None:
        try:
            action()
        except CacheError as error:
            if self.strict:
                raise
            if self.limit_gb > 0:
                logger.warning("data.cache_text: %s. No more states of transcripts are cached in this run.", error)
            self.limit_gb = 0.0

    def _store(self, kind: Kind, layers: Sequence[int], bos: bool) -> str:
        """Open or create the store of these states, and return its name."""
        # The precision of the states depends on autocast as well as on the LLM's own type.
        precision = [str(self.llm.model.dtype), str(_autocast_dtype(self.llm.model.device.type))]
        about = {
            "llm": self.llm.fingerprint,
            "layers": list(layers),
            "states": kind,
            "bos": bos,
            "precision": precision,
        }
        name = hashlib.blake2b(repr(about).encode(), digest_size=8).hexdigest()
        if name not in self._stores:
            rows = SHARD_TEXTS if kind == "mean" else SHARD_TOKENS
            self._stores[name] = CacheStore(self.folder / f"text-{name}", about, shard_rows=rows)
            self._used[name] = dict.fromkeys(self._stores[name].keys)
        return name


def audio_key(sample: Sample) -> str:
    """Return the key of a segment of audio: file, size, time of change and times. A changed file gets a new key."""
    parts = (*version_of(sample.audio), sample.start_s, sample.end_s)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def text_keys(ids: Padded) -> list[str]:
    """Return the key of each row of token ids (B, N)."""
    rows = ids.values.cpu().numpy()
    lengths = ids.mask.sum(1).tolist()
    return [
        hashlib.blake2b(row[:n].tobytes(), digest_size=16).hexdigest() for row, n in zip(rows, lengths, strict=True)
    ]


def _first_of_each(keys: list[str], known: dict[str, Tensor]) -> list[int]:
    """Return the first index of each key that is not ``known``."""
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    return sorted(i for key, i in first.items() if key not in known)


def _rows(ids: Padded, rows: list[int]) -> Padded:
    return Padded(ids.values[rows], ids.mask[rows])


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def in_chunks(indices: list[int], durations_s: list[float], batch_s: float) -> Iterator[list[int]]:
    """Split ``indices``, sorted by duration, into chunks of at most ``batch_s`` padded seconds (or one utterance)."""
    chunk: list[int] = []
    for index in indices:
        if chunk and (len(chunk) + 1) * durations_s[index] > batch_s:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
