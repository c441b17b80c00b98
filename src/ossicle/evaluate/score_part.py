"""Score a part of the lines of each file (``--shard I/N``), and join the parts to the scores of an undivided call.

A part is a file beside the hypotheses. Its name has a hash of the lines, the references and the settings, so that a
part of other lines is never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ossicle.errors import HypothesesError
from ossicle.evaluate.failures import Failure, add_failures
from ossicle.evaluate.hypotheses import grouped
from ossicle.evaluate.parts import VALUES, Parts, score_of
from ossicle.evaluate.score import ScoredGroup, ScoreOptions, read_lines, score_lines
from ossicle.files import atomic
from ossicle.shards import Shard, describe_missing, joining

_CANNOT_DIVIDE = (
    "this metric has no counts of each line with a function in ossicle.evaluate.parts.VALUES, so it cannot be divided: "
    "score without --shard and --ray"
)


def score_part(shard: Shard, files: Sequence[Path], options: ScoreOptions) -> None:
    """Score the lines of ``shard`` of every file, and write their counts. A part that exists is not repeated.

    Raises as `ossicle.evaluate.score.score`.
    """
    for path in files:
        own = shard.file(_parts_of(path, options))
        if not own.exists():
            _write(own, score_lines(read_lines(path, options), options, shard))


@contextmanager
def finished(files: Sequence[Path], options: ScoreOptions, shard: Shard) -> Iterator[str]:
    """Yield an empty text if all parts can be joined, else a message about the missing ones; one process at a time.

    Parts that could be joined are deleted at the end, unless an error is raised.
    """
    outs = [_parts_of(path, options) for path in files]
    with joining(files[0]):
        missing = sorted({number for out in outs for number in shard.missing(out)})
        if shard.number in missing:
            yield f"{files[0]}: another part has joined the scores"
        elif missing:
            yield describe_missing(files[0], shard, missing)
        else:
            yield ""
            for out in outs:
                for one in Shard.all_of(shard.count):
                    one.file(out).unlink()


def joined(path: Path, options: ScoreOptions, count: int) -> list[ScoredGroup]:
    """Return what `ossicle.evaluate.score.score_groups` returns, from ``count`` parts of ``path``.

    Raises:
        HypothesesError: a part cannot be read, or parts come from different versions of a metric.
    """
    out = _parts_of(path, options)
    parts = [_read(one.file(out)) for one in Shard.all_of(count)]
    groups = list(grouped(read_lines(path, options)).values())
    return [
        replace(reduce(_joined, (part[number] for part in parts if part[number].failures)), lines=lines)
        for number, lines in enumerate(groups)
    ]


def _joined(first: ScoredGroup, second: ScoredGroup) -> ScoredGroup:
    """Return the scores of the lines of two parts, without the lines."""
    scores = {}
    for name, score in first.scores.items():
        if (other := second.scores.get(name)) is None:
            continue  # it has failed there
        if score.parts is None or other.parts is None or score.signature != other.signature:
            raise HypothesesError(
                f"parts were scored by different metrics, {score.signature} and {other.signature}: use the same "
                "packages on all machines, and another --blocks or N to begin again"
            )
        counts = np.concatenate([score.parts.counts, other.parts.counts])
        scores[name] = score_of(Parts(counts, score.parts.value_of), score.signature)
    return ScoredGroup([], scores, second.errors | first.errors, add_failures(first.failures, second.failures))


def _write(path: Path, groups: Sequence[ScoredGroup]) -> None:
    arrays: dict[str, Any] = {}
    described: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        scores, errors = {}, dict(group.errors)
        for name, score in group.scores.items():
            value_of = None if score.parts is None else score.parts.value_of.__name__
            if score.parts is None or VALUES.get(value_of or "") is not score.parts.value_of:
                errors[name] = _CANNOT_DIVIDE
                continue
            arrays[f"{number}/{name}"] = score.parts.counts
            scores[name] = {"signature": score.signature, "value_of": value_of}
        failures = [asdict(failure) for failure in group.failures]
        described.append({"scores": scores, "errors": errors, "failures": failures})
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, groups=np.array(json.dumps(described)), **arrays)


def _read(path: Path) -> list[ScoredGroup]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [
                ScoredGroup(
                    [],
                    {
                        name: score_of(Parts(stored[f"{number}/{name}"], VALUES[found["value_of"]]), found["signature"])
                        for name, found in group["scores"].items()
                    },
                    group["errors"],
                    [Failure(**failure) for failure in group["failures"]],
                )
                for number, group in enumerate(json.loads(str(stored["groups"])))
            ]
    except Exception as error:  # a damaged archive raises errors of many types
        raise HypothesesError(f"{path}: cannot be read ({error}); delete it and score again") from error


def _parts_of(path: Path, options: ScoreOptions) -> Path:
    """Return a path with a hash of everything that the counts depend on, for `Shard.file`."""
    settings = replace(options, resamples=0, seed=0)  # which the counts do not depend on
    digest = hashlib.blake2b(f"{version('ossicle')} {settings!r}".encode(), digest_size=8)
    for file in filter(None, (path, *options.manifests, options.spelling)):
        if file.is_file():  # otherwise an error follows that names it
            digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return path.with_name(f"{path.name}.{digest.hexdigest()}")
