"""Check the LLM's chat template, the spelling of the texts by its tokenizer, and the labels."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ossicle.batch import Sample
from ossicle.doctor.finding import Report, listed
from ossicle.models.limits import longest_audio_s
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import names_of
from ossicle.prompts import answer_of
from ossicle.train.recipe import Config

READ = 2000
"""Number of samples whose texts are tokenised."""


def check_template(model: SpeechLLM, report: Report) -> None:
    """Check the start and the end of a turn in the chat template."""
    prompter, tokenizer = model.prompter(), model.llm.tokenizer
    before = tokenizer.decode(prompter.before)
    bos = tokenizer.bos_token_id
    starts = 0 if bos is None else prompter.before.count(bos)
    # Some LLMs, such as SmolLM2, begin every turn with this token, so that only a repeated one is a fault.
    if bos is not None and (bos, bos) in pairwise(prompter.before):
        report.error(
            "chat template",
            f"two begin-of-sequence tokens in a row in {before!r}, with which no LLM is trained",
            "fix tokenizer.chat_template, which writes one too many",
        )
    elif bos is not None and not starts:
        report.warning(
            "chat template",
            f"{before!r} lacks the begin-of-sequence token {tokenizer.bos_token!r}",
            "this is right for some LLMs; compare with the model's card",
        )
    if not set(prompter.end) & set(model.llm.end_ids):
        report.error(
            "chat template",
            f"a turn ends with {tokenizer.decode(prompter.end)!r}, and generation does not stop there",
            "set eos_token_id in generation_config.json to the end of turn",
        )
    else:
        end = tokenizer.decode(prompter.end)
        if prompter.template.closed_thought:
            report.warning(
                "chat template",
                f"the LLM thinks before it answers; its prompt gets an empty thought: {prompter.template.header!r}",
                "answers without thoughts may be worse than the LLM's own; consider an LLM that does not think",
            )
        report.ok("chat template", f"{before!r} <speech> instruction {prompter.template.header!r} answer {end!r}")


def check_context(config: Config, model: SpeechLLM, samples: Sequence[Sample], report: Report) -> None:
    """Check that every recording and its chat turn fit into the LLM's context."""
    prompter, context = model.prompter(tuple(config.data.asr_instructions)), model.llm.context
    if context is None:
        return
    long = []
    for sample in sorted(samples, key=lambda sample: -(sample.duration_s or 0.0))[:READ]:
        turn = prompter.turn(prompter.instruction(sample, 0), answer_of(sample))
        text = len(turn.before) + len(turn.after) + len(turn.answer)
        if (sample.duration_s or 0.0) > longest_audio_s(model, text):
            long.append(f"{sample.source}: {sample.duration_s:.0f} s")
    if long:
        report.error(
            "context",
            f"{len(long)} samples do not fit into the LLM, whose context of {context} positions holds "
            f"{longest_audio_s(model):.0f} s of speech: {listed(long)}",
            "lower data.max_duration_s, or take a projector with fewer tokens per second",
        )
    else:
        report.ok("context", f"{context} positions hold {longest_audio_s(model):.0f} s of speech; all samples fit")


def check_spelling(model: SpeechLLM, samples: Sequence[Sample], report: Report) -> None:
    """Check that the tokenizer returns every text unchanged; other texts have characters that it lacks."""
    tokenizer, prompter = model.llm.tokenizer, model.prompter()
    wrong: list[str] = []
    characters: Counter[str] = Counter()
    texts = [(s, text) for s in samples[:READ] for text in (s.text, *s.answers[:1]) if text]
    for sample, text in texts:
        ids = prompter.content_ids(text)
        back = tokenizer.decode([i for i in ids if i != tokenizer.unk_token_id], clean_up_tokenization_spaces=False)
        if (tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids) or _bare(back) != _bare(text):
            wrong.append(f"{sample.source}: {text[:60]!r}")
            characters.update(set(_bare(text)) - set(_bare(back)))
    if wrong:
        missing = f" (characters it lacks: {''.join(sorted(characters))})" if characters else ""
        report.error(
            "spelling",
            f"the LLM's tokenizer cannot spell {len(wrong)} of {len(texts)} texts{missing}: {listed(wrong)}",
            "normalise the texts, or use an LLM with these characters",
        )
    else:
        report.ok("spelling", f"the LLM's tokenizer spells {len(texts)} texts")


def check_labels(config: Config, model: SpeechLLM, samples: Sequence[Sample], report: Report) -> None:
    """Check that every sample has a target for the objective: a non-empty answer, or a transcript."""
    objectives = names_of(config.objective)
    if "next_token" in objectives:
        prompter = model.prompter()
        empty = [sample for sample in samples if not prompter.content_ids(answer_of(sample).strip())]
        what, fix = "no answer: every label but the end of turn is masked", 'add "text", or "answer" to a task'
    else:
        empty = [sample for sample in samples if not (sample.text or "").strip()]
        what, fix = "no transcript to compare the speech with", 'add "text", or remove the lines'
    if empty:
        report.error(
            "labels",
            f"{len(empty)} of {len(samples)} samples have {what}: {listed(sample.source for sample in empty)}",
            fix,
        )
    else:
        report.ok("labels", f"all {len(samples)} samples have a target")


def _bare(text: str) -> str:
    """Remove what tokenizers may change: spaces and the form of composed characters."""
    return "".join(unicodedata.normalize("NFKC", text).split())
