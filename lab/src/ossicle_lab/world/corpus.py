"""Make the demo's corpus: passages of the world in generated voices, and tasks about them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora.voices import Voice, held_out_voices, train_voices
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle_lab.world.passages import Passage, Split, sample_passages
from ossicle_lab.world.synthesise import synthesise
from ossicle_lab.world.tasks import Task, ask

FINETUNE_TASKS = ("asr", "st/de", "qa")
"""Tasks of stage 2. Spanish is left out, so that the test set's Spanish measures what the LLM could do before."""
TEST_TASKS = ("asr", "st/de", "st/es", "qa")
VOICE = "voice"
"""Key of the task that asks who speaks, a man or a woman. No transcript answers it, as in the paper's META task."""
_SPEAKERS = {"female": "the woman", "male": "the man"}


@dataclass(frozen=True)
class Corpus:
    """Paths of the manifests. Stage 2 uses the recordings of stage 1, as in the paper."""

    pretrain: Path
    finetune: Path
    dev: Path
    test: Path


def make_corpus(folder: Path, *, train: int, dev: int, test: int, seed: int = 0, max_sentences: int = 2) -> Corpus:
    """Generate the corpus in ``folder``, or reuse what is there, and return its manifests.

    Development and test passages share no sentence with training. Test passages are in held-out voices.

    Args:
        folder: output folder.
        train: number of training passages.
        dev: number of development passages.
        test: number of test passages.
        seed: seed of passages, voices and tasks.
        max_sentences: largest number of sentences in a passage.

    Raises:
        VoiceError: espeak-ng is not installed.
    """
    counts: dict[Split, int] = {"train": train, "dev": dev, "test": test}
    passages = {split: sample_passages(split, n, seed=seed, max_sentences=max_sentences) for split, n in counts.items()}
    spoken = {
        split: speak_passages(
            folder / split, split, passages[split], held_out_voices() if split == "test" else train_voices(), seed
        )
        for split in counts
    }
    corpus = Corpus(spoken["train"], folder / "finetune.jsonl", folder / "dev.jsonl", folder / "test.jsonl")
    lines: list[tuple[Path, Split, tuple[str, ...]]] = [
        (corpus.finetune, "train", FINETUNE_TASKS),
        (corpus.dev, "dev", FINETUNE_TASKS),
        (corpus.test, "test", TEST_TASKS),
    ]
    for path, split, tasks in lines:
        samples = read_manifest(spoken[split])
        write_manifest(path, list(task_lines(samples, passages[split], tasks, seed)))
    return corpus


def speak_passages(folder: Path, split: Split, passages: list[Passage], voices: list[Voice], seed: int) -> Path:
    """Speak ``passages`` of ``split`` into ``folder`` and return the manifest, with a line per passage in order."""
    items = [{"id": f"{split}-{i:05d}", "text": passage.text} for i, passage in enumerate(passages)]
    return synthesise(items, folder, voices=voices, seed=seed)


def task_lines(samples: list[Sample], passages: list[Passage], tasks: tuple[str, ...], seed: int) -> list[Sample]:
    """Return one line per passage and task (``asr``, ``st/de``, ``qa``, ``voice``, ...) for which the task applies."""
    rng = random.Random(f"tasks-{seed}")
    return [
        _line(sample, key, asked)
        for sample, passage in zip(samples, passages, strict=True)
        for key in tasks
        if (asked := _ask(sample, passage, key, rng)) is not None
    ]


def _ask(sample: Sample, passage: Passage, key: str, rng: random.Random) -> Task | None:
    if key == VOICE:  # draws no random number, so that the other tasks are the same with and without it
        return Task(VOICE, "who said it", (_SPEAKERS[sample.extra["gender"]],))
    task, _, language = key.partition("/")
    return ask(passage, task, rng, "es" if language == "es" else "de")


def _line(sample: Sample, key: str, asked: Task) -> Sample:
    return replace(
        sample,
        id=f"{sample.id}-{key.replace('/', '-')}",
        task=asked.task,
        instruction=asked.instruction,
        answers=asked.answers,
        target_language=asked.target_language,
    )
