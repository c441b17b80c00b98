"""Collate utterances into a `Batch`: tokenise, pad, mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ossicle.batch import Batch, Mixed, Padded, Skipped, Utterance, pad, pad_ids
from ossicle.prompts import Prompter

if TYPE_CHECKING:
    from ossicle.data.augmentation import Augmentation

Mixer = Callable[[list[Utterance], int], Mixed]
"""Function that makes the mixed sequences of utterances in an epoch, such as `ossicle.data.mixed.Mixing`."""


class Collator:
    """Make a `Batch` of loaded utterances. Skipped ones are left out, so that a batch can be empty.

    Args:
        prompter: Tokenises transcripts and writes the chat turns.
        mixer: Makes `Batch.mixed`, for objectives that need it.

    Set ``epoch`` before each epoch: it selects ASR instructions, spans of mixed sequences and augmentation. ``augment``
    changes waveforms; None leaves them.
    """

    def __init__(self, prompter: Prompter, mixer: Mixer | None = None) -> None:
        self.prompter, self.mixer = prompter, mixer
        self.augment: Augmentation | None = None
        self.epoch = 0

    def __call__(self, items: list[Utterance | Skipped]) -> Batch:
        """Collate ``items``; `Batch.text` is None if any transcript is missing."""
        utterances = [item for item in items if isinstance(item, Utterance)]
        skipped = [item for item in items if isinstance(item, Skipped)]
        if not utterances:
            return Batch(samples=[], skipped=skipped)
        augment = self.augment
        if augment is not None:
            utterances = [augment(utterance, self.epoch) for utterance in utterances]
        samples = [utterance.sample for utterance in utterances]
        texts = [sample.text for sample in samples]
        return Batch(
            samples=samples,
            waveforms=_pad([u.waveform for u in utterances if u.waveform is not None]),
            frames=_pad([u.frames for u in utterances if u.frames is not None]),
            text=pad_ids([self.prompter.content_ids(text) for text in texts if text]) if all(texts) else None,
            chat=self.prompter.chat(samples, self.epoch),
            mixed=self.mixer(utterances, self.epoch) if self.mixer is not None else None,
            seeds=[] if augment is None else [augment.seed_of(sample, self.epoch) for sample in samples],
            audio_s=sum(utterance.duration_s for utterance in utterances),
            skipped=skipped,
        )


def _pad(rows: list[Tensor]) -> Padded | None:
    return pad(rows) if rows else None


def padding_share(batch: Batch) -> float:
    """Return the share of the padded audio of ``batch`` that is padding, from 0 to 1."""
    audio = batch.frames or batch.waveforms
    return 0.0 if audio is None else 1.0 - float(audio.mask.float().mean())
