"""The demo's corpus: passages of the world in generated voices, and the tasks asked about them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora.voices import Voice, test_voices, train_voices
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle_lab.world.passages import Passage, Split, sample_passages
from ossicle_lab.world.synthesise import synthesise
from ossicle_lab.world.tasks import Task, ask

FINETUNE_TASKS = ("asr", "st/de", "qa")
"""Stage 2 sees these. Spanish it never sees: what the test set's Spanish scores, the LLM brought along."""
TEST_TASKS = ("asr", "st/de", "st/es", "qa")
VOICE = "voice"
"""Of the paper's META, the attribute that the lab's LLM has words for: no transcript answers it."""
_SPEAKERS = {"female": "the woman", "male": "the man"}


@dataclass(frozen=True)
class Corpus:
    """Manifests. The stage-2 lines of training passages use the same recordings as stage 1, as the paper does."""

    pretrain: Path
    finetune: Path
    dev: Path
    test: Path


def make_corpus(folder: Path, *, train: int, dev: int, test: int, seed: int = 0, max_sentences: int = 2) -> Corpus:
    """Generate ``train`` passages in training voices, ``dev`` and ``test`` held-out ones in held-out voices.

    Development and test passages share no sentence with training. A second call continues or reuses.
    """
    counts: dict[Split, int] = {"train": train, "dev": dev, "test": test}
    passages = {split: sample_passages(split, n, seed=seed, max_sentences=max_sentences) for split, n in counts.items()}
    spoken = {
        split: speak_passages(
            folder / split, split, passages[split], test_voices() if split == "test" else train_voices(), seed
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
    """Speak ``passages`` of ``split`` into ``folder``; returns the manifest, whose lines are in their order."""
    items = [{"id": f"{split}-{i:05d}", "text": passage.text} for i, passage in enumerate(passages)]
    return synthesise(items, folder, voices=voices, seed=seed)


def task_lines(samples: list[Sample], passages: list[Passage], tasks: tuple[str, ...], seed: int) -> list[Sample]:
    """One line per passage and task (``asr``, ``st/de``, ``qa``, ``voice``, ...), where the task applies."""
    rng = random.Random(f"tasks-{seed}")
    return [
        _line(sample, key, asked)
        for sample, passage in zip(samples, passages, strict=True)
        for key in tasks
        if (asked := _ask(sample, passage, key, rng)) is not None
    ]


def _ask(sample: Sample, passage: Passage, key: str, rng: random.Random) -> Task | None:
    if key == VOICE:  # draws nothing, so that the other tasks are the same with and without it
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
