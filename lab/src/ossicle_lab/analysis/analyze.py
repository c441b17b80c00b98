"""`ossicle analyze`: how speech lies to its transcripts inside the LLM, before and after training.

One pass over the utterances per stage: the untrained projector (or another checkpoint), then the checkpoint. What a
pass found is boiled down before the next one starts; the most that is held is 2·(layers + 1)·N·D float32 values: 1 GB
for a thousand utterances and an LLM of 32 layers of width 4096.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from rich.console import Console
from torch import Tensor

from ossicle.batch import Batch, Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.words import WORDS, words_of
from ossicle.inspect.alignment import AlignmentRow, alignment_report
from ossicle.inspect.geometry import Components, principal_components
from ossicle.inspect.states import KeptStates, PooledFrames, encoded, pooled_states
from ossicle.inspect.wasserstein import MeanWasserstein
from ossicle.models.frozen import fingerprint
from ossicle.models.speech_llm import ModelConfig, SpeechLLM, read_record
from ossicle.train.tracking import bar, spread
from ossicle_lab.analysis.analyze_data import Chosen, choose
from ossicle_lab.analysis.analyze_report import draw, print_report
from ossicle_lab.analysis.drawing import style
from ossicle_lab.analysis.plots_analysis import TokenAlignment
from ossicle_lab.analysis.probe_layers import Probes, probing

RESULTS_FILE = "analysis.json"
PROBED = 9
"""Most layers that are probed, evenly from the first to the last."""
PANELS = 4
"""Layers that pictures of points show; those of tokens show one less."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """What to look at, and how much of it."""

    limit: int = 1000
    """Most utterances; a seeded draw of more."""
    seed: int = 0
    """Of the draw and of the untrained projector."""
    batch_size: int = 16
    show: tuple[str, ...] = ()
    """Utterances whose token alignment is drawn; default: the first three."""
    before: Path | None = None
    """Checkpoint to compare with; default: the projector before any training."""
    bos: bool = False
    """Let the LLM read its begin-of-sequence token before both, as models trained with ``objective.bos`` do."""
    probes: bool = True
    skip_broken: bool = False


@dataclass
class Stage:
    """What one pass found."""

    rows: list[AlignmentRow]
    wasserstein: dict[int, dict[str, Any]]
    components: dict[int, Components] = field(default_factory=dict)
    plans: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Utterance -> layer -> plan (N, M), each row scaled to sum to 1."""
    tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """One record per layer, as in the JSON; what is not finite is None."""
        records = [asdict(row) | self.wasserstein[row.layer] for row in self.rows]
        return [{name: _finite(value) for name, value in record.items()} for record in records]


def analyze(folder: Path, manifest: Path, out: Path, options: AnalyzeOptions) -> dict[str, Any]:
    """Analyse the checkpoint ``folder`` on ``manifest``; returns what ``out/analysis.json`` holds.

    Pictures go beside it, as PNG and SVG. Raises `ValueError` for utterances that are not there and for checkpoints
    that cannot be compared, `RuntimeError` where the ``analysis`` extra is missing.
    """
    style()  # fail now, not after the passes
    chosen = choose(manifest, limit=options.limit, seed=options.seed, show=options.show)
    dataset = SpeechDataset(
        chosen.samples, on_error="skip" if options.skip_broken else "raise", max_duration_s=math.inf
    )
    model = _untrained(folder, options).to(Accelerator().device)
    names = stage_names(folder, options.before)
    depth = model.llm.num_layers
    probes = probing(spread(list(range(depth + 1)), PROBED)) if options.probes else Probes()
    stages = {}
    for name, checkpoint in zip(names, (options.before, folder), strict=True):
        if checkpoint is not None:
            model.load_projector(checkpoint)
        stages[name] = _pass(name, model, dataset, probes, chosen=chosen, options=options)
    record = {
        "checkpoint": str(folder),
        "before": str(options.before) if options.before else f"untrained projector, seed {options.seed}",
        "manifest": str(manifest),
        "fingerprint": fingerprint(model.projector),
        "options": {"limit": options.limit, "seed": options.seed, "batch_size": options.batch_size, "bos": options.bos},
        "utterances": len(dataset.samples),
        "left_out": chosen.left_out | {"unreadable": len(dataset.skipped)},
        "shown": chosen.shown,
        "stages": {name: {"layers": stage.layers} for name, stage in stages.items()},
        "pca": {n: {layer: c.share for layer, c in stage.components.items()} for n, stage in stages.items()},
        "probes": probes.records,
        "probes_skipped": probes.skipped,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    shown = _token_alignments(model, stages, [sample for sample in dataset.samples if sample.id in chosen.shown])
    draw(record, {name: stage.rows for name, stage in stages.items()}, shown, _components(stages), out)
    console = Console()
    print_report(record, console)
    if dataset.skipped:
        console.print(dataset.report(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out / RESULTS_FILE}, and pictures beside it", highlight=False, soft_wrap=True)
    return record


def stage_names(folder: Path, before: Path | None) -> tuple[str, str]:
    """What the two stages are called in tables and pictures."""
    if before is None:
        return "untrained", "trained"
    return (before.name, folder.name) if before.name != folder.name else ("before", "after")


def _untrained(folder: Path, options: AnalyzeOptions) -> SpeechLLM:
    """The model of a checkpoint as it was before training, with nothing loaded but the frozen parts."""
    record = read_record(folder)["model"]
    if options.before is not None:
        other = read_record(options.before)["model"]
        differ = [name for name in ("projector", "trainable", "lora") if record.get(name) != other.get(name)]
        if differ:
            raise ValueError(
                f"{options.before} has another model.{differ[0]} than {folder}: compare checkpoints of one architecture"
            )
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(record)
    torch.manual_seed(options.seed)
    return config.build().eval()


def _pass(
    name: str, model: SpeechLLM, dataset: SpeechDataset, probes: Probes, *, chosen: Chosen, options: AnalyzeOptions
) -> Stage:
    """One stage: states of everything, and what they say."""
    wasserstein, frames = MeanWasserstein(), PooledFrames()
    kept = KeptStates(chosen.shown, spread(list(range(model.llm.num_layers + 1)), PANELS - 1))
    seen: list[Sample] = []
    batches = _batches(name, model, dataset, options, seen)
    states = pooled_states(model, encoded(model, batches), bos=options.bos, watchers=[wasserstein, frames, kept])
    stage = Stage(
        alignment_report(states.text, states.speech, states.transcripts),
        {
            layer: {"wasserstein_matched": row.matched, "wasserstein_mismatched": row.mismatched}
            for layer, row in wasserstein.rows.items()
        },
        tokens=kept.tokens,
    )
    for layer in spread(sorted(states.text), PANELS):
        sides = [torch.nn.functional.normalize(side[layer], dim=1) for side in (states.speech, states.text)]
        stage.components[layer] = principal_components(torch.cat(sides))
    stage.plans = {utterance: kept.plans(utterance) for utterance in kept.text}
    probes.run(name, states, frames.frames, seen)
    return stage


def _batches(
    name: str, model: SpeechLLM, dataset: SpeechDataset, options: AnalyzeOptions, seen: list[Sample]
) -> Iterator[Batch]:
    """The batches of a pass, on the model's device, with a bar; samples that could be read are added to ``seen``."""
    collate, device = Collator(model.prompter()), next(model.projector.parameters()).device
    starts = range(0, len(dataset), options.batch_size)
    with bar() as progress:
        for start in progress.track(starts, description=f"{name}: states"):
            stop = min(start + options.batch_size, len(dataset))
            batch = collate([dataset[i] for i in range(start, stop)])
            dataset.record(batch.skipped)
            if len(batch):
                seen += batch.samples
                yield batch.to(device)


def _components(stages: dict[str, Stage]) -> dict[str, dict[int, Components]]:
    return {name: stage.components for name, stage in stages.items()}


def _token_alignments(
    model: SpeechLLM, stages: dict[str, Stage], samples: Sequence[Sample]
) -> dict[str, TokenAlignment]:
    """What is drawn of each utterance that was asked for."""
    last = list(stages.values())[-1]
    return {
        sample.id: TokenAlignment(
            title=f"{sample.id}: {sample.text}",
            tokens=[model.llm.tokenizer.decode([token]) for token in last.tokens[sample.id]],
            token_s=1 / model.token_rate_hz,
            plans={n: {k: p.numpy() for k, p in s.plans[sample.id].items()} for n, s in stages.items()},
            words=[(w.word, w.start_s, w.end_s) for w in words_of(sample)] if WORDS in sample.extra else (),
        )
        for sample in samples
        if sample.id in last.plans
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
