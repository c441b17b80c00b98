"""Language tags are parsed, whatever their form, and decide how a text is scored."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.evaluate.metrics import METRICS, bleu, bleu_tokenizer, cer, check_bleu, exact_match, f1, wer
from ossicle.languages import canonical_tag, is_known, join_unspaced, language_code, split_unspaced

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
