"""Makes the lab's encoder: random word strings, spoken by espeak-ng, then CTC training from scratch."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ossicle.corpora.voices import Voice, espeak, test_voices, train_voices
from ossicle.data.manifest import read_manifest
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
"""How often one of these comes before a word. Uniformly random words would hold them much too rarely: in sentences
they are frequent, short and hard to hear."""


def build_encoder(work: Path, out: Path) -> dict[str, Any]:
    """Speak the corpus, train, and write the encoder to ``out``: 51 voices to learn from, 10 others to score on.

    A repeated call with the same ``work`` folder continues. Returns what it writes to ``out/scores.json``.
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
    """Train a CTC encoder on the joined ``train`` manifests and write it to ``out``.

    Args:
        train: manifests whose lines have ``text`` and ``duration_s``; characters outside a–z and ' become unknown.
        held_out: manifests to score on, by name; the first also while training.
        work: where checkpoints live; a repeated call continues from the newest.
        out: the folder to write, in the layout of ``transformers`` and with ``scores.json``.
        settings: steps, rates, batches.
        init_from: a folder to start from (an earlier ``out``); ``None``: from random weights.
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
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def homophones(words: Sequence[str]) -> dict[str, str]:
    """Each word that espeak-ng says exactly like an earlier one -> that one ("aunt" -> "ant")."""
    voice = train_voices()[0].name
    first: dict[bytes, str] = {}
    merged = {}
    for word in words:
        sound = espeak().synthesise(word, voice, 175, 50).samples.tobytes()
        if first.setdefault(sound, word) != word:
            merged[word] = first[sound]
    return merged


def training_strings(count: int, seed: int, *, min_words: int, max_words: int) -> list[str]:
    """Random words of the world, with function words strewn in; ``min_words`` and ``max_words`` leave those out."""
    rng = random.Random(f"function-words-{seed}")
    strings = word_strings(count, seed, min_words=min_words, max_words=max_words)
    return [" ".join(_strewn(string.split(), rng)) for string in strings]


def _strewn(words: list[str], rng: random.Random) -> list[str]:
    mixed: list[str] = []
    for word in words:
        if rng.random() < _FUNCTION_WORD_SHARE:
            mixed.append(rng.choice(_FUNCTION_WORDS))
        mixed.append(word)
    return mixed


def build_corpus(work: Path) -> dict[str, Path]:
    """Speak the training, development and test strings below ``work``: name -> manifest. Test voices are unseen."""
    parts: dict[str, tuple[list[Voice], list[tuple[int, int, int]]]] = {
        "train": (train_voices(), [(2500, 1, 4), (6000, 3, 11), (900, 10, 20)]),
        "dev": (test_voices(), [(100, 2, 12)]),
        "test": (test_voices(), [(300, 2, 12)]),
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
