"""Options of the contrastive objective against attention sinks and unequal layers, against computations by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ossicle.batch import Batch
from ossicle.errors import ConfigError
from ossicle.losses.contrastive import info_nce, standardised, without_first
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.objectives import Contrastive, Sum, Term
from ossicle.objectives.balanced import BalancedLayers
from ossicle.train.cache import TextCache
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics

LAYERS = [0, 2, 3]


@pytest.fixture
def batch(model, manifest, collate) -> Batch:
    return collate(model, manifest)


def states_by_hand(model, side, layer: int, skip: int) -> list[torch.Tensor]:
    """Return the states of each sequence with the whole LLM of transformers, without the first ``skip``."""
    found = []
    for values, mask in zip(side.values, side.mask, strict=True):
        states = model.llm.model(inputs_embeds=values[mask][None], output_hidden_states=True).hidden_states
        found.append(states[layer][0, skip:])
    return found


def test_the_first_valid_position_is_left_out_unless_it_is_the_only_one():
    mask = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    assert without_first(mask).tolist() == [[False, True, True], [False, False, True], [True, False, False]]


@pytest.mark.parametrize("cached", [False, True])
def test_skip_first_by_hand(model, batch, tmp_path, cached):
    objective = Contrastive(layers=LAYERS, skip_first=True)
    if cached:
        model.text_cache = TextCache(tmp_path, model.llm)
        objective.read_text(model, batch)
    output = objective(model, batch)
    for layer in LAYERS:
        sides = [states_by_hand(model, side, layer, 1) for side in (model.text(batch), model.speech(batch))]
        text, speech = (F.normalize(torch.stack([rows.mean(0) for rows in side]), dim=-1) for side in sides)
        expected = info_nce(text @ speech.T).detach()
        atol, rtol = (0.02, 0.02) if cached else (1e-5, 1e-4)  # the cache holds half precision
        torch.testing.assert_close(output.parts[f"contrastive/{layer}"], expected, atol=atol, rtol=rtol)


def test_skip_first_of_the_wasserstein_similarity(model, batch):
    output = Contrastive(similarity="wasserstein", layers=[2], skip_first=True)(model, batch)
    text, speech = (
        torch.nn.utils.rnn.pad_sequence(states_by_hand(model, side, 2, 1), batch_first=True)
        for side in (model.text(batch), model.speech(batch))
    )
    masks = [side.mask[:, 1:] for side in (model.text(batch), model.speech(batch))]
    expected = info_nce(wasserstein_similarity(text, masks[0], speech, masks[1])).detach()
    torch.testing.assert_close(output.parts["contrastive/2"], expected, atol=1e-4, rtol=1e-3)


def test_standardised_by_hand():
    text = torch.tensor([[[0.0, 10.0, 5.0], [2.0, 30.0, 5.0]]])
    speech = torch.tensor([[[3.0, 20.0, 5.5]]])
    wide = (1 + 10 + 0) / 3 * 0.1  # the least spread that counts
    found_text, found_speech = standardised(text, speech)
    torch.testing.assert_close(found_text, torch.tensor([[[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]]))
    torch.testing.assert_close(found_speech, torch.tensor([[[2.0, 0.0, 0.5 / wide]]]))


def test_standardise_by_hand_and_a_shared_large_dimension_no_longer_decides(model, batch):
    output = Contrastive(layers=LAYERS, standardise=True)(model, batch)
    for layer in LAYERS:
        sides = [states_by_hand(model, side, layer, 0) for side in (model.text(batch), model.speech(batch))]
        text, speech = (torch.stack([rows.mean(0) for rows in side])[None] for side in sides)
        text, speech = (F.normalize(side[0], dim=-1) for side in standardised(text, speech))
        expected = info_nce(text @ speech.T).detach()
        torch.testing.assert_close(output.parts[f"contrastive/{layer}"], expected, atol=1e-4, rtol=1e-3)
    sink = torch.zeros(8)
    sink[3] = 1e3
    plain = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with_sink = [F.normalize(each, dim=-1) for each in standardised(plain + sink, plain + sink)]
    without = [F.normalize(each, dim=-1) for each in standardised(plain, plain)]
    torch.testing.assert_close(with_sink[0] @ with_sink[1].mT, without[0] @ without[1].mT, atol=1e-3, rtol=1e-3)


def test_balanced_layers_pull_equally(model, batch):
    objective = Contrastive(layers=LAYERS, balance_every=1).build()
    assert isinstance(objective, BalancedLayers)
    first = model.speech(batch)
    batch = replace(batch, speech=replace(first, values=first.values.detach().requires_grad_()))
    output = objective.train()(model, batch)
    factors = [float(output.parts[f"balance/{layer}"]) for layer in LAYERS]
    pulls = []
    for layer, factor in zip(LAYERS, factors, strict=True):
        loss = Contrastive(layers=[layer])(model, batch).total
        pulls.append(factor * float(torch.autograd.grad(loss, batch.speech.values)[0].norm()))
    assert max(pulls) / min(pulls) == pytest.approx(1, rel=1e-3)
    assert torch.tensor(factors).prod().item() == pytest.approx(1, rel=1e-4)
    single = [float(output.parts[f"contrastive/{layer}"]) for layer in LAYERS]
    assert float(output.total.detach()) == pytest.approx(
        sum(f * s for f, s in zip(factors, single, strict=True)), rel=1e-4
    )
    assert max(factors) / min(factors) > 1.2


def test_the_balance_is_measured_every_so_many_steps_and_saved(model, batch):
    objective = Contrastive(layers=LAYERS, balance_every=2).build().train()
    seen = []
    for scale in (1.0, 3.0, 3.0):
        speech = model.speech(batch)
        moved = replace(batch, speech=replace(speech, values=scale * speech.values))
        objective(model, moved)
        seen.append(objective.norms.clone())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    again = Contrastive(layers=LAYERS, balance_every=2).build()
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.norms, seen[2]) and int(again.step) == 3
    with torch.no_grad():
        expected, found = (each.eval()(model, batch).total for each in (objective, again))
    assert torch.equal(expected, found)


def losses(folder) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]


def test_a_killed_run_with_balanced_layers_continues_as_if_nothing_had_happened(config, monkeypatch):
    settings = {
        "objective": {"name": "contrastive", "layers": [0, 2], "balance_every": 2, "skip_first": True},
        "train": {"steps": 5, "save_every": 3},
    }
    whole = losses(train(config(name="whole", **settings)))
    forward = BalancedLayers.forward

    def dies(self, *arguments):
        if int(self.step) == 4:
            raise RuntimeError("killed")
        return forward(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(BalancedLayers, "forward", dies)
        train(config(name="killed", **settings))
    assert losses(train(config(name="killed", **settings), resume=True)) == whole
    assert len(whole) == 5


def test_it_is_a_term_of_a_sum_and_contradictions_are_refused(model, batch):
    built = Sum(terms=[Term(objective=Contrastive(layers=LAYERS, balance_every=1), weight=0.5)]).build()
    assert built(model, batch).total.isfinite()
    with pytest.raises(ValueError, match=r"set objective\.similarity=cosine"):
        Contrastive(similarity="wasserstein", standardise=True)
    with pytest.raises(ValueError, match="does not go with learn_temperature"):
        Contrastive(balance_every=3, learn_temperature=True)
    model.text_cache = object()
    with pytest.raises(ConfigError, match=r"set objective\.skip_first=false"):
        Contrastive(bank=3, direction="symmetric", skip_first=True)._banked(model, batch, [0])
