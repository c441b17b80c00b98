"""What the demo shows: the table, the plots, three spoken examples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ossicle_lab.demo.chain import ChainResult

FRACTION = 0.1
BOUND = "text (upper bound)"
TITLES = {
    "contrastive": "contrastive pretraining",
    "asr": "ASR pretraining",
    "none": "no pretraining",
    BOUND: "LLM reads the transcript",
}
COLUMNS = {
    "wer": "WER ↓",
    "bleu_de": "BLEU de ↑",
    "bleu_es": "BLEU es* ↑",
    "em": "EM ↑",
    "f1": "F1 ↑",
    "r_at_1": "R@1** ↑",
}
EXAMPLES = 3
SIMILARITY_SHOWN = 32


def collect(
    results: Sequence[ChainResult],
    bound: list[dict[str, Any]],
    *,
    scale: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of ``results.json``: a row per run, and the wall time of each part in seconds."""
    rows = [
        {"run": result.name, "fraction": FRACTION, **scores_of(result.scores), "r_at_1": _mean_r_at_1(result.alignment)}
        for result in results
    ]
    rows.append({"run": BOUND, "fraction": None, **scores_of(bound), "r_at_1": None})
    return {
        "rows": rows,
        "seconds": {**seconds, **{f"{r.name}/{part}": s for r in results for part, s in r.seconds.items()}},
        "scale": scale,
        "alignment": {result.name: result.alignment for result in results},
    }


def scores_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The columns of the table from the rows of a score file."""
    found = {(row["task"], row["target_language"]): row["scores"] for row in rows}
    return {
        "wer": found["asr", "en"]["wer"],
        "bleu_de": found["st", "de"]["bleu"],
        "bleu_es": found["st", "es"]["bleu"],
        "em": found["qa", "en"]["em"],
        "f1": found["qa", "en"]["f1"],
    }


def _mean_r_at_1(alignment: list[dict[str, Any]]) -> float:
    return sum(row["speech_to_text_r1"] for row in alignment) / len(alignment)


def plots(out: Path, chains: Mapping[str, str | None]) -> None:
    """Loss of both stages, retrieval by layer, similarity before and after, as PNG in ``plots``."""
    import numpy as np

    from ossicle.inspect.alignment import AlignmentRow
    from ossicle.train.tracking import METRICS_FILE
    from ossicle_lab.analysis.plots import plot_loss, plot_retrieval_by_layer, plot_similarity

    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for name, stage1 in chains.items():
        if stage1:
            plot_loss({TITLES[name]: out / name / "stage1" / METRICS_FILE}, folder / f"loss-stage1-{name}.png")
    plot_loss({TITLES[name]: out / name / "stage2" / METRICS_FILE for name in chains}, folder / "loss-stage2.png")
    alignment = json.loads((out / "results.json").read_text())["alignment"]
    plot_retrieval_by_layer(
        {TITLES[name]: [AlignmentRow(**row) for row in rows] for name, rows in alignment.items()},
        folder / "retrieval.png",
    )
    before, after = (np.load(out / name / "similarity.npy") for name in ("none", "contrastive"))  # (layer, N, N)
    middle, n = len(before) // 2, SIMILARITY_SHOWN
    plot_similarity(before[middle, :n, :n], after[middle, :n, :n], folder / "similarity.png")


def show(out: Path, record: dict[str, Any], console: Console) -> None:
    """Print the table, the examples and where everything is."""
    scale = record["scale"]
    table = Table(
        title=f"Held-out sentences in held-out voices ({scale['test']} passages), 10% of the task data", box=box.SIMPLE
    )
    table.add_column("run", no_wrap=True)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in record["rows"]:
        table.add_row(TITLES[row["run"]], *(_cell(row[column]) for column in COLUMNS))
    console.print(table)
    console.print(
        " *  Spanish is never shown in stage 2.\n"
        " ** Speech finds its transcript among the test passages after stage 1 (without\n"
        "    pretraining: after stage 2); mean over the LLM's layers.\n"
        f" {_stage1_times(record['seconds'])}\n"
        " The contrastive loss is contr-wasser-emb, the lab's best at equal time: see\n docs/results.md.",
        style="dim",
        highlight=False,
    )
    for example in examples(out):
        console.print(f"\n[bold]{example['audio']}[/]", highlight=False, soft_wrap=True)
        for name in ("said", "heard", "german", "question", "answer"):
            console.print(f"  {name:<9}{example[name]}", highlight=False, markup=False, soft_wrap=True)
    total = sum(record["seconds"][part] for part in ("corpus", "frames", "training", "text"))
    console.print(
        f"\n{total / 60:.1f} minutes. Table: {out}/results.json, plots: {out}/plots, model: {out}/model. Now try:\n"
        f"  ossicle transcribe {out}/examples/1.wav --model {out}/model\n"
        f'  ossicle ask "name the people" {out}/examples/1.wav --model {out}/model',
        highlight=False,
        soft_wrap=True,
    )


def _stage1_times(seconds: Mapping[str, float]) -> str:
    times = [f"{seconds[f'{name}/stage1']:.0f} s ({TITLES[name]})" for name in ("contrastive", "asr")]
    return f"Stage 1 took {' and '.join(times)}."


def examples(out: Path) -> list[dict[str, str]]:
    """Three test recordings, copied to ``examples``, and what the contrastive model made of them."""
    from ossicle.evaluate.score import read_hypotheses

    heard: dict[str, dict[str, Any]] = {}
    for line in read_hypotheses(out / "contrastive" / "hypotheses.jsonl"):
        heard.setdefault(line.audio or "", {})[f"{line.task}/{line.target_language}"] = line
    (out / "examples").mkdir(exist_ok=True)
    shown = []
    for i, (audio, lines) in enumerate(sorted(heard.items())[:EXAMPLES], start=1):
        path = out / "examples" / f"{i}.wav"
        shutil.copyfile(audio, path)
        question = lines["qa/en"]
        shown.append(
            {
                "audio": str(path),
                "said": lines["asr/en"].references[0],
                "heard": lines["asr/en"].hypothesis,
                "german": lines["st/de"].hypothesis,
                "question": question.instruction,
                "answer": question.hypothesis,
            }
        )
    (out / "examples" / "examples.json").write_text(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    return shown


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
