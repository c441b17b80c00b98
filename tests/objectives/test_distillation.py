import pytest
import torch
import torch.nn.functional as F

from ossicle.batch import Batch
from ossicle.losses.distillation import kl_divergence
from ossicle.models.speech_llm import IGNORE
from ossicle.objectives import Contrastive, Distillation, Sum, Term, distillation


@pytest.fixture
def batch(model, task_manifest, collate) -> Batch:
    return collate(model, task_manifest, range(6))


def logits_by_hand(model, batch: Batch, side: str) -> list[torch.Tensor]:
    """Compute the logits of each answer (A, vocabulary) with the whole LLM, one utterance at a time."""
    heard = model.text(batch) if side == "text" else model.speech(batch)
    embeds, labels = model.chat_inputs(batch.chat, heard)
    found = []
    for values, mask, row in zip(embeds.values, embeds.mask, labels, strict=True):
        logits = model.llm.model(inputs_embeds=values[mask][None]).logits[0]
        found.append(logits[:-1][row[mask][1:] != IGNORE])
    return found


def test_the_divergence_by_hand():
    teacher, student = (
        torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]]),
    )
    p = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    expected = (p * (p / (1 / 3)).log()).sum()
    torch.testing.assert_close(kl_divergence(teacher, student), torch.stack([expected, torch.tensor(0.0)]))
    soft = F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(teacher, student, temperature=2.0), soft)
    assert kl_divergence(teacher.bfloat16(), student.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_objective_by_hand(model, batch, temperature):
    teacher, student = (torch.cat(logits_by_hand(model, batch, side)) for side in ("text", "speech"))
    expected = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    output = Distillation(temperature=temperature)(model, batch)
    torch.testing.assert_close(output.total, expected, atol=1e-6, rtol=1e-4)
    assert len(teacher) == int(batch.chat.answer.mask.sum())
    assert list(output.parts) == ["distillation"] and not output.parts["distillation"].requires_grad


def test_nothing_is_left_to_learn_when_speech_is_its_text(model, batch):
    matched = Batch(samples=batch.samples, text=batch.text, chat=batch.chat, speech=model.text(batch))
    assert Distillation()(model, matched).total.abs() < 1e-6
    assert Distillation()(model, batch).total > 1e-4


def test_gradients_reach_the_projector_alone_and_chunks_change_nothing(model, batch, monkeypatch):
    gradients, totals = [], []
    for size in (distillation.CHUNK_LOGITS, 7 * model.llm.model.config.vocab_size):
        monkeypatch.setattr(distillation, "CHUNK_LOGITS", size)
        model.zero_grad()
        output = Distillation()(model, batch)
        output.total.backward()
        totals.append(output.total.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()]))
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-3)
    assert gradients[0].abs().max() > 0
    assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())


def test_padding_changes_nothing(model, task_manifest, collate, batch):
    counts = batch.chat.answer.mask.sum(1)
    singles = torch.stack([Distillation()(model, collate(model, task_manifest, [i])).total for i in range(6)])
    together = Distillation()(model, batch).total
    torch.testing.assert_close(together, (singles * counts).sum() / counts.sum(), atol=1e-6, rtol=1e-4)


def test_in_a_sum_the_speech_is_projected_once(model, batch):
    calls = []
    model.projector.register_forward_hook(lambda *_: calls.append(1))
    terms = [Term(objective=Contrastive(layers=[1])), Term(objective=Distillation(), weight=2.0)]
    output = Sum(terms=terms).build()(model, batch)
    assert len(calls) == 1
    first, second = (term.objective(model, batch).total for term in terms)
    torch.testing.assert_close(output.total, first + 2 * second)


def test_it_needs_chat_turns_and_transcripts(model, batch):
    with pytest.raises(ValueError, match="no chat turns"):
        Distillation()(model, Batch(samples=batch.samples, text=batch.text, speech=model.text(batch)))
    with pytest.raises(ValueError, match="add 'text'"):
        Distillation()(model, Batch(samples=[], chat=batch.chat, speech=model.text(batch)))
    assert not Distillation().needs_negatives and not Distillation().needs_mixed
