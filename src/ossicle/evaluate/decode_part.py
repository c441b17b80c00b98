"""Decode a part of a dataset (``--shard I/N``), and join the parts to the file of an undivided call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ossicle.batch import Sample, Skipped, Utterance
from ossicle.data.dataset import SpeechDataset
from ossicle.data.table import take
from ossicle.errors import HypothesesError
from ossicle.evaluate.decode import Collate, Decoder, decode, meta_path, order_of
from ossicle.evaluate.hypotheses import parse_line
from ossicle.evaluate.references import hypothesis_of
from ossicle.files import write_text
from ossicle.shards import Shard, describe_missing, joining


def decode_part(  # noqa: PLR0913 - a shard, and what `decode` needs
    shard: Shard,
    model: Decoder,
    dataset: SpeechDataset,
    collate: Collate,
    out_path: Path,
    *,
    fingerprint: str,
    batch_size: int = 16,
    **decoding: Any,
) -> str:
    """Decode every N-th batch of ``dataset``, and write ``out_path`` if all other parts are finished.

    Return a message about the parts that are missing, or an empty text if ``out_path`` is written. Arguments and errors
    are those of `ossicle.evaluate.decode.decode`.
    """
    order = order_of(dataset.durations_s)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    own = shard.file(out_path)
    if not own.exists():
        partial = _partial(own)
        part = _Part(dataset, list(chain.from_iterable(shard.own(batches))))
        settings = {"fingerprint": fingerprint, "batch_size": batch_size, "whole_batches": True, **decoding}
        decode(model, part, collate, partial, **settings)
        partial.rename(own)
    with joining(out_path):
        if out_path.exists():
            return ""
        if missing := shard.missing(out_path):
            return describe_missing(out_path, shard, missing)
        _join([one.file(out_path) for one in Shard.all_of(shard.count)], out_path, dataset.samples, order)
    return ""


@dataclass(frozen=True)
class _Part:
    """Some utterances of a dataset."""

    dataset: SpeechDataset
    indices: list[int]

    @property
    def samples(self) -> Sequence[Sample]:
        return take(self.dataset.samples, self.indices)

    def __getitem__(self, index: int) -> Utterance | Skipped:
        return self.dataset[self.indices[index]]


def _partial(part: Path) -> Path:
    """Return the file of a part that is not finished. The meta file beside it keeps this name."""
    return part.with_name(f"{part.name}.partial")


def _join(parts: list[Path], out_path: Path, samples: Sequence[Sample], order: Sequence[int]) -> None:
    metas = {path: json.loads(meta_path(_partial(path)).read_text(encoding="utf-8")) for path in parts}
    for path, meta in metas.items():
        if meta != metas[parts[0]]:
            raise HypothesesError(
                f"{path}: written with {meta}, but {parts[0].name} with {metas[parts[0]]}; delete one of them, and "
                "decode its shard again"
            )
    lines = {}
    for path in parts:
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            lines[parse_line(line, f"{path}:{number}").key] = line.decode()
    keys = (hypothesis_of(samples[index]).key for index in order)
    write_text(meta_path(out_path), meta_path(_partial(parts[0])).read_text(encoding="utf-8"))
    write_text(out_path, "".join(lines[key] for key in keys if key in lines))
    for path in parts:
        path.unlink()
        meta_path(_partial(path)).unlink()
