"""Utterances -> `Batch`: tokenise, pad, mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.batch import Batch, Chat, Mixed, Sequence, Skipped, Utterance
from ossicle.data.augment import Augmentation
from ossicle.data.prompts import Prompter, answer_of

Mixer = Callable[[list[Utterance], int], Mixed]
"""Makes the mixed sequences of utterances in an epoch: `ossicle.data.mixed.Mixing`."""


class Collator:
    """Makes a `Batch` of loaded utterances; skipped ones are left out, so a batch can be empty.

    ``epoch`` selects the ASR instruction of samples that bring none, and the spans of mixed sequences; set it before
    each epoch. ``mixer`` makes `Batch.mixed`, for objectives that need it; ``augment`` changes waveforms.
    """

    def __init__(self, prompter: Prompter, mixer: Mixer | None = None) -> None:
        self.prompter, self.mixer = prompter, mixer
        self.augment: Augmentation | None = None
        self.epoch = 0

    def __call__(self, items: list[Utterance | Skipped]) -> Batch:
        """Collate; texts that are missing leave ``Batch.text`` unset rather than wrong."""
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
            text=_pad_ids([self.prompter.ids(text) for text in texts if text]) if all(texts) else None,
            chat=self._chat(utterances),
            mixed=self.mixer(utterances, self.epoch) if self.mixer is not None else None,
            seeds=[] if augment is None else [augment.seed_of(sample, self.epoch) for sample in samples],
            audio_s=sum(utterance.duration_s for utterance in utterances),
            skipped=skipped,
        )

    def _chat(self, utterances: list[Utterance]) -> Chat:
        turns = [
            self.prompter.turn(self.prompter.instruction(u.sample, self.epoch), answer_of(u.sample)) for u in utterances
        ]
        return Chat(
            before=_pad_ids([turn.before for turn in turns]),
            after=_pad_ids([turn.after for turn in turns]),
            answer=_pad_ids([turn.answer for turn in turns]),
        )


def _pad_ids(rows: list[list[int]]) -> Sequence:
    return pad([torch.tensor(row, dtype=torch.long) for row in rows])


def _pad(rows: list[Tensor]) -> Sequence | None:
    return pad(rows) if rows else None


def pad(rows: list[Tensor]) -> Sequence:
    """Stack ragged ``rows`` (L_i, ...) into (B, L, ...), zeros on the right, with the mask (B, L)."""
    lengths = torch.tensor([len(row) for row in rows])
    values = pad_sequence(rows, batch_first=True)
    return Sequence(values, torch.arange(values.shape[1]) < lengths[:, None])


def padding_share(batch: Batch) -> float:
    """Share of the padded audio of ``batch`` that is padding, 0..1."""
    audio = batch.frames or batch.waveforms
    return 0.0 if audio is None else 1.0 - float(audio.mask.float().mean())
