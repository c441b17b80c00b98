import subprocess
import sys

import jiwer
import pytest
import sacrebleu

from ossicle.evaluate.metrics import (
    METRICS,
    bleu,
    cer,
    chrf,
    exact_match,
    f1,
    metrics_for,
    normalise_basic,
    normalise_squad,
    wer,
    wer_utterance_mean,
)

GERMAN = ["Anna sah das rote Auto im Park.", "Wir haben gestern den Hund gesehen, oder?"]
GERMAN_SAID = ["Anna sah ein rotes Auto im Park.", "Gestern haben wir den Hund gesehen, oder nicht?"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello,   World!", "hello world"),
        ("don't say 'never'", "don't say never"),
        ("the dogs’ owner doesn’t", "the dogs owner doesn't"),
        ("a well-known fact – really", "a well known fact really"),
        ("ﬁne ２ day\tof\n rain", "fine 2 day of rain"),
        ("ÜBER Straße ¿qué? (niño)", "über straße qué niño"),
        ("i\u0308 cafe\u0301", "ï café"),
        ("snake_case 50 % $5", "snake case 50 5"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        (" ... ", ""),
    ],
)
def test_normalise_basic(text, normal):
    assert normalise_basic(text) == normal


def test_wer_counts_errors_over_the_corpus_and_per_utterance():
    hypotheses = ["the cat sat on mat", "no"]  # 1 deletion of 6 words; 1 substitution of 1 word
    references = ["The cat sat on the mat.", "Yes!"]
    assert wer(hypotheses, references).value == pytest.approx(100 * 2 / 7)
    assert wer_utterance_mean(hypotheses, references).value == pytest.approx((100 / 6 + 100) / 2)


def test_wer_can_exceed_100():
    assert wer(["a b c"], ["x"]).value == 300


def test_cer_counts_spaces():
    assert cer(["ab cd"], ["abcd"]).value == 25
    assert cer(["ab c"], ["ab cd"]).value == 20


def test_word_errors_agree_with_jiwer():
    references = ["so we went to the market", "it was late", "and then home"]
    hypotheses = ["so he went to a big market", "it was", "and then we went home"]
    assert wer(hypotheses, references).value == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert cer(hypotheses, references).value == pytest.approx(100 * jiwer.cer(references, hypotheses))
    each = [100 * jiwer.wer(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert wer_utterance_mean(hypotheses, references).value == pytest.approx(sum(each) / 3)


def test_empty_strings_in_word_errors():
    assert wer([""], ["two words"]).value == 100
    assert wer(["", "uh oh"], ["one two three four", ""]).value == 150  # 4 deleted, 2 inserted
    assert wer_utterance_mean(["uh oh", ""], ["", "..."]).value == 50
    assert wer([""], [""]).value == cer([""], [""]).value == 0
    assert wer(["uh oh"], [""]).value == cer(["uh oh"], [""]).value == 100


def test_word_errors_take_the_nearest_reference():
    assert wer(["we are here"], [["we're here", "we are here", "are"]]).value == 0


def test_bleu_and_chrf_agree_with_sacrebleu():
    expected = sacrebleu.corpus_bleu(GERMAN_SAID, [GERMAN])
    score = bleu(GERMAN_SAID, GERMAN, "de")
    assert score.value == pytest.approx(expected.score)
    assert 20 < score.value < 80
    assert score.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert chrf(GERMAN_SAID, GERMAN).value == pytest.approx(sacrebleu.corpus_chrf(GERMAN_SAID, [GERMAN]).score)
    assert "nc:6|nw:0" in chrf(GERMAN_SAID, GERMAN).signature


def test_bleu_by_hand():
    # 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2, no brevity penalty: (1/5) ** (1/4)
    assert bleu(["a b c d x"], ["a b c d e"]).value == pytest.approx(100 * 0.2**0.25)


def test_bleu_with_a_varying_number_of_references():
    score = bleu(["a b c d", "e f g h"], [["x y", "a b c d"], ["e f g h"]])
    assert score.value == 100
    assert "nrefs:var" in score.signature


def test_bleu_chooses_the_tokenizer_by_language():
    assert "tok:zh" in bleu(["你好世界"], ["你好世界"], "zh").signature


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_translations_of_empty_strings_score_0(metric):
    assert metric([""], ["a b c d"]).value == 0
    assert metric(["a b c d"], [""]).value == 0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Norman's  a-team, an answer!", "normans ateam answer"),
        ("another theatre", "another theatre"),
        ("the", ""),
    ],
)
def test_normalise_squad(text, normal):
    assert normalise_squad(text) == normal


def test_exact_match_takes_any_reference():
    hypotheses = ["the Denver Broncos.", "Santa Clara", "gold"]
    references = [["Broncos", "Denver Broncos"], ["Santa Clara, California"], ["a gold"]]
    assert exact_match(hypotheses, references).value == pytest.approx(200 / 3)


def test_f1_by_hand():
    # "denver won" / "denver broncos": precision 1/2, recall 1/2; / "broncos of denver": 1 of 2 and 1 of 3 -> 0.4
    assert f1(["Denver won"], [["the Denver Broncos", "Broncos of Denver"]]).value == 50
    # repeated words count as often as both sides have them: 2 of 3 and 2 of 2
    assert f1(["very very very"], ["a very very"]).value == pytest.approx(80)
    assert f1(["blue", "red"], ["red", "the red"]).value == 50


def test_empty_answers():
    assert f1([""], ["something"]).value == exact_match([""], ["something"]).value == 0
    assert f1(["something"], [["", "other"]]).value == 0
    assert f1(["the"], ["a"]).value == exact_match(["the"], ["a"]).value == 100


@pytest.mark.parametrize("metric", [wer, wer_utterance_mean, cer, bleu, chrf, exact_match, f1])
def test_every_metric_is_perfect_on_equal_text_and_checks_its_input(metric):
    score = metric(GERMAN, GERMAN, "de")
    assert score.value == (0 if "norm:basic" in score.signature else 100)
    assert metric(GERMAN, [[text] for text in GERMAN], "de") == score
    with pytest.raises(ValueError, match="2 hypotheses but 1 references"):
        metric(GERMAN, GERMAN[:1], None)
    with pytest.raises(ValueError, match="nothing to score"):
        metric([], [], None)
    with pytest.raises(ValueError, match="utterance 1 has no reference"):
        metric(GERMAN, [["a"], []], None)


def test_metrics_by_task():
    assert metrics_for(None) is metrics_for("asr") is METRICS["asr"]
    assert set(metrics_for("st")) == {"bleu", "chrf"}
    assert metrics_for("time-first") is METRICS["qa"]


def test_the_voice_beside_always_saying_the_most_frequent_answer():
    said, right = ["the woman", "anna", "The man.", "the man"], ["the woman", "the man", "the man", "the man"]
    scores = {name: metric(said, right, None).value for name, metric in metrics_for("voice").items()}
    assert scores == {"em": 75, "majority": 75}
    assert metrics_for("voice")["majority"](["the woman"] * 4, right, None).value == 75


def test_importing_metrics_and_scores_does_not_import_torch():
    code = "import ossicle.evaluate.metrics, ossicle.evaluate.score, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
