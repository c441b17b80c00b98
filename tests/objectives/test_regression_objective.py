"""The regression to text embeddings as an objective, alone and in a sum."""

from dataclasses import replace

import pytest
import torch

from ossicle.batch import Batch
from ossicle.losses.regression import even_plans, regression_loss, transport_plans
from ossicle.models.projectors import CTCConfig
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, Sum, Term, WeightedSum
from ossicle.objectives.regression import Regression


@pytest.fixture
def batch(model, manifest, collate) -> Batch:
    return collate(model, manifest)


@pytest.mark.parametrize("settings", [{}, {"order": 0.0, "entropy": 0.2, "cosine": 0.5}, {"alignment": "even"}])
def test_the_objective_by_hand(model, batch, settings):
    objective = Regression(**settings)
    text, speech = model.text(batch), model.speech(batch)
    table = model.llm.model.get_input_embeddings().weight
    x, y = text.values - table.mean(0), speech.values - table.mean(0)
    if objective.alignment == "even":
        plan = even_plans(text.mask, speech.mask)
    else:
        plan = transport_plans(x, text.mask, y, speech.mask, entropy=objective.entropy, order=objective.order)
    variance = float((table - table.mean(0)).square().mean())
    expected = regression_loss(plan, x, y, variance=variance, cosine=objective.cosine).mean()
    output = objective(model, batch)
    torch.testing.assert_close(output.total, expected, rtol=1e-4, atol=1e-5)
    assert list(output.parts) == ["regression"] and not output.parts["regression"].requires_grad


def test_the_mean_embedding_costs_about_one_and_the_text_itself_nothing(model, batch):
    text = model.text(batch)
    table = model.llm.model.get_input_embeddings().weight.detach()
    mean = replace(batch, speech=replace(text, values=table.mean(0).expand_as(text.values)))
    assert 0.5 < float(Regression(alignment="even")(model, mean).total) < 1.5
    matched = replace(batch, speech=text)
    for alignment in ("transport", "even"):
        assert float(Regression(alignment=alignment, cosine=1.0)(model, matched).total) < 0.05


def test_gradients_reach_the_projector_and_the_llm_does_not_run(model, batch):
    calls = []
    model.llm.model.base_model.register_forward_hook(lambda *_: calls.append(1))
    Regression()(model, batch).total.backward()
    assert calls == []
    for name, parameter in model.projector.named_parameters():
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())


def test_it_is_a_term_beside_the_contrastive_one(model, batch):
    contrastive, regression = Contrastive(similarity="wasserstein", layers="embeddings"), Regression()
    summed = WeightedSum([(1.0, contrastive), (0.3, regression)])(model, batch)
    expected = contrastive(model, batch).total + 0.3 * regression(model, batch).total
    torch.testing.assert_close(summed.total, expected)
    assert set(summed.parts) == {"contrastive/0", "regression"}


def test_the_loss_falls(model, batch):
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        output = Regression()(model, batch)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.total.item())
    assert losses[-1] < 0.6 * losses[0]  # the mean embedding would reach 1 / 1.8


def test_the_prompt_of_the_ctc_projector_stands_for_no_word_and_has_a_gradient(model, batch):
    sizes = CTCConfig(width=16, heads=2, layers=2, ffn=24, kernel=3, dropout=0.0, prompt=3)
    model = SpeechLLM(model.encoder, model.llm, replace(model.config, projector=sizes)).eval()
    speech = model.speech(batch)
    without = replace(speech, values=speech.values[:, 3:], mask=speech.mask[:, 3:])
    output = Regression(alignment="even")(model, batch)
    text = model.text(batch)
    mean = model.llm.embedding_mean
    plan = even_plans(text.mask, without.mask)
    variance = float((model.llm.model.get_input_embeddings().weight - mean).square().mean())
    expected = regression_loss(plan, text.values - mean, without.values - mean, variance=variance).mean()
    torch.testing.assert_close(output.total, expected, rtol=1e-4, atol=1e-5)
    output.total.backward()
    assert model.projector.prompt.grad is not None and float(model.projector.prompt.grad.abs().max()) == 0


def test_it_needs_transcripts(model, batch):
    with pytest.raises(ValueError, match="add 'text'"):
        Regression()(model, Batch(samples=[], speech=model.speech(batch)))
    assert not Regression().needs_negatives and not Regression().needs_mixed
    assert Sum(terms=[Term(objective=Contrastive())]).build().needs_negatives
