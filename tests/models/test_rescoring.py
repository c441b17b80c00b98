"""Rescoring: both terms equal independent computations, and the choice follows their sum."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from ossicle.errors import ConfigError
from ossicle.models import rescoring
from ossicle.models.lexicon import Change
from ossicle.models.llm import load_llm

WORDS = ["the cat", "the hat", "a cat", "the cat sat", ""]


@pytest.fixture(scope="module")
def llm(folders):
    return load_llm(str(folders["llama"]))


@pytest.mark.parametrize("positions", [2, 256])
def test_the_probability_of_a_text_equals_the_sum_over_single_tokens(llm, monkeypatch, positions):
    monkeypatch.setattr(rescoring, "LM_POSITIONS", positions)
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


class Projector:
    """Spells texts by their letters, as tokens and as characters; it proposes changes of two words."""

    class spoken:
        class lexicon:
            @staticmethod
            def changes(words, others):
                similar = {"curtin": ["curtain", "cousin"], "wisert": ["wizard"]}
                return [Change(k, k + 1, other) for k, word in enumerate(words) for other in similar.get(word, [])]

    @staticmethod
    def targets(texts):
        labels = [[1 + "abcdefghijklmnopqrstuvwxyz ".index(letter) for letter in text] for text in texts]
        return labels, labels


def flat(positions, size):
    return torch.full((positions, size), 1 / size).log()


def judge_of(heard, llm, lm_weight, characters=None):
    characters = flat(2, 257) if characters is None else characters  # say nothing
    return rescoring.Judge(
        [rescoring.Heard(heard, characters)], Projector(), llm, character_weight=0.5, lm_weight=lm_weight
    )


def best(texts, *args, **kwargs):
    return rescoring.best_text(texts, judge_of(*args, **kwargs))


def test_the_probability_of_the_spelling_is_the_sum_over_all_paths():
    torch.manual_seed(0)
    heard = torch.rand(5, 3).softmax(-1)
    texts = ["", "a", "aa", "ab", "bab"]
    labels = [[1 + "ab".index(letter) for letter in text] for text in texts]
    found = rescoring.spelling_scores(labels, heard.log())
    for text, score in zip(texts, found.exp().tolist(), strict=True):
        total = 0.0
        for path in itertools.product(range(3), repeat=len(heard)):
            if "".join("_ab"[label] for label, _ in itertools.groupby(path) if label) == text:
                total += float(torch.tensor([heard[p, label] for p, label in enumerate(path)]).prod())
        assert score == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(("lm_weight", "expected"), [(0.0, "first"), (0.5, "ab"), (0.05, "aa"), (0.1, "aa")])
def test_the_choice_follows_the_sum_of_both(lm_weight, expected, monkeypatch):
    texts = ["first", "aa", "ab", "aa"]
    spelling = {"first": -9.0, "aa": -1.0, "ab": -2.0}
    language = {"first": -9.0, "aa": -15.0, "ab": -5.0}  # equal at the weight 0.1: the earlier one wins
    written = {tuple(Projector.targets([text])[0][0]): text for text in texts}
    monkeypatch.setattr(
        rescoring, "spelling_scores", lambda rows, _: torch.tensor([spelling[written[tuple(row)]] for row in rows])
    )
    monkeypatch.setattr(rescoring, "text_scores", lambda texts, _: torch.tensor([language[t] for t in texts]))
    assert best(texts, flat(1, 28), SimpleNamespace(), lm_weight) == expected


def sure(text, size):
    """Return log-probabilities that are nearly sure of ``text``, with a blank after each letter."""
    path = [label for k in Projector.targets([text])[0][0] for label in (k, 0)]
    return torch.full((len(path), size), 1e-2).scatter(1, torch.tensor(path)[:, None], 0.9).log()


def test_characters_decide_between_texts_that_the_tokens_support_alike(llm):
    heard = flat(12, 28)
    for order in (["cat", "hat"], ["hat", "cat"]):
        for text in order:
            assert best(order, heard, llm, 1e-6, characters=sure(text, 257)) == text


def test_a_recording_at_several_speeds_is_scored_by_their_mean(llm):
    heard = [rescoring.Heard(sure("cat", 28), sure("cat", 257)), rescoring.Heard(sure("hat", 28), flat(2, 257))]
    both, *each = (rescoring.Judge(views, Projector(), llm, 0.5, 1.0) for views in (heard, heard[:1], heard[1:]))
    texts = ["cat", "hat", "at"]
    torch.testing.assert_close(both.sound(texts), (each[0].sound(texts) + each[1].sound(texts)) / 2)


def likes(monkeypatch, **scores):
    """Let the LLM give a text the sum of ``scores`` of its words, and return the texts that it is asked about."""
    asked = []

    def scored(texts, _):
        asked.extend(texts)
        return torch.tensor([float(sum(scores.get(word, 0) for word in text.split())) for text in texts])

    monkeypatch.setattr(rescoring, "text_scores", scored)
    return asked


def test_words_become_similar_ones_that_score_higher(monkeypatch):
    asked = likes(monkeypatch, curtain=20, wizard=20, cousin=10)
    characters = sure("the curtin and the wisert", 257)
    assert best(["the curtin and the wisert"], flat(60, 28), None, 1.0, characters=characters) == (
        "the curtain and the wizard"
    )
    assert len(asked) == len(set(asked))


def test_the_probability_of_many_texts_is_that_of_each_alone(monkeypatch):
    monkeypatch.setattr(rescoring, "CTC_ROWS", 2)
    heard = torch.rand(20, 28, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    labels = Projector.targets(["cat", "", "hat", "the cat", "zz"])[0]
    alone = [rescoring.spelling_scores([row], heard) for row in labels]
    assert torch.allclose(rescoring.spelling_scores(labels, heard), torch.cat(alone))
    whole = torch.nn.functional.ctc_loss(
        heard[:, None], torch.tensor(labels[3]), torch.tensor([20]), torch.tensor([7]), reduction="sum"
    )
    assert alone[3].item() == pytest.approx(-whole.item(), rel=1e-5)


def test_a_word_that_the_recording_supports_stays(monkeypatch):
    likes(monkeypatch, curtain=0.5)
    assert best(["the curtin"], flat(60, 28), None, 1.0, characters=sure("the curtin", 257)) == "the curtin"


def test_the_llm_is_not_asked_about_words_that_the_recording_excludes(monkeypatch):
    asked = likes(monkeypatch, cousin=1000)
    characters = torch.where(sure("curtin", 257).exp() > 0.5, -1e-3, -30.0)
    assert best(["curtin"], flat(60, 28), None, 1.0, characters=characters) == "curtin"
    assert not any("cousin" in text for text in asked)


def test_without_the_llm_words_stay(monkeypatch):
    likes(monkeypatch, curtain=1000)
    assert best(["the curtin"], flat(60, 28), None, 0.0) == "the curtin"


def test_a_text_that_has_no_room_in_the_recording_is_never_chosen(llm):
    assert best(["the cat sat on the mat", "the"], flat(8, 28), llm, 0.5) == "the"


def test_transcripts_of_a_model_are_rescored(llm):
    """Two texts that the recording supports alike: the LLM decides."""
    heard = flat(8, 28)
    texts = ["the cat", "the hat"]
    spelling = rescoring.spelling_scores(Projector.targets(texts)[0], heard)
    language = rescoring.text_scores(texts, llm)
    expected = texts[int((spelling + 50 * language).argmax())]
    for order in (texts, texts[::-1]):
        assert best(order, heard, llm, 50) == expected


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_a_wrong_weight_is_refused(wrong):
    from ossicle.models.joint import generate_jointly

    with pytest.raises(ConfigError, match="lm_weight"):
        generate_jointly(None, None, lm_weight=wrong)
