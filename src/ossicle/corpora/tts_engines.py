"""Speak a text into an audio file, with espeak-ng or with any command (values of `Recording.make`, picklable)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.corpora.voices import Voice, held_out_voices, speak_with_times, train_voices
from ossicle.data.words import WORDS
from ossicle.errors import CorpusError, MakeError, VoiceError

TIMEOUT_S = 600.0
"""Longest run time of a command, in seconds."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")
ESPEAK_NAMES = {"en": "en-us", "zh": "cmn", "sv-SE": "sv", "zh-CN": "cmn"}


@dataclass(frozen=True)
class EspeakMaker:
    """Writes WAV at 16 kHz with espeak-ng, and returns the time of every word."""

    text: str
    voice: Voice
    seed: int

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``. Raises `MakeError` if espeak-ng fails."""
        try:
            spoken = speak_with_times(self.text, self.voice, self.seed)
        except VoiceError as error:
            raise MakeError(str(error)) from error
        spoken.write(path)
        words = [[word, round(start_s, 3), round(end_s, 3)] for word, start_s, end_s in spoken.words]
        return {"gender": self.voice.gender, "rate_wpm": spoken.rate_wpm, WORDS: words}


@dataclass(frozen=True)
class CommandMaker:
    """Runs a command after replacing ``{text}``, ``{text_file}``, ``{out}``, ``{voice}`` and ``{language}`` in it.

    The command also receives the text on standard input, which piper needs. It does not run in a shell.
    """

    template: str
    text: str
    voice: str
    language: str

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``. Raises `MakeError` if the command fails, writes no file, or exceeds `TIMEOUT_S`."""
        with tempfile.TemporaryDirectory() as folder:
            text_file = Path(folder) / "text.txt"
            text_file.write_text(self.text + "\n", encoding="utf-8")
            values = {"text": self.text, "voice": self.voice, "language": self.language}
            words = fill(self.template, values | {"text_file": str(text_file), "out": str(path)})
            try:
                done = subprocess.run(
                    words,
                    input=self.text,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    timeout=TIMEOUT_S,
                    check=False,
                )
            except (
                OSError,
                ValueError,
            ) as error:  # a text that is too long for a command, or contains a null character
                raise MakeError(f"{words[0]} cannot run: {error}") from error
            except subprocess.TimeoutExpired as error:
                raise MakeError(f"{words[0]} ran for more than {TIMEOUT_S:.0f} s") from error
        if done.returncode or not path.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise MakeError(
                f"{words[0]} failed with exit code {done.returncode}: {said[-1] if said else 'it wrote no file'}"
            )
        return {}


def check_command(template: str, voices: Sequence[str]) -> None:
    """Raise `CorpusError` if the program of a command is missing, or its template cannot be filled."""
    try:
        words = fill(template, {})
    except ValueError as error:
        raise CorpusError(f"--command {template}: is no command ({error}); close the quotation") from error
    if not words or shutil.which(words[0]) is None:
        raise CorpusError(f"--command {template}: there is no program {words[0] if words else ''!r}; install it")
    if "{out}" not in template:
        raise CorpusError(f"--command {template}: has no {{out}}; write {{out}} where the audio file goes")
    if "{voice}" in template and not voices:
        raise CorpusError(f"--command {template}: has {{voice}}; name the voices with --voice")


def fill(template: str, values: Mapping[str, str]) -> list[str]:
    """Return the words of the command with the names in ``values`` replaced. Other braces are not changed.

    A value that would begin a word with a hyphen gets a space before it, so that the command does not read a text
    such as ``-5 degrees`` as an option.
    """
    words = []
    for word in shlex.split(template):
        filled = PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), word)
        words.append(f" {filled}" if filled.startswith("-") and not word.startswith("-") else filled)
    return words


def espeak_voices(language: str, kind: str) -> list[Voice]:
    """Return the generated voices of a language, for ``kind`` ``"train"`` or ``"test"``.

    English has 51 voices for training and 10 others for tests. Other languages use the variants of these voices.
    """
    voices = train_voices() if kind == "train" else held_out_voices()
    if language == "en":
        return voices
    accent = ESPEAK_NAMES.get(language, language)
    named = {voice.variant: voice for voice in voices}  # each variant once
    return [Voice(accent=accent, variant=voice.variant, gender=voice.gender) for voice in named.values()]
