"""Define the structures that modules exchange: `Sample`, `Utterance`, `Batch` and `LossOutput`.

A manifest line is read as a `Sample`, loaded as an `Utterance` and collated into a `Batch`; an objective returns a
`LossOutput`.

Shape legend for the whole package: B utterances, S audio samples, T encoder frames, M speech tokens (projector
output), N text tokens, L sequence positions, D width. Masks are boolean, ``True`` = valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.audio import SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One manifest line: an utterance, and in stage 2 a task about it.

    ``source`` is ``file:line`` of the manifest, so that later errors can name the line. Unknown fields are kept in
    ``extra``, and `ossicle.data.manifest.write_manifest` writes them back.
    """

    id: str
    audio: Path
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    duration_s: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    task: str | None = None
    instruction: str | None = None
    answers: tuple[str, ...] = ()
    target_language: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = "<memory>"


@dataclass(frozen=True)
class Utterance:
    """A sample with its speech, either as a waveform or as cached frames of the encoder."""

    sample: Sample
    waveform: Tensor | None = None  # (S,) float32 at 16 kHz, mono
    frames: Tensor | None = None  # (T, D_encoder)

    @property
    def duration_s(self) -> float:
        """Return the seconds of audio: those of the waveform if there is one, else the sample's ``duration_s``."""
        return (self.sample.duration_s or 0.0) if self.waveform is None else len(self.waveform) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Skipped:
    """A sample that is left out, and the reason. Worker processes of a loader send it to the main process."""

    sample: Sample
    reason: str

    def __str__(self) -> str:
        return f"{self.sample.source}: {self.sample.id!r} skipped: {self.reason}"


@dataclass(frozen=True)
class Padded:
    """A padded batch of vectors or token ids, with its mask."""

    values: Tensor  # (B, L, D) float or (B, L) long
    mask: Tensor  # (B, L) bool

    def to(self, device: torch.device | str) -> Padded:
        """Return a copy on ``device``."""
        return Padded(self.values.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))

    def pin_memory(self) -> Padded:
        """Return a copy in pinned memory, from which a transfer to a GPU does not wait."""
        return Padded(self.values.pin_memory(), self.mask.pin_memory())


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Token ids of one chat turn per utterance; the speech goes between ``before`` and ``after``."""

    before: Padded  # (B, P) start of the user turn, up to the audio
    after: Padded  # (B, Q) the instruction, the end of the user turn and the assistant header
    answer: Padded  # (B, A) the answer and its end-of-turn token: the only labels


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Mixed speech-text sequences of the utterances, and the plain text of the same words.

    The batch has K spans of speech. A mixed sequence consists of the tokens of ``text`` that ``written`` selects, with
    each span of speech inserted before the token ``starts``.
    """

    text: Padded  # (B, N) BOS (if the LLM has one), the tokens of all words without punctuation, EOS
    written: Tensor  # (B, N) bool, the tokens that stay text in the mixed sequence: text spans, BOS and EOS
    words: Tensor  # (B, N) bool, the tokens of words: all except BOS and EOS
    waveforms: Padded  # (K, S) the spans of speech, cut out of their utterances
    rows: Tensor  # (K,) long, the utterance of each span
    starts: Tensor  # (K,) long, the first of the tokens that the span replaces
    speech: Padded | None = None  # (K, M, D_llm) projector output, if a sum of objectives has computed it already


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one step: ``waveforms`` or cached ``frames``, and the text that the data provides."""

    samples: list[Sample]
    waveforms: Padded | None = None  # (B, S) float32 at 16 kHz, mono, as read: the encoder normalises
    frames: Padded | None = None  # (B, T, D_encoder) cached encoder output
    text: Padded | None = None  # (B, N) transcript tokens only: no BOS, no template, no EOS
    chat: Chat | None = None
    mixed: Mixed | None = None
    """Set only for objectives on mixed speech-text sequences (``needs_mixed``); they require word times."""
    speech: Padded | None = None  # (B, M, D_llm) projector output, if a sum of objectives has computed it already
    seeds: list[int] = field(default_factory=list)
    """One augmentation seed per sample for this epoch (`ossicle.data.augmentation`); empty without augmentation."""
    audio_s: float = 0.0
    """Seconds of audio in the batch, padding excluded."""
    skipped: list[Skipped] = field(default_factory=list)
    """Samples of this batch that could not be read."""
    weights: dict[str, Any] = field(default_factory=dict)
    """Weight of each kind of `label_counts` among the batches of the optimiser step; empty for a single batch."""

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy with every tensor on ``device``."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """Return a copy with every tensor in pinned memory; the loader of the training calls it for a GPU."""
        return replace(self, **{f.name: _pinned(getattr(self, f.name)) for f in fields(self)})

    def label_counts(self) -> dict[str, int]:
        """Return the number of labels of each kind over which a loss is averaged.

        ``answers`` counts the tokens of the answers, ``mixed`` the predicted tokens of the mixed sequences, and
        ``examples`` the utterances.
        """
        counts = {"examples": len(self)}
        if self.chat is not None:
            counts["answers"] = int(self.chat.answer.mask.sum())
        if self.mixed is not None:
            counts["mixed"] = int(self.mixed.written[:, 1:].sum())  # no position precedes the first one
        return counts

    def weighted(self, mean: Tensor, kind: str) -> Tensor:
        """Return ``mean``, a loss averaged over this batch's labels of ``kind``, weighted for the optimiser step.

        The mean of the weighted losses of all batches of the step is the mean over all its labels.
        """
        return mean * self.weights[kind] if kind in self.weights else mean


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of the LLM by layer: 0 is the input embeddings, ``num_layers`` the output of the final norm."""

    states: dict[int, Tensor]  # layer -> (B, L, D)
    mask: Tensor  # (B, L)


@dataclass(frozen=True)
class LossOutput:
    """The scalar to differentiate, and its named parts (detached scalars) to log."""

    total: Tensor  # ()
    parts: dict[str, Tensor]


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Padded):
        return value.to(device)
    if isinstance(value, Chat | Mixed):
        return replace(value, **{f.name: _to(getattr(value, f.name), device) for f in fields(value)})
    return value


def _pinned(value: Any) -> Any:
    if isinstance(value, Padded | Tensor):
        return value.pin_memory()
    if isinstance(value, Chat | Mixed):
        return replace(value, **{f.name: _pinned(getattr(value, f.name)) for f in fields(value)})
    return value


def pad(rows: list[Tensor]) -> Padded:
    """Stack rows (L_i, ...) of different lengths into (B, L, ...), padded with zeros on the right."""
    lengths = torch.tensor([len(row) for row in rows])
    values = pad_sequence(rows, batch_first=True)
    return Padded(values, torch.arange(values.shape[1]) < lengths[:, None])


def pad_ids(rows: list[list[int]]) -> Padded:
    """Stack lists of token ids of different lengths into (B, L), padded with zeros on the right."""
    return pad([torch.tensor(row, dtype=torch.long) for row in rows])
