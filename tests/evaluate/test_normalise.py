import json

import pytest

from ossicle.evaluate.metrics import metrics_for, wer
from ossicle.evaluate.normalise import normaliser


def test_none_changes_nothing():
    assert normaliser("none").apply(" Ah,  so! ") == " Ah,  so! "
    assert wer(["the Cat."], ["the cat"], normalise=normaliser("none")).value == 50


def test_whisper_writes_english_numbers_and_contractions_out():
    english = normaliser("whisper", "en")
    assert english.apply("Um, he's got twenty-five dollars.") == "he has got $25"
    assert english.apply("[noise] It won't (laughs) rain") == "it will not rain"
    assert english.signature == "norm:whisper-english|spelling:none"
    assert english.apply("a colour") == "a colour"


def test_whisper_spelling_is_read_from_a_checkpoint(tmp_path):
    path = tmp_path / "normalizer.json"
    path.write_text(json.dumps({"colour": "color", "centre": "center"}))
    english = normaliser("whisper", "en", path)
    assert english.apply("The colour centre") == "the color center"
    assert english.signature == "norm:whisper-english|spelling:2 words"


def test_whisper_leaves_other_languages_their_words():
    german = normaliser("whisper", "de")
    assert german.apply("Zwei Bäume, (drei) Äpfel!") == "zwei bäume äpfel"
    assert german.signature == "norm:whisper-basic"


def test_metrics_say_which_normaliser_they_used():
    metrics = metrics_for("asr", normalise="whisper", language="en")
    score = metrics["wer"](["I have 2 dogs"], ["i've two dogs"], "en")
    assert score.value == 0
    assert "norm:whisper-english|spelling:none" in score.signature
    assert metrics_for("asr")["wer"](["I have 2 dogs"], ["i've two dogs"], "en").value == 100
    assert metrics_for("st", normalise="whisper") == metrics_for("st")


def test_wrong_names_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no normaliser 'wisper': choose one of none, basic, whisper"):
        normaliser("wisper")
    path = tmp_path / "normalizer.json"
    with pytest.raises(ValueError, match=r"normalizer\.json: cannot be read"):
        normaliser("whisper", "en", path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"normalizer\.json: expected a JSON object of words"):
        normaliser("whisper", "en", path)
