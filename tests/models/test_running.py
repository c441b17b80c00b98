"""Rows that join and leave a running batch get the tokens that they get alone."""

import pytest
import torch

from ossicle.batch import Padded
from ossicle.errors import ConfigError, DataError
from ossicle.models.llm import load_llm
from ossicle.models.running import RunningBatch, cache_argument
from ossicle.models.text_stream import TextStream

pytestmark = pytest.mark.filterwarnings("ignore:an answer was cut")
LENGTHS = (7, 19, 3, 40, 12)
TOKENS = (12, 30, 5, 20, 9)
JOINS = (0, 0, 2, 5, 9)
"""Step before which each prompt joins."""


@pytest.fixture(params=["llama", "qwen2", "qwen3", "olmo2", "smollm3", "gemma2", "mistral", "phi3"])
def llm(folders, request):
    return load_llm(str(folders[request.param]))


@pytest.fixture
def llama(folders):
    return load_llm(str(folders["llama"]))


def prompts(llm) -> list[Padded]:
    torch.manual_seed(1)
    found = []
    for length in LENGTHS:
        values = torch.randn(1, length, llm.dim) * 3 * llm.embedding_rms
        found.append(Padded(values, torch.ones(1, length, dtype=torch.bool)))
    return found


def alone(llm, prompt: Padded, tokens: int) -> str:
    return llm.generate(prompt, max_new_tokens=tokens)


def text(llm, row) -> str:
    return TextStream(llm.tokenizer).finish(row.ids)


def run(llm, running, given, joins=JOINS, tokens=TOKENS):
    """Let the prompts join at their steps and decode until all are complete; return the rows and the widths."""
    rows, widths, step = {}, [], 0
    while len(rows) < len(given) or len(running):
        for i, prompt in enumerate(given):
            if joins[i] == step:
                rows[i] = running.join(prompt, max_new_tokens=tokens[i])[0]
        widths.append(len(running.step()))
        step += 1
        assert step < 500
    return [rows[i] for i in range(len(given))], widths


def test_each_row_gets_the_tokens_that_it_gets_alone(llm):
    given = prompts(llm)
    rows, widths = run(llm, RunningBatch(llm), given)
    assert [text(llm, row) for row in rows] == [alone(llm, p, n)[0] for p, n in zip(given, TOKENS, strict=True)]
    assert all(len(row.ids) == n or row.ids[-1] in llm.stop_ids for row, n in zip(rows, TOKENS, strict=True))
    assert {row.end for row in rows} <= {"stop", "length"}
    windows = llm.model.config.to_dict().get("sliding_window") and llm.name.rsplit("/")[-1] != "qwen2"
    assert (max(widths) == 1) == bool(windows)  # an LLM with sliding windows decodes one answer after another


def test_the_ids_are_those_of_transformers(llama):
    given = prompts(llama)
    rows, _ = run(llama, RunningBatch(llama), given)
    for row, prompt, tokens in zip(rows, given, TOKENS, strict=True):
        ids = llama.model.generate(
            inputs_embeds=prompt.values,
            attention_mask=prompt.mask.long(),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=llama.stop_ids,
            pad_token_id=0,
        )
        assert row.ids == ids[0].tolist()


def test_rows_of_one_padded_prompt_join_together(llama):
    given = prompts(llama)
    longest = max(LENGTHS)
    values = torch.cat([torch.nn.functional.pad(p.values, (0, 0, longest - p.values.shape[1], 0)) for p in given])
    mask = torch.arange(longest) >= longest - torch.tensor(LENGTHS)[:, None]
    running = RunningBatch(llama)
    rows = running.join(Padded(values + 9 * ~mask[..., None], mask), max_new_tokens=8)
    while len(running):
        running.step()
    assert [text(llama, row) for row in rows] == [alone(llama, p, 8)[0] for p in given]


def test_a_row_that_leaves_does_not_change_the_others(llama):
    given = prompts(llama)
    running = RunningBatch(llama)
    rows = [running.join(prompt, max_new_tokens=25, min_new_tokens=5)[0] for prompt in given]
    for _ in range(3):
        running.step()
    running.leave(rows[3])  # the longest one: the padding of the others goes with it
    assert len(running) == 4
    assert running._mask.shape[1] == 19 + 2
    running.leave(running.join(given[0])[0])  # a row that has not begun
    while len(running):
        running.step()
    assert rows[3].end == "left"
    assert len(rows[3].ids) == 3
    for i in (0, 1, 2, 4):
        assert text(llama, rows[i]) == llama.generate(given[i], max_new_tokens=25, min_new_tokens=5)[0]


def test_rows_beyond_the_limit_wait(llama):
    given = prompts(llama)
    running = RunningBatch(llama, most_rows=2)
    rows, widths = run(llama, running, given, joins=(0,) * 5)
    assert max(widths) == 2
    assert [text(llama, row) for row in rows] == [alone(llama, p, n)[0] for p, n in zip(given, TOKENS, strict=True)]


def test_samples_depend_on_their_seed_alone(llama):
    given = prompts(llama)
    hot = {"temperature": 1.5, "max_new_tokens": 12}

    def sampled(seed, beside):
        running = RunningBatch(llama)
        row = running.join(given[0], seed=seed, **hot)[0]
        for other in beside:
            running.join(other, temperature=2.0, max_new_tokens=3)
        while len(running):
            running.step()
        return row.ids

    assert sampled(1, []) == sampled(1, given[1:])
    assert sampled(1, []) != sampled(2, [])


def test_the_most_probable_token_is_left_by_a_small_nucleus_or_top_k(llama):
    prompt = prompts(llama)[0]
    running = RunningBatch(llama)
    greedy, nucleus, top = (
        running.join(prompt, max_new_tokens=10, **settings)[0]
        for settings in ({}, {"temperature": 1.0, "top_p": 1e-6}, {"temperature": 1.0, "top_k": 1})
    )
    while len(running):
        running.step()
    assert greedy.ids == nucleus.ids == top.ids


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 12},
        {"temperature": 1.0, "top_k": 1},
    ],
)
def test_rules_are_those_of_generate(llama, settings):
    prompt = prompts(llama)[2]
    row = RunningBatch(llama)
    (found,) = row.join(prompt, max_new_tokens=12, **settings)
    while len(row):
        row.step()
    assert [text(llama, found)] == llama.generate(prompt, max_new_tokens=12, **settings)


def test_a_sample_follows_the_probabilities(llama):
    prompt = prompts(llama)[1]
    hot = {"temperature": 3.0, "top_k": 3, "max_new_tokens": 1}
    with torch.no_grad():
        scores = llama.model(inputs_embeds=prompt.values).logits[0, -1].topk(3)
    running = RunningBatch(llama, most_rows=600)
    rows = running.join(Padded(prompt.values.expand(600, -1, -1), prompt.mask.expand(600, -1)), seed=None, **hot)
    running.step()
    shares = torch.tensor([sum(row.ids == [i] for row in rows) / 600 for i in scores.indices.tolist()])
    torch.testing.assert_close(shares, (scores.values / 3.0).softmax(-1), atol=0.07, rtol=0)


def test_an_answer_ends_when_its_time_is_over(llama):
    running = RunningBatch(llama)
    (row,) = running.join(prompts(llama)[0], max_new_tokens=500, min_new_tokens=500, max_time=0.05)
    while len(running):
        running.step()
    assert row.end == "length"
    assert 1 < len(row.ids) < 500


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_a_stream_is_the_answer_in_pieces(llama, tokens):
    for prompt in prompts(llama):
        pieces = list(RunningBatch(llama).stream(prompt, max_new_tokens=tokens))
        assert ["".join(pieces)] == llama.generate(prompt, max_new_tokens=tokens)
        assert all(pieces)


def test_what_cannot_be_decoded_is_refused(llama):
    values = torch.zeros(1, 2040, llama.dim)
    with pytest.raises(DataError, match="exceed the context"):
        RunningBatch(llama).join(Padded(values, torch.ones(1, 2040, dtype=torch.bool)), max_new_tokens=9)
    for settings in ({"top_p": 0.0}, {"num_beams": 2}, {"heat": 1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            RunningBatch(llama).join(prompts(llama)[0], **settings)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_argument_for_keys_and_values_is_found_by_its_name(name):
    class Model:
        forward = {"cache": lambda cache: None, "past_key_values": lambda past_key_values: None}[name]

    assert cache_argument(Model) == name
