"""Measure the alignment of speech with its transcripts inside the LLM, before and after training (`ossicle analyze`).

Each stage is one pass over the utterances: first the untrained projector or another checkpoint, then the checkpoint.
The results of a pass are reduced before the next one starts. The largest memory use is 2·(layers + 1)·N·D float32
values: 1 GB for 1000 utterances and an LLM with 32 layers of width 4096.
"""

from __future__ import annotations

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
from ossicle.errors import CheckpointError
from ossicle.files import write_json
from ossicle.inspect.alignment import AlignmentRow, alignment_report
from ossicle.inspect.states import KeptStates, encoded, pooled_states
from ossicle.inspect.wasserstein import MeanWasserstein
from ossicle.models.frozen import fingerprint
from ossicle.models.saving import read_record
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.progress import track
from ossicle.train.tracking import spread
from ossicle_lab.analysis.analyze_data import Chosen, choose
from ossicle_lab.analysis.analyze_report import draw, print_report
from ossicle_lab.analysis.components import Components, principal_components
from ossicle_lab.analysis.drawing import style
from ossicle_lab.analysis.plots_analysis import TokenAlignment
from ossicle_lab.analysis.probe_layers import PooledFrames, Probes, probing

RESULTS_FILE = "analysis.json"
PROBED = 9
"""Most layers that are probed, evenly spaced from the first to the last."""
PANELS = 4
"""Number of layers in the figures of principal components; token alignments show one fewer."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of an analysis."""

    limit: int = 1000
    """Most utterances. If there are more, a seeded sample is drawn."""
    seed: int = 0
    """Seed for the sample and for the untrained projector."""
    batch_size: int = 16
    """Number of utterances in a batch."""
    show: tuple[str, ...] = ()
    """Ids of the utterances whose token alignment is drawn. Default: the first three."""
    before: Path | None = None
    """Checkpoint to compare with. Default: the untrained projector."""
    bos: bool = False
    """Put the begin-of-sequence token before speech and text, as in training with ``objective.bos``."""
    probes: bool = True
    """Train linear probes."""
    skip_broken: bool = False
    """Skip and count audio files that cannot be read."""


@dataclass
class Stage:
    """The results of one pass."""

    rows: list[AlignmentRow]
    wasserstein: dict[int, dict[str, Any]]
    components: dict[int, Components] = field(default_factory=dict)
    plans: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Transport plans (N, M) by utterance and layer, each row scaled to sum to 1."""
    tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def layers(self) -> list[dict[str, Any]]:
        """One record per layer as in ``analysis.json``; values that are not finite are None."""
        records = [asdict(row) | self.wasserstein[row.layer] for row in self.rows]
        return [{name: _finite(value) for name, value in record.items()} for record in records]


def analyze(folder: Path, manifest: Path, out: Path, options: AnalyzeOptions) -> dict[str, Any]:
    """Analyse the checkpoint ``folder`` on ``manifest`` and return what ``out/analysis.json`` holds.

    Figures are written beside it as PNG and SVG.

    Raises:
        ManifestError: an utterance in ``options.show`` does not exist, or there are too few utterances.
        CheckpointError: the two checkpoints cannot be compared.
        MissingPackageError: matplotlib or scikit-learn is not installed.
    """
    style()  # fails now if matplotlib is missing, not after the passes
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
    write_json(out / RESULTS_FILE, record)
    shown = _token_alignments(model, stages, [sample for sample in dataset.samples if sample.id in chosen.shown])
    draw(record, {name: stage.rows for name, stage in stages.items()}, shown, _components(stages), out)
    console = Console()
    print_report(record, console)
    if dataset.skipped:
        console.print(dataset.report(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out / RESULTS_FILE}, with figures beside it", highlight=False, soft_wrap=True)
    return record


def stage_names(folder: Path, before: Path | None) -> tuple[str, str]:
    """Return the names of the two stages in tables and figures."""
    if before is None:
        return "untrained", "trained"
    return (before.name, folder.name) if before.name != folder.name else ("before", "after")


def _untrained(folder: Path, options: AnalyzeOptions) -> SpeechLLM:
    """Return the model of a checkpoint with its untrained projector."""
    record = read_record(folder)["model"]
    if options.before is not None:
        other = read_record(options.before)["model"]
        differ = [name for name in ("projector", "trainable", "lora") if record.get(name) != other.get(name)]
        if differ:
            raise CheckpointError(
                f"{options.before} has another model.{differ[0]} than {folder}: compare checkpoints of one architecture"
            )
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(record)
    torch.manual_seed(options.seed)
    return config.build().eval()


def _pass(
    name: str, model: SpeechLLM, dataset: SpeechDataset, probes: Probes, *, chosen: Chosen, options: AnalyzeOptions
) -> Stage:
    """Return the results of one stage."""
    wasserstein, frames = MeanWasserstein(), PooledFrames()
    kept = KeptStates(chosen.shown, spread(list(range(model.llm.num_layers + 1)), PANELS - 1))
    seen: list[Sample] = []
    batches = _batches(name, model, dataset, options, seen)
    states = pooled_states(model, encoded(model, batches), bos=options.bos, observers=[wasserstein, frames, kept])
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
    """Yield the batches of a pass on the model's device, with a progress display; add readable samples to ``seen``."""
    collate, device = Collator(model.prompter()), next(model.projector.parameters()).device
    starts = range(0, len(dataset), options.batch_size)
    for start in track(starts, f"{name}: states", unit="batches"):
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
    """Return the token alignment of each utterance to show."""
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
