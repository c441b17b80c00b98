"""Evaluate a checkpoint: decode a manifest, score the hypotheses, and print the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.cascade import CascadeCollator, Recogniser
from ossicle.evaluate.decode import MAX_NEW_TOKENS, decode, group_of
from ossicle.evaluate.score import Row, check_metrics, score, write_scores
from ossicle.evaluate.tables import print_table
from ossicle.models.frozen import fingerprint
from ossicle.models.lora import adapters
from ossicle.models.speech_llm import SpeechLLM


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Settings of decoding."""

    fraction: float = 1.0
    """Share of the manifest to decode, a seeded subset."""
    batch_size: int = 16
    """Utterances per batch."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Maximum length of an answer in tokens."""
    skip_broken: bool = False
    """Skip and list unreadable files instead of raising an error."""
    from_text: bool = False
    """Give the LLM the transcripts instead of the speech: the upper bound."""
    cascade: bool = False
    """Give the LLM the text that the encoder's CTC head recognises."""


def evaluate(folder: Path, manifest: Path, out: Path, options: EvalOptions) -> list[Row]:
    """Decode ``manifest`` into ``out`` with the checkpoint in ``folder``, score that file and print the table.

    An interrupted call resumes. Lines of ``out`` get the references that ``manifest`` has now. Raises
    `OssicleError` if the checkpoint, the manifest or ``out`` cannot be used.
    """
    console = Console(stderr=True)
    samples = subset(read_manifest(manifest), options.fraction)
    for warning in check_metrics(group_of(sample) for sample in samples):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    dataset = SpeechDataset(samples, on_error="skip" if options.skip_broken else "raise", max_duration_s=float("inf"))
    device = Accelerator().device
    model = SpeechLLM.from_pretrained(folder, device=device).to(device)
    plain = Collator(model.prompter())
    collate: Collator | CascadeCollator = plain
    source = fingerprint_of_trained(model)
    if options.cascade:
        recogniser = Recogniser(model.config.encoder)
        collate, source = CascadeCollator(plain, recogniser), recogniser.source
    decode(
        model,
        dataset,
        lambda items: collate(items).to(device),
        out,
        fingerprint=source,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        from_text=options.from_text or options.cascade,
    )
    if dataset.skipped:
        console.print(dataset.report())
    rows = score(out)
    print_table(rows)
    console.print(f"scores: {write_scores(out, rows)}")
    return rows


def fingerprint_of_trained(model: SpeechLLM) -> str:
    """Return a fingerprint of the projector and of all other weights of ``model`` that were trained."""
    projector = fingerprint(model.projector)
    trained = adapters(model)
    if not trained:
        return projector
    weights = torch.nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in trained.items()})
    return f"{projector}-{fingerprint(weights)}"
