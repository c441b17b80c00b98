from pathlib import Path

import pytest

from ossicle.batch import Sample
from ossicle.errors import ConfigError
from ossicle.prompts import (
    ASR_INSTRUCTIONS,
    ChatTemplate,
    Prompter,
    answer_of,
    learned_instructions,
    task_key,
)
from ossicle.testing import tiny_tokenizer


def sample(**fields) -> Sample:
    return Sample(**{"id": "u", "audio": Path("u.wav"), **fields})


@pytest.fixture
def prompter() -> Prompter:
    tokenizer = tiny_tokenizer()
    return Prompter(tokenizer, {tokenizer.eos_token_id})


def test_the_template_is_cut_at_its_slots():
    assert ChatTemplate.of(tiny_tokenizer()) == ChatTemplate("<s><|user|>", " ", "<|end|><|assistant|>", "<|end|>")


def test_a_turn_spells_the_chat_around_the_speech(prompter):
    turn = prompter.turn("repeat", "red dog")
    decode = prompter.tokenizer.decode
    assert decode(turn.before) == "<s><|user|>"
    assert decode(turn.after) == " repeat<|end|><|assistant|>"
    assert decode(turn.answer) == "red dog<|end|>"
    whole = prompter.tokenizer.apply_chat_template(
        [{"role": "user", "content": "HEARD repeat"}, {"role": "assistant", "content": "red dog"}], return_dict=False
    )
    assert [*turn.before, *prompter.ids("HEARD"), *turn.after, *turn.answer] == whole


def test_ids_adds_nothing(prompter):
    assert prompter.tokenizer.decode(prompter.ids("sees a cat")) == "sees a cat"
    assert len(prompter.ids("cat")) == 3  # a token is a byte


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['role'] }}", "does not keep the content of messages"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not keep the content"),
    ],
)
def test_a_template_that_loses_the_content_is_refused(template, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        ChatTemplate.of(tokenizer)


def test_a_template_without_an_end_of_turn_gets_the_end_of_the_sequence():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    turn = Prompter(tokenizer, {tokenizer.eos_token_id}).turn("repeat", "cat")
    assert tokenizer.decode(turn.answer) == "cat<|end|>"


def test_the_samples_own_instruction_comes_first(prompter):
    assert prompter.instruction(sample(instruction="what is the first word"), epoch=3) == "what is the first word"


def test_asr_instructions_vary_by_sample_and_epoch_and_not_by_chance(prompter):
    samples = [sample(id=f"u{i}") for i in range(40)]
    drawn = [[prompter.instruction(one, epoch) for one in samples] for epoch in (0, 1)]
    assert set(drawn[0]) == set(drawn[1]) == set(ASR_INSTRUCTIONS)
    assert drawn[0] != drawn[1]
    assert drawn[0] == [prompter.instruction(one, 0) for one in samples]


def test_configured_asr_instructions_replace_the_default_ones():
    tokenizer = tiny_tokenizer()
    prompter = Prompter(tokenizer, {tokenizer.eos_token_id}, asr_instructions=("say it again",))
    assert prompter.instruction(sample(), 0) == "say it again"


def test_the_answer_is_the_first_of_several_or_the_transcript():
    assert answer_of(sample(text="a b", answers=("x", "y"))) == "x"
    assert answer_of(sample(text="a b")) == "a b"
    assert answer_of(sample()) == ""


def test_the_most_frequent_wording_of_a_task_is_learned():
    samples = [
        sample(task="asr", instruction="repeat"),
        sample(task="asr", instruction="write"),
        sample(task="asr", instruction="repeat"),
        sample(task="st", instruction="to german", target_language="de"),
        sample(task="st", instruction="to spanish", target_language="es"),
        sample(task="qa", instruction="who sees the dog"),
        sample(text="a sample of stage 1 has no task"),
    ]
    assert learned_instructions(samples) == {"asr": "repeat", "st/de": "to german", "st/es": "to spanish"}
    assert task_key("asr", "de") == "asr"


def test_the_turn_can_mark_where_the_speech_ends():
    tokenizer = tiny_tokenizer()
    end = {tokenizer.eos_token_id}
    plain = Prompter(tokenizer, end).turn("repeat", "cat")
    marked = Prompter(tokenizer, end, turn='"{speech}"\n{instruction} now').turn("repeat", "cat")
    assert tokenizer.decode(marked.before) == tokenizer.decode(plain.before) + '"'
    assert tokenizer.decode(marked.after) == tokenizer.decode(plain.after).replace(" repeat", '"\nrepeat now')
    assert marked.answer == plain.answer


@pytest.mark.parametrize("turn", ["{speech}", "{instruction} {speech}", "{speech}{speech} {instruction}", ""])
def test_a_turn_without_its_slots_is_refused(turn):
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match=r"model\.turn"):
        Prompter(tokenizer, {tokenizer.eos_token_id}, turn=turn)
