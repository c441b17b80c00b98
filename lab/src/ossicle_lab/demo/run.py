"""Run `ossicle demo`: the whole method on generated speech, small enough for a laptop.

The demo is a study of four pretrainings (contrastive, CTC, ASR, none). Each is fine-tuned with 10% of the task data and
tested on held-out sentences in held-out voices. Around the study it makes the corpus, a table, plots, examples and a
model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ossicle.files import write_json
from ossicle_lab import recipes
from ossicle_lab.demo import report
from ossicle_lab.demo.report import MODEL, Trained
from ossicle_lab.stamp import claim_folder

if TYPE_CHECKING:
    from ossicle_lab.study.config import StudyConfig
    from ossicle_lab.study.job import Job
    from ossicle_lab.world.corpus import Corpus

PRETRAININGS = {"contrastive": "lab/contr-wasser-emb", "ctc": "beyond/ctc", "asr": "lab/asr", "none": None}
"""Recipe of stage 1 for each row of the table. The longest runs come first, so that the cores are shared evenly."""
BEST = "contrastive"
COMPARED = ("none", BEST)
"""The similarity matrices of these rows are plotted side by side."""
CORPUS_SEED = 1
"""The recipes were chosen on passages with seed 0."""
TRAINING_SEED = 0
DATA, STUDY, RESULTS = "data", "study", "results.json"
ALIGNMENT = "alignment.json"


@dataclass(frozen=True)
class Scale:
    """Sizes of the corpus and lengths of training."""

    train: int
    """Number of training passages."""
    dev: int
    """Number of development passages."""
    test: int
    """Number of test passages."""
    stage1_steps: dict[str, int]
    """Number of stage-1 steps of each row; the objectives take about the same time."""
    stage2_steps: int
    """Number of stage-2 steps of every row."""


FULL = Scale(
    train=4000, dev=60, test=150, stage1_steps={"contrastive": 2200, "ctc": 1000, "asr": 900}, stage2_steps=350
)
QUICK = Scale(train=1000, dev=20, test=40, stage1_steps={"contrastive": 500, "ctc": 230, "asr": 200}, stage2_steps=100)


def run(out: Path, scale: Scale = FULL, *, processes: int | None = None) -> dict[str, Any]:
    """Run the demo in ``out``, or continue it, and return the content of ``results.json``.

    Args:
        out: folder for the corpus, the study, the table, plots, examples and the model.
        scale: sizes of the corpus and lengths of training.
        processes: number of processes; None for one per core, 0 to train in this process.

    Raises:
        ConfigError: ``out`` holds a demo of another size or with other recipes.
        VoiceError: espeak-ng is not installed.
        StudyError: training failed; the message names the log.
    """
    from ossicle_lab.study.plan import Plan
    from ossicle_lab.study.run import run_study
    from ossicle_lab.world.corpus import make_corpus

    console = Console()
    claim_folder(out / "demo.json", scale, recipes.FOLDER / "lab")
    seconds: dict[str, float] = {}
    with _timed(seconds, "corpus", console, "Speaking the corpus (espeak-ng)"):
        corpus = make_corpus(out / DATA, train=scale.train, dev=scale.dev, test=scale.test, seed=CORPUS_SEED)
    config = study_config(out, corpus, scale)
    with _timed(seconds, "frames", console, "Encoding it once with the frozen encoder"):
        _fill_frames(config, [corpus.pretrain, out / DATA / "dev" / "manifest.jsonl", *config.data.alignment])
    with _timed(seconds, "training", console, "Training and evaluating four projectors"):
        run_study(config, processes=processes)
    plan = Plan(config, config.data)
    rows = {key.name: Trained(plan.start(key.mode, key.name, key.seed), _known(plan.cell(key))) for key in plan.cells()}
    with _timed(seconds, "alignment", console, "Comparing speech with its transcripts, layer by layer"):
        alignment = _alignment(out, config, rows)
    _publish(rows[BEST].stage2.run_folder, out / MODEL)
    record = report.collect(rows, plan.describe.bound(), alignment, scale=asdict(scale), seconds=seconds)
    if (out / RESULTS).is_file():  # nothing was computed again, so the times of the first call are the real ones
        record["seconds"] |= json.loads((out / RESULTS).read_text(encoding="utf-8"))["seconds"]
    write_json(out / RESULTS, record)
    report.plots(out / "plots", rows, record["alignment"], _matrices(out))
    report.show(out, record, rows[BEST].stage2, console)
    return record


def study_config(out: Path, corpus: Corpus, scale: Scale) -> StudyConfig:
    """Return the study of the demo: the rows of `PRETRAININGS`, one fraction, one seed."""
    from ossicle_lab.study.config import Claim, Finetuning, Pretraining, Stage1, StudyConfig, StudyData

    return StudyConfig(
        name=STUDY,
        output_dir=str(out),
        data=StudyData(
            pretrain=[str(corpus.pretrain)],
            finetune=[str(corpus.finetune)],
            dev=[str(corpus.dev)],
            test=[str(corpus.test)],
            alignment=[str(out / DATA / "test" / "manifest.jsonl")],
            unseen=["st/es"],
        ),
        pretraining={
            name: Pretraining(
                recipe=recipe,
                steps=scale.stage1_steps.get(name),
                finetune_overrides=[_same_projector(recipe)] if recipe and name == "ctc" else [],
            )
            for name, recipe in PRETRAININGS.items()
        },
        stage1=Stage1(steps=max(scale.stage1_steps.values())),
        finetuning=Finetuning(recipe="lab/finetune", steps={report.FRACTION: scale.stage2_steps}),
        seeds=[TRAINING_SEED],
        claim=Claim(contrastive=[BEST], fraction=report.FRACTION),
    )


def _same_projector(recipe: str) -> str:
    """Return the override that gives stage 2 the projector of the stage-1 ``recipe``."""
    from ossicle.train.recipe import read_tree

    return f"model.projector={json.dumps(read_tree(recipe)['model']['projector'])}"


def _fill_frames(config: StudyConfig, manifests: list[Path | str]) -> None:
    """Encode one manifest after the other: frames depend in their last bits on the utterances of the same batch."""
    from ossicle.data.manifest import read_manifest
    from ossicle.precision import CPU
    from ossicle.train import recipe
    from ossicle_lab.study.measure import fill_frames

    settings = recipe.load(config.finetuning.recipe, [f"data.train={json.dumps(config.data.finetune)}"])
    model = settings.model.build(CPU)
    for manifest in manifests:
        fill_frames(read_manifest(manifest), model, config.cache)


def _alignment(out: Path, config: StudyConfig, rows: dict[str, Trained]) -> dict[str, list[dict[str, Any]]]:
    """Return the alignment by layer of each row after stage 1, or after stage 2 where there is no stage 1.

    The similarity matrices of `COMPARED` are written beside it.
    """
    import torch

    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU
    from ossicle_lab.study import measure

    found: dict[str, list[dict[str, Any]]] = {
        name: row.stage1.record()["alignment"] for name, row in rows.items() if row.stage1 is not None
    }
    kept = out / ALIGNMENT
    if not kept.is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the study's processes, so that figures do not depend on the number of cores
        measured = {}
        for name, path in _matrices(out).items():
            model = SpeechLLM.from_pretrained((rows[name].stage1 or rows[name].stage2).run_folder, device=CPU)
            dataset = measure.cached(config.data.alignment, model, config.cache)
            measured[name] = measure.align(model, dataset, path)
        torch.set_num_threads(threads)
        write_json(kept, measured)
    measured = json.loads(kept.read_text(encoding="utf-8"))
    return {name: found[name] if name in found else measured[name] for name in rows}


def _matrices(out: Path) -> dict[str, Path]:
    """Return the files of similarity matrices, of shape (layer, N, N) for N test passages."""
    return {name: out / f"similarity-{name}.npy" for name in COMPARED}


def _known(job: Job | None) -> Job:
    if job is None:
        raise ValueError("the study of the demo has nothing to choose, so its cells are known")
    return job


def _publish(run_folder: Path, model: Path) -> None:
    """Copy the projector to the folder where ``transcribe``, ``translate`` and ``ask`` look for it."""
    from ossicle.models.saving import CONFIG_FILE, WEIGHTS_FILE

    model.mkdir(exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(run_folder / name, model / name)


@contextmanager
def _timed(seconds: dict[str, float], name: str, console: Console, title: str) -> Iterator[None]:
    started = time.perf_counter()
    console.print(f"[bold]{title}[/] …")
    yield
    seconds[name] = round(time.perf_counter() - started, 1)
    console.print(f"  done in {seconds[name]:.0f} s", style="dim", highlight=False)
