"""`python -m ossicle_lab.demo.compare`: every stage-1 recipe of the lab with the same number of steps, one table.

Each is fine-tuned with 10% of the task data and scored like the demo's runs, on held-out sentences in held-out voices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ossicle_lab.demo.chain import Chain, ChainResult, is_study
from ossicle_lab.demo.report import scores_of
from ossicle_lab.demo.run import encode_splits, recipes
from ossicle_lab.demo.side_by_side import run_side_by_side
from ossicle_lab.world.corpus import make_corpus

NONE = "none"
TEST = 150
"""Passages, as many as in the demo."""
FINETUNE = "finetune"
"""The recipe of stage 2."""
COLUMNS = {"wer": "WER ↓", "bleu_de": "BLEU de ↑", "bleu_es": "BLEU es ↑", "em": "EM ↑", "f1": "F1 ↑"}


def stage1_recipes() -> list[str]:
    """Names of the lab's recipes for stage 1."""
    return sorted(path.stem for path in recipes().glob("*.yaml") if path.stem != FINETUNE and not is_study(path))


def compare(
    out: Path, names: Sequence[str], *, passages: tuple[int, int], steps: tuple[int, int], processes: int | None = None
) -> list[dict[str, Any]]:
    """Run the recipes ``names`` (and no pretraining as "none") in ``out``; returns the rows of ``results.json``.

    ``passages`` are those to train and to test on, ``steps`` those of stage 1 and stage 2. Finished recipes of an
    earlier call are not run again, so further ones can be added. Raises `ValueError` for a recipe that does not exist.
    """
    unknown = set(names) - {NONE, *stage1_recipes()}
    if unknown:
        raise ValueError(
            f"no recipe {', '.join(sorted(unknown))} in {recipes()}; there are {', '.join(stage1_recipes())}"
        )
    train, test = passages
    make_corpus(out / "data", train=train, dev=1, test=test)
    encode_splits(out / "data")
    runs = out / f"{train}-passages-{steps[0]}-{steps[1]}-steps"
    results = run_side_by_side([_chain(name, runs, out / "data", steps) for name in names], processes)
    rows = [_row(result) for result in results]
    record = {"passages": passages, "steps": steps, "rows": rows}
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    return rows


def _chain(name: str, runs: Path, data: Path, steps: tuple[int, int]) -> Chain:
    return Chain(
        name=name,
        folder=runs / name,
        stage1=None if name == NONE else name,
        steps=steps,
        overrides1=(f"data.train=[{data / 'train' / 'manifest.jsonl'}]",),
        overrides2=(f"data.train=[{data / 'finetune.jsonl'}]",),
        data=data,
        recipes=recipes(),
    )


def _row(result: ChainResult) -> dict[str, Any]:
    return {
        "recipe": result.name,
        **scores_of(result.scores),
        "r_at_1": [row["speech_to_text_r1"] for row in result.alignment],
        "cpu_seconds": result.cpu_seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per recipe: scores after stage 2, and retrieval by layer and the time of stage 1."""
    shown = Table(box=box.MARKDOWN)
    shown.add_column("stage 1", no_wrap=True)
    for title in (*COLUMNS.values(), "R@1 by layer", "stage 1, CPU-s"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        retrieval = " ".join(f"{value:.0f}" for value in row["r_at_1"])
        seconds = row["cpu_seconds"].get("stage1")
        cells = [*(f"{row[column]:.1f}" for column in COLUMNS), retrieval, "–" if seconds is None else f"{seconds:.0f}"]
        shown.add_row(row["recipe"], *cells)
    return shown


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes of recipes/lab, or none; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes; a second call continues there.")] = Path(
        "runs/compare"
    ),
    train: Annotated[int, typer.Option(help="Training passages.")] = 4000,
    steps: Annotated[int, typer.Option(help="Of stage 1.")] = 600,
    finetune_steps: Annotated[int, typer.Option(help="Of stage 2.")] = 250,
) -> None:
    """Compare the lab's stage-1 recipes after the same number of steps."""
    try:
        rows = compare(out, names or [*stage1_recipes(), NONE], passages=(train, TEST), steps=(steps, finetune_steps))
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
