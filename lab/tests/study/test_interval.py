"""Test uncertainty against numbers computed by hand and against the corpus-level metrics."""

import numpy as np
import pytest

from ossicle.evaluate.bootstrap import percentile_interval
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.metrics import METRICS as TASK_METRICS
from ossicle.evaluate.metrics import bleu, exact_match, f1, wer
from ossicle_lab.study import interval
from ossicle_lab.study.interval import (
    bootstrap,
    column_of,
    corpus_score,
    metrics_of,
    spread,
    utterance_counts,
)


def line(number: int, said: str, wanted: str, task: str = "asr", target: str | None = None) -> Hypothesis:
    return Hypothesis(id=f"u{number}", hypothesis=said, references=(wanted,), task=task, target_language=target)


PAIRS = [
    ("the cat sat on the mat", "the cat sat on a mat"),
    ("a dog barks at night in the park", "a dog barks at night in the park"),
    ("", "nothing was said"),
    ("three words more here", "three words"),
]
METRICS = {"wer": ("asr", wer), "bleu": ("st", bleu), "em": ("qa", exact_match), "f1": ("qa", f1)}


@pytest.mark.parametrize("metric", METRICS)
def test_summed_counts_give_the_corpus_score(metric):
    task, score = METRICS[metric]
    target = "de" if task == "st" else None
    counts = utterance_counts([line(i, *pair, task=task, target=target) for i, pair in enumerate(PAIRS)])
    key = f"st/de:{metric}" if task == "st" else f"{task}:{metric}"
    expected = score([said for said, _ in PAIRS], [wanted for _, wanted in PAIRS]).value
    assert 0 < expected < 100
    assert corpus_score(metric, np.sum(counts[key], axis=0)) == pytest.approx(expected)


def test_word_errors_by_hand():
    counts = utterance_counts([line(i, *pair) for i, pair in enumerate(PAIRS)])
    assert counts == {"asr:wer": [[1, 6], [0, 8], [3, 3], [2, 2]]}
    assert corpus_score("wer", np.array([6.0, 19.0])) == pytest.approx(100 * 6 / 19)
    assert (corpus_score("wer", np.array([0, 0])), corpus_score("wer", np.array([2, 0]))) == (0, 100)


def test_lines_are_in_the_order_of_their_ids_so_that_runs_pair():
    lines = [line(2, "a", "a"), line(1, "a b", "a c")]
    assert utterance_counts(lines) == utterance_counts(lines[::-1]) == {"asr:wer": [[1, 2], [0, 1]]}


def test_a_task_in_several_test_sets_is_counted_for_each_one_too():
    lines = [line(1, "a b", "a c"), line(2, "a", "a"), line(3, "a", "a b", task="qa")]
    sets = {lines[0].key: "clean", lines[1].key: "noisy", lines[2].key: "clean"}
    counts = utterance_counts(lines, sets)
    assert list(counts) == ["asr:wer", "qa:f1", "qa:em", "asr@clean:wer", "asr@noisy:wer"]
    assert (counts["asr@clean:wer"], counts["asr@noisy:wer"]) == ([[1, 2]], [[0, 1]])
    assert counts["asr:wer"] == [[1, 2], [0, 1]]
    assert utterance_counts(lines, dict.fromkeys(sets, "all")) == utterance_counts(lines)


def test_a_task_is_scored_by_its_kind():
    assert metrics_of("qa-words") == metrics_of("qa") == ("f1", "em")
    assert (metrics_of("st/es"), metrics_of("capitals")[0]) == (("bleu",), "em")


def test_every_task_has_the_metrics_that_the_evaluation_computes_for_it():
    for task, computed in TASK_METRICS.items():
        assert set(metrics_of(task)) <= computed.keys() & interval.METRICS.keys()


def test_the_bootstrap_of_a_share_has_its_known_spread():
    half = np.array([[100 * (i % 2), 1] for i in range(400)])
    draws = bootstrap("em", [half])
    assert draws.shape == (1000,)
    assert draws.mean() == pytest.approx(50, abs=0.3)
    assert draws.std() == pytest.approx(100 * np.sqrt(0.25 / 400), rel=0.1)  # the binomial's: 2.5 points
    interval = percentile_interval(draws)
    assert interval.low == pytest.approx(45.1, abs=0.7)
    assert interval.high == pytest.approx(54.9, abs=0.7)


def test_runs_are_scored_on_the_same_draws():
    rng = np.random.default_rng(1)
    one = np.stack([rng.integers(0, 2, 60), np.ones(60)], axis=1)
    worse = one * [0.5, 1]
    assert bootstrap("em", [one]) == pytest.approx(2 * bootstrap("em", [worse]))
    assert bootstrap("em", [one, worse]) == pytest.approx(0.75 * bootstrap("em", [one]))
    assert np.ptp(bootstrap("em", [one]) - bootstrap("em", [one])) == 0
    with pytest.raises(ValueError, match=r"runs of \[50, 60\] utterances"):
        bootstrap("em", [one, one[:50]])


def test_mean_and_sd_over_seeds():
    assert spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(np.sqrt(7)))
    assert spread([4.0]) == (4.0, None)


def test_the_column_that_decides():
    assert [column_of(task) for task in ("asr", "st/es", "qa", "persons")] == [
        "asr:wer",
        "st/es:bleu",
        "qa:f1",
        "persons:em",
    ]
