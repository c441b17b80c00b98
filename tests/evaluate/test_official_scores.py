"""The scorers of the paper's code equal a plain reimplementation of it on 600 lines."""

import math
import random
from collections import Counter

import jiwer
import pytest
import sacrebleu

from ossicle.evaluate.bootstrap import intervals
from ossicle.evaluate.metrics import bleu, f1, metrics_for, wer_utterance_mean
from ossicle.evaluate.normalise import normaliser
from ossicle.evaluate.official import official_bleu, official_em, official_f1, official_sacrebleu, official_wer

PLACES = (("slowly", "very fast", "at a normal pace"), ("Male", "female"), ("noisy", "very clear", "almost-clean"))
WORDS = ["well-known", "don't", "Don’t", "the", "A", "cat,", "sat.", "“mat”", "5%", "$3", "rock'n'roll", "über", "ja!"]


@pytest.fixture(scope="module")
def lines():
    """300 descriptions and 300 sentences with hyphens, apostrophes and quotes, and answers with errors."""
    chance = random.Random(1)
    right = [", ".join(chance.choice(values) for values in PLACES) for _ in range(300)]
    right += [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))) for _ in range(300)]
    said = [
        "  ".join(chance.choice(WORDS) if chance.random() < 0.15 else w for w in text.split() if chance.random() > 0.1)
        for text in right
    ]
    return said, right


def prepared(text):
    steps = [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip(), jiwer.RemoveMultipleSpaces()]
    return jiwer.Compose(steps)(text)


def nltk_corpus_bleu(references, hypotheses):
    """BLEU-4 with equal weights and without smoothing, for one reference each, as NLTK documents it."""
    matches, totals = Counter(), Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for order in range(1, 5):
            said, right = (
                Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
                for words in (hypothesis, reference)
            )
            matches[order] += sum(min(count, right[ngram]) for ngram, count in said.items())
            totals[order] += max(1, sum(said.values()))
    length, wanted = sum(map(len, hypotheses)), sum(map(len, references))
    if min(matches[order] for order in range(1, 5)) == 0:
        return 0.0
    penalty = 1 if length > wanted else math.exp(1 - wanted / length)
    return penalty * math.exp(sum(math.log(matches[order] / totals[order]) / 4 for order in range(1, 5)))


def test_word_error_rate(lines):
    said, right = ([prepared(text) for text in texts] for texts in lines)
    rates = [jiwer.wer(reference, hypothesis) for reference, hypothesis in zip(right, said, strict=True)]
    expected = 100 * round(sum(rates) / 600, 4)
    assert round(official_wer(*lines).value, 2) == pytest.approx(expected)
    named = wer_utterance_mean(*lines, normalise=normaliser("official"))
    assert named.value == pytest.approx(official_wer(*lines).value)
    assert abs(wer_utterance_mean(*lines).value - expected) > 0.1  # hyphens and apostrophes make another normaliser


def test_bleu(lines):
    said, right = ([prepared(text).split() for text in texts] for texts in lines)
    expected = 100 * nltk_corpus_bleu(right, said)
    assert official_bleu(*lines).value == pytest.approx(expected)
    assert 5 < expected < 95
    assert abs(bleu(*lines).value - expected) > 1
    theirs = sacrebleu.corpus_bleu(lines[0], [lines[1]]).score
    assert official_sacrebleu(*lines, "zh").value == pytest.approx(theirs)


def test_bleu_by_hand():
    """All of 4 + 3 + 2 + 1 n-grams match; with a second line of one word, each higher order has one miss more."""
    assert official_bleu(["a b c d."], ["A b, c d"]).value == pytest.approx(100)
    precisions = (5 / 5) * (3 / 4) * (2 / 3) * (1 / 2)
    assert official_bleu(["a b c d", "e"], ["a b c d", "e"]).value == pytest.approx(100 * precisions**0.25)
    assert official_bleu(["a b c"], ["a b c"]).value == 0  # no 4-gram, no smoothing
    assert official_bleu([""], ["a b c d"]).value == 0


def test_words_by_hand():
    """Punctuation is deleted, not replaced by a space, and apostrophes count as punctuation."""
    assert official_wer(["wellknown dont"], ["well-known don't!"]).value == 0
    assert official_wer(["well known"], ["well-known"]).value == 200  # a substitution and an insertion for one word
    assert official_wer(["", "x"], ["", ""]).value == 50


def test_empty_answers_have_no_f1():
    assert official_f1(["the"], ["a"]).value == 0
    assert f1(["the"], ["a"]).value == official_em(["the"], ["a"]).value == 100
    assert official_f1(["Denver won"], [["the Denver Broncos", "x"]]).value == 50


def test_by_name_and_with_intervals(lines):
    for task, names in {
        "asr": {"official_wer"},
        None: {"official_wer"},
        "st": {"official_bleu", "official_sacrebleu"},
        "qa": {"official_em", "official_f1"},
        "meta": {"official_wer", "official_bleu", "official_sacrebleu"},
        "other": {"official_em", "official_f1"},
    }.items():
        assert set(metrics_for(task, official=True)) - set(metrics_for(task)) == names
    score = official_bleu(*lines)
    [bounds] = intervals([score.parts], range(600), resamples=200)
    assert bounds.low < score.value < bounds.high
