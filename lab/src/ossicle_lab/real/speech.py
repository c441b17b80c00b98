"""`python -m ossicle_lab.real.speech SPEECH TEXT`: the paper's table on recorded speech, smaller.

Recordings split by speaker, and texts -> the lab's encoder trained further by CTC, beside it a small LLM trained on the
text -> what each can do by itself -> `ossicle study real/study` with both.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ossicle.models.frozen import LAB, resolve
from ossicle_lab.demo.chain import MALLOC, claim
from ossicle_lab.demo.run import recipes
from ossicle_lab.demo.side_by_side import end_with
from ossicle_lab.real.speech_corpus import RealCorpus, Sizes, make_corpus
from ossicle_lab.real.texts import Texts

STUDY = "study"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    sizes: Sizes = field(default_factory=Sizes)
    encoder_steps: int = 5000
    encoder_batch_s: float = 48.0
    llm_steps: int = 1500
    llm_rows: int = 40
    """Texts per step."""
    study: tuple[str, ...] = ()
    """Overrides of the study."""


FULL = Scale()


def run(speech: Path, text: Path, out: Path, *, scale: Scale = FULL, processes: int | None = None) -> dict[str, Any]:
    """Train what the study stands on and run it, continuing what an earlier call left; returns its results.

    Args:
        speech: the folder of recorded speech.
        text: the folder of texts, with ``parallel``.
        out: where everything goes, encoder and LLM included; the study is in its folder ``study``.
        scale: how much of everything.
        processes: how many at a time; ``None``: one per core; 0: in this process.

    Raises `ValueError` where a folder lacks a corpus or ``out`` holds a run of another size.
    """
    from ossicle_lab.study.config import load
    from ossicle_lab.study.run import run_study
    from ossicle_lab.study.summary import print_results

    console = Console()
    claim(out / "real.json", scale, recipes().parent / "real")
    console.print("[bold]Splitting recordings and texts, and speaking a part of them[/] …")
    corpus, texts = make_corpus(speech, text, out / "data", scale.sizes)
    console.print(f"[bold]Training the encoder on speech, and the LLM on text[/] … (logs in {out})", highlight=False)
    _train_both(corpus, texts, out, scale, processes)
    alone = {"encoder": ctc_scores(out / "encoder", corpus.test), "lab_encoder": _lab_scores(corpus)}
    (out / "parts.json").write_text(json.dumps({**alone, "scale": asdict(scale)}, indent=2) + "\n")
    heard, lab = (alone[name]["wer"] for name in ("encoder", "lab_encoder"))
    console.print(f"  the encoder's own words: WER {heard:.1f} on unseen speakers; the lab's encoder: {lab:.1f}")
    config = load(recipes().parent / "real" / "study.yaml", [*study_overrides(corpus, out), *scale.study])
    record = run_study(config, processes=processes)
    print_results(record, console)
    console.print(f"{config.folder / 'results.json'}; show it with: ossicle report {config.folder}", highlight=False)
    return record


def study_overrides(corpus: RealCorpus, out: Path) -> list[str]:
    """What `real/study` needs to know of this run."""
    models = json.dumps([f"model.encoder={out / 'encoder'}", f"model.llm={out / 'llm'}"])
    data = {
        "pretrain": [corpus.train, *corpus.spoken],
        "finetune": [corpus.finetune],
        "test": [corpus.test],
        "alignment": [corpus.candidates],
    }
    return [
        f"name={STUDY}",
        f"output_dir={out}",
        f"stage1.overrides={models}",
        f"finetuning.overrides={models}",
        *(f"data.{name}={json.dumps([str(path) for path in paths])}" for name, paths in data.items()),
    ]


def train_encoder(corpus: RealCorpus, out: Path, scale: Scale) -> None:
    """Train the lab's encoder further on recorded and generated speech into ``out/encoder``.

    Generated speech is a part of stage 1, and has words that the recordings lack.
    """
    from ossicle.data.manifest import read_manifest
    from ossicle_lab.models.ctc import CTCTraining, Phase, save_encoder, train_ctc

    if (out / "encoder" / "config.json").is_file():
        return
    samples = [s for path in (corpus.train, *corpus.spoken) for s in read_manifest(path)]
    phase = Phase(
        steps=scale.encoder_steps,
        max_duration_s=max(sample.duration_s or 0.0 for sample in samples),
        batch_s=scale.encoder_batch_s,
    )
    settings = CTCTraining(phases=(phase,), lr=1e-3)
    start = Path(resolve(LAB, "encoder"))
    dev = read_manifest(corpus.dev)
    save_encoder(train_ctc(samples, dev, out / "ctc", settings=settings, init_from=start), out / "encoder")


def train_llm(texts: Texts, out: Path, scale: Scale) -> None:
    """Train the LLM into ``out/llm``."""
    from ossicle_lab.real.text_llm import train_text_llm

    train_text_llm(texts, out / "llm-training", out / "llm", steps=scale.llm_steps, rows=scale.llm_rows)


def ctc_scores(encoder: Path, test: Path) -> dict[str, float]:
    """Word error rates of the encoder's own greedy transcripts of the recognition lines of the manifest ``test``."""
    import torch
    from transformers import HubertForCTC, Wav2Vec2Processor

    from ossicle.audio import read_audio
    from ossicle.data.manifest import read_manifest
    from ossicle.evaluate.metrics import wer, wer_utterance_mean
    from ossicle_lab.models.ctc import recognise

    samples = [sample for sample in read_manifest(test) if sample.task in (None, "asr")]
    model = HubertForCTC.from_pretrained(encoder, dtype=torch.float32)
    processor = Wav2Vec2Processor.from_pretrained(encoder)
    heard = recognise(model, processor, [read_audio(sample.audio) for sample in samples])
    said = [sample.text or "" for sample in samples]
    return {"wer": wer(heard, said).value, "wer_utterance_mean": wer_utterance_mean(heard, said).value}


def _lab_scores(corpus: RealCorpus) -> dict[str, float]:
    return ctc_scores(Path(resolve(LAB, "encoder")), corpus.test)


def _train_both(corpus: RealCorpus, texts: Texts, out: Path, scale: Scale, processes: int | None) -> None:
    """Encoder and LLM, side by side where there are two cores."""
    jobs: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
        "encoder": (train_encoder, (corpus, out, scale)),
        "llm": (train_llm, (texts, out, scale)),
    }
    if processes == 0:
        for train, arguments in jobs.values():
            train(*arguments)
        return
    for name, value in MALLOC.items():  # glibc reads these when a process starts
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        running = [
            pool.submit(_logged, train, arguments, out / f"{name}.log") for name, (train, arguments) in jobs.items()
        ]
        for future in running:
            future.result()


def _logged(train: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> None:
    """Run in a process of its own, on one thread, with all output in ``log``."""
    import contextlib

    import torch

    torch.set_num_threads(1)
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        train(*arguments)


def main(
    speech: Annotated[Path, typer.Argument(help="The folder of recorded speech.", show_default=False)],
    text: Annotated[Path, typer.Argument(help="The folder of texts, with parallel/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where everything goes; a second call continues there.")] = Path(
        "runs/real"
    ),
) -> None:
    """The paper's table on recorded speech, tested on speakers that nothing has heard."""
    try:
        run(speech, text, out)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
