"""Listen to recordings of any length: window by window, in memory that does not grow with the length.

Shape legend: S audio samples, M speech tokens, D width of the LLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Padded, Sample, pad, pad_ids
from ossicle.errors import AudioError, DataError
from ossicle.listen.inputs import Recording
from ossicle.listen.pauses import MOST_S, DetectorName, windows
from ossicle.models.conversation import join_prompt

FloatArray = npt.NDArray[Any]
BLOCK_S = 300.0
"""Seconds of a recording that are in memory at once."""
LEAST_S = 5.0
"""Shortest limit of a window in seconds, for models that were trained on short utterances only."""
BATCH_SIZE = 8
"""Default number of windows that are decoded together."""
MOST_REPEATED = 8
"""Words at the end of a window that can be repeated at the start of an overlapping one."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording with its text."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Piece:
    """The audio of a window."""

    waveform: FloatArray  # (S,) at 16 kHz
    start_s: float
    end_s: float
    overlaps: bool = False


def window_s(model: Any) -> float:
    """Return the longest window in seconds that suits ``model``: at most `MOST_S`, and not longer than its training."""
    return min(MOST_S, max(model.longest_s or MOST_S, LEAST_S))


def transcribe(
    model: Any,
    audio: Any,
    *,
    instruction: str | None = None,
    sampling_rate: int | None = None,
    batch_size: int = BATCH_SIZE,
    detector: DetectorName = "auto",
    **decoding: Any,
) -> Iterator[Segment]:
    """Yield what is said in a recording, in order. Silence, and windows without an answer, give no segment.

    Args:
        model: A `ossicle.models.speech_llm.SpeechLLM`.
        audio: A recording, as `SpeechLLM.generate` takes one.
        instruction: Instruction for each window; by default that for a transcript. One for a translation works too.
        sampling_rate: Rate of a waveform without a rate of its own, in Hz.
        batch_size: Windows that are decoded together.
        detector: Detector of speech, see `ossicle.listen.pauses`.
        **decoding: Settings of `LLM.generate`.

    Raises `AudioError` for audio that cannot be read.
    """
    recording = audio if isinstance(audio, Recording) else Recording(audio, sampling_rate)
    asked = instruction or transcript_instruction(model)
    found = pieces(recording, most_s=window_s(model), detector=detector)
    stitcher = Stitcher()
    while batch := list(islice(found, batch_size)):
        texts = model.generate([piece.waveform for piece in batch], asked, **decoding)
        for piece, text in zip(batch, texts, strict=True):
            if segment := stitcher.segment(piece, text):
                yield segment


def transcript_instruction(model: Any) -> str:
    """Return the instruction with which ``model`` was trained to transcribe, or a default one."""
    instruction: str = model.instructions.get("asr") or model.prompter().asr_instructions[0]
    return instruction


def pieces(recording: Recording, *, most_s: float = MOST_S, detector: DetectorName = "auto") -> Iterator[Piece]:
    """Yield the windows of a recording that hold speech, in order, with their audio.

    A recording that fits into one window is one window as a whole, if there is speech in it.
    """
    if recording.duration_s <= most_s:
        waveform = recording.read()
        if windows(waveform, most_s=most_s, detector=detector):
            yield Piece(waveform, 0.0, len(waveform) / SAMPLE_RATE_HZ)
        return
    start_s = 0.0
    while start_s < recording.duration_s:
        end_s = start_s + BLOCK_S
        whole = end_s + most_s >= recording.duration_s
        block = recording.read(start_s, None if whole else end_s)
        found = windows(block, most_s=most_s, detector=detector)
        # The last window of a block may go on in the next one, which therefore starts with it.
        cut = len(found) > 1 and not whole and found[-1].end_s > BLOCK_S - 1
        for window in found[:-1] if cut else found:
            first, last = (round(time * SAMPLE_RATE_HZ) for time in (window.start_s, window.end_s))
            yield Piece(block[first:last], start_s + window.start_s, start_s + window.end_s, window.overlaps)
        if whole:
            return
        start_s = start_s + found[-1].start_s if cut else end_s


class Stitcher:
    """Join the texts of windows: without the words that overlapping windows both have."""

    def __init__(self) -> None:
        self._before: list[str] = []

    def segment(self, piece: Piece, text: str) -> Segment | None:
        """Return the segment of the next window, or None if there is nothing new in its ``text``."""
        words = text.split()
        repeated = repeated_words(self._before, words) if piece.overlaps else 0
        self._before = words
        new = " ".join(words[repeated:]) if repeated else text.strip()
        return Segment(piece.start_s, piece.end_s, new) if new else None


def repeated_words(before: list[str], after: list[str]) -> int:
    """Return the number of words at the start of ``after`` that repeat the end of ``before``.

    The cut between the windows may have split a word: the last word of ``before`` and the first of ``after`` may
    therefore be left out of the comparison. Case and punctuation do not count.
    """
    ends, starts = [[_plain(word) for word in words] for words in (before, after)]
    for count in range(min(MOST_REPEATED, len(ends), len(starts)), 0, -1):
        for dropped in (0, 1):  # words at the end of ``before`` that are cut
            tail = ends[: len(ends) - dropped][-count:]
            for skipped in (0, 1):  # words at the start of ``after`` that are cut
                if len(tail) == count and tail == starts[skipped : skipped + count] and any(tail):
                    if dropped + skipped and count == 1 and len(tail[0]) < 4:
                        continue  # a short word such as "the" is no evidence
                    return skipped + count
    return 0


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word).casefold()


@torch.no_grad()
def ask(
    model: Any,
    audio: Any,
    instruction: str,
    *,
    sampling_rate: int | None = None,
    own_transcript: bool = False,
    **decoding: Any,
) -> str:
    """Return the answer to an instruction about one recording of any length that fits into the LLM's context.

    A long recording is encoded window by window, and the LLM reads the speech of all of them at once. With
    ``own_transcript`` the model transcribes first, and the LLM reads the transcript.

    Raises `DataError`, before anything is decoded, if the speech does not fit into the context, and `AudioError` for
    audio that cannot be read or holds no speech.
    """
    recording = audio if isinstance(audio, Recording) else Recording(audio, sampling_rate)
    if recording.duration_s <= window_s(model):
        [answer] = model.generate(recording.read(), instruction, own_transcript=own_transcript, **decoding)
        return str(answer)
    speech = transcript_of(model, recording) if own_transcript else speech_of(model, recording)
    turn = model.prompter().turn(instruction, "")
    [answer] = model.llm.generate(join_prompt(model, [turn.before, turn.after], [speech]), **decoding)
    return str(answer)


def transcript_of(model: Any, recording: Recording) -> Padded:
    """Return the token embeddings (1, N, D) of a recording's transcript. Raises `AudioError` if it holds no speech."""
    text = " ".join(segment.text for segment in transcribe(model, recording))
    if not text:
        raise AudioError(f"{recording.name}: no speech was found in it; check the recording")
    ids = pad_ids([model.prompter().content_ids(text)]).to(next(model.projector.parameters()).device)
    return Padded(model.llm.embed(ids.values), ids.mask)


def speech_of(model: Any, recording: Recording) -> Padded:
    """Return the speech tokens (1, M, D) of all windows of a recording.

    Raises `DataError` as soon as they exceed the LLM's context.
    """
    device = next(model.projector.parameters()).device
    learned = getattr(model.projector, "prompt", None)  # vectors that stand once before the speech
    found: list[torch.Tensor] = []
    count = 0
    for piece in pieces(recording, most_s=window_s(model)):
        sample = Sample(id=recording.name, audio=Path(), source=recording.name)
        waveform = torch.from_numpy(piece.waveform)
        heard = model.speech(Batch(samples=[sample], waveforms=pad([waveform]).to(device)))
        tokens = heard.values[0, heard.mask[0]]
        found.append(tokens[len(learned) :] if found and learned is not None else tokens)
        count += len(found[-1])
        if model.llm.context is not None and count >= model.llm.context:
            raise DataError(
                f"{recording.name}: the first {piece.end_s:.0f} of {recording.duration_s:.0f} s are {count} speech "
                f"tokens, but {model.llm.name} reads {model.llm.context} positions: ask about a shorter part, or "
                "transcribe the recording and ask about the text"
            )
    if not found:
        raise AudioError(f"{recording.name}: no speech was found in it; check the recording")
    tokens = torch.cat(found)
    return Padded(tokens[None], torch.ones(1, len(tokens), dtype=torch.bool, device=device))
