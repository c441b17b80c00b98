"""Let an LLM answer instructions about transcripts, as the targets of a stage 2 that needs no task labels.

The LLM reads the transcript where the speech will be. A model that is trained to give the same answers to the speech
follows instructions as its LLM does. Sources: DeSTA2.5 (arXiv 2507.02768), AZeroS (arXiv 2601.06086).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ossicle.batch import Padded, Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError, DataError
from ossicle.models.generation import answer_text
from ossicle.models.running import Row, RunningBatch
from ossicle.progress import Progress
from ossicle.prompts import TURN, Prompter

TASK = "answer"
"""Task of the lines."""
ANSWERED_BY = "answered_by"
"""Manifest field with the LLM and the settings that made the answer."""

Request = tuple[str, str]  # a transcript and an instruction


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Settings of `prepare_answers`."""

    instructions: Sequence[str]
    """Instructions about the speech."""
    per_utterance: int | None = None
    """Number of instructions of each utterance, drawn by its id. Default: all."""
    max_new_tokens: int = 200
    """Longest answer in tokens. Longer ones are left out, because a model would learn not to end them."""
    batch_size: int = 32
    """Answers that are decoded together."""
    turn: str = TURN
    """Text of the user's turn, as ``model.turn`` of the training."""


@dataclass(frozen=True)
class AnswerReport:
    """The result of `prepare_answers`: numbers of lines."""

    written: int
    answered_before: int
    cut: int
    empty: int

    def __str__(self) -> str:
        before = f" ({self.answered_before} were answered before)" if self.answered_before else ""
        left_out = {"cut at the longest length": self.cut, "empty": self.empty}
        return f"{self.written} answers{before}" + "".join(
            f", {count} left out: {why}" for why, count in left_out.items() if count
        )


def prepare_answers(manifest: Path, out: Path, llm: Any, options: AnswerOptions) -> AnswerReport:
    """Write a manifest with the greedy answers of ``llm`` to the instructions, one line per utterance and instruction.

    Lines keep audio, transcript, language and speaker. Lines of ``manifest`` that share speech and text are one
    utterance. ``out`` is written when all answers are there; an interrupted call resumes, and answers in ``out`` that
    the same LLM made with the same settings are used again. An answer is one line of text, as `LLM.generate` returns.

    Args:
        manifest: Manifest with transcripts.
        out: Manifest to write.
        llm: An `ossicle.models.llm.LLM`.
        options: Instructions and settings.

    Raises:
        ConfigError: there is no instruction, or ``out`` is the manifest.
        DataError: a line has no transcript, a transcript is too long for the LLM, or no answer can be used.
    """
    instructions = list(dict.fromkeys(text.strip() for text in options.instructions if text.strip()))
    if not instructions:
        raise ConfigError("there is no instruction: give --instruction or a file with --instructions")
    if out.resolve() == manifest.resolve():
        raise ConfigError(f"{out} is the manifest itself; write to another file")
    wanted = list(_wanted(read_manifest(manifest), instructions, options.per_utterance))
    source = _source(llm, options)
    journal = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    answers = _answered(out, source) | _read_journal(journal, source)
    requests = {(sample.text or "", instruction): sample for sample, _, instruction in wanted}
    pending = {request: sample for request, sample in requests.items() if request not in answers}
    before = sum((sample.text or "", instruction) in answers for sample, _, instruction in wanted)
    with journal.open("a", encoding="utf-8", newline="\n") as file:
        for (text, instruction), answer in _decode(llm, pending, options):
            answers[text, instruction] = answer
            entry = {"by": source, "text": text, "instruction": instruction, "answer": answer}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
    found = [(*line, answers[line[0].text or "", line[2]]) for line in wanted]
    texts = [answer for *_, answer in found]
    if not any(texts):
        raise DataError(
            f"{manifest}: no answer can be used: {texts.count(None)} of {len(texts)} were cut at "
            f"{options.max_new_tokens} tokens, the others are empty; allow longer answers, or change the instructions"
        )
    write_manifest(
        out,
        (
            replace(
                sample,
                id=f"{sample.id}-{TASK}-{number}",
                task=TASK,
                instruction=instruction,
                answers=(answer,),
                target_language=None,
                extra={**sample.extra, ANSWERED_BY: source},
            )
            for sample, number, instruction, answer in found
            if answer
        ),
    )
    journal.unlink()
    return AnswerReport(sum(map(bool, texts)), before, cut=texts.count(None), empty=texts.count(""))


def _wanted(
    samples: list[Sample], instructions: list[str], per_utterance: int | None
) -> Iterator[tuple[Sample, int, str]]:
    """Yield each utterance with each of its instructions, and the number of the instruction, from 1 on."""
    utterances = {(s.audio, s.start_s, s.end_s, s.text): s for s in reversed(samples)}  # the first line of each
    for sample in reversed(utterances.values()):
        if not (sample.text or "").strip():
            raise DataError(
                f'{sample.source}: {sample.id!r} has no transcript to answer; add "text" or remove the line'
            )
        drawn = sorted(range(len(instructions)), key=lambda k: _hash(f"{sample.id}\n{instructions[k]}"))
        for k in sorted(drawn[:per_utterance]):
            yield sample, k + 1, instructions[k]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _source(llm: Any, options: AnswerOptions) -> str:
    """Return a short name of the LLM and of the settings that change its answers."""
    return f"{Path(llm.name).name} {llm.fingerprint} {_hash(f'{options.turn}/{options.max_new_tokens}')}"


def _answered(out: Path, source: str) -> dict[Request, str | None]:
    """Return the answers in a manifest that an earlier call wrote with the same LLM and settings."""
    if not out.exists():
        return {}
    made = (sample for sample in read_manifest(out) if sample.extra.get(ANSWERED_BY) == source)
    return {(sample.text or "", sample.instruction or ""): sample.answers[0] for sample in made}


def _read_journal(journal: Path, source: str) -> dict[Request, str | None]:
    """Return the answers of an interrupted call; None stands for an answer that was cut. Remove an incomplete line."""
    if not journal.exists():
        return {}
    whole = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        entries = [json.loads(line) for line in whole]
        found = {(e["text"], e["instruction"]): e["answer"] for e in entries if e["by"] == source}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{journal}: is damaged ({error!s:.80}); remove the file to start again") from error
    if len(found) < len(entries):
        raise DataError(
            f"{journal}: is an unfinished call with another LLM or other settings; finish it with these, or remove it"
        )
    with journal.open("rb+") as file:
        file.truncate(sum(map(len, whole)))
    return found


def _decode(llm: Any, pending: dict[Request, Sample], options: AnswerOptions) -> Iterator[tuple[Request, str | None]]:
    """Yield each request with its answer as soon as it is complete, or with None if it was cut."""
    prompter = Prompter(llm.tokenizer, llm.end_ids, turn=options.turn)
    device = next(llm.parameters()).device
    running = RunningBatch(llm, options.batch_size)
    rows: dict[Row, Request] = {}
    waiting = iter(pending.items())
    with Progress("answering", len(pending), unit="answers") as progress:
        while True:
            while running.free and (item := next(waiting, None)) is not None:
                request, sample = item
                turn = prompter.turn(request[1], "")
                ids = torch.tensor([turn.before + prompter.content_ids(request[0]) + turn.after], device=device)
                try:
                    joined = running.join(
                        Padded(llm.embed(ids), torch.ones_like(ids).bool()), max_new_tokens=options.max_new_tokens
                    )
                except DataError as error:
                    raise DataError(f"{sample.source}: {sample.id!r}: {error}") from error
                rows[joined[0]] = request
            if not len(running):
                return
            running.step()
            for row in [row for row in rows if row.end is not None]:
                text = answer_text(llm.tokenizer.decode(row.ids, skip_special_tokens=True))
                yield rows.pop(row), None if row.end == "length" else text
                progress.advance(1)
