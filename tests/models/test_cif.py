"""The projector that integrates and fires, against a loop over positions, and its objective."""

from dataclasses import replace

import pytest
import torch

from ossicle.losses.quantity import quantity_loss
from ossicle.models.cif import integrate
from ossicle.models.projectors import CIFConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.objectives.cif import CIF
from ossicle.objectives.contrastive import Contrastive
from ossicle.objectives.next_token import NextToken
from ossicle.objectives.regression import Regression
from ossicle.objectives.weighted_sum import Sum, Term
from ossicle.train.recipe import parse, to_dict

SIZES = CIFConfig(width=16, heads=2, layers=1, ffn=24, kernel=3, position_s=0.02, dropout=0.0)


@pytest.fixture
def model(folders) -> SpeechLLM:
    torch.manual_seed(0)
    return ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=SIZES).build().eval()


@pytest.fixture
def batch(model, collate, manifest):
    return collate(model, manifest)


def fire(states, weights):
    """Integrate and fire as the paper writes it: position by position, weights below 1."""
    tokens, total, held = [], 0.0, torch.zeros_like(states[0])
    for state, weight in zip(states, weights.tolist(), strict=True):
        if total + weight < 1:
            total, held = total + weight, held + weight * state
        else:
            tokens.append(held + (1 - total) * state)
            total = total + weight - 1
            held = total * state
    if total >= 0.5:
        tokens.append(held / total)
    return torch.stack(tokens)


def test_it_fires_as_the_loop_does():
    generator = torch.Generator().manual_seed(0)
    states, weights = torch.randn(3, 40, 5, generator=generator), torch.rand(3, 40, generator=generator) * 0.6
    weights[1, 25:] = 0  # padding
    tokens, valid = integrate(states, weights)
    assert valid.sum(1).tolist() == [round(float(row.sum())) for row in weights]
    for row in range(3):
        torch.testing.assert_close(tokens[row][valid[row]], fire(states[row], weights[row]), atol=1e-4, rtol=1e-4)


def test_by_hand():
    states = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    tokens, valid = integrate(states, torch.tensor([[0.5, 0.8, 0.4, 0.6]]))
    torch.testing.assert_close(tokens[0, :, 0], torch.tensor([0.5 + 0.5 * 2, 0.3 * 2 + 0.4 * 4 + 0.3 * 8]))
    assert valid.tolist() == [[True, True]]  # the 0.3 that is left makes none
    tokens, valid = integrate(states, torch.tensor([[0.1, 0.0, 0.0, 0.1]]))
    torch.testing.assert_close(tokens[0, :, 0], torch.tensor([4.5]))  # at least one
    assert integrate(states, torch.zeros(1, 4))[1].shape == (1, 0)


def test_with_counts_every_utterance_has_that_many_tokens_of_equal_weight():
    generator = torch.Generator().manual_seed(1)
    states, weights = torch.randn(2, 12, 5, generator=generator), torch.rand(2, 12, generator=generator)
    tokens, valid = integrate(states, weights, torch.tensor([3, 20]))  # more tokens than positions is possible
    assert valid.sum(1).tolist() == [3, 20]
    mean = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    for row in range(2):
        torch.testing.assert_close(tokens[row][valid[row]].mean(0), mean[row], atol=1e-5, rtol=1e-4)


def test_the_gradient_of_the_weights_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(1, 6, 3, generator=generator)
    weights = (torch.rand(1, 6, generator=generator) * 0.8).requires_grad_()
    direction = torch.randn(1, 2, 3, generator=generator)

    def value(w):
        return (integrate(states, w, torch.tensor([2]))[0] * direction).sum()

    value(weights).backward()
    for place in range(6):
        step = torch.zeros(1, 6)
        step[0, place] = 1e-3
        by_hand = (value(weights.detach() + step) - value(weights.detach() - step)) / 2e-3
        assert float(weights.grad[0, place]) == pytest.approx(float(by_hand), abs=2e-3)


def test_padding_changes_nothing(model):
    frames = torch.randn(1, 20, model.encoder.dim, generator=torch.Generator().manual_seed(1))
    alone, mask = model.projector(frames, torch.ones(1, 20).bool())
    padded = torch.cat([frames, torch.full((1, 10, model.encoder.dim), 9.0)], 1)
    joined, joined_mask = model.projector(padded, torch.arange(30)[None] < 20)
    assert mask.sum() == joined_mask.sum() > 0
    torch.testing.assert_close(joined[joined_mask], alone[mask], rtol=1e-4, atol=1e-5)


def test_a_new_projector_makes_about_four_tokens_a_second_with_the_scale_of_embeddings(model):
    frames = torch.randn(2, 500, model.encoder.dim, generator=torch.Generator().manual_seed(1))
    tokens, mask = model.projector(frames, torch.ones(2, 500).bool())  # 10 s
    assert all(20 < count < 80 for count in mask.sum(1).tolist())
    assert float(tokens.detach()[mask].square().mean().sqrt()) == pytest.approx(model.llm.embedding_rms, rel=0.2)


def test_the_quantity_loss_by_hand():
    assert quantity_loss(torch.tensor([3.0, 5.0]), torch.tensor([4, 4])).item() == pytest.approx(0.25)


def test_in_training_the_tokens_are_as_many_as_those_of_the_text(model, batch):
    seen = []

    def spy(_model, inner):
        seen.append(inner.speech)
        return Regression(alignment="even")(_model, inner)

    objective = CIF(objective=Regression(alignment="even"), quantity=0.5).build()
    spy.needs_negatives = spy.needs_mixed = False
    objective.objective = spy
    wanted = batch.text.mask.sum(1)
    output = objective(model.train(), batch)
    assert seen[0].mask.sum(1).tolist() == wanted.tolist()
    weights = model.projector.weigh(*vars(model.frames(batch)).values())[1].sum(1)
    quantity = quantity_loss(weights, wanted)
    torch.testing.assert_close(output.parts["quantity"], quantity.detach())
    torch.testing.assert_close(output.total, output.parts["regression"] + 0.5 * quantity)
    objective(model.eval(), batch)
    torch.testing.assert_close(seen[1].values, model.speech(batch).values)


def test_every_parameter_trains_and_the_number_of_tokens_gets_right(model, batch):
    objective = CIF(objective=Regression(alignment="even")).build()
    model.train()
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-2)
    outputs = []
    for step in range(120):
        outputs.append(objective(model, batch))
        optimizer.zero_grad()
        outputs[-1].total.backward()
        if step == 0:
            for name, parameter in model.projector.named_parameters():
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        optimizer.step()
    first, last = (outputs[i].parts for i in (0, -1))
    assert last["quantity"] < 0.3 * first["quantity"]
    assert last["regression"] < 0.5 * first["regression"]
    model.eval()
    off = (model.speech(batch).mask.sum(1) - batch.text.mask.sum(1)).abs()
    assert int(off.max()) <= 1


def test_the_recipe_names_it_and_others_see_the_objectives_inside(tree, model, batch):
    inside = {"name": "sum", "terms": [{"objective": {"name": "contrastive", "layers": "embeddings"}}]}
    inside["terms"].append({"objective": {"name": "next_token"}, "weight": 0.5})
    config = parse(tree(objective={"name": "cif", "objective": inside, "quantity": 0.3}))
    terms = [Term(objective=Contrastive(layers="embeddings")), Term(objective=NextToken(), weight=0.5)]
    assert config.objective == CIF(objective=Sum(terms=terms), quantity=0.3)
    assert parse(to_dict(config)) == config
    assert [term.objective.name for term in config.objective.terms] == ["contrastive", "next_token"]
    built = config.objective.build()
    assert built.needs_negatives and not built.needs_mixed
    assert set(built(model, batch).parts) == {"contrastive/0", "next_token", "quantity"}


def test_wrong_uses_have_a_clear_error(build, batch, model):
    with pytest.raises(ValueError, match=r"model\.projector\.name=cif"):
        CIF(objective=NextToken()).build()(build(), batch)
    with pytest.raises(ValueError, match="add 'text'"):
        CIF(objective=NextToken()).build()(model, replace(batch, text=None, samples=[]))
    with pytest.raises(ValueError, match="even"):
        CIFConfig(kernel=4)


def test_a_saved_projector_loads(model, batch, tmp_path):
    model.save(tmp_path)
    again = SpeechLLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again.speech(batch).values, model.speech(batch).values)
