"""Makes the lab's encoder: random word strings, spoken by espeak-ng, then CTC training from scratch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ossicle.lab.synthesise import synthesise
from ossicle.lab.voices import Voice, test_voices, train_voices
from ossicle.lab.world import word_strings

SEED = 0
_FUNCTION_WORDS = (
    *("the", "a", "an", "in the", "at the", "on the", "to the", "near the", "behind the", "with the", "with", "to"),
    *("in", "on", "at", "and", "and the", "then", "then the", "but", "but the", "later", "later the", "last", "after"),
)
_FUNCTION_WORD_SHARE = 0.35
"""How often one of these comes before a word. Uniformly random words would hold them much too rarely: in sentences
they are frequent, short and hard to hear."""


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
