"""`python -m ossicle_lab.real.text FOLDER`: both stages on real text in generated voices, with an LLM of that text.

Multi30k, Tatoeba and XQuAD -> prepare-tts -> manifests to repeat, translate and answer; the same text, what is tested
left out -> a small LLM. The lab's encoder -> contrastive pretraining -> fine-tuning, and fine-tuning alone -> word
error rates, BLEU, EM and F1 beside those of the LLM that reads the transcripts -> one table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.models.frozen import LAB, resolve
from ossicle_lab.demo.chain import Chain, claim, decode_and_score, encode_all
from ossicle_lab.demo.run import recipes
from ossicle_lab.demo.side_by_side import run_side_by_side
from ossicle_lab.real.speech import ctc_scores
from ossicle_lab.real.text_corpus import CORPORA, TextCorpus, corpus_of, make_corpus
from ossicle_lab.real.texts import TextSizes, read_texts

CHAINS = {"both": "pretrain", "stage2": None}
"""Column of the table -> recipe of its stage 1."""
TEXT = "text"
"""Column for the LLM that reads the transcripts."""
TITLES = {"both": "both stages", "stage2": "stage 2 only", TEXT: "text"}
NAMES = {"multi30k": "Multi30k", "tatoeba": "Tatoeba", "xquad": "XQuAD"}
METRICS = {"wer": "WER ↓", "bleu": "BLEU ↑", "chrf": "chrF ↑", "em": "EM ↑", "f1": "F1 ↑"}
DATA, LLM = "data", "llm"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    sizes: TextSizes = field(default_factory=TextSizes)
    llm_steps: int = 1000
    llm_rows: int = 40
    """Texts per step."""
    stage1_steps: int = 2200
    stage2_steps: int = 1200


FULL = Scale()


def run(source: Path, out: Path, *, scale: Scale = FULL, processes: int | None = None) -> dict[str, Any]:
    """Run everything in ``out``, continuing what an earlier call left; returns what ``results.json`` holds.

    Args:
        source: the folder of texts, with ``parallel`` and ``qa``.
        out: where everything goes, the LLM included.
        scale: how much of everything.
        processes: how many chains at a time; ``None``: one per core; 0: in this process, without progress.

    Raises `ValueError` where ``source`` lacks a corpus or ``out`` holds a run of another size, and
    `ossicle.corpora.voices.VoiceError` without espeak-ng.
    """
    from ossicle_lab.real.text_llm import train_text_llm

    console, seconds = Console(), {}
    claim(out / "real_text.json", scale, _recipes())
    console.print("[bold]Splitting the texts and speaking a part of them[/] …")
    started = time.perf_counter()
    texts = read_texts(source, scale.sizes)
    corpus = make_corpus(texts, out / DATA, scale.sizes)
    encode_all([*corpus.transcripts, corpus.test], resolve(LAB, "encoder"), out / DATA / "cache")
    seconds["speech"] = _since(started)
    console.print("[bold]Training the LLM on text[/] …")
    started = time.perf_counter()
    llm = train_text_llm(texts, out / "llm-training", out / LLM, steps=scale.llm_steps, rows=scale.llm_rows)
    seconds["llm"] = _since(started)
    console.print("[bold]Contrastive pretraining and fine-tuning, and fine-tuning alone[/] …")
    started = time.perf_counter()
    results = run_side_by_side([_chain(name, llm, corpus, out, scale) for name in CHAINS], processes)
    seconds["chains"] = _since(started)
    console.print("[bold]Bounds: the LLM reads the transcripts, the encoder spells what it hears[/] …")
    _read_transcripts(out)
    encoder = Path(resolve(LAB, "encoder"))
    record = {
        "scores": {name: scores_by_corpus(out / name) for name in (*CHAINS, TEXT)},
        "retrieval": {result.name: result.alignment for result in results},
        "ctc": ctc_scores(encoder, corpus.candidates),
        "counts": _counts(corpus),
        "scale": asdict(scale),
        "seconds": seconds,
        "cpu_seconds": {result.name: result.cpu_seconds for result in results},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    console.print(table(record))
    return record


def scores_by_corpus(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Score ``folder/hypotheses.jsonl`` for each corpus by itself: rows as in a score file."""
    from ossicle.evaluate.score import read_hypotheses, score

    lines = read_hypotheses(folder / "hypotheses.jsonl")
    found = {}
    for name in CORPORA:
        path = folder / f"hypotheses-{name}.jsonl"
        of_corpus = (line.to_json() + "\n" for line in lines if corpus_of(line.id) == name)
        path.write_text("".join(of_corpus), encoding="utf-8")
        found[name] = [asdict(row) for row in score(path)]
    return found


def table(record: Mapping[str, Any]) -> Table:
    """One column per way to train and one for the bound; one row per corpus, task, language and metric.

    Retrieval is the mean over the LLM's layers, after stage 1 (without one: after stage 2), and that at layer 0.
    """
    scores = record["scores"]
    shown = Table(title="Unseen sentences in unseen voices", box=box.SIMPLE)
    shown.add_column("", no_wrap=True)
    shown.add_column("lines", justify="right")
    for name in scores:
        shown.add_column(TITLES[name], justify="right")
    for name, title in NAMES.items():
        for rows in zip(*(part[name] for part in scores.values()), strict=True):
            for metric in (metric for metric in METRICS if metric in rows[0]["scores"]):
                to = f" {rows[0]['target_language']}" if rows[0]["task"] == "st" else ""
                values = [f"{row['scores'][metric]:.1f}" for row in rows]
                shown.add_row(f"{title}: {METRICS[metric].replace(' ', f'{to} ')}", str(rows[0]["n"]), *values)
        shown.add_section()
    count = str(record["counts"]["candidates"])
    retrieval = record["retrieval"]
    spelt = f"{record['ctc']['wer']:.1f}"
    shown.add_row("CTC head of the encoder: WER ↓", count, *[spelt] * len(retrieval), "–")
    for side, title in (("speech_to_text", "Speech → text"), ("text_to_speech", "Text → speech")):
        for which, layers in (("mean", None), ("layer 0", 1)):
            recalls = [_recalls(found[:layers], side) for found in retrieval.values()]
            shown.add_row(f"{title}: R@1 / R@5, {which}", count, *recalls, "–")
    return shown


def _recipes() -> Path:
    return recipes().parent / "text"


def _chain(name: str, llm: Path, corpus: TextCorpus, out: Path, scale: Scale) -> Chain:
    speech = [str(path) for path in corpus.transcripts]
    return Chain(
        name=name,
        folder=out / name,
        stage1=CHAINS[name],
        steps=(scale.stage1_steps, scale.stage2_steps),
        overrides1=(f"model.llm={llm}", f"data.train={json.dumps(speech)}"),
        overrides2=(f"model.llm={llm}", f"data.train={json.dumps([*speech, *map(str, corpus.tasks)])}"),
        data=corpus.folder,
        recipes=_recipes(),
    )


def _read_transcripts(out: Path) -> None:
    """Decode the test set with transcripts in place of speech."""
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU

    (out / TEXT).mkdir(exist_ok=True)
    model = SpeechLLM.from_pretrained(out / "both" / "stage2", device=CPU)
    decode_and_score(model, out / DATA, out / TEXT / "hypotheses.jsonl", from_text=True)


def _counts(corpus: TextCorpus) -> dict[str, Any]:
    """Lines by task to train on, and texts to find among."""
    from ossicle.data.manifest import read_manifest

    paths = [*corpus.transcripts, *corpus.tasks]
    lines = {path.stem: len(read_manifest(path)) for path in paths}
    speech_s = sum(sample.duration_s or 0.0 for path in corpus.transcripts for sample in read_manifest(path))
    return {
        "train": lines,
        "train_hours": round(speech_s / 3600, 2),
        "candidates": len(read_manifest(corpus.candidates)),
    }


def _recalls(rows: Sequence[Mapping[str, float]], side: str) -> str:
    return " / ".join(f"{sum(row[f'{side}_r{k}'] for row in rows) / len(rows):.0f}" for k in (1, 5))


def _since(started: float) -> int:
    return round(time.perf_counter() - started)


def main(
    source: Annotated[Path, typer.Argument(help="The folder of texts: parallel/ and qa/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where everything goes; a second call continues there.")] = Path(
        "runs/real_text"
    ),
) -> None:
    """Both stages on real text in generated voices, with a small LLM trained on that text."""
    import torch

    torch.set_num_threads(1)  # the LLM is too small to share among threads
    try:
        run(source, out)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
