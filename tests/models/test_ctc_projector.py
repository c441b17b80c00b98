"""The projector that spells: its tokens, its mixtures, and the loss that trains it."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ossicle.batch import Padded
from ossicle.errors import ConfigError, DataError, ModelError
from ossicle.losses.ctc import ctc_loss
from ossicle.models.ctc import SLOTS, CTCProjector, Spelling
from ossicle.models.projectors import CTCConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.models.spoken_tokens import SpokenTokens, spoken_form
from ossicle.objectives import CTC, NextToken, Sum, Term

SIZES = CTCConfig(width=16, heads=2, layers=2, ffn=24, kernel=3, dropout=0.0)


@pytest.fixture(scope="module")
def model(folders) -> SpeechLLM:
    torch.manual_seed(0)
    return ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=SIZES).build().eval()


@pytest.fixture
def batch(model, collate, manifest):
    return collate(model, manifest)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Don’t stop, ‘now’!", "don't stop now"),
        ("MR. O'NEIL'S 25 cats...", "mr o'neil's 25 cats"),
        ("Über-straße — Ça va?", "über straße ça va"),
        ("?!", ""),
    ],
)
def test_only_what_is_heard_of_a_text_is_spelled(text, heard):
    assert spoken_form(text) == heard


def byte_pair_tokenizer(merges):
    alphabet = ["Ġ", *"abehlot", ",", "T"]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


MERGES = [("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("l", "l"), ("T", "he"), ("Ġthe", "l"), ("b", "a")]


def test_the_first_merges_spell_frequent_words_whole_and_others_in_parts():
    tokenizer = byte_pair_tokenizer(MERGES)
    spelled = {}
    for merges in (3, 7):
        spoken = SpokenTokens(tokenizer, merges, name="test")
        spelled[merges] = [tokenizer.convert_ids_to_tokens(spoken.ids[i]) for i in spoken.spell("The ball,")]
        assert spoken.ids == sorted(spoken.ids)
    assert spelled == {3: ["Ġthe", "Ġ", "b", "a", "l", "l"], 7: ["Ġthe", "Ġ", "ba", "ll"]}


def test_capitals_and_punctuation_are_no_spoken_tokens():
    tokenizer = byte_pair_tokenizer(MERGES)
    tokens = tokenizer.convert_ids_to_tokens(SpokenTokens(tokenizer, 7, name="test").ids)
    assert set(tokens) == {"Ġ", *"abehlot", "he", "Ġt", "Ġthe", "ll", "Ġthel", "ba"}


@pytest.mark.parametrize("text", ["the ball", "ball", "the", "hello the ball"])
def test_the_letters_of_the_tokens_are_those_of_the_text(text):
    spoken = SpokenTokens(byte_pair_tokenizer(MERGES), 7, name="test")
    assert written(spoken, text) == spoken_form(text).encode()


@pytest.mark.parametrize("text", ["don't go", "smörgåsbord", "日本", "a cat sat"])
def test_letters_of_an_llm(model, text):
    assert written(model.projector.spoken, text) == spoken_form(text).encode()


def test_the_lexicon_has_the_words_that_the_llm_has_a_token_for():
    vocabulary = ["Ġcurtain", "Ġmartin", "ĠCat", "Ġbat", "Ġno", "Ġx1y", "certain", "ĠcafÃ©", "Ġpotatoes", "Ġ", "c", "a"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    spoken = SpokenTokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 10, name="test")
    assert spoken.lexicon.own == {"bat", "café", "cat", "curtain", "martin", "potatoes"}


def test_letters_of_tokens_as_sentencepiece_writes_them():
    vocabulary = {"\u2581": 0, "a": 1, "b": 2, "\u2581a": 3, "<0xC3>": 4, "\u2581ab": 5}
    bpe = models.BPE(vocabulary, [("\u2581", "a"), ("\u2581a", "b")], byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    spoken = SpokenTokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 10, name="test")
    found = {spoken.ids[k]: bytes(b - 1 for b in row if b) for k, row in enumerate(spoken.letters.later.tolist())}
    assert found == {0: b" ", 1: b"a", 2: b"b", 3: b" a", 5: b" ab"}


def written(spoken: SpokenTokens, text: str) -> bytes:
    first, *later = spoken.spell(text)
    labels = [*spoken.letters.first[first].tolist(), *spoken.letters.later[later].flatten().tolist()]
    return bytes(label - 1 for label in labels if label)


def test_a_tokenizer_without_merges_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(ModelError, match="no byte-pair encoding"):
        SpokenTokens(tokenizer, 7, name="test")


def test_the_loss_is_the_sum_over_all_alignments():
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    scores = logits.log_softmax(-1)
    p, q = scores.exp()
    # Label 1 in three positions of the first utterance, labels 1 2 in two positions of the second.
    paths = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1)]
    first = sum(p[0, a] * p[1, b] * p[2, c] for a, b, c in paths)
    second = q[0, 1] * q[1, 2]
    expected = -(first.log() + second.log() / 2) / 2  # per label, and then per utterance
    assert ctc_loss(scores, torch.tensor([3, 2]), [[1], [1, 2]]).item() == pytest.approx(expected.item(), rel=1e-5)


def mixture(model, path, mask=None):
    """Return what the projector makes of positions that are certain of the classes in ``path`` (B, P)."""
    classes = 1 + len(model.projector.spoken.ids)
    certain = torch.nn.functional.one_hot(torch.tensor(path), classes).float().clamp(min=1e-30).log()
    mask = torch.ones(len(path), len(path[0])).bool() if mask is None else mask
    return mix(model, certain, mask)


def mix(model, log_probabilities, mask):
    states = torch.randn(*mask.shape, SIZES.width, generator=torch.Generator().manual_seed(3))
    return model.projector.mix(Spelling(log_probabilities, torch.zeros(1), mask, states))


def test_certain_tokens_become_their_embeddings_once_per_run(model):
    values, valid = mixture(model, [[0, 3, 3, 0, 3, 5], [7, 7, 7, 7, 7, 7]])
    ids = torch.tensor(model.projector.spoken.ids)
    assert valid.tolist() == [[True, True, True], [True, False, False]]
    expected = model.llm.embed(ids[[2, 2, 4]])  # class k is the spoken token k - 1
    torch.testing.assert_close(values[0], expected)
    torch.testing.assert_close(values[1, 0], model.llm.embed(ids[[6]])[0])


def test_a_mixture_is_weighted_by_the_mean_probability_without_the_blank(model):
    classes = 1 + len(model.projector.spoken.ids)
    p = torch.full((1, 2, classes), 1e-30)
    p[0, 0, [0, 1, 2]] = torch.tensor([0.2, 0.5, 0.3])
    p[0, 1, [0, 1, 2]] = torch.tensor([0.0, 0.9, 0.1]) + 1e-30
    values, valid = mix(model, p.log(), torch.ones(1, 2).bool())
    one, two = model.projector.embeddings[:2]
    assert valid.tolist() == [[True]]
    torch.testing.assert_close(values[0, 0], (1.4 * one + 0.4 * two) / 1.8)


def test_silence_is_one_token_and_padding_is_none(model):
    classes = 1 + len(model.projector.spoken.ids)
    p = torch.full((1, 3, classes), 1e-30)
    p[0, :, 0] = torch.tensor([0.9, 0.8, 0.1])
    p[0, :, 4] = torch.tensor([0.1, 0.2, 0.9])
    values, valid = mix(model, p.log(), torch.tensor([[True, True, False]]))  # the third is padding
    assert valid.tolist() == [[True]]
    torch.testing.assert_close(values[0, 0], model.projector.embeddings[3])


def test_what_the_network_hears_is_the_text_of_its_most_probable_tokens(model):
    labels = model.projector.targets(["red car", "two"])[0]
    longest = max(map(len, labels))
    path = [[x for label in row for x in (label, 0)] + [0] * 2 * (longest - len(row)) for row in labels]
    certain = torch.nn.functional.one_hot(torch.tensor(path), 1 + len(model.projector.spoken.ids)).float()
    mask = torch.tensor([[place < 2 * len(row) for place in range(2 * longest)] for row in labels])
    spelling = Spelling(certain.clamp(min=1e-30).log(), torch.zeros(2, 1, 1), mask, torch.zeros(1))
    assert model.projector.heard(spelling) == ["red car", "two"]


def test_padding_changes_nothing(model):
    frames = torch.randn(1, 20, model.encoder.dim, generator=torch.Generator().manual_seed(1))
    alone = model.projector.spell(frames, torch.ones(1, 20).bool())
    padded = torch.cat([frames, torch.full((1, 10, model.encoder.dim), 9.0)], 1)
    joined = model.projector.spell(padded, torch.arange(30)[None] < 20)
    positions = alone.tokens.shape[1]
    assert alone.characters.shape[1] == SLOTS * positions
    torch.testing.assert_close(joined.tokens[:, :positions], alone.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.characters[:, : SLOTS * positions], alone.characters, rtol=1e-4, atol=1e-5)
    assert joined.mask.sum() == positions


def test_the_learned_prompt_comes_first_and_both_additions_train(model, batch):
    model = SpeechLLM(model.encoder, model.llm, replace(model.config, projector=replace(SIZES, prompt=3)))
    speech = model.speech(batch)
    torch.testing.assert_close(speech.values[:, :3], model.projector.prompt.expand(len(batch), -1, -1))
    assert speech.mask[:, :4].all()
    NextToken()(model, batch).total.backward()
    for parameter in (model.projector.prompt, model.projector.residual.weight):
        assert parameter.grad.abs().sum() > 0


def test_the_network_learns_to_spell_a_batch(model, batch):
    model = SpeechLLM(model.encoder, model.llm, model.config)
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        output = CTC()(model, batch)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.total.item())
    assert losses[-1] < 0.4 * losses[0]
    assert set(output.parts) == {"ctc", "characters"}


def test_the_next_token_loss_reaches_the_network_through_the_mixtures(model, batch):
    model = SpeechLLM(model.encoder, model.llm, model.config)
    NextToken()(model, batch).total.backward()
    gradient = model.projector.tokens.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    model.projector.zero_grad()
    total = Sum(terms=[Term(objective=NextToken()), Term(objective=CTC(), weight=0.3)]).build()(model, batch)
    parts = total.parts
    assert total.total.item() == pytest.approx(
        (parts["next_token"] + 0.3 * (parts["ctc"] + parts["characters"])).item(), rel=1e-5
    )


def test_wrong_uses_have_a_clear_error(model, batch, folders):
    other = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"])).build()
    with pytest.raises(ConfigError, match=r"model\.projector\.name=ctc"):
        CTC()(other, batch)
    silent = replace(batch, samples=[replace(sample, text=None) for sample in batch.samples])
    with pytest.raises(DataError, match="needs transcripts"):
        CTC()(model, silent)
    with pytest.raises(ValueError, match="multiple of heads"):
        CTCConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="even"):
        CTCConfig(kernel=4)


def test_a_saved_projector_loads_and_another_vocabulary_is_refused(model, tmp_path, folders):
    model.save(tmp_path)
    again = SpeechLLM.from_pretrained(tmp_path)
    assert isinstance(again.projector, CTCProjector)
    frames = Padded(torch.randn(2, 12, model.encoder.dim), torch.ones(2, 12).bool())
    for here, there in zip(
        model.projector(*vars(frames).values()), again.projector(*vars(frames).values()), strict=True
    ):
        torch.testing.assert_close(here, there)
    fewer = replace(model.config, projector=replace(SIZES, merges=1))
    with pytest.raises(ValueError, match="merges"):
        fewer.build().load_projector(tmp_path)
