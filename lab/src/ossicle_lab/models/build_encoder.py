"""Train the lab's encoder by CTC on random word strings that espeak-ng speaks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ossicle.corpora.voices import Voice, espeak, held_out_voices, train_voices
from ossicle.data.manifest import read_manifest
from ossicle.files import write_json
from ossicle_lab.models.ctc import CTCTraining, Phase, recognition_scores, save_encoder, train_ctc
from ossicle_lab.models.tiny_hubert import ctc_processor
from ossicle_lab.world.passages import word_strings
from ossicle_lab.world.synthesise import synthesise

SEED = 0
SETTINGS = CTCTraining(
    phases=(
        Phase(steps=150, max_duration_s=1.9, batch_s=40.0),
        Phase(steps=1250, max_duration_s=30.0, batch_s=64.0),
    )
)
_FUNCTION_WORDS = (
    *("the", "a", "an", "in the", "at the", "on the", "to the", "near the", "behind the", "with the", "with", "to"),
    *("in", "on", "at", "and", "and the", "then", "then the", "but", "but the", "later", "later the", "last", "after"),
)
_FUNCTION_WORD_SHARE = 0.35
"""Probability of a function word before a word. In sentences function words are frequent, short and hard to recognise,
but among uniformly random words they would be rare."""


def build_encoder(work: Path, out: Path) -> dict[str, Any]:
    """Speak the corpus, train the encoder, write it to ``out``, and return the content of ``out/scores.json``.

    51 voices train the encoder and 10 others test it. A repeated call with the same ``work`` folder continues.
    """
    manifests = build_corpus(work / "corpus")
    return train_encoder(
        [manifests["train"]],
        {"dev": manifests["dev"], "test": manifests["test"]},
        work / "ctc",
        out,
    )


def train_encoder(
    train: Sequence[Path],
    held_out: Mapping[str, Path],
    work: Path,
    out: Path,
    *,
    settings: CTCTraining = SETTINGS,
    init_from: Path | None = None,
) -> dict[str, Any]:
    """Train a CTC encoder, write it to ``out``, and return the content of ``out/scores.json``.

    Args:
        train: manifests whose lines have ``text`` and ``duration_s``. Characters outside a–z and ' become unknown.
        held_out: manifests to score on, by name. The first is also scored during training.
        work: folder of checkpoints; a repeated call continues from the newest.
        out: output folder, in the layout of ``transformers`` and with ``scores.json``.
        settings: settings of the training.
        init_from: folder of the encoder to start from; None for random weights.
    """
    samples = [sample for manifest in train for sample in read_manifest(manifest)]
    held_out_samples = {name: read_manifest(manifest) for name, manifest in held_out.items()}
    dev = next(iter(held_out_samples.values()))
    model = save_encoder(train_ctc(samples, dev, work, settings=settings, init_from=init_from), out)
    processor = ctc_processor(out)
    scores: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "steps": settings.steps,
        "seed": settings.seed,
        "train_utterances": len(samples),
        "train_hours": round(sum(sample.duration_s or 0.0 for sample in samples) / 3600, 2),
        "train_speakers": len({sample.speaker for sample in samples}),
    }
    alike = homophones(sorted({word for sample in samples for word in (sample.text or "").split()}))
    for name, part in held_out_samples.items():
        scores[name] = {
            "utterances": len(part),
            "speakers": len({sample.speaker for sample in part}),
            **recognition_scores(model, processor, part),
            "wer_homophones_merged": recognition_scores(model, processor, part, merge=alike)["wer"],
        }
    write_json(out / "scores.json", scores)
    return scores


def homophones(words: Sequence[str]) -> dict[str, str]:
    """Map each word that espeak-ng pronounces like an earlier one to that word, e.g. "aunt" to "ant"."""
    voice = train_voices()[0].name
    first: dict[bytes, str] = {}
    merged = {}
    for word in words:
        sound = espeak().synthesise(word, voice, 175, 50).samples.tobytes()
        if first.setdefault(sound, word) != word:
            merged[word] = first[sound]
    return merged


def training_strings(count: int, seed: int, *, min_words: int, max_words: int) -> list[str]:
    """Return ``count`` strings of random words with function words between them.

    ``min_words`` and ``max_words`` bound the number of words without those function words.
    """
    rng = random.Random(f"function-words-{seed}")
    strings = word_strings(count, seed, min_words=min_words, max_words=max_words)
    return [" ".join(_with_function_words(string.split(), rng)) for string in strings]


def _with_function_words(words: list[str], rng: random.Random) -> list[str]:
    mixed: list[str] = []
    for word in words:
        if rng.random() < _FUNCTION_WORD_SHARE:
            mixed.append(rng.choice(_FUNCTION_WORDS))
        mixed.append(word)
    return mixed


def build_corpus(work: Path) -> dict[str, Path]:
    """Speak the strings of each split below ``work`` and return the manifests by split.

    Development and test strings are in voices that do not train.
    """
    parts: dict[str, tuple[list[Voice], list[tuple[int, int, int]]]] = {
        "train": (train_voices(), [(2500, 1, 4), (6000, 3, 11), (900, 10, 20)]),
        "dev": (held_out_voices(), [(100, 2, 12)]),
        "test": (held_out_voices(), [(300, 2, 12)]),
    }
    manifests = {}
    for part_index, (part, (voices, blocks)) in enumerate(parts.items()):
        items: list[dict[str, Any]] = []
        for block_index, (count, min_words, max_words) in enumerate(blocks):
            seed = 100 * part_index + block_index
            strings = training_strings(count, seed, min_words=min_words, max_words=max_words)
            items += [{"id": f"{part}-{block_index}-{i:05d}", "text": text} for i, text in enumerate(strings)]
        manifests[part] = synthesise(items, work / part, voices=voices, seed=SEED)
    return manifests
