import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ossicle.batch import Batch, LossOutput
from ossicle.losses.contrastive import info_nce, mean_pool, pooled_cosine
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.models.speech_llm import IGNORE
from ossicle.objectives import Contrastive, NextToken, ObjectiveConfig, Sum, Term
from ossicle.train.cache import TextCache


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
    """Compute hidden states with the whole LLM of transformers, one utterance at a time."""
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
        Contrastive(layer_weights=[1.0]).weights(3)


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


def test_wasserstein_compares_the_states_of_all_tokens(model, batch):
    output = Contrastive(similarity="wasserstein", layers=[0, 2])(model, batch)
    text = model.llm.hidden_states(model.text(batch), [0, 2])
    speech = model.llm.hidden_states(model.speech(batch), [0, 2])
    for layer in (0, 2):
        similarity = wasserstein_similarity(text.states[layer], text.mask, speech.states[layer], speech.mask)
        torch.testing.assert_close(output.parts[f"contrastive/{layer}"], info_nce(similarity).detach())
    assert gradient_of(model, output).isfinite().all()


def test_a_position_shift_moves_both_sides_and_changes_nothing_under_rotary_embeddings(build, manifest, collate):
    model = build(dropout=0.0)
    batch = collate(model, manifest)
    shifted = Contrastive(position_shift=400)
    still = Contrastive()(model, batch)
    assert torch.equal(shifted(model, batch).total, still.total)  # not in evaluation
    positions = []
    model.llm.model.base_model.rotary_emb.register_forward_pre_hook(
        lambda _, args, options: positions.append(options["position_ids"].min()), with_kwargs=True
    )
    model.train()
    torch.manual_seed(1)
    torch.testing.assert_close(shifted(model, batch).total, still.total, rtol=1e-4, atol=1e-4)
    text_start, speech_start = positions
    assert text_start == speech_start
    assert 0 < text_start < 400


def test_bos_is_read_and_left_out(model, batch):
    output = Contrastive(bos=True)(model, batch)
    bos = model.llm.embed(torch.tensor([model.llm.tokenizer.bos_token_id]))
    pooled = []
    for side in (model.text(batch), model.speech(batch)):
        rows = []
        for values, mask in zip(side.values, side.mask, strict=True):
            embeds = torch.cat([bos, values[mask]])[None]
            states = model.llm.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
            rows.append(torch.stack([state[0, 1:].mean(0) for state in states]))
        pooled.append(torch.nn.functional.normalize(torch.stack(rows, 1), dim=-1))
    for layer, (text, speech) in enumerate(zip(*pooled, strict=True)):
        torch.testing.assert_close(
            output.parts[f"contrastive/{layer}"], info_nce(text @ speech.T).detach(), atol=1e-5, rtol=1e-4
        )


def test_a_model_without_a_bos_token_says_so(build, manifest, collate):
    model = build(llm="qwen2")
    model.llm.tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"has no begin-of-sequence token: set objective\.bos=false"):
        Contrastive(bos=True)(model, collate(model, manifest))


def test_the_direction_is_handed_on(model, batch):
    there, back, both = (
        Contrastive(layers=[1], direction=direction)(model, batch).total
        for direction in ("text_to_speech", "speech_to_text", "symmetric")
    )
    torch.testing.assert_close(both, (there + back) / 2)
    assert there != back


@pytest.mark.parametrize("summed", [False, True])
def test_a_learned_temperature_trains(model, batch, summed):
    section = Contrastive(layers=[0, 1], temperature=0.2, learn_temperature=True)
    objective = Sum(terms=[Term(objective=section)]).build() if summed else section.build()
    (log_temperature,) = objective.parameters()
    output = objective(model, batch)
    torch.testing.assert_close(output.total, Contrastive(layers=[0, 1], temperature=0.2)(model, batch).total)
    assert output.parts["temperature"].item() == pytest.approx(0.2)
    output.total.backward()
    step = 3e-2  # the loss is in float32: a smaller difference would be mostly rounding
    warmer, colder = (
        Contrastive(layers=[0, 1], temperature=0.2 * math.exp(sign * step))(model, batch).total for sign in (1, -1)
    )
    assert log_temperature.grad.item() == pytest.approx((warmer - colder).item() / (2 * step), rel=0.01)


def test_banked_texts_are_negatives_for_speech_only(model, manifest, collate, tmp_path):
    first, second = collate(model, manifest, range(4)), collate(model, manifest, range(4, 8))
    plain = Contrastive(layers=[1], direction="speech_to_text")
    model.text_cache = TextCache(tmp_path, model.llm)
    alone = plain(model, first).total
    plain.read_text(model, second)
    banked = Contrastive(layers=[1], direction="speech_to_text", bank=10)(model, first).total
    text = torch.cat([model.pooled_text(batch, [1])[0] for batch in (first, second)])
    hidden = model.llm.hidden_states(model.speech(first), [1])
    speech = mean_pool(hidden.states[1], hidden.mask)
    similarity = torch.nn.functional.normalize(text, dim=-1) @ torch.nn.functional.normalize(speech, dim=-1).T
    torch.testing.assert_close(banked, info_nce(similarity, direction="speech_to_text"))
    assert banked > alone
    with pytest.raises(ValueError, match=r"set objective\.direction=symmetric"):
        Contrastive(bank=10)(model, first)
    model.text_cache = None
    with pytest.raises(ValueError, match=r"set data\.cache_text=true"):
        Contrastive(bank=10, direction="symmetric")(model, first)
