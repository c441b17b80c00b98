"""Rescoring: both terms equal independent computations, and the choice follows their sum."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from ossicle.errors import ConfigError
from ossicle.models import rescoring
from ossicle.models.llm import load_llm
from ossicle.models.spoken_tokens import SpokenTokens

WORDS = ["the cat", "the hat", "a cat", "the cat sat", ""]


@pytest.fixture(scope="module")
def llm(folders):
    return load_llm(str(folders["llama"]))


@pytest.fixture(scope="module")
def spoken(llm):
    return SpokenTokens(llm.tokenizer, 50, name="llama")


def test_the_probability_of_a_text_equals_the_sum_over_single_tokens(llm):
    found = rescoring.text_scores(WORDS, llm)

    end = min(llm.end_ids)
    for text, score in zip(WORDS, found.tolist(), strict=True):
        written = {"the cat": "The cat.", "the hat": "The hat.", "a cat": "A cat.", "the cat sat": "The cat sat."}
        ids = llm.tokenizer(written.get(text, ""), add_special_tokens=False).input_ids
        row = [llm.tokenizer.bos_token_id, *ids, end]
        logs = llm.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        assert score == pytest.approx(sum(float(logs[k, row[k + 1]]) for k in range(len(row) - 1)), rel=1e-4)


def test_an_llm_without_a_begin_of_sequence_token_starts_after_the_end_of_another_text(llm, monkeypatch):
    monkeypatch.setattr(type(llm.tokenizer), "bos_token_id", None, raising=False)
    end = min(llm.end_ids)
    logs = llm.model(torch.tensor([[end]])).logits[0, -1].double().log_softmax(-1)
    assert rescoring.text_scores([""], llm).item() == pytest.approx(float(logs[end]), rel=1e-4)


class Letters:
    """Spoken tokens of two letters."""

    ids = (5, 7)

    @staticmethod
    def spell(text):
        return ["ab".index(letter) for letter in text]


def test_the_probability_of_the_spelling_is_the_sum_over_all_paths():
    torch.manual_seed(0)
    heard = torch.rand(5, 3).softmax(-1)
    texts = ["", "a", "aa", "ab", "bab"]
    found = rescoring.spelling_scores(texts, heard.log(), Letters())
    for text, score in zip(texts, found.exp().tolist(), strict=True):
        total = 0.0
        for path in itertools.product(range(3), repeat=len(heard)):
            if "".join("_ab"[label] for label, _ in itertools.groupby(path) if label) == text:
                total += float(torch.tensor([heard[p, label] for p, label in enumerate(path)]).prod())
        assert score == pytest.approx(total, rel=1e-4)


def choose(texts, spelling, language, *, lm_weight, monkeypatch):
    monkeypatch.setattr(rescoring, "spelling_scores", lambda texts, *_: torch.tensor([spelling[t] for t in texts]))
    monkeypatch.setattr(rescoring, "text_scores", lambda texts, *_: torch.tensor([language[t] for t in texts]))
    return rescoring.best_text(texts, torch.zeros(1), spoken=Letters(), llm=SimpleNamespace(), lm_weight=lm_weight)


@pytest.mark.parametrize(("lm_weight", "expected"), [(0.0, "first"), (0.5, "ab"), (0.05, "aa"), (0.1, "aa")])
def test_the_choice_follows_the_sum_of_both(lm_weight, expected, monkeypatch):
    texts = ["first", "aa", "ab", "aa"]
    spelling = {"first": -9.0, "aa": -1.0, "ab": -2.0}
    language = {"first": -9.0, "aa": -15.0, "ab": -5.0}  # equal at the weight 0.1: the earlier one wins
    assert choose(texts, spelling, language, lm_weight=lm_weight, monkeypatch=monkeypatch) == expected


def test_a_text_that_has_no_room_in_the_recording_is_never_chosen(llm, spoken):
    heard = torch.full((8, 1 + len(spoken.ids)), 1 / (1 + len(spoken.ids))).log()
    long = "the cat sat on the mat"
    found = rescoring.best_text([long, "the"], heard, spoken=spoken, llm=llm, lm_weight=0.5)
    assert found == "the"


def test_transcripts_of_a_model_are_rescored(llm, spoken, monkeypatch):
    """Two texts that the recording supports alike: the LLM decides."""
    heard = torch.full((8, 1 + len(spoken.ids)), 1 / (1 + len(spoken.ids))).log()
    texts = ["the cat", "the hat"]
    spelling = rescoring.spelling_scores(texts, heard, spoken)
    language = rescoring.text_scores(texts, llm)
    best = texts[int((spelling + 50 * language).argmax())]
    for order in (texts, texts[::-1]):
        assert rescoring.best_text(order, heard, spoken=spoken, llm=llm, lm_weight=50) == best


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_a_wrong_weight_is_refused(wrong):
    from ossicle.models.joint import generate_jointly

    with pytest.raises(ConfigError, match="lm_weight"):
        generate_jointly(None, None, lm_weight=wrong)
