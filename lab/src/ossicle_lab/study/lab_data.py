"""Create the lab's corpus for a study, whose test also has tasks that stage 2 lacks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ossicle.corpora.voices import Voice, held_out_voices, train_voices
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle_lab.study.config import LabCorpus, StudyData
from ossicle_lab.world.corpus import speak_passages, task_lines
from ossicle_lab.world.passages import Passage, Split, sample_passages

DEV_VOICE_EVERY = 3
"""Every third held-out voice speaks the development split; the others speak the test."""
QUESTIONS = "qa"


def make_lab_data(folder: Path, data: StudyData, corpus: LabCorpus) -> StudyData:
    """Synthesise missing audio, write the manifests below ``folder``, and return ``data`` with their paths.

    As in the paper, stage 2 uses the recordings of stage 1, without the extra ones.
    """
    held_out = held_out_voices()
    dev_voices = held_out[::DEV_VOICE_EVERY]
    voices: dict[Split, list[Voice]] = {
        "train": train_voices(),
        "dev": dev_voices,
        "test": [voice for voice in held_out if voice not in dev_voices],
    }
    scored, used = corpus.test_split, corpus.dev if corpus.test_split == "dev" else 0
    sample = partial(sample_passages, seed=corpus.seed, max_sentences=corpus.max_sentences)
    train = sample("train", corpus.train + corpus.extra, shares=corpus.train_shares)
    parts: dict[str, tuple[Split, list[Passage]]] = {
        "train": ("train", train[: corpus.train]),
        "extra": ("train", train[corpus.train :]),
        "dev": ("dev", sample("dev", corpus.dev)),
        "test": (scored, sample(scored, used + corpus.test)[used:]),
    }
    manifests = {
        name: _speak(folder / name, split, passages, voices[split], corpus.seed)
        for name, (split, passages) in parts.items()
        if passages
    }
    tasks = {"train": data.tasks, "dev": data.tasks, "test": [*data.tasks, *data.unseen]}
    lines = {
        name: str(_write_tasks(folder / f"{name}.jsonl", manifests[name], parts[name][1], asked, corpus))
        for name, asked in tasks.items()
    }
    return replace(
        data,
        pretrain=[str(manifests["train"])],
        extra=[str(manifests["extra"])] if "extra" in manifests else [],
        finetune=[lines["train"]],
        dev=[lines["dev"]],
        test=[lines["test"]],
        alignment=[str(manifests["test"])],
    )


def _speak(folder: Path, split: Split, passages: list[Passage], voices: list[Voice], seed: int) -> Path:
    manifest = folder / "manifest.jsonl"
    ready = manifest.is_file() and [s.text for s in read_manifest(manifest)] == [p.text for p in passages]
    return manifest if ready else speak_passages(folder, split, passages, voices, seed)


def _write_tasks(path: Path, manifest: Path, passages: list[Passage], tasks: list[str], corpus: LabCorpus) -> Path:
    """Write the task lines of the passages of ``manifest``, without questions about passages that are too short."""
    samples = read_manifest(manifest)
    sentences = {sample.audio: len(p.sentences) for sample, p in zip(samples, passages, strict=True)}
    asked = task_lines(samples, passages, tuple(tasks), corpus.seed)
    kept = [line for line in asked if line.task != QUESTIONS or sentences[line.audio] >= corpus.question_sentences]
    write_manifest(path, kept)
    return path
