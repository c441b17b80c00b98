"""Answer recordings with a trained model: transcribe, translate, or follow an instruction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import ASR_INSTRUCTIONS, LANGUAGE_NAMES, TRANSLATE_INSTRUCTION, task_key


def listen(
    files: list[Path], folder: Path, task: str, language: str | None = None, *, question: str = ""
) -> Iterator[tuple[Path, str]]:
    """Yield each recording with the model's answer.

    Args:
        files: recordings.
        folder: folder of a run or of a checkpoint.
        task: ``asr`` or ``st``; it selects the instruction that the model was trained with.
        language: target language of ``st``.
        question: instruction that replaces the one of ``task``.

    Raises:
        CheckpointError: ``folder`` is not a checkpoint.
        AudioError: a recording cannot be read.
    """
    device = Accelerator().device
    model = SpeechLLM.from_pretrained(folder, device=device).to(device)
    instruction = question or instruction_for(model, task, language)
    for file in files:
        yield file, model.generate(file, instruction)[0]


def instruction_for(model: SpeechLLM, task: str, language: str | None = None) -> str:
    """Return the instruction for ``task`` from the model's training data, or a default instruction in English.

    For a target language that the training data lacks, the language name in the instruction of another target language
    is replaced.
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
