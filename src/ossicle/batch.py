"""The structures that cross files: `Sample` is read, `Utterance` loaded, `Batch` collated, `LossOutput` returned.

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
    """One manifest line: an utterance, and for stage 2 the task to do with it.

    ``source`` is ``file:line`` of the manifest, so that any later error can name the line. Fields the program does
    not know are kept in ``extra`` and written back by `ossicle.data.manifest.write_manifest`.
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
    """A sample and its speech: as a waveform, or as frames that the encoder made of it before."""

    sample: Sample
    waveform: Tensor | None = None  # (S,) float32 at 16 kHz, mono
    frames: Tensor | None = None  # (T, D_encoder)

    @property
    def duration_s(self) -> float:
        """Seconds of audio: measured where there is a waveform, else as the sample states them."""
        return (self.sample.duration_s or 0.0) if self.waveform is None else len(self.waveform) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Skipped:
    """A sample left out, and why. A plain value, so that it travels from a loader's worker to the main process."""

    sample: Sample
    reason: str

    def __str__(self) -> str:
        return f"{self.sample.source}: {self.sample.id!r} skipped: {self.reason}"


@dataclass(frozen=True)
class Padded:
    """A padded batch of vectors or token ids with its mask."""

    values: Tensor  # (B, L, D) float or (B, L) long
    mask: Tensor  # (B, L) bool

    def to(self, device: torch.device | str) -> Padded:
        """Moved to ``device``."""
        return Padded(self.values.to(device), self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Token ids of one chat turn, cut at the place where the speech goes: ``before`` speech ``after`` ``answer``."""

    before: Padded  # (B, P) start of the user turn, up to the audio
    after: Padded  # (B, Q) the instruction, the end of the user turn and the assistant header
    answer: Padded  # (B, A) the answer and its end-of-turn token: the only labels


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Each utterance as text and speech in turn, and the same words all as text. K spans of speech in the whole batch.

    The mixed sequence is ``text`` where ``written`` says so, with each span of speech before the token ``starts``.
    """

    text: Padded  # (B, N) BOS (where the LLM has one), the tokens of all words without punctuation, EOS
    written: Tensor  # (B, N) bool, the tokens that stay text in the mixed sequence: text spans, BOS and EOS
    words: Tensor  # (B, N) bool, the tokens of words: all but BOS and EOS
    waveforms: Padded  # (K, S) the spans of speech, cut out of their utterances
    rows: Tensor  # (K,) long, the utterance of each
    starts: Tensor  # (K,) long, the first of the tokens that it stands for
    speech: Padded | None = None  # (K, M, D_llm) projector output, once a sum of objectives has computed it


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step sees: ``waveforms`` or precomputed ``frames``; ``text`` and ``chat`` as the data allows."""

    samples: list[Sample]
    waveforms: Padded | None = None  # (B, S) float32 at 16 kHz, mono, as read: the encoder normalises
    frames: Padded | None = None  # (B, T, D_encoder) cached encoder output
    text: Padded | None = None  # (B, N) transcript tokens alone: no BOS, no template, no EOS
    chat: Chat | None = None
    mixed: Mixed | None = None
    """For objectives on mixed speech-text sequences (``needs_mixed``), whose lines have word times."""
    speech: Padded | None = None  # (B, M, D_llm) projector output, once a sum of objectives has computed it
    seeds: list[int] = field(default_factory=list)
    """One for each sample where something is drawn for it in this epoch (`ossicle.data.augment`), else none."""
    audio_s: float = 0.0
    """Seconds of audio in the batch, padding excluded."""
    skipped: list[Skipped] = field(default_factory=list)
    """Samples that belonged here but could not be read."""

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor moved to ``device``."""
        return replace(self, **{f.name: _to(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of the LLM by layer index: 0 = input embeddings, ``num_layers`` = after the final norm."""

    states: dict[int, Tensor]  # layer -> (B, L, D)
    mask: Tensor  # (B, L)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to differentiate and its named parts (detached scalars) to log."""

    total: Tensor  # ()
    parts: dict[str, Tensor]


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Padded | Tensor):
        return value.to(device)
    if isinstance(value, Chat | Mixed):
        return replace(value, **{f.name: _to(getattr(value, f.name), device) for f in fields(value)})
    return value


def pad(rows: list[Tensor]) -> Padded:
    """Stack ragged ``rows`` (L_i, ...) into (B, L, ...), zeros on the right, with the mask (B, L)."""
    lengths = torch.tensor([len(row) for row in rows])
    values = pad_sequence(rows, batch_first=True)
    return Padded(values, torch.arange(values.shape[1]) < lengths[:, None])


def pad_ids(rows: list[list[int]]) -> Padded:
    """Stack ragged lists of token ids into (B, L), zeros on the right, with the mask (B, L)."""
    return pad([torch.tensor(row, dtype=torch.long) for row in rows])
