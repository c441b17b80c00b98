"""Sequences that begin alike, by a prefix or by chance, have the states of sequences that are read apart."""

import pytest
import torch

from ossicle.batch import Batch, Padded, pad_ids
from ossicle.errors import DataError
from ossicle.models import packing, prefix
from ossicle.models.llm import LLM, load_llm
from ossicle.models.rescoring import sharing
from ossicle.objectives import Distillation, NextToken, next_token
from ossicle.testing import LLMS, tiny_llm
from ossicle.testing.llms import WINDOW

LAYERS = 2


@pytest.fixture(autouse=True)
def any_length(monkeypatch):
    """The templates of tiny LLMs are shorter than a prefix that pays."""
    monkeypatch.setattr(prefix, "LEAST_TOKENS", 1)


@pytest.fixture(scope="module")
def folders_of_llms(tmp_path_factory):
    root = tmp_path_factory.mktemp("llms")
    return {family: tiny_llm(root / family, family, layers=LAYERS) for family in LLMS}


def first_ids(length: int) -> torch.Tensor:
    return torch.randint(0, 250, (1, length), generator=torch.Generator().manual_seed(length))


def shared(length: int, rows: int) -> Padded:
    ids = first_ids(length).expand(rows, -1)
    return Padded(ids, torch.ones_like(ids, dtype=torch.bool))


def sequences(llm: LLM, lengths: list[int]) -> Padded:
    torch.manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Padded(torch.randn(*mask.shape, llm.dim) * llm.embedding_rms, mask)


def states_and_gradient(llm: LLM, given: Padded, prefix_ids: Padded, *, cached: bool) -> tuple[dict, torch.Tensor]:
    """Return the states of every layer and the gradient of a weighted sum of them, without the prefix."""
    values = given.values.clone().requires_grad_()
    length = prefix_ids.values.shape[1]
    if cached:
        hidden = llm.hidden_states(Padded(values, given.mask), range(LAYERS + 1), prefix=llm.prefix(prefix_ids))
        states = hidden.states
    else:
        embeds, _ = packing.join([Padded(llm.embed(prefix_ids.values), prefix_ids.mask), Padded(values, given.mask)])
        states = {
            layer: state[:, length:] for layer, state in llm.hidden_states(embeds, range(LAYERS + 1)).states.items()
        }
    torch.manual_seed(2)
    sum((state[given.mask] * torch.randn(llm.dim)).sum() for state in states.values()).backward()
    return {layer: state[given.mask].detach() for layer, state in states.items()}, values.grad


@pytest.mark.parametrize("lengths", [[9, 2, 5], [2 * packing.LONG, packing.LONG]], ids=["padded", "one by one"])
@pytest.mark.parametrize("length", [3, WINDOW + 6])
@pytest.mark.parametrize("family", [family for family in LLMS if family != "gemma2"])
def test_states_and_gradients_are_those_after_the_tokens(folders_of_llms, family, length, lengths):
    """Compare with the sequences that contain the prefix. Windows are shorter than the longer prefix."""
    llm = load_llm(str(folders_of_llms[family]))
    given, ids = sequences(llm, lengths), shared(length, len(lengths))
    found, gradient = states_and_gradient(llm, given, ids, cached=True)
    expected, plain = states_and_gradient(llm, given, ids, cached=False)
    assert len(llm.prefix(ids)) == LAYERS
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer], atol=1e-5, rtol=1e-4)
    assert (gradient - plain).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("objective", [NextToken(), NextToken(average="example"), Distillation()])
def test_an_objective_has_the_same_loss_and_gradient(model, task_manifest, collate, monkeypatch, objective):
    batch: Batch = collate(model, task_manifest, range(6))
    lengths, read = [], model.llm.hidden_states

    def recorded(embeds, layers, **options):
        lengths.append(embeds.values.shape[1])
        return read(embeds, layers, **options)

    monkeypatch.setattr(model.llm, "hidden_states", recorded)
    found = []
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr(model.llm, "prefix", lambda ids: ())
        model.zero_grad()
        loss = objective(model, batch).total
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.projector.parameters()])))
    (loss, gradient), (expected, plain) = found
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    assert (gradient - plain).norm() <= 1e-5 * plain.norm()
    half = len(lengths) // 2
    saved = {after - before for before, after in zip(lengths[:half], lengths[half:], strict=True)}
    assert saved == {batch.chat.before.values.shape[1]}, "the prefix is not computed with each batch"


def test_a_prefix_is_computed_once(model, task_manifest, collate, monkeypatch):
    batch = collate(model, task_manifest, range(3))
    calls, compute = [], prefix.keys_values
    monkeypatch.setattr(prefix, "keys_values", lambda *arguments: calls.append(1) or compute(*arguments))
    for _ in range(2):
        NextToken()(model, batch).total.backward()
    assert len(calls) == 1
    model.llm.prefix(shared(4, 3))
    assert len(calls) == 2, "another prefix is computed"


def test_a_prefix_first_read_in_inference_mode_serves_training(model, task_manifest, collate):
    batch = collate(model, task_manifest, range(3))
    with torch.inference_mode():
        NextToken()(model, batch)
    assert not any(
        each.requires_grad or each.is_inference() for pair in model.llm.prefix(batch.chat.before) for each in pair
    )
    NextToken()(model, batch).total.backward()


def test_mixed_precision_has_its_own_prefix(model):
    ids = shared(4, 2)
    assert model.llm.prefix(ids)[0][0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model.llm.prefix(ids)[0][1].dtype == torch.bfloat16


@pytest.mark.parametrize("reason", ["rows differ", "padding", "empty", "it trains", "rotation depends on length"])
def test_there_is_no_prefix_where_it_would_be_wrong(model, reason):
    ids = shared(4, 2)
    assert model.llm.prefix(ids)
    if reason == "rows differ":
        ids = Padded(ids.values + torch.tensor([[0], [1]]), ids.mask)
    elif reason == "padding":
        ids = Padded(ids.values, torch.arange(4).expand(2, 4) < 3)
    elif reason == "empty":
        ids = shared(0, 2)
    elif reason == "it trains":
        next(model.llm.parameters()).requires_grad_()
    else:
        model.llm.model.config.rope_parameters = {"rope_type": "longrope"}
    assert not model.llm.prefix(ids)


def test_a_family_that_does_not_pack_has_no_prefix(folders_of_llms):
    assert load_llm(str(folders_of_llms["gemma2"])).prefix(shared(4, 2)) == ()


def test_the_prefix_counts_in_the_context(model):
    llm = model.llm
    llm.context = 10
    given = sequences(llm, [7, 2])
    llm.hidden_states(given, [1], prefix=llm.prefix(shared(3, 2)))
    with pytest.raises(DataError, match="11 positions exceed the context"):
        llm.hidden_states(given, [1], prefix=llm.prefix(shared(4, 2)))


def test_states_before_labels_count_from_the_first_position_after_the_prefix(model, task_manifest, collate):
    batch = collate(model, task_manifest, range(3))
    embeds, labels, first = next_token.answer_inputs(model, batch.chat, model.speech(batch))
    states = next_token.states_before_labels(model, embeds, labels, first)
    assert first
    assert len(states) == int((labels[:, 1:] != next_token.IGNORE).sum()) == int(batch.chat.answer.mask.sum())


def test_a_short_prefix_is_computed_again(folders_of_llms, monkeypatch):
    monkeypatch.setattr(prefix, "LEAST_TOKENS", 8)
    llm = load_llm(str(folders_of_llms["llama"]))
    assert not llm.prefix(shared(7, 2))
    assert llm.prefix(shared(8, 2))


@pytest.mark.parametrize("family", LLMS)
def test_texts_that_begin_alike_are_read_once_up_to_their_first_difference(folders_of_llms, family):
    """The last two texts are longer than a sliding window."""
    llm = load_llm(str(folders_of_llms[family]))
    texts = [[5, 6, 7, 8], [5, 6, 9, 8], [5, 6, 7], [5, 6, 7, 8], [3, 6, 7, 8]]
    texts += [[5, *range(100, 100 + WINDOW + 4), last] for last in (1, 2)]
    ids = pad_ids(texts)
    packed = sharing(ids)
    assert len(packed.index) == len({tuple(text[: k + 1]) for text in texts for k in range(len(text))})
    read = []
    llm.model.base_model.layers[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    found = llm.read(ids, range(LAYERS + 1), packed=packed).states
    assert read == [len(packed.index) if llm.packs else ids.values.shape[1]]
    for layer, expected in llm.read(ids, range(LAYERS + 1)).states.items():
        torch.testing.assert_close(found[layer][ids.mask], expected[ids.mask], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(packed.pack(found[layer])[packed.places[ids.mask]], found[layer][ids.mask])
