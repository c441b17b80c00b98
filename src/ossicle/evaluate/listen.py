"""Answer recordings with a trained model: transcribe, translate, or follow an instruction."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ossicle.errors import DataError, OssicleError
from ossicle.languages import canonical_tag, is_known, language_code
from ossicle.models.speech_llm import SpeechLLM
from ossicle.prompts import ASR_INSTRUCTIONS, LANGUAGE_NAMES, TRANSLATE_INSTRUCTION, task_key

log = logging.getLogger(__name__)
STDIN = Path("-")
SUFFIXES = {".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm"}
SUFFIXES |= {".3gp", ".aac", ".amr", ".mkv", ".mov", ".wma"}
"""Suffixes of recordings in folders. The second line needs PyAV, as .m4a, .mp4 and .webm do."""


@dataclass(frozen=True)
class Answer:
    """Answer to one recording, or the reason why there is none."""

    file: Path
    text: str = ""
    error: str | None = None


def listen(
    files: list[Path],
    folder: Path,
    task: str,
    language: str | None = None,
    *,
    question: str = "",
    batch_size: int = 1,
) -> Iterator[Answer]:
    """Yield the model's answer to each recording. A recording that cannot be read does not end the others.

    Args:
        files: recordings; ``-`` is an audio file on standard input.
        folder: folder of a run or of a checkpoint.
        task: ``asr`` or ``st``; it selects the instruction that the model was trained with.
        language: target language of ``st``.
        question: instruction that replaces the one of ``task``.
        batch_size: recordings that are decoded together.

    Raises:
        CheckpointError: ``folder`` is not a checkpoint.
        DataError: there is neither a task nor a question.
    """
    if not task and not question.strip():
        raise DataError('the question is empty: write one, such as "what is said?"')
    model = load_for_use(folder)
    for warning in warnings_for(model, folder, task, language, question=question):
        log.warning("warning: %s", warning)
    yield from answers(model, files, question or instruction_for(model, task, language), batch_size=batch_size)


def load_for_use(folder: Path) -> SpeechLLM:
    """Load a model onto the accelerator if there is one, else the CPU. Raises as `listen`."""
    device = Accelerator().device
    return SpeechLLM.from_pretrained(folder, device=device).to(device)


def answers(model: SpeechLLM, files: list[Path], instruction: str, *, batch_size: int = 1) -> Iterator[Answer]:
    """Yield the answer to ``instruction`` about each recording, in their order.

    The answers can differ from those of `ossicle evaluate` for the same audio, mostly because the lines of a manifest
    have their own wording of the instruction. Other batches also change the last digits of the hidden states, after
    which greedy decoding can choose another word.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        try:
            heard = model.generate([_source(file) for file in batch], instruction)
        except (OssicleError, OSError) as error:
            if len(batch) == 1:
                yield Answer(batch[0], error=str(error))
            else:  # one of them cannot be answered: find out which
                yield from answers(model, batch, instruction)
        else:
            for file, text in zip(batch, heard, strict=True):
                yield Answer(file, text)


def _source(file: Path) -> Any:
    return sys.stdin.buffer.read() if file == STDIN else file


def recordings_at(paths: list[str]) -> list[Path]:
    """Return the recordings at ``paths``: files, folders with recordings at any depth, patterns, and ``-``.

    Files in folders count as recordings by their suffix. Raises `DataError` for a folder or pattern without recordings.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif not path.exists() and any(char in name for char in "*?["):
            below = sorted(map(Path, glob(str(path), recursive=True)))  # noqa: PTH207 - absolute patterns, too
        else:
            below = [path]
        if not below:
            what = f"has no recordings ({' '.join(sorted(SUFFIXES))})" if path.is_dir() else "matches no files"
            raise DataError(f"{name}: {what}; give other paths")
        found += below
    if found.count(STDIN) > 1:
        raise DataError("-: standard input can be read once; write it once")
    return found


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
