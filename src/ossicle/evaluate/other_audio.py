"""Exchange the recordings of utterances, to see whether a model's answers depend on what it hears."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ossicle.batch import Sample
from ossicle.evaluate.hypotheses import GroupKey
from ossicle.evaluate.references import hypothesis_of, references_of


def with_other_audio(samples: Sequence[Sample]) -> list[Sample]:
    """Return ``samples`` with the audio of others; task, instruction and references stay.

    The other sample is of the same task and languages, and has another recording, another transcript and other
    references. Samples for which there is none are left out. The choice depends on the ids alone, so that a second call
    makes the same pairs.
    """
    groups: defaultdict[GroupKey, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=_order):
        groups[hypothesis_of(sample).group].append(sample)
    found = {}
    for members in groups.values():
        for place, sample in enumerate(members):
            others = members[place + 1 :] + members[:place]
            other = next((other for other in others if _differs(sample, other)), None)
            if other is not None:
                found[hypothesis_of(sample).key] = _hearing(sample, other)
    return [found[key] for sample in samples if (key := hypothesis_of(sample).key) in found]


def _differs(sample: Sample, other: Sample) -> bool:
    same_audio = (sample.audio, sample.start_s, sample.end_s) == (other.audio, other.start_s, other.end_s)
    same_text = sample.text is not None and sample.text == other.text
    return not same_audio and not same_text and not set(references_of(sample)) & set(references_of(other))


def _hearing(sample: Sample, other: Sample) -> Sample:
    return replace(sample, audio=other.audio, start_s=other.start_s, end_s=other.end_s, duration_s=other.duration_s)


def _order(sample: Sample) -> bytes:
    """Return a random but fixed key: neighbours in a manifest are often of one speaker or one text."""
    return hashlib.blake2b(f"{sample.id}:{sample.instruction}".encode(errors="replace"), digest_size=8).digest()
