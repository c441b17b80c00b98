"""Measure training steps at the paper's size on one GPU, with random weights. The budget is four minutes.

The script first compares losses and projector gradients of the CPU and the GPU on small models. It then builds
HuBERT-large, the 42.5M Q-Former and Llama-3.1-8B in bfloat16 on the GPU (60 GB of memory are enough) and measures

- the ladder: the official way of a stage-1 step (padded, text with a graph, recomputed layers, logits), and what each
  change of Ossicle's adds, at the same mathematics;
- the steps: contrastive cosine and Wasserstein, and next-token fine-tuning, for two batch sizes;
- the cost of the paper's pretraining on one and on eight such GPUs, from the measured rate.

MFU counts the operations that the mathematics needs: 2 per weight and token for a forward pass, 4 with the backward
pass to the input, no recomputation, no padding. It is relative to a matrix product measured in the same run.

    python benchmarks/gpu.py [--out FILE] [--repeat 5]
    python benchmarks/gpu.py --tiny       # small models, on a CPU too: checks the script
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ossicle.batch import Batch, Chat, Padded, Sample
from ossicle.losses.contrastive import info_nce, mean_pool
from ossicle.models.encoder import Encoder
from ossicle.models.front_ends import ConvFront
from ossicle.models.llm import LLM
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.objectives import Contrastive, NextToken
from ossicle.testing import tiny_tokenizer
from ossicle.train.cache import TextCache

SAMPLE_RATE_HZ, FRAME_RATE_HZ, TEXT_RATE_HZ = 16_000, 50, 4.0
MEAN_S, SPREAD = 5.0, 0.66
"""Utterances are lognormal with this median in seconds; random batches of ten are then more than half padding."""
PAPER_HOURS, PAPER_EPOCHS = 408, 5


@dataclass(frozen=True)
class Scale:
    """The sizes of the models and batches."""

    encoder: dict[str, int]
    projector: QFormerConfig
    llm: dict[str, int]
    layers: list[int]
    batches: tuple[int, int]
    dtype: torch.dtype
    matmul: int


PAPER = Scale(
    encoder={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    projector=QFormerConfig(),
    llm={
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    layers=[0, 5, 10, 15, 20, 25, 32],
    batches=(10, 64),
    dtype=torch.bfloat16,
    matmul=8192,
)  # fmt: skip
TINY = Scale(
    encoder={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    projector=QFormerConfig(width=32, heads=2, layers=2, ffn=48, queries=4, dropout=0.0),
    llm={
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    },
    layers=[0, 2, 4],
    batches=(3, 4),
    dtype=torch.float32,
    matmul=256,
)  # fmt: skip


def build(scale: Scale, device: torch.device) -> SpeechLLM:
    """Return a model of random weights on ``device``; nothing is written to disk or copied from the CPU."""
    torch.manual_seed(0)
    front = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    hubert = transformers.HubertConfig(**scale.encoder, **front)
    llama = transformers.LlamaConfig(**scale.llm, max_position_embeddings=8192, rope_theta=5e5)
    with _on(device, scale.dtype):
        encoder = transformers.HubertModel(hubert)
        llm = transformers.LlamaForCausalLM(llama)
    config = ModelConfig(projector=scale.projector)
    front_end = ConvFront(hubert, normalise=True)
    parts = (
        Encoder(encoder, front_end, name="random HuBERT", layers="encoder.layers"),
        LLM(llm, tiny_tokenizer(), name="random Llama"),
    )
    return SpeechLLM(*parts, config).to(device)


@contextmanager
def _on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def make_batch(model: SpeechLLM, count: int, device: torch.device, *, seed: int) -> Batch:
    """Return ``count`` random utterances of lognormal length, with transcripts and chat turns."""
    generator = torch.Generator().manual_seed(seed)
    seconds = (torch.exp(torch.randn(count, generator=generator) * SPREAD) * MEAN_S).clamp(1.0, 20.0)
    vocabulary = model.llm.model.config.vocab_size

    def ids(lengths: Tensor) -> Padded:
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Padded(torch.randint(5, min(vocabulary, 250), mask.shape, generator=generator) * mask, mask)

    samples = (seconds * SAMPLE_RATE_HZ).long()
    mask = torch.arange(int(samples.max())) < samples[:, None]
    text = ids((seconds * TEXT_RATE_HZ).long().clamp(min=2))
    before, after = ids(torch.full((count,), 30)), ids(torch.full((count,), 20))
    return Batch(
        samples=[Sample(id=str(i), audio=Path()) for i in range(count)],
        waveforms=Padded(torch.randn(mask.shape, generator=generator) * 0.1 * mask, mask),
        text=text,
        chat=Chat(before=before, after=after, answer=text),
        audio_s=float(seconds.sum()),
    ).to(device)


def with_frames(model: SpeechLLM, batch: Batch) -> Batch:
    """Return ``batch`` with encoder frames instead of waveforms, as from the frame cache."""
    assert batch.waveforms is not None
    frames = model.encoder(batch.waveforms)
    return Batch(
        samples=batch.samples, frames=Padded(frames.values.float(), frames.mask), text=batch.text, chat=batch.chat,
        audio_s=batch.audio_s,
    )  # fmt: skip


Step = Callable[[], Tensor]


def ours(model: SpeechLLM, objective: Any, batch: Batch) -> Step:
    """Return a forward and backward pass of Ossicle's."""

    def step() -> Tensor:
        loss = objective(model, batch).total
        loss.backward()
        return loss.detach()

    return step


def padded(
    model: SpeechLLM, batch: Batch, layers: list[int], *, text_graph: bool, logits: bool, recompute: bool
) -> Step:
    """Return the official way of a contrastive cosine step: transformers' own forward pass on padded batches."""
    llm = model.llm.model
    assert batch.text is not None
    text_ids = batch.text

    def states(embeds: Tensor, mask: Tensor) -> list[Tensor]:
        run = llm if logits else llm.base_model
        found = run(inputs_embeds=embeds, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
        return [mean_pool(found.hidden_states[layer], mask) for layer in layers]

    def step() -> Tensor:
        llm.train(recompute)
        if recompute:
            llm.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            speech = model.speech(batch)
            heard = states(speech.values.to(llm.dtype), speech.mask)
            embeds = llm.get_input_embeddings()(text_ids.values)
            with nullcontext() if text_graph else torch.no_grad():
                read = states(embeds.requires_grad_(text_graph), text_ids.mask)
            pairs = zip(read, heard, strict=True)
            loss = torch.stack([info_nce(F.normalize(t, dim=-1) @ F.normalize(s, dim=-1).T) for t, s in pairs]).sum()
            loss.backward()
            return loss.detach()
        finally:
            if recompute:
                llm.gradient_checkpointing_disable()
            llm.eval()

    return step


@dataclass
class Measured:
    """One measured step."""

    name: str
    utterances: int
    ms: float
    utterances_per_s: float
    audio_s_per_s: float
    mfu: float
    peak_gb: float
    loss: float


class Meter:
    """Times steps on ``device`` and relates them to the rate of a matrix product."""

    def __init__(self, model: SpeechLLM, device: torch.device, scale: Scale, repeat: int) -> None:
        self.model, self.device, self.repeat = model, device, repeat
        self.autocast = scale.dtype == torch.bfloat16
        self.rate = matmul_rate(device, scale.dtype, scale.matmul)

    def measure(self, name: str, batch: Batch, step: Step, flops: float) -> Measured:
        """Return the median time of ``step``, after one that warms up."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for i in range(self.repeat + 1):
            self.model.projector.zero_grad()
            _wait(self.device)
            started = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = step()
            _wait(self.device)
            if i:
                times.append(time.perf_counter() - started)
        seconds = statistics.median(times)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else math.nan
        count = len(batch)
        rates = count / seconds, batch.audio_s / seconds
        return Measured(name, count, seconds * 1e3, *rates, flops / seconds / self.rate, peak, float(loss))


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the operations per second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    _wait(device)
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def flops_of(model: SpeechLLM, batch: Batch, *, layers: int, text: bool, chat: bool, encoder: bool) -> float:
    """Return the operations that a step needs: valid positions only, no recomputation, no attention scores."""
    llm = model.llm.model.config
    head = llm.hidden_size // llm.num_attention_heads
    attention = llm.hidden_size * head * (2 * llm.num_attention_heads + 2 * llm.num_key_value_heads)
    per_token = layers * (attention + 3 * llm.hidden_size * llm.intermediate_size)
    projector = sum(p.numel() for p in model.projector.parameters())
    frames = batch.audio_s * FRAME_RATE_HZ
    speech = batch.audio_s * model.token_rate_hz
    assert batch.text is not None and batch.chat is not None
    words = int(batch.text.mask.sum())
    turns = sum(int(part.mask.sum()) for part in (batch.chat.before, batch.chat.after, batch.chat.answer))
    total = 4 * per_token * (speech + (turns if chat else 0)) + 6 * projector * speech
    total += 2 * per_token * words * text
    if chat:
        total += 4 * llm.hidden_size * llm.vocab_size * int(batch.chat.answer.mask.sum())
    if encoder:
        total += 2 * sum(p.numel() for p in model.encoder.parameters()) * frames
    return total


def ladder(model: SpeechLLM, meter: Meter, scale: Scale, device: torch.device, cache: Path) -> list[Measured]:
    """Measure the official stage-1 step and what each of Ossicle's changes adds."""
    batch = with_frames(model, make_batch(model, scale.batches[0], device, seed=1))
    needed = flops_of(model, batch, layers=model.llm.num_layers, text=True, chat=False, encoder=False)
    official = {"text_graph": True, "logits": True, "recompute": True}
    rows = []
    for name, change in (
        ("official way", {}),
        ("text without a graph", {"text_graph": False}),
        ("no logits", {"logits": False}),
        ("no recomputation", {"recompute": False}),
    ):
        official |= change
        rows.append(meter.measure(name, batch, padded(model, batch, scale.layers, **official), needed))
    objective = Contrastive(layers=scale.layers)
    rows.append(meter.measure("packed (Ossicle)", batch, ours(model, objective, batch), needed))
    model.text_cache = TextCache(cache, model.llm)
    try:
        rows.append(meter.measure("cached text (Ossicle)", batch, ours(model, objective, batch), needed))
    finally:
        model.text_cache = None
    return rows


def steps(model: SpeechLLM, meter: Meter, scale: Scale, device: torch.device) -> list[Measured]:
    """Measure the steps of both stages, from frames and from audio, for both batch sizes."""
    rows = []
    deep = model.llm.num_layers
    for count in scale.batches:
        audio = make_batch(model, count, device, seed=2)
        frames = with_frames(model, audio)
        for name, objective, batch, kind in (
            ("stage 1, cosine, from audio", Contrastive(layers=scale.layers), audio, (True, False, True)),
            ("stage 1, cosine", Contrastive(layers=scale.layers), frames, (True, False, False)),
            (
                "stage 1, Wasserstein",
                Contrastive(layers=scale.layers, similarity="wasserstein"),
                frames,
                (True, False, False),
            ),
            ("stage 2, next token", NextToken(), frames, (False, True, False)),
        ):
            text, chat, encoder = kind
            needed = flops_of(model, batch, layers=deep, text=text, chat=chat, encoder=encoder)
            rows.append(meter.measure(name, batch, ours(model, objective, batch), needed))
    return rows


def parity(device: torch.device) -> list[tuple[str, float, float]]:
    """Return, for each objective, how far the GPU's loss and projector gradient are from the CPU's (relative)."""
    found = []
    for name, objective in (
        ("contrastive cosine", Contrastive(layers="all")),
        ("contrastive Wasserstein", Contrastive(layers="all", similarity="wasserstein")),
        ("next token", NextToken()),
    ):
        results = []
        for place in (torch.device("cpu"), device):
            model = build(TINY, torch.device("cpu")).to(place)
            batch = make_batch(model, 4, place, seed=3)
            loss = objective(model, batch).total
            loss.backward()
            gradient = torch.cat([p.grad.flatten().cpu() for p in model.projector.parameters() if p.grad is not None])
            results.append((float(loss.detach()), gradient))
        (loss, gradient), (other, moved) = results
        found.append((name, abs(other - loss) / abs(loss), float((moved - gradient).norm() / gradient.norm())))
    return found


def table(title: str, rows: list[Measured], *, relative: bool) -> Table:
    """Return the rows as a table; ``relative`` adds the speed-up over the first row."""
    shown = Table(title=title)
    shown.add_column("step", no_wrap=True)
    for column in ("utt.", "ms", "utt./s", "audio s/s", "MFU", "peak GB", "loss", *(["speed-up"] if relative else [])):
        shown.add_column(column, justify="right")
    for row in rows:
        cells = [
            str(row.utterances), f"{row.ms:.1f}", f"{row.utterances_per_s:.1f}", f"{row.audio_s_per_s:.0f}",
            f"{row.mfu:.0%}", f"{row.peak_gb:.1f}", f"{row.loss:.4f}",
        ]  # fmt: skip
        shown.add_row(row.name, *cells, *([f"{rows[0].ms / row.ms:.2f}×"] if relative else []))
    return shown


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run all parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models; runs on a CPU")
    parser.add_argument("--repeat", type=int, default=5, help="measured steps of each kind")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("gpu.py needs a CUDA device; --tiny runs on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale, console = TINY if options.tiny else PAPER, Console(width=120)
    started = time.perf_counter()
    compared = parity(device)
    for name, loss, gradient in compared:
        console.print(f"parity, {name}: loss {loss:.1e}, projector gradient {gradient:.1e} (relative, float32)")
    model = build(scale, device).eval()
    meter = Meter(model, device, scale, options.repeat)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(f"{name}, torch {torch.__version__}: matrix product {meter.rate / 1e12:.1f} TFLOP/s ({scale.dtype})")
    with tempfile.TemporaryDirectory() as folder:
        climbed = ladder(model, meter, scale, device, Path(folder))
    console.print(table("Stage 1, cosine at seven layers: the ladder", climbed, relative=True))
    measured = steps(model, meter, scale, device)
    console.print(table("Steps of both stages", measured, relative=False))
    audio = max(row.audio_s_per_s for row in measured if row.name.startswith("stage 1, cosine, from"))
    hours = PAPER_HOURS * PAPER_EPOCHS * 3600 / audio / 3600
    console.print(
        f"The paper's pretraining ({PAPER_HOURS} h of speech, {PAPER_EPOCHS} epochs): {hours:.1f} h on one such GPU, "
        f"{hours / 8:.1f} h on eight at perfect scaling. The script took {time.perf_counter() - started:.0f} s."
    )
    if options.out is not None:
        record = {
            "device": name, "torch": torch.__version__, "matmul_tflops": meter.rate / 1e12, "parity": compared,
            "ladder": [asdict(row) for row in climbed], "steps": [asdict(row) for row in measured], "hours": hours,
        }  # fmt: skip
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
