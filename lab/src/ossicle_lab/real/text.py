"""Run both stages on real text in generated voices: `python -m ossicle_lab.real.text FOLDER`.

Multi30k, Tatoeba and XQuAD are spoken by espeak-ng, and a small LLM is trained on the same text without what is tested.
Then the study ``text/study`` compares both stages with fine-tuning alone, and with the LLM that reads the transcripts.
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
from ossicle_lab.real.text_corpus import TextCorpus, make_corpus
from ossicle_lab.real.text_llm import train_text_llm
from ossicle_lab.real.texts import TextSizes, read_texts
from ossicle_lab.stamp import claim_folder


@dataclass(frozen=True)
class Scale:
    """Sizes of the corpus and lengths of training."""

    sizes: TextSizes = field(default_factory=TextSizes)
    llm_steps: int = 1000
    llm_rows: int = 40
    """Texts per training step of the LLM."""
    study: tuple[str, ...] = ()
    """Overrides of the study."""


FULL = Scale()


def run(source: Path, out: Path, *, scale: Scale = FULL, processes: int | None = None) -> dict[str, Any]:
    """Train the LLM and run the study, or continue what an earlier call left. Return the study's results.

    Args:
        source: folder of texts, with ``parallel`` and ``qa``.
        out: folder for data, LLM and the study.
        scale: sizes of the corpus and lengths of training.
        processes: number of processes; None for one per core, 0 to train in this process.

    Raises:
        DataError: ``source`` lacks a corpus.
        ConfigError: ``out`` holds a run of another size.
        VoiceError: espeak-ng is not installed.
    """
    console = Console()
    claim_folder(out / "real_text.json", scale, recipes.FOLDER / "text")
    console.print("[bold]Splitting the texts and speaking a part of them[/] …")
    texts = read_texts(source, scale.sizes)
    corpus = make_corpus(texts, out / "data", scale.sizes)
    work = out / "llm-training"
    console.print(f"[bold]Training the LLM on text[/] … (log in {work})", highlight=False)
    llm = partial(train_text_llm, texts, work, out / "llm", steps=scale.llm_steps, rows=scale.llm_rows)
    run_side_by_side({"llm": llm}, processes=processes)
    scores = ctc_scores(Path(resolve(LAB, "encoder")), corpus.candidates)
    write_json(out / "parts.json", {"encoder": scores, "scale": asdict(scale)})
    console.print(f"  CTC head of the encoder: WER {scores['wer']:.1f} on unseen sentences in unseen voices")
    return run_packaged_study(
        "text/study", out, [*_overrides(corpus, out), *scale.study], processes=processes, console=console
    )


def _overrides(corpus: TextCorpus, out: Path) -> list[str]:
    return study_overrides(
        {"llm": out / "llm"},
        {
            "pretrain": corpus.transcripts,
            "finetune": [*corpus.transcripts, *corpus.tasks],
            "test": [corpus.test],
            "alignment": [corpus.candidates],
        },
    )


def main(
    source: Annotated[Path, typer.Argument(help="Folder of texts: parallel/ and qa/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for all outputs; a second call continues there.")] = Path(
        "runs/real_text"
    ),
) -> None:
    """Run both stages on real text in generated voices, with a small LLM trained on that text."""
    try:
        run(source, out)
    except (OssicleError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
