"""Run the paper's table, smaller, on recorded speech: `python -m ossicle_lab.real.speech SPEECH TEXT`.

Recordings are split by speaker. The lab's encoder is trained further by CTC, and beside it a small LLM on text. Then
the study ``real/study`` runs with both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ossicle.errors import OssicleError
from ossicle.files import write_json
from ossicle.models.frozen import LAB, resolve
from ossicle_lab import recipes
from ossicle_lab.jobs import run_side_by_side
from ossicle_lab.real.common import ctc_scores, run_packaged_study, study_overrides
from ossicle_lab.real.speech_corpus import RealCorpus, Sizes, make_corpus
from ossicle_lab.real.text_llm import train_text_llm
from ossicle_lab.stamp import claim_folder


@dataclass(frozen=True)
class Scale:
    """Sizes of the corpus and lengths of training."""

    sizes: Sizes = field(default_factory=Sizes)
    encoder_steps: int = 5000
    encoder_batch_s: float = 48.0
    """Seconds of audio per training step of the encoder."""
    llm_steps: int = 1500
    llm_rows: int = 40
    """Texts per training step of the LLM."""
    study: tuple[str, ...] = ()
    """Overrides of the study."""


FULL = Scale()


def run(speech: Path, text: Path, out: Path, *, scale: Scale = FULL, processes: int | None = None) -> dict[str, Any]:
    """Train encoder and LLM and run the study, or continue what an earlier call left. Return the study's results.

    Args:
        speech: folder of recorded speech.
        text: folder of texts, with ``parallel``.
        out: folder for data, encoder, LLM and the study.
        scale: sizes of the corpus and lengths of training.
        processes: number of processes; None for one per core, 0 to train in this process.

    Raises:
        DataError: a folder lacks a corpus.
        ConfigError: ``out`` holds a run of another size.
    """
    console = Console()
    claim_folder(out / "real.json", scale, recipes.FOLDER / "real")
    console.print("[bold]Splitting recordings and texts, and speaking a part of them[/] …")
    corpus, texts = make_corpus(speech, text, out / "data", scale.sizes)
    console.print(f"[bold]Training the encoder on speech, and the LLM on text[/] … (logs in {out})", highlight=False)
    llm = partial(train_text_llm, texts, out / "llm-training", out / "llm", steps=scale.llm_steps, rows=scale.llm_rows)
    run_side_by_side({"encoder": partial(train_encoder, corpus, out, scale), "llm": llm}, processes=processes, logs=out)
    encoders = {"encoder": out / "encoder", "lab_encoder": Path(resolve(LAB, "encoder"))}
    scores = {name: ctc_scores(encoder, corpus.test) for name, encoder in encoders.items()}
    write_json(out / "parts.json", {**scores, "scale": asdict(scale)})
    own, lab = (scores[name]["wer"] for name in ("encoder", "lab_encoder"))
    console.print(f"  CTC head of the encoder: WER {own:.1f} on unseen speakers; of the lab's encoder: {lab:.1f}")
    return run_packaged_study(
        "real/study", out, [*_overrides(corpus, out), *scale.study], processes=processes, console=console
    )


def train_encoder(corpus: RealCorpus, out: Path, scale: Scale) -> None:
    """Train the lab's encoder further on recorded and generated speech into ``out/encoder``, unless it is there.

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


def _overrides(corpus: RealCorpus, out: Path) -> list[str]:
    return study_overrides(
        {"encoder": out / "encoder", "llm": out / "llm"},
        {
            "pretrain": [corpus.train, *corpus.spoken],
            "finetune": [corpus.finetune],
            "test": [corpus.test],
            "alignment": [corpus.candidates],
        },
    )


def main(
    speech: Annotated[Path, typer.Argument(help="Folder of recorded speech.", show_default=False)],
    text: Annotated[Path, typer.Argument(help="Folder of texts, with parallel/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for all outputs; a second call continues there.")] = Path(
        "runs/real"
    ),
) -> None:
    """Run the paper's table on recorded speech, tested on speakers that neither encoder nor LLM was trained on."""
    try:
        run(speech, text, out)
    except (OssicleError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
