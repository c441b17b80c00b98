"""Transcribe a folder of recordings and print a table, good and bad: `python -m ossicle_lab.real.samples FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ossicle.data.manifest import write_manifest
from ossicle.errors import OssicleError
from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle.evaluate.metrics import wer
from ossicle.evaluate.run import EvalOptions, evaluate
from ossicle_lab.real.recordings import read_corpus
from ossicle_lab.real.ship import ears
from ossicle_lab.real.tasks import recognition_test


def transcribe(folder: Path, out: Path, checkpoint: Path, *, longest_s: float = 30.0) -> list[str]:
    """Return the lines of a Markdown table with what a checkpoint hears in the English recordings of a corpus.

    A second call with the same ``out`` decodes nothing again.

    Args:
        folder: Folder with ``manifest.jsonl``.
        out: Folder for the manifest and the hypotheses.
        checkpoint: Folder of the checkpoint.
        longest_s: Recordings that are longer than this number of seconds are left out.
    """
    samples = [sample for sample in read_corpus(folder) if (sample.duration_s or 0.0) <= longest_s]
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "samples.jsonl", recognition_test(samples))
    evaluate(checkpoint, out / "samples.jsonl", out / "heard.jsonl", EvalOptions(max_new_tokens=200, honesty_lines=0))
    lines = sorted(read_hypotheses(out / "heard.jsonl"), key=lambda line: line.id)
    rates = [wer([line.hypothesis], [line.references]).value for line in lines]
    rows = [
        f"| {line.references[0]} | {line.hypothesis} | {rate:.0f} |" for line, rate in zip(lines, rates, strict=True)
    ]
    return ["| said | heard | WER |", "|---|---|---|", *rows]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with manifest.jsonl.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the hypotheses.")] = Path("runs/samples"),
    model: Annotated[Path | None, typer.Option(help="Checkpoint. Default: the packaged one.")] = None,
) -> None:
    """Print what a checkpoint hears in English recordings of up to 30 s, as a Markdown table."""
    try:
        print("\n".join(transcribe(folder, out, model or ears())))
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
