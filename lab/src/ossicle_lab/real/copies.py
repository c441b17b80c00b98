"""Measure what other copies of the base weights cost: `python -m ossicle_lab.real.copies MANIFEST`.

Published weights are passed on in several precisions. The copies here are made by rounding the weights of the encoder,
of the LLM, or of both, in groups as quantised files have them, so that nothing has to be downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import OssicleError
from ossicle.evaluate.decode import decode
from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle.evaluate.metrics import wer
from ossicle.models.likeness import LEAST
from ossicle.models.speech_llm import SpeechLLM
from ossicle_lab.real.ship import ears

GROUP = 32
"""Number of weights of a row that share a scale, as in llama.cpp's files."""
COPIES = (("as trained with", None, None), ("8 bits", 8, 8), ("4 bits", 4, 4), ("LLM 4 bits", None, 4))
"""Name of a copy, bits of the encoder, and bits of the LLM; None leaves the weights alone."""


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> float:
    """Round the large matrices of ``model`` to ``bits`` and return the relative difference ||W - W'|| / ||W||."""
    changed = total = 0.0
    for weight in model.parameters():
        if weight.dim() != 2 or weight.numel() < LEAST or weight.shape[1] % GROUP:
            continue
        groups = weight.float().reshape(-1, GROUP)
        scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
        new = (groups / scale).round() * scale
        changed += float((new - groups).square().sum())
        total += float(groups.square().sum())
        weight.copy_(new.reshape(weight.shape))
    return (changed / total) ** 0.5 if total else 0.0


def measure(checkpoint: Path, manifest: Path, out: Path, *, limit: int | None = None) -> list[str]:
    """Return the lines of a Markdown table: for each of `COPIES`, its difference and the WER on ``manifest``.

    Args:
        checkpoint: Folder of the checkpoint.
        manifest: Recognition test.
        out: Folder for the hypotheses; a second call decodes nothing again.
        limit: Number of utterances, from the first; None takes all.
    """
    rows = ["| base models | difference of encoder | of LLM | WER |", "|---|---|---|---|"]
    for name, encoder_bits, llm_bits in COPIES:
        model = SpeechLLM.from_pretrained(checkpoint)
        parts = ((model.encoder, encoder_bits), (model.llm.model, llm_bits))
        changes = [round_weights(part, bits) if bits else 0.0 for part, bits in parts]
        dataset, collate = SpeechDataset(read_manifest(manifest)[:limit]), Collator(model.prompter())
        path = out / f"{name.replace(' ', '-')}.jsonl"
        decode(model, dataset, collate, path, fingerprint=f"{checkpoint.resolve()} {name}")
        lines = read_hypotheses(path)
        score = wer([line.hypothesis for line in lines], [line.references for line in lines])
        rows.append(f"| {name} | {changes[0]:.3f} | {changes[1]:.3f} | {score.value:.1f} |")
        print(rows[-1], flush=True)
    return rows


def main(
    manifest: Annotated[Path, typer.Argument(help="Recognition test (JSONL).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the hypotheses.")] = Path("runs/copies"),
    model: Annotated[Path | None, typer.Option(help="Checkpoint. Default: the packaged one.")] = None,
    limit: Annotated[int | None, typer.Option(help="Number of utterances. Default: all.", min=1)] = None,
) -> None:
    """Print what rounded copies of the base models cost in word error rate, as a Markdown table."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        print("\n".join(["", *measure(model or ears(), manifest, out, limit=limit)]))
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
