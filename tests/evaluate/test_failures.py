import json

import pytest

from ossicle.evaluate.failures import (
    RULES,
    can_identify_languages,
    failures,
    is_echo,
    is_empty,
    is_looping,
    is_refusal,
    is_too_long,
    is_untranslated,
    is_wrong_language,
    known_languages,
)
from ossicle.evaluate.hypotheses import Hypothesis
from places import SHARED

TEXTS = SHARED / "data" / "text" / "parallel"
identifies = pytest.mark.skipif(not can_identify_languages(), reason="py3langid is not installed")


def line(hypothesis, *references, **about):
    return Hypothesis(id="u", hypothesis=hypothesis, references=references or ("a reference",), **about)


def translated(hypothesis, text="the dog has seen the red car", reference="der Hund hat das rote Auto gesehen"):
    return line(hypothesis, reference, task="st", language="en", target_language="de", text=text)


def test_empty():
    assert is_empty(line(""))
    assert is_empty(line(" ... "))
    assert not is_empty(line("5"))


@pytest.mark.parametrize("text", ["no no no no", "so and so and, so and so and", "ha" * 10, "一二" * 10])
def test_looping(text):
    assert is_looping(line(text))


def test_looping_by_phrase():
    phrase = "we went to the market and then home again"
    assert is_looping(line(f"well {phrase} {phrase} {phrase} {phrase} {phrase[:5]}"))
    assert not is_looping(line(f"{phrase} {phrase} {phrase}"))
    assert not is_looping(line(f"{phrase} so {phrase} but {phrase} or {phrase}"))
    assert not is_looping(line("so and so, and so and so"))
    assert not is_looping(line("no, no, no, no!", "no no no no"))
    assert not is_looping(line("1000000000000"))


def test_prompt_echo():
    asked = {"instruction": "What is the object?"}
    assert is_echo(line("what is the object: a car", **asked))
    assert not is_echo(line("the object is a car", **asked))
    assert not is_echo(line("what is the object", "What is the object?", **asked))
    assert is_echo(line("a car<|im_end|>"))
    assert not is_echo(line("translate it", instruction="Translate"))


def test_untranslated():
    assert is_untranslated(translated("The dog has seen the red car."))
    assert is_untranslated(translated("the dog has seen a red car"))  # 6 of 7 words
    assert not is_untranslated(translated("der dog hat the red car gesehen"))
    assert not is_untranslated(translated("Anna Smith", "Anna Smith", "Anna Smith!"))
    assert is_untranslated(translated("the dog", text=None)) is None
    assert is_untranslated(line("the dog", language="en", target_language="en", text="the dog")) is None


def test_refusal():
    assert is_refusal(line("I’m sorry, but I can't hear it"))
    assert is_refusal(line("Als KI habe ich keine Ohren"))
    assert not is_refusal(line("I cannot say", "I cannot say it."))
    assert not is_refusal(line("he said I'm sorry"))
    assert not is_refusal(line("alski lift"))


def test_too_long():
    assert is_too_long(line("x" * 61, "y" * 10))
    assert not is_too_long(line("x" * 60, "y" * 10))
    assert is_too_long(line("x" * 301, "y" * 100, "z"))
    assert not is_too_long(line("x" * 300, "y" * 100))


@identifies
def test_wrong_language():
    assert is_wrong_language(translated("the dog has really seen the red car of my neighbour"))
    assert not is_wrong_language(translated("der Hund hat gestern das rote Auto gesehen"))
    assert is_wrong_language(translated("the red car")) is None  # too short to tell
    assert is_wrong_language(line("the dog has really seen the red car")) is None
    assert is_wrong_language(line("the dog has really seen it", language="qqq")) is None


def test_without_py3langid_nothing_is_judged(monkeypatch):
    monkeypatch.setattr("ossicle.evaluate.failures.find_spec", lambda name: None)
    known_languages.cache_clear()
    assert not can_identify_languages()
    assert is_wrong_language(translated("the dog has really seen the red car of my neighbour")) is None
    known_languages.cache_clear()


def test_rates_are_over_the_lines_that_can_be_judged():
    lines = [
        Hypothesis(id=str(number), hypothesis=text, references=("ein Hund",), language="en", target_language="de")
        for number, text in enumerate(["", "", "ein Hund", "", "", "", ""])
    ]
    found = {failure.name: failure for failure in failures(lines)}
    assert list(found) == list(RULES)
    empty = found["empty"]
    assert (empty.applicable, empty.count, empty.examples) == (7, 6, ["0", "1", "3", "4", "5"])
    assert empty.rate == pytest.approx(600 / 7)
    assert (found["untranslated"].applicable, found["untranslated"].rate) == (0, 0)


@identifies
@pytest.mark.skipif(not TEXTS.is_dir(), reason="../shared is absent")
@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_language_on_real_sentences(language):
    """Captions in the expected language are never flagged; at least 75% of those in another language are."""
    path = TEXTS / "multi30k_en-de-fr-cs.test2016.jsonl"
    entries = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()[:200]]
    other = "en" if language != "en" else "de"
    right = [is_wrong_language(line(e[language], e[language], language=language)) for e in entries]
    wrong = [is_wrong_language(line(e[other], e[language], language=language)) for e in entries]
    assert sum(verdict is True for verdict in right) == 0
    assert sum(verdict is True for verdict in wrong) >= 0.75 * sum(verdict is not None for verdict in wrong)


def test_languages_are_compared_by_their_codes():
    english = {"id": "1", "hypothesis": "the red car", "references": ("a blue car",), "text": "the red car"}
    assert is_untranslated(Hypothesis(language="en-US", target_language="eng", **english)) is None
    assert is_untranslated(Hypothesis(language="en-US", target_language="deu", **english)) is True


def test_repeated_transcripts_are_found_without_spaces_between_words():
    said = {"id": "1", "hypothesis": "今天天气很好。", "references": ("el tiempo",), "text": "今天 天气很好"}
    assert is_untranslated(Hypothesis(language="cmn", target_language="es", **said)) is True
