"""Build a SpeechLLM from published models and recorded speech: `python -m ossicle_lab.real RECORDINGS --out FOLDER`.

The steps follow each other in `run`. Each one skips what an earlier call has done, so that the same command continues
a stopped run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ossicle.errors import TrainingError
from ossicle.files import write_json
from ossicle.precision import multiplies
from ossicle_lab.real import models
from ossicle_lab.real.corpus import Corpus, Sizes, make_corpus
from ossicle_lab.stamp import claim_folder

MODEL, RESULTS = "model", "results.json"
STAGE1, STAGE2 = "pretrain", "finetune"
"""Names of the runs, whose folders are in the output folder."""


@dataclass(frozen=True)
class Scale:
    """The models, recipes and sizes of a run."""

    encoder: str = "whisper-base"
    """Name of the encoder in `ossicle_lab.real.models.MODELS`, or its folder."""
    llm: str = "smollm2-135m-instruct"
    """Name of the LLM in `ossicle_lab.real.models.MODELS`, or its folder."""
    pretrain: str = "real/pretrain"
    """Recipe of stage 1."""
    finetune: str = "real/finetune"
    """Recipe of stage 2."""
    pretrain_overrides: tuple[str, ...] = ()
    finetune_overrides: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)
    own_answers: int = 0
    """Number of training recordings for which the LLM's own answers to the transcript become targets of stage 2."""
    max_new_tokens: int = 100
    """Longest answer in tokens in the tests."""


FULL = Scale()
SHORT = Scale(
    pretrain_overrides=("train.steps=1200", "data.max_batch_s=80"),
    finetune_overrides=("train.steps=80",),
    sizes=Sizes(
        sentences=0, speeds=(), perturbed=0, natural=0, passages=150, questions=1500,
        test_recordings=40, test_passages=20, test_questions=40, unseen=16, translations=16,
    ),
)  # fmt: skip
"""A run for CPUs that do not multiply in bfloat16: recordings without copies, shorter trainings and smaller tests."""
RECIPES = {
    FULL.llm: (FULL.pretrain, FULL.finetune),
    "qwen2.5-coder-0.5b-instruct": ("real/qwen-pretrain", "real/qwen-finetune"),
}
"""Recipes of both stages by the name of the LLM. Other LLMs use those of `FULL`."""


def fitting() -> Scale:
    """Return the scale that two cores of this machine finish in three hours: `FULL`, or `SHORT` without bfloat16."""
    return FULL if torch.cuda.is_available() or multiplies(torch.bfloat16) else SHORT


def run(
    recordings: Path,
    out: Path,
    scale: Scale = FULL,
    *,
    source: models.Source = "auto",
    models_folder: Path | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Run all steps, or those that an earlier call left, and return the content of ``results.json``.

    Args:
        recordings: folder of recordings, as for `ossicle_lab.real.corpus.make_corpus`.
        out: folder for data, runs, hypotheses, the table and the model.
        scale: models, recipes and sizes.
        source: where published models are fetched from.
        models_folder: folder of fetched models; ``out/models`` by default.
        jobs: number of processes of espeak-ng; None for one per core.

    Raises:
        ConfigError: ``out`` holds a run of another scale, or a recipe is invalid.
        DataError: the recordings cannot be used.
        ModelError: a model cannot be fetched or loaded.
        TrainingError: training was interrupted or failed.
    """
    from ossicle.recipes import find
    from ossicle_lab.real.averaged import average

    console, seconds = Console(), _Seconds(out / "seconds.json")
    claim_folder(out / "real.json", scale, find(scale.pretrain).parent)
    with seconds.timed("models", console, "Fetching the models"):
        encoder, llm = (_model(name, models_folder or out / "models", source) for name in (scale.encoder, scale.llm))
    with seconds.timed("corpus", console, "Splitting the recordings and speaking texts"):
        corpus = make_corpus(recordings, out / "data", scale.sizes, jobs=jobs)
    base = [f"model.encoder={_quoted(encoder)}", f"model.llm={_quoted(llm)}", f"output_dir={_quoted(out)}"]
    base += [f"data.cache_dir={_quoted(out / 'cache')}", f"data.dev=[{_quoted(corpus.dev)}]"]
    with seconds.timed(STAGE1, console, "Stage 1: training the projector on transcribed speech"):
        train(scale.pretrain, [*base, f"name={STAGE1}", _train_data(corpus.stage1), *scale.pretrain_overrides])
    tasks = [corpus.finetune]
    if scale.own_answers:
        with seconds.timed("own answers", console, "Collecting the LLM's own answers to transcripts"):
            tasks.append(_own_answers(out, corpus, scale.own_answers))
    with seconds.timed(STAGE2, console, "Stage 2: training the projector on tasks"):
        start = f"train.init_from={_quoted(out / STAGE1)}"
        tuned = train(scale.finetune, [*base, f"name={STAGE2}", start, _train_data(tasks), *scale.finetune_overrides])
    average(out / STAGE1, tuned, out / MODEL)
    with seconds.timed("tests", console, "Testing on speakers that were never heard"):
        rows = _test(out / MODEL, encoder, corpus, out / "tests", scale.max_new_tokens)
    record = {
        "scale": asdict(scale),
        "rows": [asdict(row) for row in rows],
        "corpus": json.loads((corpus.folder / "corpus.json").read_text(encoding="utf-8")),
        "seconds": seconds.kept,
    }
    write_json(out / RESULTS, record)
    _show(rows, out, console)
    return dict(json.loads((out / RESULTS).read_text(encoding="utf-8")))


def train(recipe: str, overrides: Sequence[str]) -> Path:
    """Train by a recipe, or continue or skip a run that an earlier call began, and return the run's folder.

    Raises `TrainingError` if the user stops it, after its checkpoint is saved.
    """
    from ossicle.models.saving import CONFIG_FILE
    from ossicle.train import recipe as recipes
    from ossicle.train import train as run_training
    from ossicle.train.checkpoint import latest

    config = recipes.load(recipe, overrides)
    if not (config.folder / CONFIG_FILE).is_file():  # training writes it at the end
        run_training(config, resume=latest(config.folder) is not None)
    if not (config.folder / CONFIG_FILE).is_file():
        raise TrainingError(f"{config.folder}: training was interrupted; the same command continues it")
    return config.folder


def _model(name: str, folder: Path, source: models.Source) -> Path:
    """Return the absolute folder of a model, which is fetched if ``name`` is that of a published one."""
    return (models.fetch(name, folder, source=source) if name in models.MODELS else Path(name)).resolve()


def _own_answers(out: Path, corpus: Corpus, count: int) -> Path:
    """Write the LLM's own answers to transcripts of ``count`` training recordings, and return their manifest."""
    import random

    from ossicle.data.manifest import read_manifest
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU
    from ossicle_lab.real.decoding import write_own_answers

    path = corpus.folder / "own-answers.jsonl"
    if not path.is_file():
        samples = read_manifest(corpus.train)
        drawn = random.Random(0).sample(samples, min(count, len(samples)))
        write_own_answers(SpeechLLM.from_pretrained(out / STAGE1, device=CPU), drawn, path)
    return path


def _test(model: Path, encoder: Path, corpus: Corpus, out: Path, max_new_tokens: int) -> list[Any]:
    """Decode and score all tests, and return the entries of the table."""
    from ossicle.evaluate.run import EvalOptions, evaluate
    from ossicle_lab.real.decoding import decode_text
    from ossicle_lab.real.table import entries
    from ossicle_lab.real.whisper import decode_whisper, is_whisper

    rows, options = [], EvalOptions(max_new_tokens=max_new_tokens, honesty_lines=0)
    for manifest in (*corpus.recognition_tests, corpus.questions_test, corpus.unseen_test):
        name = manifest.stem.removeprefix("test-")
        speech, text, own = (out / f"{name}.{kind}.jsonl" for kind in ("speech", "text", "whisper"))
        evaluate(model, manifest, speech, options)
        decode_text(model, manifest, text, max_new_tokens=max_new_tokens)
        whisper = own if is_whisper(encoder) else None
        if whisper and manifest in corpus.recognition_tests:
            decode_whisper(encoder, manifest, whisper)
        elif whisper:
            evaluate(model, manifest, whisper, replace(options, cascade=True))
        rows += entries(name, speech, text=text, whisper=whisper)
    return rows


def _show(rows: Sequence[Any], out: Path, console: Console) -> None:
    from ossicle_lab.real.table import show

    show(rows, console)
    console.print(
        f"model: {out / MODEL}; try: ossicle transcribe RECORDING --model {out / MODEL}",
        highlight=False,
        soft_wrap=True,
    )


class _Seconds:
    """The wall time of each step in seconds. A file keeps those of the call that did the work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def timed(self, name: str, console: Console, title: str) -> Iterator[None]:
        """Announce a step, time it, and add the time to that of earlier, stopped calls."""
        started = time.perf_counter()
        console.print(f"[bold]{title}[/] …")
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.kept[name] = round(self.kept.get(name, 0.0) + taken, 1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.kept)
        console.print(f"  done in {taken:.0f} s", style="dim", highlight=False)


def _train_data(manifests: Sequence[Path]) -> str:
    return f"data.train={json.dumps([str(path.resolve()) for path in manifests])}"


def _quoted(path: Path) -> str:
    return json.dumps(str(path.resolve()))
