"""Choose the instruction that a model was trained with, and warn where its answers are unreliable."""

from __future__ import annotations

from pathlib import Path

from ossicle.languages import canonical_tag, is_known, language_code
from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import ASR_INSTRUCTIONS, LANGUAGE_NAMES, TRANSLATE_INSTRUCTION, task_key


def warnings_for(
    model: SpeechLLM, folder: Path, task: str, language: str | None = None, *, question: str = ""
) -> list[str]:
    """Return what makes the answers of ``model`` unreliable: no training on tasks, or an unknown target language."""
    if not model.instructions and task != "asr":
        return [f"{folder} was trained on no task, only pretrained (stage 1): fine-tune it first (stage 2)"]
    if question or task != "st":
        return []
    learned = sorted(tag for key in model.instructions if (tag := key.partition("/")[2]) and key.startswith("st/"))
    if language_code(language) in {language_code(tag) for tag in learned}:
        return []
    known = ", ".join(learned) or "no translation"
    if not _is_language(language):
        return [f"--to {language} is not a language code that Ossicle knows; this model was trained on {known}"]
    return [f"this model was not trained to translate to {language}; it was trained on {known}"]


def _is_language(tag: str | None) -> bool:
    return is_known(tag) or tag in LANGUAGE_NAMES


def instruction_for(model: SpeechLLM, task: str, language: str | None = None) -> str:
    """Return the instruction for ``task`` from the model's training data, or a default instruction in English.

    For a target language that the training data lacks, the language name in the instruction of another target language
    is replaced.
    """
    if task == "asr":
        return model.instructions.get(task) or next(iter(model.asr_instructions), ASR_INSTRUCTIONS[0])
    if (learned := model.instructions.get(task_key(task, language))) is not None:
        return learned
    for same in (canonical_tag, language_code):  # zh_cn is zh-CN, and zh is better than another language
        for key, wording in model.instructions.items():
            if key.startswith(f"{task}/") and same(key.partition("/")[2]) == same(language):
                return wording
    wanted = _name(language)
    for key, wording in model.instructions.items():
        other = _name(key.partition("/")[2])
        for known, new in ((other, wanted), (other.lower(), wanted.lower())):
            if key.startswith(f"{task}/") and known in wording:
                return wording.replace(known, new)
    return TRANSLATE_INSTRUCTION.format(language=wanted)


def _name(language: str | None) -> str:
    return LANGUAGE_NAMES.get(language or "") or LANGUAGE_NAMES.get(language_code(language) or "", language or "")
