"""What speaks a text into a file: espeak-ng, or any command. Picklable, for a pool of processes."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.corpora.speak_file import SpeakJob, speak_file
from ossicle.corpora.voices import Voice, test_voices, train_voices
from ossicle.data.words import WORDS
from ossicle.errors import MakeError, VoiceError

TIMEOUT_S = 600.0
PLACE = re.compile(r"\{(\w+)\}")
ESPEAK_NAMES = {"en": "en-us", "zh": "cmn", "sv-SE": "sv", "zh-CN": "cmn"}


@dataclass(frozen=True)
class EspeakMaker:
    """Speaks with espeak-ng, 16 kHz WAV, and knows the time of every word."""

    text: str
    voice: Voice
    seed: int

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Write ``path``; raises `MakeError`."""
        try:
            spoken = speak_file(SpeakJob(path=path, text=self.text, voice=self.voice, seed=self.seed))
        except VoiceError as error:
            raise MakeError(str(error)) from error
        words = [[word, round(start_s, 3), round(end_s, 3)] for word, start_s, end_s in spoken.words]
        return {"gender": self.voice.gender, "rate_wpm": spoken.rate_wpm, WORDS: words}


@dataclass(frozen=True)
class CommandMaker:
    """Runs a command. ``{text}``, ``{text_file}``, ``{out}``, ``{voice}`` and ``{language}`` in it are filled in.

    The text also comes on standard input, as piper wants it. No shell is involved.
    """

    template: str
    text: str
    voice: str
    language: str

    def __call__(self, path: Path) -> Mapping[str, Any]:
        """Have ``path`` written; raises `MakeError` where the command fails or writes nothing."""
        with tempfile.TemporaryDirectory() as folder:
            text_file = Path(folder) / "text.txt"
            text_file.write_text(self.text + "\n", encoding="utf-8")
            values = {"text": self.text, "voice": self.voice, "language": self.language}
            words = fill(self.template, values | {"text_file": str(text_file), "out": str(path)})
            try:
                done = subprocess.run(
                    words, input=self.text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise MakeError(f"{words[0]} took more than {TIMEOUT_S:.0f} s") from error
        if done.returncode or not path.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise MakeError(f"{words[0]} ended with {done.returncode}: {said[-1] if said else 'and wrote no file'}")
        return {}


def fill(template: str, values: Mapping[str, str]) -> list[str]:
    """The words of the command; only the names in ``values`` are filled in, other braces stay."""
    return [PLACE.sub(lambda match: values.get(match[1], match[0]), word) for word in shlex.split(template)]


def espeak_voices(language: str, kind: str) -> list[Voice]:
    """Speakers of the language: the lab's (51 to train with, 10 others to test) in English, else their variants."""
    voices = train_voices() if kind == "train" else test_voices()
    if language == "en":
        return voices
    accent = ESPEAK_NAMES.get(language, language)
    named = {voice.variant: voice for voice in voices}  # a variant once, whatever its accents
    return [Voice(accent=accent, variant=voice.variant, gender=voice.gender) for voice in named.values()]
