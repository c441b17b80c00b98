"""`ossicle transcribe | translate | ask`: recordings in, text out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import ASR_INSTRUCTIONS, LANGUAGE_NAMES, TRANSLATE_INSTRUCTION, task_key


def listen(
    files: list[Path], folder: Path, task: str, language: str | None = None, *, question: str = ""
) -> Iterator[tuple[Path, str]]:
    """Yield each recording with the model's answer to ``question``, or to the instruction it learned for ``task``."""
    device = Accelerator().device
    model = SpeechLLM.from_pretrained(folder, device=device).to(device)
    instruction = question or instruction_for(model, task, language)
    for file in files:
        yield file, model.generate(file, instruction)[0]


def instruction_for(model: SpeechLLM, task: str, language: str | None = None) -> str:
    """The wording of ``task`` in the model's training data, or a plain English one.

    A language that training did not have is asked for in the words of one that it had.
    """
    if task == "asr":
        return model.instructions.get(task, ASR_INSTRUCTIONS[0])
    if (learned := model.instructions.get(task_key(task, language))) is not None:
        return learned
    wanted = _name(language)
    for key, wording in model.instructions.items():
        other = _name(key.partition("/")[2])
        for known, new in ((other, wanted), (other.lower(), wanted.lower())):
            if key.startswith(f"{task}/") and known in wording:
                return wording.replace(known, new)
    return TRANSLATE_INSTRUCTION.format(language=wanted)


def _name(language: str | None) -> str:
    return LANGUAGE_NAMES.get(language or "", language or "")
