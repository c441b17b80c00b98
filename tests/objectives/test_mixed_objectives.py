"""Compare objectives on mixed sequences with hidden states and losses of transformers, one utterance at a time."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from ossicle.batch import Batch, Mixed, Padded, Utterance
from ossicle.data.collate import Collator
from ossicle.data.mixed import Mixing
from ossicle.losses.contrastive import info_nce, token_info_nce
from ossicle.losses.sinkhorn import wasserstein_similarity
from ossicle.models.packing import interleave
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.objectives import (
    Contrastive,
    MixedContrastive,
    MixedNextToken,
    NextToken,
    ObjectiveConfig,
    Sum,
    Term,
)
from ossicle.objectives.mixed import labels_of

LAYERS = [0, 1, 3]


@pytest.fixture
def batch(model, utterances) -> Batch:
    prompter = model.prompter()
    return Collator(prompter, Mixing(prompter))(utterances)


def alone(model: SpeechLLM, utterances: list[Utterance]) -> list[Batch]:
    prompter = model.prompter()
    return [Collator(prompter, Mixing(prompter))([utterance]) for utterance in utterances]


def by_hand(model: SpeechLLM, utterance: Utterance) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mixed sequence (L, D), its labels (L,) and the ids of the plain text (N,), built from the spans."""
    tokenizer, first = model.llm.tokenizer, True
    embeds, labels, plain = (
        [model.llm.embed(torch.tensor([tokenizer.bos_token_id]))],
        [IGNORE],
        [tokenizer.bos_token_id],
    )
    for span in Mixing(model.prompter()).spans(utterance.sample, 0):
        ids = tokenizer(span.text if first else " " + span.text, add_special_tokens=False).input_ids
        plain += ids
        first = False
        if span.kind == "text":
            embeds.append(model.llm.embed(torch.tensor(ids)))
            labels += ids
        else:
            wave = utterance.waveform[round(span.start_s * 16_000) : round(span.end_s * 16_000)][None]
            frames = model.encoder(Padded(wave, torch.ones_like(wave, dtype=torch.bool)))
            values, mask = model.projector(frames.values, frames.mask)
            embeds.append(values[0][mask[0]])
            labels += [IGNORE] * int(mask.sum())
    end = torch.tensor([tokenizer.eos_token_id])
    return torch.cat([*embeds, model.llm.embed(end)]), torch.tensor([*labels, *end]), torch.tensor([*plain, *end])


def states_by_hand(
    model: SpeechLLM, utterance: Utterance
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    embeds, labels, plain = by_hand(model, utterance)
    heard = model.llm.model(inputs_embeds=embeds[None], output_hidden_states=True).hidden_states
    read = model.llm.model(input_ids=plain[None], output_hidden_states=True).hidden_states
    return [state[0] for state in heard], [state[0].detach() for state in read], labels


def compared_by_hand(model: SpeechLLM, utterance: Utterance, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states (C, D) of the tokens of the text spans in the mixed sequence and in the plain text."""
    heard, read, labels = states_by_hand(model, utterance)
    mixed_mask = (labels != IGNORE) & (torch.arange(len(labels)) < len(labels) - 1)  # without EOS
    spans, place, text_mask = Mixing(model.prompter()).spans(utterance.sample, 0), 1, []
    for number, span in enumerate(spans):
        count = len(span.text) + (number > 0)  # a token is a byte
        text_mask += list(range(place, place + count)) if span.kind == "text" else []
        place += count
    return heard[layer][mixed_mask], read[layer][torch.tensor(text_mask)]


def test_interleave_by_hand():
    """Row 0 is ``a [s0] d``; row 1 is ``[s2] c`` and the longer span s1 before EOS. Masked tokens are left out."""
    text = torch.arange(10.0).view(2, 5, 1)
    written = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]]).bool()
    spans = torch.tensor([[100.0, 101, 0], [200.0, 201, 202], [300.0, 0, 0]])[..., None]
    spans_mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    mixed = Mixed(
        text=Padded(torch.zeros(2, 5).long(), written),
        written=written,
        words=written,
        waveforms=Padded(torch.zeros(3, 1), torch.ones(3, 1).bool()),
        rows=torch.tensor([0, 1, 1]),
        starts=torch.tensor([1, 3, 0]),
    )
    joined, held = interleave(Padded(text, written), Padded(spans, spans_mask), mixed)
    assert joined.values[..., 0].tolist() == [[0, 100, 101, 3, 0, 0], [300, 7, 200, 201, 202, 9]]
    assert joined.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert held.tolist() == [[0, -1, -1, 3, -1, -1], [-1, 2, -1, -1, -1, 4]]


def test_labels_are_the_text_of_the_spans_and_the_end(model, utterances, batch):
    embeds, held = model.mixed_inputs(batch.mixed)
    labels = labels_of(batch.mixed, held)
    decode = model.llm.tokenizer.decode
    shown = []
    for row, mask in zip(labels, embeds.mask, strict=True):
        tokens = [decode(int(label)) if label != IGNORE else "·" for label in row[mask]]
        shown.append("".join(tokens))
    print("\n" + "\n".join(shown))
    for row, (utterance, line) in enumerate(zip(utterances, shown, strict=True)):
        expected = by_hand(model, utterance)[1]
        assert labels[row, : len(expected)].tolist() == expected.tolist()
        assert (labels[row, len(expected) :] == IGNORE).all()
        assert line.startswith("·") and line.endswith("<|end|>")  # BOS is no label
        for span in Mixing(model.prompter()).spans(utterance.sample, 0):
            assert (span.text in line) == (span.kind == "text")


def test_sequences_are_those_built_by_hand(model, utterances, batch):
    embeds, _ = model.mixed_inputs(batch.mixed)
    for row, utterance in enumerate(utterances):
        expected = by_hand(model, utterance)[0]
        torch.testing.assert_close(embeds.values[row][embeds.mask[row]], expected, atol=1e-5, rtol=1e-4)


def test_next_token_is_the_loss_of_transformers(model, utterances, batch):
    losses, counts = [], []
    for utterance in utterances:
        embeds, labels, _ = by_hand(model, utterance)
        losses.append(model.llm.model(inputs_embeds=embeds[None], labels=labels[None]).loss)
        counts.append(int((labels[1:] != IGNORE).sum()))
    counts = torch.tensor(counts)
    output = MixedNextToken()(model, batch)
    torch.testing.assert_close(output.total, (torch.stack(losses) * counts).sum() / counts.sum(), atol=1e-5, rtol=1e-5)
    assert list(output.parts) == ["mixed_next_token"]
    singles = torch.stack([MixedNextToken()(model, one).total for one in alone(model, utterances)])
    torch.testing.assert_close(output.total, (singles * counts).sum() / counts.sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "wasserstein"])
def test_contrast_of_utterances(model, utterances, batch, similarity):
    output = MixedContrastive(similarity=similarity, layers=LAYERS, layer_weights=[1.0, 0.5, 2.0])(model, batch)
    parts = []
    for layer in LAYERS:
        pairs = [compared_by_hand(model, utterance, layer) for utterance in utterances]
        matrix = torch.zeros(len(pairs), len(pairs))
        for i, (_, text) in enumerate(pairs):
            for j, (mixed, _) in enumerate(pairs):
                if similarity == "cosine":
                    matrix[i, j] = F.cosine_similarity(text.mean(0), mixed.mean(0), dim=0)
                else:
                    ones = (torch.ones(1, len(side)).bool() for side in (text, mixed))
                    matrix[i, j] = wasserstein_similarity(text[None], next(ones), mixed[None], next(ones))
        parts.append(info_nce(matrix, temperature=0.1).detach())
        torch.testing.assert_close(output.parts[f"mixed_contrastive/{layer}"], parts[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.total.detach(), parts[0] + 0.5 * parts[1] + 2 * parts[2], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [None, 0.2])
def test_contrast_of_tokens(model, utterances, batch, temperature):
    output = MixedContrastive(similarity="subword", layers=[2, 3], temperature=temperature)(model, batch)
    for layer in (2, 3):
        losses = []
        for utterance in utterances:
            mixed, text = (F.normalize(side, dim=-1) for side in compared_by_hand(model, utterance, layer))
            logits = text @ mixed.T / (temperature or 0.5)
            losses.append(F.cross_entropy(logits, torch.arange(len(text))))
        expected = torch.stack(losses).mean().detach()
        torch.testing.assert_close(output.parts[f"mixed_contrastive/{layer}"], expected, atol=1e-5, rtol=1e-4)
    pair = compared_by_hand(model, utterances[0], 2)
    mask = torch.ones(1, len(pair[0])).bool()
    single = MixedContrastive(similarity="subword", layers=2)(model, alone(model, utterances)[0]).total
    torch.testing.assert_close(single, token_info_nce(pair[1][None], mask, pair[0][None], mask), atol=1e-5, rtol=1e-4)


def test_what_is_pooled(model, utterances, batch):
    """``text`` adds BOS and EOS to the compared positions; ``all`` also adds the speech."""
    for pool in ("text", "all"):
        texts, mixes = [], []
        for utterance in utterances:
            heard, read, labels = states_by_hand(model, utterance)
            keep = labels != IGNORE
            keep[0] = True  # BOS
            tokens = compared_by_hand(model, utterance, 3)[1]
            ends = read[3][[0, -1]]
            texts.append(read[3].mean(0) if pool == "all" else torch.cat([tokens, ends]).mean(0))
            mixes.append(heard[3].mean(0) if pool == "all" else heard[3][keep].mean(0))
        matrix = F.normalize(torch.stack(texts), dim=-1) @ F.normalize(torch.stack(mixes), dim=-1).T
        output = MixedContrastive(pool=pool, layers=3, direction="symmetric")(model, batch)
        expected = info_nce(matrix, direction="symmetric").detach()
        torch.testing.assert_close(output.total.detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "objective",
    [
        MixedNextToken(),
        MixedContrastive(layers=LAYERS),
        MixedContrastive(similarity="wasserstein", layers=[2]),
        MixedContrastive(similarity="subword", layers=[1]),
        MixedContrastive(layers="embeddings", pool="all"),
    ],
    ids=repr,
)
def test_gradients_reach_the_whole_projector_and_nothing_else(model, batch, objective):
    output = objective(model, batch)
    output.total.backward()
    for name, parameter in model.projector.named_parameters():
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name
    assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())
    assert not any(part.requires_grad for part in output.parts.values())


def test_the_encoder_hears_all_spans_at_once_and_a_sum_projects_each_thing_once(model, batch):
    calls = {"encoder": 0, "projector": 0}

    def count(name: str) -> None:
        getattr(model, name).register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    count("encoder")
    count("projector")
    MixedNextToken()(model, batch)
    assert calls == {"encoder": 1, "projector": 1}
    mixed = [Term(objective=MixedContrastive(layers=LAYERS)), Term(objective=MixedNextToken(), weight=0.5)]
    both = Sum(terms=mixed).build()
    output = both(model, batch)
    assert calls == {"encoder": 2, "projector": 2}
    first, second = (term.objective(model, batch) for term in mixed)
    torch.testing.assert_close(output.total, first.total + 0.5 * second.total)
    assert both.needs_mixed and both.needs_negatives
    calls.update(encoder=0, projector=0)
    whole = [Term(objective=Contrastive(layers=[1])), Term(objective=NextToken())]
    Sum(terms=[*mixed, *whole]).build()(model, batch)
    assert calls == {"encoder": 2, "projector": 2}  # whole utterances, and spans
    assert not Sum(terms=whole).build().needs_mixed


def test_what_the_text_cache_keeps_changes_no_loss(model, batch, tmp_path):
    from ossicle.train.cache import TextCache

    objective = MixedContrastive(layers=LAYERS)
    plain = objective(model, batch).total
    model.text_cache = TextCache(tmp_path, model.llm)
    assert objective(model, batch).total == plain == objective(model, batch).total


def test_an_llm_without_a_first_token(model, utterances):
    model.llm.tokenizer.bos_token = None
    prompter = model.prompter()
    batch = Collator(prompter, Mixing(prompter))(utterances)
    _, held = model.mixed_inputs(batch.mixed)
    assert (labels_of(batch.mixed, held)[:, 0] == IGNORE).all()
    for objective in (MixedNextToken(), MixedContrastive(layers=LAYERS)):
        assert objective(model, batch).total.isfinite()


def test_a_batch_without_mixed_sequences_is_refused(model, batch):
    for objective in (MixedNextToken(), MixedContrastive(), Sum(terms=[Term(objective=MixedNextToken())]).build()):
        with pytest.raises(ValueError, match="no mixed sequences"):
            objective(model, replace(batch, mixed=None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": "embeddings"}, "nothing trains: set pool=all"),
        ({"layers": [0]}, "nothing trains"),
        ({"similarity": "subword", "pool": "all"}, "set pool=spans"),
        ({"similarity": "subword", "direction": "symmetric"}, "leave direction out"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ObjectiveConfig).validate_python({"name": "mixed_contrastive", **fields})


def test_only_a_contrast_of_utterances_needs_negatives():
    assert MixedContrastive().needs_negatives
    assert not MixedContrastive(similarity="subword").needs_negatives
    assert not MixedNextToken().needs_negatives
