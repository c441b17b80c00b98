"""Answer many recordings with a trained model: transcribe, translate, or follow an instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossicle.errors import OssicleError
from ossicle.listen.inputs import Recording
from ossicle.listen.long import BATCH_SIZE, Piece, Segment, Stitcher, ask, pieces, window_s
from ossicle.listen.pauses import DetectorName
from ossicle.models.speech_llm import SpeechLLM


@dataclass(frozen=True)
class Answer:
    """Answer to one recording, or the reason why there is none."""

    file: Path
    segments: tuple[Segment, ...] = ()
    duration_s: float = 0.0
    error: str | None = None

    @property
    def text(self) -> str:
        """Return the text of all segments."""
        return " ".join(segment.text for segment in self.segments)


@dataclass
class _Open:
    """A recording whose windows are being answered."""

    file: Path
    duration_s: float = 0.0
    stitcher: Stitcher = field(default_factory=Stitcher)
    segments: list[Segment] = field(default_factory=list)
    waiting: int = 0
    read: bool = False
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.error is not None or (self.read and not self.waiting)


def transcripts(
    model: SpeechLLM,
    files: Iterable[Path],
    instruction: str,
    *,
    batch_size: int = BATCH_SIZE,
    detector: DetectorName = "auto",
    on_heard: Callable[[float], None] = lambda seconds: None,
    **decoding: Any,
) -> Iterator[Answer]:
    """Yield what is said in each recording, in their order. A recording that cannot be read does not end the others.

    Batches are filled with windows of several recordings (`ossicle.listen.long.pieces`).

    Args:
        model: The model.
        files: Paths of recordings; ``-`` is an audio file on standard input.
        instruction: Instruction for each window.
        batch_size: Windows that are decoded together.
        detector: Detector of speech.
        on_heard: Function that is called with the seconds of each window once it is answered.
        **decoding: Settings of `LLM.generate`.
    """
    opened: list[_Open] = []
    batch: list[tuple[_Open, Piece]] = []
    for file in files:
        current = _Open(file)
        opened.append(current)
        try:
            recording = Recording(file)
            current.duration_s = recording.duration_s
            for piece in pieces(recording, most_s=window_s(model), detector=detector):
                batch.append((current, piece))
                current.waiting += 1
                if len(batch) == batch_size:
                    _answer(model, batch, instruction, decoding)
                    on_heard(sum(piece.end_s - piece.start_s for _, piece in batch))
                    batch = []
        except (OssicleError, OSError) as error:
            current.error = str(error)
        current.read = True
        yield from _complete(opened)
    _answer(model, batch, instruction, decoding)
    yield from _complete(opened)


def _complete(opened: list[_Open]) -> Iterator[Answer]:
    """Yield the answers to the first recordings that are complete, and take them out."""
    while opened and opened[0].complete:
        done = opened.pop(0)
        segments = () if done.error else tuple(done.segments)
        yield Answer(done.file, segments, done.duration_s, done.error)


def _answer(model: SpeechLLM, batch: Sequence[tuple[_Open, Piece]], instruction: str, decoding: dict[str, Any]) -> None:
    """Answer the windows of ``batch``; if that fails, one by one, to find out which recording is the reason."""
    if not batch:
        return
    try:
        texts = model.generate([piece.waveform for _, piece in batch], instruction, **decoding)
    except (OssicleError, OSError) as error:
        if len(batch) == 1:
            batch[0][0].error = str(error).replace("recording 1", str(batch[0][0].file))
        else:
            for item in batch:
                _answer(model, [item], instruction, decoding)
        return
    for (recording, piece), text in zip(batch, texts, strict=True):
        recording.waiting -= 1
        if segment := recording.stitcher.segment(piece, text):
            recording.segments.append(segment)


def answers(model: SpeechLLM, files: Iterable[Path], instruction: str, **decoding: Any) -> Iterator[Answer]:
    """Yield the answer to an instruction about each recording as a whole, in their order, one after another.

    A recording that cannot be read, or is too long for the LLM's context, does not end the others.
    """
    for file in files:
        try:
            recording = Recording(file)
            text = ask(model, recording, instruction, **decoding)
        except (OssicleError, OSError) as error:
            yield Answer(file, error=str(error))
        else:
            yield Answer(file, (Segment(0.0, recording.duration_s, text),), recording.duration_s)
