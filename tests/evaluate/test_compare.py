import json

import pytest

from ossicle.errors import HypothesesError
from ossicle.evaluate.compare import compare, normalised_average, normalised_interval, spread_over_seeds
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.score import Row, ScoreOptions, resampling_units, score, score_groups


def write(path, hypotheses, **about):
    """Write a file of ASR hypotheses of "one two three four" with the ids 0, 1, ...."""
    lines = [
        {"id": str(number), "language": "en", "hypothesis": text, "references": ["one two three four"], **about}
        for number, text in enumerate(hypotheses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def of_files(first, second, options=None):
    return compare(score_groups(first, options), score_groups(second, options), options)


def rows(wer, bleu, f1, **st):
    def row(task, **scores):
        return Row(task=task, language="en", target_language="en", n=10, scores=scores, signatures={})

    return [row("asr", wer=wer), row("st", bleu=bleu, **st), row("qa", em=0.0, f1=f1)]


def test_the_difference_is_the_second_minus_the_first(tmp_path):
    first = write(tmp_path / "a.jsonl", ["one two three four", "one two", "", "one two three"])  # 7 errors of 16
    second = write(tmp_path / "b.jsonl", ["one two three four", "one two three", "", "one two three four"])  # 5
    [found] = of_files(first, second)
    assert (found.task, found.language, found.n, found.only_in_one) == ("asr", "en", 4, 0)
    pair = found.metrics["wer"]
    assert pair.difference == pytest.approx(-12.5)
    assert pair.interval.low == pytest.approx(-25)
    assert pair.interval.high == pytest.approx(0)
    assert found.units == "4 utterances"


def test_a_run_and_itself(tmp_path):
    path = write(tmp_path / "a.jsonl", ["one two three four", "one", "five"])
    [found] = compare(score_groups(path), score_groups(path))
    assert {(pair.difference, pair.p) for pair in found.metrics.values()} == {(0, 1)}


def test_only_common_utterances_are_compared(tmp_path):
    first = write(tmp_path / "a.jsonl", ["one", "one two", "one two three four"])
    second = write(tmp_path / "b.jsonl", ["one two"])
    [found] = of_files(first, second)
    assert (found.n, found.only_in_one) == (1, 2)
    assert found.metrics["wer"].difference == pytest.approx(-25)
    assert found.metrics["wer"].p is None


def test_runs_that_cannot_be_compared(tmp_path):
    first = write(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(HypothesesError, match=r"a\.jsonl:1 and .*b\.jsonl:1: these files have no line in common"):
        of_files(first, write(tmp_path / "b.jsonl", ["one"], task="qa"))
    other = tmp_path / "c.jsonl"
    other.write_text(json.dumps({"id": "0", "language": "en", "hypothesis": "one", "references": ["one"]}))
    with pytest.raises(HypothesesError, match=r"c\.jsonl:1: other references than .*a\.jsonl:1"):
        of_files(first, other)


def test_speakers_are_the_units_where_all_are_known(tmp_path):
    def line(identifier, speaker):
        return Hypothesis(id=identifier, hypothesis="", references=("a",), speaker=speaker)

    known = [line("1", "anna"), line("2", "ben"), line("3", "anna")]
    assert resampling_units(known) == (["anna", "ben", "anna"], "2 speakers")
    assert resampling_units([*known, line("1", None)]) == (["1", "2", "3", "1"], "3 utterances")
    assert resampling_units([known[0], known[2]]) == (["1", "3"], "2 utterances")
    path = write(tmp_path / "a.jsonl", ["one two three four", ""], speaker="anna")
    assert score(path)[0].units == "2 utterances"


def test_mean_and_sd_over_seeds():
    found = {
        (each.task, each.metric): each for each in spread_over_seeds([rows(10, 1, 2), rows(12, 1, 2), rows(17, 1, 5)])
    }
    wer = found["asr", "wer"]
    assert (wer.mean, wer.seeds) == (13, 3)
    assert wer.sd == pytest.approx(13**0.5)  # deviations -3, -1, 4: 26 / 2
    assert found["st", "bleu"].sd == 0
    with pytest.raises(ValueError, match="at least two runs"):
        spread_over_seeds([rows(1, 1, 1)])
    with pytest.raises(ValueError, match="run 2 holds"):
        spread_over_seeds([rows(1, 1, 1), rows(1, 1, 1)[:2]])


def test_normalised_average_by_hand():
    lower, upper = rows(30, 10, 40), rows(10, 20, 80)
    found = normalised_average(rows(20, 17.5, 90), lower, upper)
    assert found.tasks == {"asr/wer": 50, "st/bleu": 75, "qa/f1": 125}
    assert found.value == pytest.approx(250 / 3)
    assert normalised_average(lower, lower, upper).value == 0
    assert normalised_average(upper, lower, upper).value == 100
    assert normalised_average(rows(40, 0, 0), lower, upper).value == pytest.approx(-250 / 3)


def test_normalised_average_takes_comet_where_all_have_it_and_the_mean_over_languages():
    lower, upper = rows(30, 10, 40, comet=70), rows(10, 20, 80, comet=80)
    french = Row(task="st", language="en", target_language="fr", n=1, scores={"comet": 78.0}, signatures={})
    run = [*rows(20, 0, 60, comet=76), french]
    assert normalised_average(run, lower, upper).tasks["st/comet"] == pytest.approx(70)
    assert "st/bleu" in normalised_average(rows(20, 0, 60), lower, upper).tasks


@pytest.mark.parametrize(("shared", "sd"), [(True, 2 / 3 * 2.291), (False, 2**0.5 / 3 * 2.291)])
def test_normalised_average_gets_the_interval_of_its_tasks_together(tmp_path, shared, sd):
    """ASR and QA are 400 coin tosses of 0.3, with sd 2.291 each, and the tosses are shared or independent."""
    lines = []
    for number in range(400):
        right = number % 10 < 3
        about = {"language": "en", "references": ["yes"]}
        lines.append({"id": f"{number}", "task": "asr", "hypothesis": "yes" if right else "no", **about})
        other = f"{number}" if shared else f"qa{number}"
        lines.append({"id": other, "task": "qa", "hypothesis": "yes" if right else "no", **about})
        lines.append({**lines[0], "id": other, "task": "st", "hypothesis": "a b c d", "references": ["a b c d"]})
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ScoreOptions(resamples=4000)
    lower, upper = rows(100, 0, 0), rows(0, 100, 100)
    average = normalised_average(score(path, options), lower, upper)
    assert average.value == pytest.approx((30 + 100 + 30) / 3)
    found = normalised_interval(score_groups(path), average, (lower, upper), options)
    assert found.low == pytest.approx(average.value - 1.96 * sd, abs=0.3)
    assert found.high == pytest.approx(average.value + 1.96 * sd, abs=0.3)


def test_the_published_averages_follow_from_the_published_scores():
    """Ranges 11.85 WER, 6.86 COMET, 19.58 F1; the lower run is not published, so only differences can be checked."""
    lower, upper = rows(21.85, 0, 50, comet=72), rows(10, 0, 69.58, comet=78.86)
    published = {
        "none": (rows(23.78, 0, 46.07, comet=69.72), -51.13),
        "asr": (rows(12.21, 0, 63.36, comet=75.70), 39.93),
        "wasser": (rows(12.92, 0, 77.22, comet=80.52), 84.96),
        "gigaspeech": (rows(10.94, 0, 79.12, comet=81.21), 97.12),
    }
    offsets = [normalised_average(run, lower, upper).value - average for run, average in published.values()]
    assert max(offsets) - min(offsets) < 0.1


def test_normalised_average_needs_three_tasks_and_two_different_references():
    with pytest.raises(ValueError, match="needs f1 of task 'qa'"):
        normalised_average(rows(1, 1, 1)[:2], rows(1, 1, 1), rows(2, 2, 2))
    with pytest.raises(ValueError, match=r"wer is 1\.00 in both"):
        normalised_average(rows(1, 1, 1), rows(1, 1, 1), rows(1, 2, 2))


def test_the_normaliser_reaches_the_comparison(tmp_path):
    first, second = (
        write(tmp_path / "a.jsonl", ["um one two three four"]),
        write(tmp_path / "b.jsonl", ["one two three four"]),
    )
    [basic] = of_files(first, second)
    [whisper] = of_files(first, second, ScoreOptions(normalise="whisper"))
    assert basic.metrics["wer"].difference == -25
    assert whisper.metrics["wer"].difference == 0
