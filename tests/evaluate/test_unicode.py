"""Texts that look alike are alike for every metric, and letters that differ stay different."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ossicle.evaluate.meta import accuracy
from ossicle.evaluate.metrics import METRICS, bleu, cer, chrf, exact_match, f1, metrics_for, wer, wer_utterance_mean
from ossicle.evaluate.normalise import NORMALISERS, clean, normalise_basic, normaliser

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)  # with halves of surrogate pairs
SAME = [
    ("le garçon a préféré une crème brûlée", unicodedata.normalize("NFD", "le garçon a préféré une crème brûlée")),
    ("hello world again today", "hello\u200b world\ufeff again\u00ad tod\u2060ay"),
    ("one two three four", "\u200fone two\u200e three \u202afour\u202c"),
    ("i ❤ it so much", "i ❤\ufe0f it so much"),
    ("مرحبا بالعالم الجميل جدا", "مرحبـــا بالعالم الجميل جـدا"),
    ("می\u200cخواهم به خانه بروم", "میخواهم به خانه بروم"),
    ("half an emoji here", "half an emoji here\ud83d"),
    ("a null character here", "a null\x00 character here"),
]
HINDI = ("मेरी", "मेरा")


@pytest.mark.parametrize(("one", "other"), SAME)
@pytest.mark.parametrize("metric", [wer, wer_utterance_mean, cer, bleu, chrf, exact_match, f1, accuracy])
def test_texts_that_look_alike_are_equal(metric, one, other):
    best = 0 if metric in METRICS["asr"].values() else 100
    for said, right in ((one, other), (other, one)):
        assert metric([said], [right], None).value == best


@pytest.mark.parametrize(("one", "other"), SAME)
@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("name", ["none", "basic", "whisper"])
def test_texts_that_look_alike_are_equal_after_each_normaliser(name, language, one, other):
    apply = normaliser(name, language).apply
    assert apply(one).strip() == apply(other).strip()


@pytest.mark.parametrize("normalise", ["none", "basic", "whisper", "official"])
def test_vowel_signs_are_letters(normalise):
    """The last of 4 code points differs, so 1 of 1 word and 1 of 4 characters are wrong."""
    metrics = metrics_for("asr", normalise=normalise, language="hi")
    assert metrics["wer"]([HINDI[0]], [HINDI[1]], "hi").value == 100
    assert metrics["cer"]([HINDI[0]], [HINDI[1]], "hi").value == 25


@pytest.mark.parametrize("tag", ["en", "EN", "eng", "en-US", "en_GB", "English"])
def test_every_tag_of_english_has_whispers_english_normaliser(tag):
    assert normaliser("whisper", tag).apply("He's got twenty-five dollars") == "he has got $25"


@pytest.mark.parametrize(
    ("text", "language", "normal"),
    [
        ("İSTANBUL", None, "istanbul"),
        ("İSTANBUL ISPARTA", "tr", "istanbul ısparta"),
        ("пʼять п’ять п'ять", "uk", "п'ять п'ять п'ять"),
        ("1️⃣ two", "en", "1 two"),
        ("i love it 😀👩🏽‍🚀", "en", "i love it"),
        ("e\u0301\u0323 ẹ\u0301", None, "ẹ\u0301 ẹ\u0301"),
        ("ΟΔΟΣ", "el", "οδος"),
        ("가" + unicodedata.normalize("NFD", "각"), "ko", "가각"),
    ],
)
def test_normalise_basic_in_other_scripts(text, language, normal):
    assert normalise_basic(text, language) == normal


@given(ANY_TEXT, st.sampled_from(NORMALISERS), st.sampled_from(["de", "tr", "hi", None]))
@example("\u0345\u0399\u03b1", "basic", None)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_normalisers_are_idempotent(text, name, language):
    apply = normaliser(name, language).apply
    assert apply(apply(text)) == apply(text)


@given(ANY_TEXT)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whispers_english_normaliser_takes_any_text(text):
    normaliser("whisper", "en").apply(text)


@given(ANY_TEXT, ANY_TEXT)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_metric_takes_any_text(said, right):
    for task in METRICS:
        for metric in metrics_for(task, official=True).values():
            value = metric([said], [right], "zh").value
            assert value == value  # not NaN
            assert value >= 0


@given(ANY_TEXT)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_equal_texts_have_no_errors(text):
    for name in ("wer", "cer"):
        assert METRICS["asr"][name]([unicodedata.normalize("NFD", clean(text))], [text], None).value == 0
