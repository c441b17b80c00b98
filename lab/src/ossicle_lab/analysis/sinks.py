"""Measure how much the first position of a text decides the mean of an LLM's hidden states, and what helps.

    python -m ossicle_lab.analysis.sinks LLM MANIFEST

The mean over positions is what the contrastive loss with cosine similarity compares. If it is nearly the same vector
for all texts, the loss has little to tell utterances apart by. No speech is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ossicle.batch import Padded, pad_ids
from ossicle.data.manifest import read_manifest
from ossicle.errors import DataError
from ossicle.losses.contrastive import cosine, mean_pool, standardised, without_first


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the means of different texts, over all pairs."""

    mean: float
    spread: float
    """Standard deviation. The softmax of the loss sees it divided by the temperature."""

    @classmethod
    def of(cls, pooled: Tensor) -> Similarity:
        """Return the similarity of different rows of ``pooled`` (N, D)."""
        others = cosine(pooled, pooled)[~torch.eye(len(pooled), dtype=torch.bool, device=pooled.device)]
        return cls(float(others.mean()), float(others.std()))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"


@dataclass(frozen=True)
class SinkRow:
    """One layer, and the similarity of different texts under each remedy."""

    layer: int
    first: float
    """Norm of the first position, relative to the median norm of the other positions."""
    plain: Similarity
    """Mean over all positions."""
    skip_first: Similarity
    """Mean without the first position."""
    bos: Similarity | None
    """Mean over all positions after a begin-of-sequence token; None for an LLM without one."""
    standardised: Similarity
    """Mean over all positions, each dimension standardised. Its mean similarity is near 0 by construction."""
    both: Similarity
    """Mean without the first position, each dimension standardised."""
    length: float
    """Correlation of the standardised means with the inverse length of the text, along their main direction. Near 1,
    the similarity compares lengths: a large first position has the share 1 / length of the mean."""


def _standardised(pooled: Tensor) -> Tensor:
    return standardised(pooled[None], pooled[None])[0][0]


def _length_correlation(pooled: Tensor, lengths: Tensor) -> float:
    """Return the correlation of the main direction of ``pooled`` (N, D) with the inverse of ``lengths`` (N,)."""
    main = torch.linalg.svd(pooled - pooled.mean(0), full_matrices=False)[0][:, 0]
    return float(torch.corrcoef(torch.stack([main, 1 / lengths]))[0, 1].abs())


@torch.no_grad()
def measure_sinks(llm: Any, ids: list[list[int]]) -> list[SinkRow]:
    """Return one row per hidden state of ``llm`` for texts as token ``ids``. Raises `DataError` for fewer than two."""
    if len(ids) < 2:
        raise DataError(f"{len(ids)} texts cannot be compared: give at least two")
    tokens = pad_ids(ids).to(next(llm.parameters()).device)
    layers = list(range(llm.num_layers + 1))
    embeds = Padded(llm.embed(tokens.values), tokens.mask)
    hidden = llm.hidden_states(embeds, layers)
    after_bos = llm.hidden_states(embeds, layers, bos=True) if llm.tokenizer.bos_token_id is not None else None
    rest = without_first(tokens.mask)
    rows = []
    for layer in layers:
        states = hidden.states[layer].float()
        pooled = mean_pool(states, tokens.mask)
        even = _standardised(pooled)
        norms = states.norm(dim=-1)
        rows.append(
            SinkRow(
                layer,
                first=float(norms[:, 0].mean() / norms[rest].median()),
                plain=Similarity.of(pooled),
                skip_first=Similarity.of(mean_pool(states, rest)),
                bos=None if after_bos is None else Similarity.of(mean_pool(after_bos.states[layer], tokens.mask)),
                standardised=Similarity.of(even),
                both=Similarity.of(_standardised(mean_pool(states, rest))),
                length=_length_correlation(even, tokens.mask.sum(1).float()),
            )
        )
    return rows


def main(
    llm: Annotated[str, typer.Argument(help="LLM: hub id, folder, or a packaged name such as lab.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest (JSONL) with transcripts.")],
    count: Annotated[int, typer.Option(help="Number of texts.", min=2)] = 64,
) -> None:
    """Print the table of `measure_sinks` as Markdown."""
    from ossicle.models.frozen import resolve
    from ossicle.models.llm import load_llm
    from ossicle.prompts import Prompter

    model = load_llm(resolve(llm, "llm"))
    texts = list(dict.fromkeys(sample.text for sample in read_manifest(manifest) if sample.text))[:count]
    prompter = Prompter(model.tokenizer, model.end_ids)
    print("| layer | norm of the first | plain | skip_first | bos | standardise | both | by length |")
    print("|---|---|---|---|---|---|---|---|")
    for row in measure_sinks(model, [prompter.content_ids(text) for text in texts]):
        similarities = (row.plain, row.skip_first, row.bos, row.standardised, row.both)
        print(
            f"| {row.layer} | {row.first:.1f} |",
            " | ".join("–" if s is None else str(s) for s in similarities),
            f"| {row.length:.2f} |",
        )


if __name__ == "__main__":
    typer.run(main)
