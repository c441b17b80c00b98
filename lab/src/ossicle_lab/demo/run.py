"""`ossicle demo`: the whole method on generated speech, small enough for a laptop.

Corpus -> encoder frames -> three chains side by side (contrastive pretraining, ASR pretraining, none; each fine-tuned
with 10% of the task data) -> held-out sentences in held-out voices -> table, plots, examples, a model to talk to.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import ossicle_lab.recipes
from ossicle_lab.demo import report as demo_report
from ossicle_lab.demo.chain import Chain, claim, decode_and_score, encode_all
from ossicle_lab.demo.side_by_side import run_side_by_side

CHAINS = {"contrastive": "contr-wasser-emb", "asr": "asr", "none": None}
"""Row of the table -> recipe of its stage 1. The longest come first, so that they share the cores."""
BEST = "contrastive"
SEED = 1
"""Of the corpus: other passages than those (seed 0) on which the recipes were chosen."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    train: int
    dev: int
    test: int
    stage1_steps: dict[str, int]
    """By row of the table: about as much time for each objective."""
    stage2_steps: int


FULL = Scale(train=4000, dev=60, test=150, stage1_steps={"contrastive": 2200, "asr": 900}, stage2_steps=350)
QUICK = Scale(train=1000, dev=20, test=40, stage1_steps={"contrastive": 500, "asr": 200}, stage2_steps=100)


def run(out: Path, scale: Scale = FULL, *, processes: int | None = None) -> dict[str, Any]:
    """Run the demo in ``out``, continuing what an earlier call left; returns what ``results.json`` holds.

    ``processes``: how many projectors to train at a time, as in `run_side_by_side`. Raises `ValueError` where ``out``
    holds a demo of another size.
    """
    console = Console()
    claim(out / "demo.json", scale, recipes())
    seconds: dict[str, float] = {}
    with _timed(seconds, "corpus", console, "Speaking the corpus (espeak-ng)"):
        from ossicle_lab.world.corpus import make_corpus

        make_corpus(out / "data", train=scale.train, dev=scale.dev, test=scale.test, seed=SEED)
    with _timed(seconds, "frames", console, "Encoding it once with the frozen encoder"):
        encode_splits(out / "data")
    with _timed(seconds, "training", console, "Training and evaluating three projectors"):
        results = run_side_by_side([_chain(name, out, scale) for name in CHAINS], processes)
    with _timed(seconds, "text", console, "Upper bound: the LLM reads the transcripts"):
        bound = _text_bound(out)
    _publish(out)
    record = demo_report.collect(results, bound, scale=asdict(scale), seconds=seconds)
    if (out / "results.json").is_file():  # nothing was computed again: the first call's times are the real ones
        record["seconds"] |= json.loads((out / "results.json").read_text())["seconds"]
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    demo_report.plots(out, CHAINS)
    demo_report.show(out, record, console)
    return record


def recipes() -> Path:
    """The lab's recipes: inside an installed package, or in the checkout."""
    return Path(ossicle_lab.recipes.__file__).parent / "lab"


def encode_splits(data: Path) -> None:
    """Encode every split of the corpus in ``data`` with the lab's encoder, into ``data/cache``."""
    from ossicle.models.frozen import resolve

    splits = [data / split / "manifest.jsonl" for split in ("train", "dev", "test")]
    encode_all(splits, resolve("lab", "encoder"), data / "cache")


def _chain(name: str, out: Path, scale: Scale) -> Chain:
    data = out / "data"
    return Chain(
        name=name,
        folder=out / name,
        stage1=CHAINS[name],
        steps=(scale.stage1_steps.get(name, 0), scale.stage2_steps),
        overrides1=(f"data.train=[{data / 'train' / 'manifest.jsonl'}]",),
        overrides2=(f"data.train=[{data / 'finetune.jsonl'}]",),
        data=data,
        recipes=recipes(),
    )


def _text_bound(out: Path) -> list[dict[str, Any]]:
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU

    folder = out / "text"
    folder.mkdir(exist_ok=True)
    model = SpeechLLM.from_pretrained(out / BEST / "stage2", device=CPU)
    return decode_and_score(model, out / "data", folder / "hypotheses.jsonl", from_text=True)


def _publish(out: Path) -> None:
    """Copy the best projector to ``model``, where ``transcribe``, ``translate`` and ``ask`` look for it."""
    from ossicle.models.speech_llm import CONFIG_FILE, WEIGHTS_FILE

    (out / "model").mkdir(exist_ok=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(out / BEST / "stage2" / name, out / "model" / name)


@contextmanager
def _timed(seconds: dict[str, float], name: str, console: Console, title: str) -> Iterator[None]:
    started = time.perf_counter()
    console.print(f"[bold]{title}[/] …")
    yield
    seconds[name] = round(time.perf_counter() - started, 1)
    console.print(f"  done in {seconds[name]:.0f} s", style="dim", highlight=False)
