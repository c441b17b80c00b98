"""`ossicle evaluate`: a checkpoint and a manifest in, hypotheses and scores out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.cascade import CascadeCollator, Recogniser
from ossicle.evaluate.decode import decode
from ossicle.evaluate.score import Row, print_table, score, write_scores
from ossicle.models.frozen import fingerprint
from ossicle.models.speech_llm import SpeechLLM


@dataclass(frozen=True)
class EvalOptions:
    """How to decode."""

    fraction: float = 1.0
    batch_size: int = 16
    max_new_tokens: int = 200
    skip_broken: bool = False
    from_text: bool = False
    """Read transcripts instead of speech: the upper bound."""
    cascade: bool = False
    """Read what the encoder's CTC head recognises: the cascade."""


def evaluate(folder: Path, manifest: Path, out: Path, options: EvalOptions) -> list[Row]:
    """Decode ``manifest`` into ``out`` (continuing a killed run), then score that file and print the table."""
    samples = subset(read_manifest(manifest), options.fraction)
    dataset = SpeechDataset(samples, on_error="skip" if options.skip_broken else "raise", max_duration_s=float("inf"))
    device = Accelerator().device
    model = SpeechLLM.from_pretrained(folder, device=device).to(device)
    plain = Collator(model.prompter())
    collate: Collator | CascadeCollator = plain
    source = fingerprint(model.projector)
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
    console = Console(stderr=True)
    if dataset.skipped:
        console.print(dataset.report())
    rows = score(out)
    print_table(rows)
    console.print(f"scores: {write_scores(out, rows)}")
    return rows
