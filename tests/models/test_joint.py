"""Joint decoding: prefix scores equal those of an enumeration, and transcripts follow the LLM and the spelling."""

import itertools
import math
from dataclasses import replace

import pytest
import soxr
import torch

from ossicle.errors import ConfigError
from ossicle.models.ctc import Spelling, is_sure
from ossicle.models.joint import JointScores, Search, at_speed
from ossicle.models.projectors import CTCConfig
from ossicle.models.recordings import batch_of
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.models.spoken_tokens import Letters
from ossicle.prompts import ASR_INSTRUCTIONS

SIZES = CTCConfig(width=16, heads=2, layers=2, ffn=24, kernel=3, dropout=0.0)
IDS, END, SILENT = [5, 7], 9, 3
"""Spoken tokens of a vocabulary of ten, the token that ends an answer, and one that is not heard."""
COLUMNS = torch.tensor([3, 3, 3, 3, 3, 0, 0, 1, 3, 2])  # token 6 begins with the spoken token 5


class Spoken:
    """Spoken tokens of which the first is written "a" and the second " b": its label in a text is 2 or 1, 2."""

    ids = IDS
    letters = Letters(later=torch.tensor([[3, 0], [1, 2]]), first=torch.tensor([[3, 0], [2, 0]]))


def spelling_of(probabilities: torch.Tensor, characters: torch.Tensor | None = None) -> Spelling:
    mask = torch.ones(probabilities.shape[:2], dtype=torch.bool)
    characters = probabilities if characters is None else characters
    return Spelling(probabilities.log(), characters.log(), mask, probabilities)


def scores_of(spelling: Spelling, weight: float, character_weight: float = 0.0) -> JointScores:
    search = Search(beams=1, ctc_weight=weight, character_weight=character_weight)
    return JointScores(spelling, Spoken(), COLUMNS, END, search)


def text_of(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def mass(probabilities: torch.Tensor, wanted) -> float:
    """Return the probability of all paths through (P, V) whose text is ``wanted``."""
    total = 0.0
    for path in itertools.product(range(probabilities.shape[1]), repeat=len(probabilities)):
        if wanted(text_of(path)):
            total += float(torch.tensor([probabilities[p, label] for p, label in enumerate(path)]).prod())
    return total


@pytest.mark.parametrize("text", [(), (1,), (1, 1), (1, 2), (2, 2, 1)])
def test_prefix_scores_equal_the_sum_over_all_paths(text):
    torch.manual_seed(0)
    probabilities = torch.rand(6, 3).double().softmax(-1)
    scores = scores_of(spelling_of(probabilities[None]), 1.0)
    flat = torch.zeros(1, 10)
    for length in range(len(text) + 1):
        prefix = torch.tensor([[IDS[label - 1] for label in text[:length]]], dtype=torch.long)
        out = scores(prefix, flat)[0]

    begins = mass(probabilities, lambda found: found[: len(text)] == text)
    for label, token in enumerate(IDS, 1):
        longer = (*text, label)
        expected = mass(probabilities, lambda found, longer=longer: found[: len(longer)] == longer) / begins
        assert out[token].exp().item() == pytest.approx(expected, rel=1e-5)
    assert out[END].exp().item() == pytest.approx(mass(probabilities, lambda found: found == text) / begins, rel=1e-5)
    assert torch.isinf(out[[0, 1, 2, 3, 4, 6, 8]]).all(), "only spoken tokens and the end can follow"


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("text", [(), (1,), (2,), (1, 1), (2, 2), (2, 1)])
def test_characters_share_in_the_score(text, share):
    torch.manual_seed(0)
    tokens = torch.rand(6, 3).double().softmax(-1)
    characters = (8 * torch.rand(6, 4).double()).softmax(-1)
    assert is_sure(characters.log())
    scores = scores_of(spelling_of(tokens[None], characters[None]), 1.0, share)

    def written(labels):
        letters = [Spoken.letters.later if k else Spoken.letters.first for k in range(len(labels))]
        return tuple(c for rows, label in zip(letters, labels, strict=True) for c in rows[label - 1].tolist() if c)

    def gains(probabilities, spelled, longer):
        """Return the log-probability of each text of ``longer``, and of the end, minus that of ``spelled``."""
        begins = [mass(probabilities, lambda f, t=t: f[: len(t)] == t) for t in longer]
        whole = mass(probabilities, lambda f: f == spelled)
        return torch.tensor([*begins, whole]).double().log() - math.log(
            mass(probabilities, lambda f: f[: len(spelled)] == spelled)
        )

    for length in range(len(text) + 1):
        prefix = torch.tensor([[IDS[label - 1] for label in text[:length]]], dtype=torch.long)
        out = scores(prefix, torch.zeros(1, 10))[0]

    longer = [(*text, 1), (*text, 2)]
    by_tokens = gains(tokens, text, longer)
    by_characters = gains(characters, written(text), [written(t) for t in longer])
    expected = (1 - share) * by_tokens + share * by_characters
    assert torch.allclose(out[[*IDS, END]].double(), expected, rtol=1e-5)


def test_characters_that_were_never_trained_do_not_count():
    torch.manual_seed(0)
    tokens, unsure = torch.rand(1, 6, 3).softmax(-1), torch.rand(1, 12, 4).softmax(-1)
    flat = torch.zeros(1, 10)
    empty = torch.zeros(1, 0, dtype=torch.long)
    alone = scores_of(spelling_of(tokens), 1.0)(empty, flat)
    assert torch.equal(scores_of(spelling_of(tokens, unsure), 1.0, 0.5)(empty, flat), alone)


def test_the_llm_counts_longer_tokens_for_their_beginning_and_ignores_what_is_not_heard():
    probabilities = torch.full((1, 4, 3), 1 / 3).double()
    scores = scores_of(spelling_of(probabilities), 0.0)
    given = torch.full((1, 10), 1e-9)
    given[0, [SILENT, 5, 6, 7, END]] = torch.tensor([0.5, 0.1, 0.2, 0.15, 0.05])

    out = scores(torch.zeros(1, 0, dtype=torch.long), given.log())[0].exp()

    assert out[[5, 7, END]].tolist() == pytest.approx([0.6, 0.3, 0.1], rel=1e-4)


@pytest.fixture(scope="module")
def model(folders) -> SpeechLLM:
    torch.manual_seed(0)
    return ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=SIZES).build().eval()


def certain(model: SpeechLLM, texts: list[str]):
    """Return a spelling that is nearly sure of ``texts``."""
    labels = [[label for k in model.projector.spoken.spell(text) for label in (k + 1, 0)] for text in texts]
    size = 1 + len(model.projector.spoken.ids)
    tokens = torch.full((len(texts), max(map(len, labels)), size), 1e-6)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for row, line in enumerate(labels):
        tokens[row, range(len(line)), line] = 1.0
        mask[row, : len(line)] = True
    characters = torch.full((*mask.shape, 257), 1 / 257).repeat_interleave(2, dim=1)  # say nothing
    return Spelling(tokens.log(), characters.log(), mask, torch.zeros(*mask.shape, SIZES.width))


def test_transcripts_follow_a_sure_spelling_and_other_answers_do_not(model, collate, manifest, monkeypatch):
    batch = collate(model, manifest)
    texts = [f"the cat sat on {'the ' * row}mat" for row in range(len(batch))]
    spelling = certain(model, texts)
    monkeypatch.setattr("ossicle.models.joint.spelled", lambda _, frames: rows_of(spelling, len(frames.mask)))
    transcripts = [replace(sample, task="asr") for sample in batch.samples]

    found = model.generate_batch(replace(batch, samples=transcripts), max_new_tokens=60)
    asked = [replace(sample, task="qa", instruction="who?") for sample in batch.samples]
    answers = model.generate_batch(replace(batch, samples=asked), max_new_tokens=5)
    greedy = model.llm.generate(model.prompt(batch.chat, model.speech(batch)), max_new_tokens=5)

    assert found == texts
    assert answers == greedy


def test_a_long_transcript_does_not_disturb_a_short_one(model, collate, manifest, monkeypatch):
    batch = collate(model, manifest)
    texts = ["mat", *["the cat sat on the mat and then " * 3 + "the cat ran"] * (len(batch) - 1)]
    monkeypatch.setattr("ossicle.models.joint.spelled", lambda *_: certain(model, texts))
    transcripts = [replace(sample, task="asr") for sample in batch.samples]
    assert model.generate_batch(replace(batch, samples=transcripts), max_new_tokens=200) == texts


def rows_of(spelling: Spelling, count: int) -> Spelling:
    return Spelling(
        spelling.tokens[:count], spelling.characters[:count], spelling.mask[:count], spelling.states[:count]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        *({"ctc_weight": 1.1}, {"ctc_weight": -0.1}, {"character_weight": 2}, {"num_beams": 0}),
        *({"speeds": 0.9}, {"speeds": [0.9, 3]}, {"speeds": ["fast"]}, {"speeds": [0.9], "temperature": 1.0}),
    ],
)
def test_wrong_settings_are_refused(model, collate, manifest, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        model.generate_batch(collate(model, manifest), **wrong)


def test_transcripts_have_no_apostrophes_that_stand_alone(model, collate, manifest, monkeypatch):
    batch = collate(model, manifest)
    monkeypatch.setattr("ossicle.models.joint.spelled", lambda *_: certain(model, ["cat"] * len(batch)))
    monkeypatch.setattr("ossicle.models.joint.best_text", lambda *_, **__: "' the cat's mat '")
    assert model.generate_batch(batch, max_new_tokens=60) == ["the cat's mat"] * len(batch)


def judged(monkeypatch) -> list:
    """Return a list that gets the texts and the judge of every utterance."""
    asked = []
    monkeypatch.setattr("ossicle.models.joint.best_text", lambda *given: asked.append(given) or given[0][0])
    return asked


def test_recordings_are_heard_at_further_speeds(model, collate, manifest, monkeypatch):
    batch, asked = collate(model, manifest), judged(monkeypatch)
    faster = at_speed(batch, 1.25)
    assert faster.waveforms.mask.sum(1).tolist() == pytest.approx((batch.waveforms.mask.sum(1) / 1.25).tolist(), abs=2)
    for row, (values, valid) in enumerate(zip(faster.waveforms.values, faster.waveforms.mask, strict=True)):
        own = batch.waveforms.values[row][batch.waveforms.mask[row]].numpy()
        assert torch.equal(values[valid], torch.from_numpy(soxr.resample(own, 20000, 16000)))

    model.generate_batch(batch, max_new_tokens=8)
    model.generate_batch(faster, max_new_tokens=8)
    alone, others = asked[: len(batch)], asked[len(batch) :]
    asked.clear()
    model.generate_batch(batch, max_new_tokens=8, speeds=[1.25])
    for (texts, judge), (own, heard), (further, at_other) in zip(asked, alone, others, strict=True):
        assert texts == own + further
        for found, expected in zip(judge.heard, [*heard.heard, *at_other.heard], strict=True):
            torch.testing.assert_close(found.tokens, expected.tokens)
            torch.testing.assert_close(found.characters, expected.characters)


def test_the_same_speed_and_a_speed_twice_count_once(model, collate, manifest, monkeypatch):
    batch, asked = collate(model, manifest), judged(monkeypatch)
    model.generate_batch(batch, max_new_tokens=4, speeds=[1, 1.1, 1.1])
    assert [len(judge.heard) for _, judge in asked] == [2] * len(batch)


def test_a_very_short_recording_keeps_its_speed(model):
    batch = batch_of(model, [torch.rand(3000) - 0.5, torch.rand(16000) - 0.5], ASR_INSTRUCTIONS[0])
    assert at_speed(batch, 2.0).waveforms.mask.sum(1).tolist() == [3000, 8000]
    assert len(model.generate_batch(batch, max_new_tokens=4, speeds=[2.0])) == 2


def test_speeds_need_waveforms_and_a_model_that_spells(model, collate, manifest, build):
    batch = collate(model, manifest)
    with pytest.raises(ConfigError, match="need its waveforms"):
        model.generate_batch(replace(batch, frames=model.frames(batch), waveforms=None), speeds=[0.9])
    other = build()
    with pytest.raises(ConfigError, match="only models that spell"):
        other.generate_batch(collate(other, manifest), speeds=[0.9])


@pytest.mark.parametrize("own_transcript", [False, True])
@pytest.mark.parametrize("instruction", ["who sat?", ASR_INSTRUCTIONS[0]])
def test_a_streamed_answer_is_the_whole_one_with_the_same_settings(model, instruction, own_transcript):
    sound = torch.rand(16000) - 0.5
    how = {"lm_weight": 0.3, "speeds": [0.9]} if not own_transcript else {"own_transcript": True}
    whole = model.generate(sound, instruction, max_new_tokens=6, **how)
    assert "".join(model.generate(sound, instruction, max_new_tokens=6, stream=True, **how)).strip() == whole[0]


def test_a_streamed_answer_of_another_model_has_no_speeds(build):
    with pytest.raises(ConfigError, match="only models that spell"):
        build().generate(torch.rand(16000) - 0.5, "who?", speeds=[0.9], stream=True)
