"""Answers of the LLM about transcripts: they are those of `LLM.generate`, and an interrupted call resumes."""

import json

import pytest
import torch
import typer
from transformers import GenerationConfig
from typer.testing import CliRunner

from ossicle.cli import answers as command
from ossicle.corpora import self_answers
from ossicle.corpora.self_answers import ANSWERED_BY, AnswerOptions, prepare_answers
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError, DataError
from ossicle.models.llm import LLM, load_llm
from ossicle.prompts import Prompter

INSTRUCTIONS = ("what is the first word", "repeat")
OPTIONS = AnswerOptions(instructions=INSTRUCTIONS, max_new_tokens=12, batch_size=3)


@pytest.fixture(scope="module")
def llm(folders) -> LLM:
    return load_llm(str(folders["llama"]))


@pytest.fixture
def ending(llm, monkeypatch):
    """Let every third token end an answer, so that answers of random weights have different lengths."""
    monkeypatch.setitem(llm.__dict__, "stop_ids", sorted(llm.end_ids | set(range(0, 400, 3))))


def by_hand(llm, text: str, instruction: str) -> tuple[str, bool]:
    """Return the answer of `LLM.generate` to one chat turn, and True if it ended."""
    turn = Prompter(llm.tokenizer, llm.end_ids).turn(instruction, "")
    prompter = Prompter(llm.tokenizer, llm.end_ids)
    ids = torch.tensor([turn.before + prompter.content_ids(text) + turn.after])
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=llm.stop_ids)
    found = llm.model.generate(inputs_embeds=llm.embed(ids), generation_config=settings)[0]
    text = llm.tokenizer.decode(found, skip_special_tokens=True).split("\n")[0].strip()
    return text, int(found[-1]) in llm.stop_ids


def test_every_line_is_the_greedy_answer_to_its_transcript(llm, ending, task_manifest, tmp_path):
    report = prepare_answers(task_manifest, tmp_path / "out.jsonl", llm, OPTIONS)
    lines = read_manifest(tmp_path / "out.jsonl")
    expected = {}
    for sample in read_manifest(task_manifest):
        for number, instruction in enumerate(INSTRUCTIONS, start=1):
            answer, ended = by_hand(llm, sample.text, instruction)
            if ended and answer:
                expected[f"{sample.id}-answer-{number}"] = (sample.audio, sample.text, instruction, (answer,))
    assert len(expected) > 3
    assert {s.id: (s.audio, s.text, s.instruction, s.answers) for s in lines} == expected
    assert [line.id for line in lines] == list(expected)  # in the order of the manifest
    assert {line.task for line in lines} == {"answer"} and {line.target_language for line in lines} == {None}
    assert report.written == len(expected) == 12 - report.cut - report.empty
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_call_resumes_and_a_finished_one_is_used_again(
    llm, ending, task_manifest, tmp_path, monkeypatch
):
    prepare_answers(task_manifest, tmp_path / "whole.jsonl", llm, OPTIONS)
    decode, count = self_answers._decode, []

    def stops(*arguments):
        for item in decode(*arguments):
            count.append(item)
            yield item
            if len(count) == 5:
                raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(self_answers, "_decode", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_answers(task_manifest, out, llm, OPTIONS)
    assert not out.exists()
    with (tmp_path / ".out.jsonl.partial").open("a") as file:
        file.write('{"by": "a line that was cut')
    report = prepare_answers(task_manifest, out, llm, OPTIONS)
    assert report.answered_before == 5 and len(count) == 12
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again = prepare_answers(task_manifest, out, llm, OPTIONS)
    assert again.answered_before == again.written and out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_setting_does_not_continue_a_journal(llm, task_manifest, tmp_path):
    journal = tmp_path / ".out.jsonl.partial"
    journal.write_text(json.dumps({"by": "another", "text": "a", "instruction": "b", "answer": "c"}) + "\n")
    with pytest.raises(DataError, match="another LLM or other settings"):
        prepare_answers(task_manifest, tmp_path / "out.jsonl", llm, OPTIONS)
    journal.write_text("nonsense\n")
    with pytest.raises(DataError, match="is damaged"):
        prepare_answers(task_manifest, tmp_path / "out.jsonl", llm, OPTIONS)


def test_utterances_of_several_tasks_are_answered_once_and_instructions_are_drawn_by_id(llm, task_manifest, tmp_path):
    samples = read_manifest(task_manifest)
    doubled = [*samples, *(self_answers.replace(sample, id=f"{sample.id}-b") for sample in samples)]
    write_manifest(tmp_path / "in.jsonl", doubled)
    options = AnswerOptions(instructions=[f"question {k}" for k in range(5)], per_utterance=2)
    wanted = list(self_answers._wanted(read_manifest(tmp_path / "in.jsonl"), list(options.instructions), 2))
    assert [sample.id for sample, *_ in wanted] == [sample.id for sample in samples for _ in range(2)]
    assert len({instruction for *_, instruction in wanted}) > 2
    again = list(self_answers._wanted(samples[3:], list(options.instructions), 2))
    assert [line[1:] for line in again] == [line[1:] for line in wanted[6:]]  # whatever the other lines are


def test_stage_2_takes_the_lines(llm, ending, task_manifest, tmp_path, model, collate):
    out = tmp_path / "out.jsonl"
    prepare_answers(task_manifest, out, llm, OPTIONS)
    batch = collate(model, out, range(3))
    assert batch.chat is not None
    from ossicle.objectives.next_token import NextToken

    NextToken()(model, batch).total.backward()
    assert read_manifest(out)[0].extra[ANSWERED_BY].startswith("llama ")


def test_wrong_input_has_a_clear_error(llm, task_manifest, tmp_path):
    with pytest.raises(ConfigError, match="no instruction"):
        prepare_answers(task_manifest, tmp_path / "out.jsonl", llm, AnswerOptions(instructions=[" "]))
    with pytest.raises(ConfigError, match="is the manifest itself"):
        prepare_answers(task_manifest, task_manifest, llm, OPTIONS)
    with pytest.raises(DataError, match="no answer can be used: 12 of 12 were cut at 1 tokens"):
        prepare_answers(
            task_manifest, tmp_path / "short.jsonl", llm, AnswerOptions(instructions=INSTRUCTIONS, max_new_tokens=1)
        )
    silent = [self_answers.replace(sample, text=None) for sample in read_manifest(task_manifest)]
    write_manifest(tmp_path / "silent.jsonl", silent)
    with pytest.raises(DataError, match=r"silent\.jsonl:1: '1-0' has no transcript"):
        prepare_answers(tmp_path / "silent.jsonl", tmp_path / "out.jsonl", llm, OPTIONS)
    long = [self_answers.replace(read_manifest(task_manifest)[0], text="seven " * 5000)]
    write_manifest(tmp_path / "long.jsonl", long)
    with pytest.raises(DataError, match=r"long\.jsonl:1: .* exceed the context"):
        prepare_answers(tmp_path / "long.jsonl", tmp_path / "out.jsonl", llm, OPTIONS)


def test_the_command(folders, task_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(LLM, "stop_ids", property(lambda llm: sorted(llm.end_ids | set(range(0, 400, 3)))))
    app = typer.Typer()
    app.callback()(lambda: None)
    command.add_to(app)
    (tmp_path / "list.txt").write_text("repeat\n\nwhat is the first word\n")
    arguments = ["prepare-answers", task_manifest, tmp_path / "out.jsonl", "--llm", folders["llama"]]
    arguments += [
        "--instructions",
        tmp_path / "list.txt",
        "--per-utterance",
        1,
        "--max-new-tokens",
        3,
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0 and "out.jsonl: " in result.stdout
    lines = read_manifest(tmp_path / "out.jsonl")
    assert 0 < len(lines) <= 6 and {line.instruction for line in lines} <= {"repeat", "what is the first word"}
