import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ossicle.batch import Batch, LossOutput
from ossicle.losses.contrastive import info_nce, pooled_cosine
from ossicle.models.speech_llm import IGNORE
from ossicle.objectives import Contrastive, NextToken, ObjectiveConfig, Sum, Term


def gradient_of(model, output: LossOutput) -> torch.Tensor:
    model.zero_grad()
    output.total.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()])


@pytest.fixture
def batch(model, manifest, collate) -> Batch:
    return collate(model, manifest)


@pytest.fixture
def task_batch(model, task_manifest, collate) -> Batch:
    return collate(model, task_manifest, range(6))


def similarity_by_hand(model, batch: Batch, layer: int) -> torch.Tensor:
    """Through the whole LLM of transformers, one utterance at a time."""
    pooled = []
    for side in (model.text(batch), model.speech(batch)):
        rows = []
        for values, mask in zip(side.values, side.mask, strict=True):
            states = model.llm.model(inputs_embeds=values[mask][None], output_hidden_states=True).hidden_states
            rows.append(states[layer][0].mean(0))
        pooled.append(torch.nn.functional.normalize(torch.stack(rows), dim=-1))
    return pooled[0] @ pooled[1].T


@pytest.mark.parametrize(
    ("layers", "expected"), [("embeddings", [0]), ("all", [0, 1, 2, 3]), (2, [2]), ([0, 3], [0, 3]), ([3, 1], [3, 1])]
)
def test_contrastive_compares_the_layers_asked_for(model, batch, layers, expected):
    output = Contrastive(layers=layers)(model, batch)
    assert list(output.parts) == [f"contrastive/{layer}" for layer in expected]
    for layer in expected:
        by_hand = info_nce(similarity_by_hand(model, batch, layer), temperature=0.1)
        torch.testing.assert_close(output.parts[f"contrastive/{layer}"], by_hand.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.total.detach(), torch.stack(list(output.parts.values())).sum())


def test_contrastive_over_embeddings_needs_no_pass_of_the_llm(model, batch):
    calls = []
    model.llm.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    Contrastive(layers="embeddings")(model, batch)
    assert calls == []


def test_layer_weights_and_temperature(model, batch):
    output = Contrastive(layers=[0, 2], layer_weights=[2.0, 0.5], temperature=0.7)(model, batch)
    first, second = output.parts.values()
    torch.testing.assert_close(output.total.detach(), 2.0 * first + 0.5 * second)
    text, speech = model.text(batch), model.speech(batch)
    similarity = pooled_cosine(text.values, text.mask, speech.values, speech.mask)
    torch.testing.assert_close(first, info_nce(similarity, temperature=0.7).detach())


def test_layer_weights_must_fit():
    with pytest.raises(ValueError, match=r"objective\.layer_weights has 1 entries for 4 layers"):
        Contrastive(layer_weights=[1.0]).layer_list(3)


def test_contrastive_falls_when_speech_is_its_text(model, batch):
    matched = Batch(samples=batch.samples, text=batch.text, speech=model.text(batch))
    assert Contrastive()(model, matched).total < 0.5 * Contrastive()(model, batch).total


@pytest.mark.parametrize("objective", [Contrastive(), NextToken(), NextToken(average="example")])
def test_gradients_reach_the_whole_projector_and_nothing_else(model, batch, objective):
    output = objective(model, batch)
    assert output.total.shape == ()
    assert not any(part.requires_grad for part in output.parts.values())
    assert gradient_of(model, output).abs().sum() > 0
    for name, parameter in model.projector.named_parameters():
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name  # a softmax cancels a key's bias
    assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())


def test_next_token_is_the_loss_of_transformers(model, task_batch):
    embeds, labels = model.chat_inputs(task_batch.chat, model.speech(task_batch))
    whole = model.llm.model(inputs_embeds=embeds.values, attention_mask=embeds.mask.long(), labels=labels)
    output = NextToken()(model, task_batch)
    torch.testing.assert_close(output.total, whole.loss, atol=1e-5, rtol=1e-5)
    assert list(output.parts) == ["next_token"]


def test_the_average_over_examples_weighs_short_answers_as_much(model, task_batch):
    embeds, labels = model.chat_inputs(task_batch.chat, model.speech(task_batch))
    losses, counts = [], []
    for values, mask, row in zip(embeds.values, embeds.mask, labels, strict=True):
        losses.append(model.llm.model(inputs_embeds=values[mask][None], labels=row[mask][None]).loss)
        counts.append(int((row != IGNORE).sum()))
    losses, counts = torch.stack(losses).detach(), torch.tensor(counts)
    assert len(set(counts.tolist())) > 2
    example, token = (NextToken(average=average)(model, task_batch).total.detach() for average in ("example", "token"))
    torch.testing.assert_close(example, losses.mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(token, (losses * counts).sum() / counts.sum(), atol=1e-5, rtol=1e-5)
    assert abs(example - token) > 1e-4


def test_next_token_needs_chat_turns(model, batch):
    with pytest.raises(ValueError, match="no chat turns"):
        NextToken()(model, Batch(samples=batch.samples, waveforms=batch.waveforms))


def test_a_sum_projects_the_speech_once(model, batch):
    calls = []
    model.projector.register_forward_hook(lambda *_: calls.append(1))
    terms = [Term(objective=Contrastive(layers=[0, 2]), weight=0.5), Term(objective=NextToken(), weight=3.0)]
    both = Sum(terms=terms).build()(model, batch)
    assert len(calls) == 1
    first, second = (term.objective(model, batch) for term in terms)
    torch.testing.assert_close(both.total, 0.5 * first.total + 3.0 * second.total)
    assert both.parts == first.parts | second.parts
    expected = 0.5 * gradient_of(model, first) + 3.0 * gradient_of(model, second)
    distance = (gradient_of(model, Sum(terms=terms).build()(model, batch)) - expected).norm() / expected.norm()
    assert distance < 1e-5  # of the whole: a single element near zero may differ by rounding alone


def test_only_a_comparison_of_utterances_needs_negatives():
    contrastive, next_token = Term(objective=Contrastive()), Term(objective=NextToken())
    assert Contrastive().needs_negatives
    assert not NextToken().needs_negatives
    assert Sum(terms=[next_token, contrastive]).build().needs_negatives
    assert not Sum(terms=[next_token]).build().needs_negatives


def test_the_name_selects_the_objective():
    parse = TypeAdapter(ObjectiveConfig).validate_python
    assert parse({"name": "contrastive", "layers": [0, 5]}) == Contrastive(layers=[0, 5])
    assert parse({"name": "next_token", "average": "example"}) == NextToken(average="example")
    summed = parse({"name": "sum", "terms": [{"objective": {"name": "contrastive", "layers": 3}, "weight": 2}]})
    assert summed == Sum(terms=[Term(objective=Contrastive(layers=3), weight=2.0)])
    with pytest.raises(ValidationError):
        parse({"name": "contrastve"})
    with pytest.raises(ValidationError):
        parse({"name": "contrastive", "temperature": 0})
