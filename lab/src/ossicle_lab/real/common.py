"""Run a packaged study on data and models that were made for it, and score an encoder by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

STUDY = "study"
"""Folder of the study, beside its data and models."""


def run_packaged_study(
    name: str, out: Path, overrides: Iterable[str], *, processes: int | None, console: Console
) -> dict[str, Any]:
    """Run or continue the study ``name`` in ``out/study``, print its table, and return its results."""
    from ossicle_lab.study.config import load
    from ossicle_lab.study.run import run_study
    from ossicle_lab.study.summary import print_results

    config = load(name, [f"name={STUDY}", f"output_dir={out}", *overrides])
    record = run_study(config, processes=processes)
    print_results(record, console)
    console.print(f"{config.folder / 'results.json'}; show it with: ossicle report {config.folder}", highlight=False)
    return record


def study_overrides(models: Mapping[str, Path], data: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the overrides that give a study its models and its manifests.

    Args:
        models: folder of each part of ``model`` that was made for the study, such as ``llm``.
        data: manifests of each field of ``data``, such as ``pretrain``.
    """
    parts = json.dumps([f"model.{part}={folder}" for part, folder in models.items()])
    manifests = [f"data.{name}={json.dumps([str(path) for path in paths])}" for name, paths in data.items()]
    return [f"stage1.overrides={parts}", f"finetuning.overrides={parts}", *manifests]


def ctc_scores(encoder: Path, manifest: Path) -> dict[str, float]:
    """Return the word error rates in percent of an encoder's own greedy transcripts.

    Only the recognition lines of ``manifest``, and lines without a task, count.
    """
    import torch
    from transformers import HubertForCTC, Wav2Vec2Processor

    from ossicle.audio import read_audio
    from ossicle.data.manifest import read_manifest
    from ossicle.evaluate.metrics import wer, wer_utterance_mean
    from ossicle_lab.models.ctc import recognise

    samples = [sample for sample in read_manifest(manifest) if sample.task in (None, "asr")]
    model = HubertForCTC.from_pretrained(encoder, dtype=torch.float32)
    processor = Wav2Vec2Processor.from_pretrained(encoder)
    hypotheses = recognise(model, processor, [read_audio(sample.audio) for sample in samples])
    references = [sample.text or "" for sample in samples]
    return {
        "wer": wer(hypotheses, references).value,
        "wer_utterance_mean": wer_utterance_mean(hypotheses, references).value,
    }
