"""Free queries: speech tokens that the LLM reads, and that objectives against a text leave out."""

from __future__ import annotations

import pytest
import torch

from ossicle.batch import Padded
from ossicle.data.collate import Collator
from ossicle.data.mixed import Mixing
from ossicle.errors import CheckpointError, ModelError
from ossicle.models.projectors import QFormerConfig, aligned, aligned_share
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, MixedContrastive, NextToken, Sum

SIZES = {"width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "dropout": 0.0}


def projector(free=0):
    """A projector with windows of 5 frames, whose weights do not depend on the number of free queries."""
    torch.manual_seed(0)
    built = [
        QFormerConfig(**SIZES, window_s=0.1, free_queries=count).build(8, 12, frame_rate_hz=50.0, embedding_rms=0.5)
        for count in (0, free)
    ]
    return with_weights_of(*built).eval()


def with_weights_of(plain, other):
    lacking = other.load_state_dict(plain.state_dict(), strict=False)
    assert not lacking.unexpected_keys and set(lacking.missing_keys) <= {"free"}
    return other


@pytest.fixture
def models(build):
    """Two models with the same weights, without and with two free queries."""
    plain, free = build(), build(free_queries=2)
    with_weights_of(plain.projector, free.projector)
    return plain, free


def frames():
    torch.manual_seed(1)
    return torch.randn(3, 12, 8), torch.arange(12) < torch.tensor([[12], [6], [5]])  # 3, 2 and 1 windows


@pytest.mark.parametrize("free", [1, 3])
def test_the_other_tokens_are_the_same_as_without_them_and_come_first(free):
    plain, mask = projector()(*frames())
    tokens, valid = projector(free)(*frames())
    assert tokens.shape == (3, 3 * (2 + free), 12)
    torch.testing.assert_close(tokens[:, :6], plain)
    assert valid.tolist() == [
        [True] * 2 * windows + [False] * 2 * (3 - windows) + [True] * free * windows + [False] * free * (3 - windows)
        for windows in (3, 2, 1)
    ]
    assert torch.equal(valid[:, :6], mask)
    assert bool((tokens[~valid] == 0).all()) and bool((tokens[valid] != 0).any(1).all())


def test_a_free_token_reads_its_window_and_the_other_queries():
    model, (values, mask) = projector(1), frames()
    before, _ = model(values, mask)
    changed = values.clone()
    changed[0, :5] += torch.randn(5, 8)  # the first window of the first utterance
    after, _ = model(changed, mask)
    moved = (before != after).any(-1)
    assert moved.tolist() == [[True] * 2 + [False] * 4 + [True] + [False] * 2, [False] * 9, [False] * 9]
    with torch.no_grad():
        model.queries[0] += 1.0
    assert bool((model(values, mask)[0][:, 6:] != before[:, 6:])[0].any())


def test_padding_does_not_change_tokens():
    model, (values, mask) = projector(2), frames()
    tokens, valid = model(values, mask)
    for row, length in enumerate((12, 6, 5)):
        alone, _ = model(values[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], tokens[row][valid[row]])


def test_aligned_removes_them_and_keeps_others_as_they_are():
    plain, free = projector(), projector(2)
    speech = Padded(*free(*frames()))
    kept = aligned(free, speech)
    torch.testing.assert_close(kept.values, plain(*frames())[0])
    assert torch.equal(kept.mask, plain(*frames())[1])
    assert aligned_share(free) == 0.5 and aligned_share(plain) == 1
    same = Padded(*plain(*frames()))
    assert torch.equal(aligned(plain, same).values, same.values) and torch.equal(aligned(plain, same).mask, same.mask)


def test_every_free_token_counts_in_the_token_rate(build):
    assert build(free_queries=1).token_rate_hz == pytest.approx(1.5 * build().token_rate_hz)  # 2 queries


def losses(name, model, batch, utterances):
    if name == "mixed":
        batch = Collator(model.prompter(), Mixing(model.prompter()))(utterances)
    objectives = {
        "cosine": Contrastive(),
        "wasserstein": Contrastive(similarity="wasserstein", layers=[0, 2]),
        "regression": Sum(terms=[{"objective": {"name": "regression"}}]),
        "mixed": MixedContrastive(layers=[1, 2]),
        "both": Sum(terms=[{"objective": {"name": "contrastive"}}, {"objective": {"name": "next_token"}}]),
        "next_token": NextToken(),
    }
    return objectives[name].build()(model, batch).total


@pytest.mark.parametrize("name", ["cosine", "wasserstein", "regression", "mixed"])
def test_losses_against_a_text_neither_read_nor_train_them(models, collate, manifest, utterances, name):
    plain, free = models
    expected, found = (losses(name, m, collate(m, manifest), utterances) for m in (plain, free))
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    assert free.projector.free.grad.eq(0).all()  # and not None, for distributed training
    torch.testing.assert_close(free.projector.queries.grad, plain.projector.queries.grad)
    assert free.projector.queries.grad.ne(0).any()


@pytest.mark.parametrize("name", ["next_token", "both"])
def test_losses_of_answers_train_them(build, collate, manifest, utterances, name):
    model = build(free_queries=2)
    losses(name, model, collate(model, manifest), utterances).backward()
    assert model.projector.free.grad.ne(0).any(1).all()


def test_the_prompt_has_them_after_the_other_tokens(build, collate, manifest):
    model = build(free_queries=1)
    batch = collate(model, manifest)
    speech = model.speech(batch)
    prompt = model.prompt(batch.chat, speech)
    for row, count in enumerate(speech.mask.sum(1).tolist()):
        before, after = (int(part.mask[row].sum()) for part in (batch.chat.before, batch.chat.after))
        read = prompt.values[row][prompt.mask[row]][before:-after]
        torch.testing.assert_close(read, speech.values[row][speech.mask[row]])
        assert len(read) == count and count % 3 == 0
    answers = model.generate_batch(batch, max_new_tokens=4)
    alone = [model.generate_batch(collate(model, manifest, [i]), max_new_tokens=4)[0] for i in range(4)]
    assert answers == alone


def test_a_checkpoint_keeps_them_and_one_without_them_is_refused(models, collate, manifest, tmp_path):
    plain, free = models
    free.save(tmp_path / "free")
    plain.save(tmp_path / "plain")
    batch = collate(free, manifest)
    loaded = SpeechLLM.from_pretrained(tmp_path / "free", device="cpu")
    torch.testing.assert_close(loaded.speech(batch).values, free.speech(batch).values)
    with pytest.raises(CheckpointError, match=r"model\.projector\.free_queries=2, not 0: set it to 2"):
        plain.load_projector(tmp_path / "free")
    with pytest.raises(CheckpointError, match=r"model\.projector\.free_queries=0, not 2: set it to 0"):
        free.load_projector(tmp_path / "plain")


def test_granite_has_no_place_for_them(build):
    from ossicle.export.granite import check

    model = build(frame_norm="none", pad_windows="zero", free_queries=1)
    with pytest.raises(ModelError, match=r"free_queries=0 \(it is 1\)"):
        check(model, merge=True)
