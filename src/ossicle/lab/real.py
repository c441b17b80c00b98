"""`python -m ossicle.lab.real FOLDER`: both stages on recorded speech, scored on speakers that nothing has heard.

Recordings split by speaker, and generated speech -> the lab's encoder, and the same one trained further by CTC on the
recorded training speakers -> contrastive pretraining -> retrieval -> ASR fine-tuning -> word error rates -> one table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ossicle.lab.chain import Chain, ChainResult, align, claim, decode_and_score, encode_all
from ossicle.lab.demo import recipes
from ossicle.lab.real_corpus import RealCorpus, Sizes, make_corpus
from ossicle.lab.side_by_side import run_side_by_side
from ossicle.models.frozen import LAB, resolve

TITLES = {"lab": "lab encoder", "recorded": "trained further on recordings"}


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    sizes: Sizes = field(default_factory=Sizes)
    encoder_steps: int = 2000
    encoder_batch_s: float = 48.0
    stage1_steps: int = 1500
    stage2_steps: int = 400


FULL = Scale()


def run(
    source: Path, out: Path, *, both: bool = True, scale: Scale = FULL, processes: int | None = None
) -> dict[str, Any]:
    """Run both stages in ``out``, continuing what an earlier call left; returns what ``results.json`` holds.

    Args:
        source: the folder of recorded speech.
        out: where everything goes, the further trained encoder included.
        both: also train the encoder further and run the stages with it.
        scale: how much of everything.
        processes: how many chains at a time; ``None``: one per core; 0: in this process, without progress.

    Raises `ValueError` where ``source`` lacks the corpus or ``out`` holds a run of another size.
    """
    started = time.perf_counter()
    console = Console()
    claim(out / "real.json", scale, _recipes())
    console.print("[bold]Preparing recorded and generated speech[/] …")
    corpus = make_corpus(source, out / "data", scale.sizes)
    encoders = {"lab": Path(resolve(LAB, "encoder"))}
    if both:
        console.print("[bold]Training the lab's encoder further on recorded speech[/] …")
        encoders["recorded"] = train_encoder(corpus, encoders["lab"], out, scale)
    console.print("[bold]Encoding all speech once[/] …")
    for folder in encoders.values():
        encode_all((corpus.train, corpus.generated, corpus.test, corpus.candidates), folder, corpus.folder / "cache")
    console.print("[bold]Contrastive pretraining, then fine-tuning[/] …")
    chains = [_chain(name, folder, corpus, out, scale) for name, folder in encoders.items()]
    results = run_side_by_side(chains, processes)
    console.print("[bold]Measuring the references[/] …")
    record = {
        "encoders": {r.name: _measure(r, encoders[r.name], corpus, out) for r in results},
        "text": _text_bound(corpus, out),
        "known_words": known_words(corpus.test),
        "scale": asdict(scale),
        "seconds": {"total": round(time.perf_counter() - started), **{r.name: r.seconds for r in results}},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    console.print(table(record))
    return record


def train_encoder(corpus: RealCorpus, start: Path, out: Path, scale: Scale) -> Path:
    """Train the CTC encoder in ``start`` further on recorded speech and word strings; returns ``out/encoder``.

    The strings keep it able to hear generated speech, of which stage 1 has a part.
    """
    from ossicle.data.manifest import read_manifest
    from ossicle.lab.ctc import CTCTraining, Phase, save_encoder, train_ctc

    samples = [*read_manifest(corpus.train), *read_manifest(corpus.strings)]
    phase = Phase(
        steps=scale.encoder_steps,
        max_duration_s=max(sample.duration_s or 0.0 for sample in samples),
        batch_s=scale.encoder_batch_s,
    )
    settings = CTCTraining(phases=(phase,), lr=1e-3)
    model = train_ctc(samples, read_manifest(corpus.dev), out / "ctc", settings=settings, init_from=start)
    save_encoder(model, out / "encoder")
    return out / "encoder"


def ctc_scores(encoder: Path, test: Path) -> dict[str, float]:
    """Word error rates of the encoder's own greedy transcripts of the manifest ``test``."""
    import torch
    from transformers import HubertForCTC, Wav2Vec2Processor

    from ossicle.audio import read_audio
    from ossicle.data.manifest import read_manifest
    from ossicle.evaluate.metrics import wer, wer_utterance_mean
    from ossicle.lab.ctc import recognise

    samples = read_manifest(test)
    model = HubertForCTC.from_pretrained(encoder, dtype=torch.float32)
    processor = Wav2Vec2Processor.from_pretrained(encoder)
    heard = recognise(model, processor, [read_audio(sample.audio) for sample in samples])
    said = [sample.text or "" for sample in samples]
    return {"wer": wer(heard, said).value, "wer_utterance_mean": wer_utterance_mean(heard, said).value}


def known_words(test: Path) -> float:
    """Percentage of the words in ``test`` that the lab's LLM has ever read in training."""
    from ossicle.data.manifest import read_manifest
    from ossicle.lab.world import vocabulary

    known = set(vocabulary())
    words = [word for sample in read_manifest(test) for word in (sample.text or "").split()]
    return 100 * sum(word in known for word in words) / len(words)


def table(record: Mapping[str, Any]) -> Table:
    """One column per encoder: word error rates, and retrieval layer by layer."""
    columns = record["encoders"]
    sizes = record["scale"]["sizes"]
    shown = Table(title=f"{sizes['test_speakers']} unseen speakers, recorded", box=box.SIMPLE)
    shown.add_column("")
    for name in columns:
        shown.add_column(TITLES[name], justify="right")
    shown.add_row(f"WER, {sizes['test_utterances']} utterances: corpus / mean of utterances")
    shown.add_row("  encoder's own CTC head", *(_rates(column["ctc"]) for column in columns.values()))
    shown.add_row("  after both stages", *(_rates(column["asr"]) for column in columns.values()))
    shown.add_row("  LLM reads the transcript", *[_rates(record["text"])] * len(columns))
    shown.add_section()
    shown.add_row(f"R@1 / R@5 among {sizes['candidates']}: speech → text, text → speech")
    shown.add_row("  untrained, mean of layers", *(_recalls(column["untrained"]) for column in columns.values()))
    shown.add_row("  stage 1, mean of layers", *(_recalls(column["stage1"]) for column in columns.values()))
    for layer in range(len(next(iter(columns.values()))["stage1"])):
        shown.add_row(f"  stage 1, layer {layer}", *(_recalls([c["stage1"][layer]]) for c in columns.values()))
    return shown


def _recipes() -> Path:
    return recipes().parent / "real"


def _chain(name: str, encoder: Path, corpus: RealCorpus, out: Path, scale: Scale) -> Chain:
    common = () if name == "lab" else (f"model.encoder={encoder}",)
    return Chain(
        name=name,
        folder=out / name,
        stage1="pretrain",
        steps=(scale.stage1_steps, scale.stage2_steps),
        overrides1=(*common, f"data.train=[{corpus.train}, {corpus.generated}]"),
        overrides2=(*common, f"data.train=[{corpus.finetune}]"),
        data=corpus.folder,
        recipes=_recipes(),
    )


def _measure(result: ChainResult, encoder: Path, corpus: RealCorpus, out: Path) -> dict[str, Any]:
    """The figures of one encoder."""
    return {
        "ctc": ctc_scores(encoder, corpus.test),
        "asr": _word_errors(result.scores),
        "untrained": _align_untrained(corpus, out / result.name),
        "stage1": result.alignment,
    }


def _align_untrained(corpus: RealCorpus, folder: Path) -> list[dict[str, Any]]:
    """Alignment of the projector that stage 1 began with."""
    import torch

    from ossicle import config

    settings = config.load(folder / "stage1" / "config.yaml")
    torch.manual_seed(settings.train.seed)
    return align(settings.model.build().eval(), corpus.folder, folder / "similarity-untrained.npy")


def _text_bound(corpus: RealCorpus, out: Path) -> dict[str, float]:
    """Word error rates of the LLM where it repeats the transcripts: it has hardly read these words either."""
    from ossicle.models.speech_llm import SpeechLLM

    model = SpeechLLM.from_pretrained(out / "lab" / "stage2")
    (out / "text").mkdir(exist_ok=True)
    return _word_errors(decode_and_score(model, corpus.folder, out / "text" / "hypotheses.jsonl", from_text=True))


def _word_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    scores = next(row["scores"] for row in rows if row["task"] == "asr")
    return {name: scores[name] for name in ("wer", "wer_utterance_mean")}


def _rates(scores: Mapping[str, float]) -> str:
    return f"{scores['wer']:.1f} / {scores['wer_utterance_mean']:.1f}"


def _recalls(rows: Sequence[Mapping[str, float]]) -> str:
    means = {
        side: tuple(sum(row[f"{side}_r{k}"] for row in rows) / len(rows) for k in (1, 5))
        for side in ("speech_to_text", "text_to_speech")
    }
    return ", ".join(f"{first:.0f} / {fifth:.0f}" for first, fifth in means.values())


class Encoders(StrEnum):
    """Which rows to run."""

    LAB = "lab"
    BOTH = "both"


def main(
    source: Annotated[Path, typer.Argument(help="The folder of recorded speech.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where everything goes; a second call continues there.")] = Path(
        "runs/real"
    ),
    encoder: Annotated[Encoders, typer.Option(help="The lab's, or also one trained further on recordings.")] = (
        Encoders.BOTH
    ),
) -> None:
    """Both stages on recorded speech, split by speaker: retrieval after stage 1, word error rates after stage 2."""
    try:
        run(source, out, both=encoder is Encoders.BOTH)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
