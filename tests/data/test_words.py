import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.words import (
    WordTime,
    mixed_spans,
    span_rng,
    spoken_words,
    with_words,
    without_punctuation,
    words_of,
)
from ossicle.errors import ManifestError


def words(count: int) -> list[WordTime]:
    return [WordTime(f"w{i},", i / 4, (i + 1) / 4) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 11, 40, 200])
def test_every_word_is_in_exactly_one_span_and_kinds_alternate(count: int) -> None:
    for epoch in range(30):
        spans = mixed_spans(words(count), span_rng("a", epoch))
        assert [word for span in spans for word in span.words] == words(count)
        assert [i for span in spans for i in range(span.first_word, span.last_word + 1)] == list(range(count))
        assert all(left.kind != right.kind for left, right in pairwise(spans))
        for position, span in enumerate(spans):
            low, high = (4, 10) if span.kind == "text" else (2, 5)
            assert len(span.words) <= high
            assert len(span.words) >= low or position == len(spans) - 1
            assert (span.start_s, span.end_s) == (span.words[0].start_s, span.words[-1].end_s)


def test_all_lengths_and_both_starts_are_drawn_alike_often() -> None:
    draws = [mixed_spans(words(60), span_rng(f"u{i}", 0)) for i in range(600)]
    starts = Counter(spans[0].kind for spans in draws)
    assert 240 < starts["text"] < 360
    lengths = Counter((span.kind, len(span.words)) for spans in draws for span in spans[:4])
    assert sorted(lengths) == [("speech", n) for n in range(2, 6)] + [("text", n) for n in range(4, 11)]
    for kind in ("text", "speech"):
        counts = [count for (of, _), count in lengths.items() if of == kind]
        assert max(counts) < 1.5 * min(counts)


def test_spans_depend_on_id_epoch_and_seed_in_any_process() -> None:
    def edges(*key: object) -> list[int]:
        return [span.last_word for span in mixed_spans(words(80), span_rng(*key))]  # type: ignore[arg-type]

    assert edges("a", 0) == edges("a", 0)
    assert len({tuple(edges(*key)) for key in [("a", 0), ("b", 0), ("a", 1), ("a", 0, 1)]}) == 4
    code = "from ossicle.data.words import span_rng; print(span_rng('a', 3).random())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(elsewhere.stdout) == span_rng("a", 3).random()


def test_punctuation_is_removed() -> None:
    written = ['"Well,"', "–", "he's", "27;", "¿qué?", "mother-in-law"]
    timed = [WordTime(word, i, i + 1) for i, word in enumerate(written)]
    spans = mixed_spans(timed, random.Random(0))
    assert " ".join(span.text for span in spans) == "Well he's 27 qué mother-in-law"
    assert spoken_words("a - b … c.") == ["a", "b", "c."]
    assert without_punctuation("(don't),") == "don't" and without_punctuation("...") == ""


def test_words_survive_the_manifest(tmp_path: Path) -> None:
    times = [WordTime("anna", 0.0, 0.25), WordTime("27", 0.25, 1.125, aligned=False)]
    sample = Sample(id="a", audio=tmp_path / "a.wav", extra={"page": 3, "words": [["old", 0, 1]]})
    write_manifest(tmp_path / "m.jsonl", [with_words(sample, times, "ctm")])
    (read,) = read_manifest(tmp_path / "m.jsonl")
    assert words_of(read) == times
    assert read.extra == {
        "page": 3,
        "words": [["anna", 0.0, 0.25], ["27", 0.25, 1.125, "interpolated"]],
        "words_from": "ctm",
    }


@pytest.mark.parametrize(
    "value, message",
    [
        (None, 'm:3: \'a\' has no "words": make them with "ossicle align"'),
        ([], "has no"),
        ([["a", 0.2, 0.1]], "m:3.*'a', 0.2, 0.1"),
        ([["a", 0]], "m:3.*start_s, end_s"),
        ([["a", 0, 1, "yes"]], "yes"),
        ([["a", 1, 2], ["b", 0, 1]], "'b' starts before 'a'"),
    ],
)
def test_wrong_words_are_errors(value: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        words_of(Sample(id="a", audio=Path("a.wav"), source="m:3", extra={"words": value} if value is not None else {}))
