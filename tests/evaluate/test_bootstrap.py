import numpy as np
import pytest
import sacrebleu

from ossicle.evaluate.bootstrap import Interval, intervals, paired, resample
from ossicle.evaluate.metrics import bleu, cer, chrf, exact_match, f1, wer, wer_utterance_mean
from ossicle.evaluate.parts import mean_parts, rate_parts

SAID = [
    "Anna sah ein rotes Auto im Park.",
    "Gestern haben wir den Hund gesehen, oder nicht?",
    "",
    "Das Haus ist alt",
    "ja",
    "Wir gehen morgen alle zusammen ins Kino.",
]
REFERENCES = [
    ["Anna sah das rote Auto im Park."],
    ["Wir haben gestern den Hund gesehen, oder?", "Gestern sahen wir den Hund."],
    ["Er kam nicht."],
    ["Das Haus ist sehr alt."],
    ["ja"],
    ["Wir gehen morgen alle zusammen ins Kino.", "Morgen gehen wir ins Kino.", "Ins Kino gehen wir morgen."],
]


def test_a_share_of_ones_gets_the_binomial_interval():
    outcomes = [100.0] * 120 + [0.0] * 280  # p = 0.3, n = 400: sd 100 * sqrt(0.3 * 0.7 / 400) = 2.291
    [found] = intervals([mean_parts(outcomes)], range(400), resamples=4000)
    assert found.low == pytest.approx(30 - 1.96 * 2.291, abs=0.4)
    assert found.high == pytest.approx(30 + 1.96 * 2.291, abs=0.4)


def test_speakers_are_drawn_whole():
    """8 speakers, 4 always right: as 8 coin tosses, whose 2.5% and 97.5% quantiles are 1 and 7."""
    speakers = [speaker for speaker in range(8) for _ in range(50)]
    parts = mean_parts([100.0 * (speaker % 2) for speaker in speakers])
    assert intervals([parts], speakers, resamples=4000) == [Interval(12.5, 87.5)]
    [alone] = intervals([parts], range(400), resamples=4000)
    assert alone.high - alone.low < 11  # 2 * 1.96 * 2.5


def test_speakers_of_different_size_change_the_denominator():
    parts = rate_parts([1, 0, 0], [1, 1, 8])  # speaker a: 1 error in 2 words, b: 0 in 8
    values = set(resample([parts], ["a", "a", "b"], resamples=200)[0].round(6))
    assert values == {50.0, 10.0, 0.0}  # a twice, both, b twice


def test_the_seed_decides():
    parts = [mean_parts(np.linspace(0, 100, 50))]
    assert intervals(parts, range(50), seed=1) == intervals(parts, range(50), seed=1)
    assert intervals(parts, range(50), seed=1) != intervals(parts, range(50), seed=2)


def test_chunks_do_not_change_the_draw(monkeypatch):
    parts = [mean_parts(np.linspace(0, 100, 50))]
    whole = resample(parts, range(50), resamples=100)
    monkeypatch.setattr("ossicle.evaluate.bootstrap._CHUNK", 333)
    assert np.array_equal(resample(parts, range(50), resamples=100), whole)


def test_one_unit_has_no_interval():
    parts = [mean_parts([1.0, 2.0])]
    assert intervals(parts, ["a", "a"]) == [None]
    assert intervals(parts, ["a", "b"], resamples=0) == [None]
    assert paired(parts, parts, ["a", "a"])[0].p is None


def test_a_run_does_not_differ_from_itself():
    parts = [bleu(SAID, REFERENCES).parts, chrf(SAID, REFERENCES).parts]
    for found in paired(parts, parts, range(6)):
        assert (found.difference, found.interval, found.p) == (0, Interval(0, 0), 1)


def test_pairing_cancels_what_runs_share():
    generator = np.random.default_rng(0)
    difficulty = generator.uniform(0, 80, 200)
    first, second = mean_parts(difficulty), mean_parts(difficulty + 5)
    [found] = paired([first], [second], range(200), resamples=999)
    assert found.difference == pytest.approx(5)
    assert (found.interval.low, found.interval.high) == pytest.approx((5, 5))
    assert found.p == pytest.approx(1 / 1000)  # never as far from the mean as 5 is from 0
    [alone] = intervals([first], range(200))
    assert alone.high - alone.low > 4


def test_noise_is_not_significant():
    """Differences of mean 0.1 and sd 10 over 100 utterances: z = 0.1, so p is about 0.92."""
    differences = np.tile([10.1, -9.9], 50)
    [found] = paired([mean_parts(np.full(100, 50.0))], [mean_parts(50 + differences)], range(100), resamples=2000)
    assert found.p == pytest.approx(0.92, abs=0.04)


@pytest.mark.parametrize("metric", [wer, wer_utterance_mean, cer, bleu, chrf, exact_match, f1])
def test_the_value_of_a_resample_is_the_metric_of_its_utterances(metric):
    parts = metric(SAID, REFERENCES).parts
    generator = np.random.default_rng(3)
    for _ in range(40):
        drawn = generator.integers(0, 6, 6)
        expected = metric([SAID[i] for i in drawn], [REFERENCES[i] for i in drawn])
        value = parts.value_of(parts.counts[drawn].sum(axis=0)[None])[0]
        assert value == pytest.approx(expected.value)


def test_bleu_and_chrf_are_sacrebleu_on_every_subset():
    """Short corpora too: orders without a match, or without n-grams at all."""
    generator = np.random.default_rng(4)
    seen_zero = False
    for size in (1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 6):
        drawn = generator.integers(0, 6, size)
        said = [SAID[i] for i in drawn]
        references = [REFERENCES[i] for i in drawn]
        most = max(map(len, references))
        streams = [[each[k] if k < len(each) else None for each in references] for k in range(most)]
        expected = sacrebleu.corpus_bleu(said, streams).score
        seen_zero |= expected == 0
        assert bleu(said, references).value == pytest.approx(expected)
        assert chrf(said, references).value == pytest.approx(sacrebleu.corpus_chrf(said, streams).score)
    assert seen_zero
