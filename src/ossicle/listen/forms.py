"""Write what was heard in the forms that other programs read: text, JSON as OpenAI's API has it, and subtitles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import zip_longest

from ossicle.listen.long import Segment

FORMS = ("text", "json", "verbose_json", "srt", "vtt", "tsv")
MOST_CUE_CHARACTERS = 84
"""Characters of a subtitle: two lines of 42, the usual limit."""


def render(
    form: str,
    segments: Sequence[Segment],
    *,
    duration_s: float,
    language: str | None = None,
    task: str = "transcribe",
) -> str:
    """Return the segments of a recording in one of `FORMS`, without a newline at the end.

    Args:
        form: ``text`` is the plain text, ``json`` and ``verbose_json`` are the objects of OpenAI's API, ``srt`` and
            ``vtt`` subtitles, and ``tsv`` lines of start, end (milliseconds) and text, as Whisper writes them.
        segments: What was heard, in order.
        duration_s: Length of the recording in seconds.
        language: Language of the text, for ``verbose_json``.
        task: ``transcribe`` or ``translate``, for ``verbose_json``.

    Raises ValueError for an unknown form.
    """
    text = whole_text(segments)
    if form == "text":
        return text
    if form == "json":
        return json.dumps({"text": text}, ensure_ascii=False)
    if form == "verbose_json":
        rows = [
            {"id": k, "start": round(s.start_s, 3), "end": round(s.end_s, 3), "text": s.text}
            for k, s in enumerate(segments)
        ]
        whole = {"task": task, "language": language, "duration": round(duration_s, 3), "text": text, "segments": rows}
        return json.dumps(whole, ensure_ascii=False)
    if form == "tsv":
        lines = [f"{round(1000 * s.start_s)}\t{round(1000 * s.end_s)}\t{_flat(s.text)}" for s in segments]
        return "\n".join(["start\tend\ttext", *lines])
    if form not in ("srt", "vtt"):
        raise ValueError(f"{form} is not one of {', '.join(FORMS)}")
    shown = list(cues(segments))
    if form == "srt":
        return "\n".join(
            f"{k}\n{clock(cue.start_s, ',')} --> {clock(cue.end_s, ',')}\n{_wrapped(cue.text)}\n"
            for k, cue in enumerate(shown, 1)
        ).rstrip("\n")
    blocks = [
        f"{clock(cue.start_s, '.')} --> {clock(cue.end_s, '.')}\n{escape(_wrapped(cue.text), quote=False)}"
        for cue in shown
    ]
    return "\n\n".join(["WEBVTT", *blocks])


def whole_text(segments: Sequence[Segment]) -> str:
    """Return the text of all segments."""
    return " ".join(segment.text for segment in segments)


def cues(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Yield subtitles: segments, of which long ones are divided between words.

    The times inside a segment are in proportion to its characters, because no model here knows when a word is said.
    Subtitles do not overlap.
    """
    for segment, later in zip_longest(segments, segments[1:]):
        parts = _parts(_flat(segment.text))
        end_s = max(segment.start_s, min(segment.end_s, later.start_s if later else segment.end_s))
        total = sum(map(len, parts))
        start_s = segment.start_s
        for part in parts:
            stop_s = start_s + (end_s - segment.start_s) * len(part) / total
            yield Segment(start_s, stop_s, part)
            start_s = stop_s


def _parts(text: str) -> list[str]:
    """Divide ``text`` between words into parts of about equal length, none longer than a subtitle."""
    count = -(-len(text) // MOST_CUE_CHARACTERS)
    parts: list[str] = []
    for word in text.split():
        fits = parts and len(parts[-1]) + 1 + len(word) <= MOST_CUE_CHARACTERS
        if fits and len(parts[-1]) < len(text) / count:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


def _wrapped(text: str) -> str:
    """Break a subtitle at the space nearest to its middle if it is longer than a line."""
    if len(text) <= MOST_CUE_CHARACTERS // 2 or " " not in text:
        return text
    place = min((k for k, character in enumerate(text) if character == " "), key=lambda k: abs(k - len(text) / 2))
    return f"{text[:place]}\n{text[place + 1 :]}"


def _flat(text: str) -> str:
    """Return ``text`` on one line, without the arrow that separates times in subtitles."""
    return " ".join(text.replace("-->", "->").split())


def clock(seconds: float, separator: str) -> str:
    """Return a time as subtitles write it, such as 00:01:02,345."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{separator}{rest % 1000:03}"
