"""Choose the utterances of a manifest that `ossicle analyze` reads."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest
from ossicle.errors import ManifestError

SHOWN = 3


@dataclass(frozen=True)
class Chosen:
    """The chosen utterances in random order, because utterances of a batch are each other's negatives."""

    samples: list[Sample]
    shown: list[str]
    """Ids of the utterances whose token alignment is drawn."""
    left_out: dict[str, int]
    """Number of lines that are left out, by reason."""


def choose(manifest: Path, *, limit: int, seed: int = 0, show: Sequence[str] = ()) -> Chosen:
    """Return at most ``limit`` recordings with a transcript, each once, in a seeded random order.

    Further lines about the same recording are left out. The utterances of ``show`` are always chosen. Without ``show``
    the first three chosen utterances, in the order of the manifest, are shown.

    Raises:
        ManifestError: an utterance to show does not exist or has no transcript, or there are too few transcripts.
    """
    lines = read_manifest(manifest)
    recordings: dict[tuple[Path, float, float | None], Sample] = {}
    wanted = _wanted(lines, show, manifest)
    for sample in [*wanted, *(sample for sample in lines if sample.text)]:
        recordings.setdefault((sample.audio, sample.start_s, sample.end_s), sample)
    usable = list(recordings.values())
    if len({sample.text for sample in usable}) < 2:
        raise ManifestError(f"{manifest}: alignment needs at least two different transcripts; add lines with text")
    rng = random.Random(f"analyze-{seed}")
    rest = [sample for sample in usable if sample.id not in show]
    drawn = [*wanted, *rng.sample(rest, min(len(rest), max(0, limit - len(wanted))))]
    first = {sample.id: place for place, sample in enumerate(lines)}
    shown = list(show) or sorted((sample.id for sample in drawn), key=first.__getitem__)[:SHOWN]
    without = sum(not sample.text for sample in lines)
    left_out = {
        "without transcript": without,
        "same recording again": len(lines) - without - len(usable),
        "beyond the limit": len(usable) - len(drawn),
    }
    rng.shuffle(drawn)
    return Chosen(drawn, shown, left_out)


def _wanted(lines: Sequence[Sample], show: Sequence[str], manifest: Path) -> list[Sample]:
    by_id = {sample.id: sample for sample in lines}
    for name in show:
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            raise ManifestError(
                f"{manifest}: no utterance {name!r} to show" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if not by_id[name].text:
            raise ManifestError(f'{by_id[name].source}: {name!r} has no "text" to align with its speech')
    return [by_id[name] for name in show]
