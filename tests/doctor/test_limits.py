"""The doctor finds recordings that the LLM cannot read, and LLMs that think before they answer."""

import io

from rich.console import Console

from ossicle.data.manifest import read_manifest
from ossicle.doctor.finding import Report
from ossicle.doctor.text import check_context, check_template


def report() -> Report:
    return Report(Console(file=io.StringIO(), width=200))


def test_recordings_longer_than_the_context_are_found(model, manifest, config):
    samples = read_manifest(manifest)
    fits, exceeds = report(), report()
    check_context(config(), model, samples, fits)
    assert [(f.level, f.check) for f in fits.findings] == [("ok", "context")]
    longest = max(samples, key=lambda sample: sample.duration_s)
    model.llm.context = round(longest.duration_s * model.token_rate_hz) + 10  # the speech fits, its turn does not
    check_context(config(), model, samples, exceeds)
    (finding,) = exceeds.findings
    assert finding.level == "error" and f"{longest.source}:" in finding.message
    assert f"context of {model.llm.context} positions" in finding.message


def test_an_llm_that_thinks_is_found(model):
    tokenizer = model.llm.tokenizer
    found = report()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"
    )
    check_template(model, found)
    assert any(f.level == "warning" and "empty thought" in f.message for f in found.findings)


def test_a_doubled_begin_of_sequence_is_an_error_and_one_for_every_turn_is_not(model):
    tokenizer = model.llm.tokenizer
    plain = tokenizer.chat_template
    for template, level in ((plain, "ok"), (tokenizer.bos_token + plain, "error")):
        tokenizer.chat_template, found = template, report()
        check_template(model, found)
        assert found.findings[0].level == level
        assert ("two begin-of-sequence tokens in a row" in found.findings[0].message) == (level == "error")
    tokenizer.bos_token = "<|user|>"  # as in SmolLM2, every turn begins with it
    tokenizer.chat_template, found = f"<|user|>system{plain.removeprefix('<s>')}", report()
    check_template(model, found)
    assert model.prompter().before.count(tokenizer.bos_token_id) == 2
    assert [f.level for f in found.findings] == ["ok"]
