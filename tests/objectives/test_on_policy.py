"""On-policy distillation: the answers are the model's own, and the divergence is that of a computation by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from ossicle.batch import Batch, pad_ids
from ossicle.models.speech_llm import IGNORE
from ossicle.objectives import distillation
from ossicle.objectives.on_policy import OnPolicy, _reverse
from ossicle.train.recipe import parse


@pytest.fixture
def batch(model, task_manifest, collate) -> Batch:
    return collate(model, task_manifest, range(6))


def log_probabilities(model, batch: Batch, answers: list[list[int]], side: str) -> torch.Tensor:
    """Compute log-probabilities (K, vocabulary) of the whole LLM, one utterance at a time."""
    heard = model.text(batch) if side == "text" else model.speech(batch)
    embeds, labels = model.chat_inputs(replace(batch.chat, answer=pad_ids(answers)), heard)
    found = []
    for values, mask, row in zip(embeds.values, embeds.mask, labels, strict=True):
        logits = model.llm.model(inputs_embeds=values[mask][None]).logits[0]
        found.append(logits[:-1][row[mask][1:] != IGNORE].log_softmax(-1))
    return torch.cat(found)


def greedy(model, batch: Batch, longest: int) -> list[list[int]]:
    """Decode with transformers, one utterance at a time."""
    prompt = model.prompt(batch.chat, model.speech(batch))
    settings = GenerationConfig(max_new_tokens=longest, do_sample=False, eos_token_id=model.llm.stop_ids)
    ids = []
    for values, mask in zip(prompt.values, prompt.mask, strict=True):
        out = model.llm.model.generate(inputs_embeds=values[mask][None].detach(), generation_config=settings)
        ids.append(out[0].tolist())
    return ids


def test_the_objective_by_hand(model, batch):
    answers = greedy(model, batch, 5)
    student, teacher = (log_probabilities(model, batch, answers, side) for side in ("speech", "text"))
    expected = F.kl_div(teacher, student, log_target=True, reduction="batchmean")  # KL(student || teacher)
    output = OnPolicy(max_new_tokens=5)(model, batch)  # greedy, because the model is in evaluation mode
    torch.testing.assert_close(output.total, expected, atol=1e-6, rtol=1e-4)
    assert output.parts["on_policy/tokens"].item() == pytest.approx(len(student) / len(batch))
    assert not output.parts["on_policy"].requires_grad


def test_the_divergence_is_the_reverse_one():
    teacher, student = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(_reverse(teacher, student), (q * (q / p).log()).sum(-1))
    assert abs(float(_reverse(teacher, student) - _reverse(student, teacher))) > 0.1


def test_sampled_answers_follow_the_seed_and_the_temperature(model, batch):
    def draw(seed, temperature):
        torch.manual_seed(seed)
        return OnPolicy(max_new_tokens=4, temperature=temperature).answers(model, batch.chat, speech).values

    speech = model.eval().speech(batch)
    assert draw(0, 1.0).tolist() == pad_ids(greedy(model, batch, 4)).values.tolist()
    model.train()
    assert torch.equal(draw(0, 1.0), draw(0, 1.0))
    assert not torch.equal(draw(0, 1.0), draw(1, 1.0))
    assert torch.equal(draw(0, 0.0), draw(1, 0.0))


def test_the_gradient_moves_the_projector_alone_and_lowers_the_divergence(build, task_manifest, collate):
    model = build(dropout=0.0)
    batch = collate(model, task_manifest, range(6))
    objective = OnPolicy(max_new_tokens=4)
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=3e-3)
    before = objective(model, batch).total.item()
    model.train()
    for step in range(30):
        output = objective(model, batch)
        optimizer.zero_grad()
        output.total.backward()
        if step == 0:
            assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())
            assert max(p.grad.abs().max() for p in model.projector.parameters()) > 0
        optimizer.step()
    assert objective(model.eval(), batch).total.item() < 0.7 * before


def test_without_a_share_the_answers_are_those_of_the_data(model, batch):
    model.train()
    output = OnPolicy(share=0.0)(model, batch)
    assert output.parts["on_policy/tokens"].item() == pytest.approx(batch.chat.answer.mask.sum(1).float().mean())


def test_nothing_is_left_to_learn_when_speech_is_its_text_and_chunks_change_nothing(model, batch, monkeypatch):
    matched = Batch(samples=batch.samples, text=batch.text, chat=batch.chat, speech=model.text(batch))
    assert OnPolicy(max_new_tokens=3)(model, matched).total.abs() < 1e-6
    whole = OnPolicy(max_new_tokens=3)(model, batch).total
    monkeypatch.setattr(distillation, "CHUNK_LOGITS", 4 * model.llm.model.config.vocab_size)
    torch.testing.assert_close(OnPolicy(max_new_tokens=3)(model, batch).total, whole)


def test_it_needs_chat_turns_and_transcripts_and_a_recipe_names_it(model, batch, tree):
    with pytest.raises(ValueError, match="no chat turns"):
        OnPolicy()(model, Batch(samples=batch.samples, text=batch.text, speech=model.text(batch)))
    with pytest.raises(ValueError, match="add 'text'"):
        OnPolicy()(model, Batch(samples=[], chat=batch.chat, speech=model.text(batch)))
    assert parse(tree(objective={"name": "on_policy", "share": 0.5})).objective == OnPolicy(share=0.5)
    assert not OnPolicy().needs_negatives and not OnPolicy().needs_mixed
