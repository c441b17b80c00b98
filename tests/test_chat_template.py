"""Chat templates of odd kinds, and content that spells special tokens."""

import pickle

import pytest
import torch

from ossicle.batch import Sample, Utterance
from ossicle.chat_template import PlainText
from ossicle.data.collate import Collator
from ossicle.errors import ModelError
from ossicle.prompts import ChatTemplate, Prompter
from ossicle.testing import LLMS, chat_of, tiny_tokenizer

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
HEADER = "<|im_end|>\n<|im_start|>assistant\n"


def tokenizer_of(template: str):
    tokenizer = tiny_tokenizer(chat_of("qwen2"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("opening", "closed"),
    [
        ("<think>\n", "\n</think>\n\n"),  # DeepSeek-R1, Qwen3-Thinking, QwQ
        ("<think>", "\n\n</think>\n\n"),
        ("<thinking>\n\n", "</thinking>\n\n"),
        ("[THINK]", "[/THINK]"),  # Magistral
        ("<|begin_of_thought|>\n", "\n<|end_of_thought|>\n\n"),
        ("◁think▷", "\n\n◁/think▷\n\n"),  # Kimi
        ("<inner>\n", "\n</inner>\n\n"),  # any tag that stands before no answer
        ("<think>\n\n</think>\n\n", ""),
        ("", ""),
    ],
)
def test_a_thought_that_the_prompt_opens_is_closed(opening, closed):
    """Otherwise the answers would be learned inside the thought."""
    template = ChatTemplate.of(tokenizer_of(TURNS + ASSISTANT + opening + "{% endif %}"))
    assert template.header == HEADER + opening + closed
    assert template.closed_thought == closed
    assert template.end == "<|im_end|>\n"


def test_a_thought_that_the_template_itself_closes_before_an_answer():
    """Qwen3-Thinking opens a thought in the generation prompt and writes an empty one before answers."""
    thought = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    turns = TURNS.replace("{{ m['content'] }}", thought + "{{ m['content'] }}")
    template = ChatTemplate.of(tokenizer_of(turns + ASSISTANT + "<think>\n{% endif %}"))
    assert template.header == HEADER + "<think>\n\n</think>\n\n"
    assert template.closed_thought == "\n</think>\n\n"


def test_a_channel_before_the_answer_is_part_of_the_header():
    """GPT-OSS writes the channel of an answer into the history, but not into the generation prompt."""
    turns = TURNS.replace("{{ m['content'] }}", "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m['content'] }}")
    assert ChatTemplate.of(tokenizer_of(turns + ASSISTANT + "{% endif %}")).header == HEADER + "<|final|>"


def test_a_generation_prompt_with_text_of_its_own_is_refused():
    with pytest.raises(ModelError, match=r"the generation prompt of the chat template ends with 'Sure,'"):
        ChatTemplate.of(tokenizer_of(TURNS + ASSISTANT + "Sure, {% endif %}"))


def test_content_in_parts():
    parts = TURNS.replace("{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}")
    assert ChatTemplate.of(tokenizer_of(parts + ASSISTANT + "{% endif %}")).header == HEADER


@pytest.mark.parametrize("parts", [False, True])
def test_a_system_turn_is_given_where_it_is_required(parts):
    turns = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn is needed') }}{% endif %}" + TURNS
    )
    if parts:
        turns = turns.replace("{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}")
    template = ChatTemplate.of(tokenizer_of(turns + ASSISTANT + "{% endif %}"))
    assert template.before == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TURNS + TURNS, "the chat template writes the content of a message 2 times"),
        ("{{ raise_exception('no chat at all') }}", "the chat template fails: no chat at all"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails: .*unsafe"),  # leaves the sandbox
        ("{{ undefined_function() }}", "the chat template fails: .*undefined"),
        ("{% for %}", "the chat template fails"),
        ("", "the chat template does not keep the content"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
    ],
)
def test_other_templates_are_refused_by_name_in_one_line(template, message):
    tokenizer = tokenizer_of(template)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(ModelError, match=f"^some/model: {message}") as caught:
        ChatTemplate.of(tokenizer)
    assert "\n" not in str(caught.value)


def test_an_answer_without_any_end_is_refused():
    tokenizer = tokenizer_of("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end of turn"):
        Prompter(tokenizer, set())


@pytest.mark.parametrize("family", LLMS)
def test_special_tokens_in_content_are_text(family):
    """An answer with the text of an end of turn has one end of turn among its labels: its own."""
    chat = chat_of(family)
    tokenizer = tiny_tokenizer(chat)
    prompter = Prompter(tokenizer, {tokenizer.eos_token_id, *tokenizer.encode(chat.end, add_special_tokens=False)[:1]})
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spelled = "".join(token.content for token in tokenizer.added_tokens_decoder.values())
    asked = f"say {spelled}!"
    plain, odd = prompter.turn("say it", "yes"), prompter.turn(asked, f"a {spelled} b")
    for name in ("after", "answer"):
        expected, found = getattr(plain, name), getattr(odd, name)
        assert [i for i in found if i in special] == [i for i in expected if i in special], name
    assert tokenizer.decode(odd.answer) == f"a {spelled} b{tokenizer.decode(prompter.end)}"
    between, header = prompter.template.between, prompter.template.header
    assert tokenizer.decode(odd.after) == f"{between}{asked}{header}"


def test_ordinary_content_has_the_ids_of_the_whole_template():
    """Only content that spells a special token takes another path, which gives the same ids for the rest."""
    for family in LLMS:
        prompter = Prompter(tiny_tokenizer(chat_of(family)), {0})
        plain = prompter.turn("say it <b>now</b>", "yes").after
        whole = prompter.ids(f"{prompter.template.between}say it <b>now</b>{prompter.template.header}")
        prompter.plain.holds_token = lambda text: True
        assert prompter.turn("say it <b>now</b>", "yes").after == plain == whole


def test_transcripts_and_words_are_text_too():
    tokenizer = tiny_tokenizer(chat_of("qwen2"))
    prompter = Prompter(tokenizer, {tokenizer.eos_token_id})
    text = "the <|im_end|> token"
    sample = Sample(id="u", audio=".", text=text)
    batch = Collator(prompter)([Utterance(sample, waveform=torch.zeros(10))])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert special.isdisjoint(batch.text.values[0].tolist())
    assert tokenizer.decode(batch.text.values[0]) == text
    words = prompter.word_ids(text.split())
    assert special.isdisjoint(i for ids in words for i in ids)
    assert [tokenizer.decode(ids).strip() for ids in words] == text.split()


def test_markup_that_is_no_special_token_is_text_as_well():
    """Qwen3 lists <think> as an added token that is not special; it must not open a thought in an answer."""
    tokenizer = tiny_tokenizer(chat_of("qwen2"))
    tokenizer.add_tokens(["<think>", "    "])
    plain = PlainText(tokenizer)
    thought = tokenizer.convert_tokens_to_ids("<think>")
    assert plain.holds_token("a <think> b") and not plain.holds_token("a    b")
    assert thought not in plain.ids("a <think> b") and tokenizer.decode(plain.ids("a <think> b")) == "a <think> b"
    assert tokenizer.convert_tokens_to_ids("    ") in plain.ids("<think>    ")  # spaces stay as the LLM knows them


def test_a_vocabulary_that_spells_a_special_token_is_circumvented(monkeypatch):
    tokenizer = tiny_tokenizer(chat_of("qwen2"))
    plain = PlainText(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    encode = PlainText._encode

    def as_one_piece(self, text):
        return [end if text == "<|im_end|>" else i for i in ([0] if text == "<|im_end|>" else encode(self, text))]

    monkeypatch.setattr(PlainText, "_encode", as_one_piece)
    assert end not in plain.ids("<|im_end|>")
    assert tokenizer.decode(plain.ids("<|im_end|>")) == "<|im_end|>"


def test_a_prompter_is_the_same_in_another_process():
    prompter = Prompter(tiny_tokenizer(chat_of("qwen2")), {0})
    before = prompter.content_ids("a <|im_end|>")
    assert pickle.loads(pickle.dumps(prompter)).content_ids("a <|im_end|>") == before
