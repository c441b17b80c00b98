"""Train a speech encoder by CTC on manifests: the lab's encoder from scratch, or any HuBERT on more speech.

Shapes: B utterances, S samples, T frames, V characters.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import HubertForCTC, Wav2Vec2Processor

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample
from ossicle.errors import DataError
from ossicle.precision import CPU, multiplies
from ossicle_lab.models.checkpoint import load_state, save_state
from ossicle_lab.models.tiny_hubert import ctc_processor, tiny_hubert

Waveform = NDArray[np.float32]
"""Mono audio at 16 kHz, of shape (S,)."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Optimiser steps on the utterances up to a duration."""

    steps: int
    max_duration_s: float
    batch_s: float
    """Largest number of seconds of audio in a batch, with padding."""


@dataclass(frozen=True, kw_only=True)
class CTCTraining:
    """Settings of a CTC training. The phases are a curriculum: an alignment is found sooner on short utterances."""

    phases: tuple[Phase, ...]
    lr: float = 2e-3
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises; it then falls by a cosine to 2% of ``lr``."""
    weight_decay: float = 0.01
    clip: float = 1.0
    speed: tuple[float, float] = (0.87, 1.15)
    """Range of the random speed of each utterance, which also moves pitch and formants, like another speaker."""
    noise_std: tuple[float, float] = (0.0, 0.01)
    """Range of the standard deviation of the noise added to each waveform."""
    bf16: bool = True
    eval_every: int = 100
    log_every: int = 10
    checkpoint_every_s: float = 120.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)


def train_ctc(
    train: Sequence[Sample], dev: Sequence[Sample], work: Path, *, settings: CTCTraining, init_from: Path | None = None
) -> HubertForCTC:
    """Train an encoder by CTC and return it. A repeated call continues from the checkpoint in ``work``.

    The batches depend on the seed and the step alone.

    Args:
        train: training samples, with ``text`` and ``duration_s``.
        dev: samples whose error rates are printed every ``settings.eval_every`` steps.
        work: folder of the checkpoint, which is written every ``settings.checkpoint_every_s`` seconds.
        settings: settings of the training.
        init_from: folder of a ``HubertForCTC`` to start from; by default `tiny_hubert`.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    if init_from is None:
        model = tiny_hubert()
    else:  # the saved configuration does not hold the kind of attention; `tiny_hubert` explains the choice
        model = HubertForCTC.from_pretrained(init_from, dtype=torch.float32, attn_implementation="eager")
    processor = ctc_processor(work / "processor")
    optimisers = _optimisers(model, settings)
    checkpoint = work / "checkpoint.pt"
    step = load_state(model, optimisers, checkpoint)
    progress = _Progress(settings.steps, step)
    saved_at = time.monotonic()
    for batch in islice(_batches(train, settings), step, None):
        loss = _loss(model, processor, batch, settings, step)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * _schedule(step, settings)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        progress.add(loss.item(), norm.item(), sum(sample.duration_s or 0.0 for sample in batch))
        if step % settings.log_every == 0:
            progress.log(step)
        if step % settings.eval_every == 0:
            print(f"encoder step {step} dev", recognition_scores(model, processor, dev), flush=True)
        if time.monotonic() - saved_at > settings.checkpoint_every_s or step == settings.steps:
            save_state(model, optimisers, step, checkpoint)
            saved_at = time.monotonic()
    return model.eval()


def recognise(model: HubertForCTC, processor: Wav2Vec2Processor, waveforms: Sequence[Waveform]) -> list[str]:
    """Return the greedy CTC transcripts of mono 16 kHz waveforms, each of shape (S,)."""
    model.eval()
    transcripts: list[str] = []
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    for start in range(0, len(order), 16):
        inputs = _inputs(processor, [waveforms[index] for index in order[start : start + 16]])
        with torch.inference_mode():
            best = model(**inputs).logits.argmax(-1)  # (B, T)
        lengths = _frames(model, inputs["attention_mask"])
        best = best.masked_fill(torch.arange(best.shape[1]) >= lengths[:, None], 0)
        transcripts += processor.batch_decode(best)
    return [transcripts[rank] for rank in np.argsort(order)]


def recognition_scores(
    model: HubertForCTC,
    processor: Wav2Vec2Processor,
    samples: Sequence[Sample],
    *,
    merge: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Return corpus word and character error rates in percent, as ``wer`` and ``cer``.

    ``merge`` maps words to others that count as equal, such as homophones.
    """
    hypotheses = recognise(model, processor, [_read(sample) for sample in samples])
    references = [sample.text or "" for sample in samples]
    if merge:
        hypotheses, references = (
            [" ".join(merge.get(word, word) for word in text.split()) for text in texts]
            for texts in (hypotheses, references)
        )
    return {
        "wer": round(100 * jiwer.wer(references, hypotheses), 2),
        "cer": round(100 * jiwer.cer(references, hypotheses), 2),
    }


def save_encoder(model: HubertForCTC, folder: Path) -> HubertForCTC:
    """Write the model in bfloat16 and its processor to ``folder``, and return the saved model in float32."""
    ctc_processor(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return HubertForCTC.from_pretrained(folder, dtype=torch.float32).eval()


def _loss(
    model: HubertForCTC, processor: Wav2Vec2Processor, batch: Sequence[Sample], settings: CTCTraining, step: int
) -> Tensor:
    """Return the CTC loss per character."""
    rng = np.random.default_rng([settings.seed, step])
    inputs = _inputs(processor, [_augment(_read(sample), rng, settings) for sample in batch])
    labels = [processor.tokenizer(sample.text or "").input_ids for sample in batch]
    target_lengths = torch.tensor([len(label) for label in labels])
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16 and multiplies(torch.bfloat16, CPU)):
        logits = model(**inputs).logits  # (B, T, V)
    total = F.ctc_loss(
        F.log_softmax(logits.float(), dim=-1).transpose(0, 1),
        torch.tensor([index for label in labels for index in label]),
        _frames(model, inputs["attention_mask"]),
        target_lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return total / target_lengths.sum()


def _inputs(processor: Wav2Vec2Processor, waveforms: list[Waveform]) -> Any:
    return processor(
        waveforms, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
    )


def _frames(model: HubertForCTC, attention_mask: Tensor) -> Tensor:
    """Return the number of valid encoder frames (B,) of waveforms with the mask (B, S)."""
    frames: Tensor = model._get_feat_extract_output_lengths(attention_mask.sum(-1))
    return frames.long()


def _read(sample: Sample) -> Waveform:
    return read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)


def _augment(waveform: Waveform, rng: np.random.Generator, settings: CTCTraining) -> Waveform:
    faster = soxr.resample(waveform, SAMPLE_RATE_HZ * rng.uniform(*settings.speed), SAMPLE_RATE_HZ, quality="LQ")
    noise = rng.standard_normal(len(faster), dtype=np.float32) * np.float32(rng.uniform(*settings.noise_std))
    augmented: Waveform = faster + noise
    return augmented


def _batches(samples: Sequence[Sample], settings: CTCTraining) -> Iterator[list[Sample]]:
    """Yield a batch per step. Batches hold utterances of similar duration and come in random order."""
    rng = random.Random(settings.seed)
    for phase in settings.phases:
        short = [sample for sample in samples if (sample.duration_s or math.inf) <= phase.max_duration_s]
        if not short:
            raise DataError(f"no utterance has a duration_s up to {phase.max_duration_s}: raise Phase.max_duration_s")
        done = 0
        while done < phase.steps:
            epoch = _packed(short, phase.batch_s, rng)
            yield from epoch[: phase.steps - done]
            done += len(epoch)


def _packed(samples: Sequence[Sample], batch_s: float, rng: random.Random) -> list[list[Sample]]:
    jittered = sorted(samples, key=lambda sample: (sample.duration_s or 0.0) * rng.uniform(0.9, 1.1))
    batches: list[list[Sample]] = [[]]
    for sample in jittered:
        if batches[-1] and (len(batches[-1]) + 1) * (sample.duration_s or 0.0) > batch_s:
            batches.append([])
        batches[-1].append(sample)
    rng.shuffle(batches)
    return batches


def _optimisers(model: HubertForCTC, settings: CTCTraining) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, which need fewer steps with it, and AdamW for the rest."""
    matrices = [parameter for parameter in model.hubert.encoder.layers.parameters() if parameter.ndim == 2]
    in_muon = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_muon]
    return [
        # This adjustment makes the steps as large as those of AdamW, so one learning rate fits both.
        torch.optim.Muon(matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _schedule(step: int, settings: CTCTraining) -> float:
    warmup = max(settings.warmup * settings.steps, 1.0)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(settings.steps - warmup, 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class _Progress:
    """Average losses and gradient norms between two lines of the log."""

    def __init__(self, steps: int, first_step: int) -> None:
        self._steps, self._first_step, self._start = steps, first_step, time.monotonic()
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._audio_s = 0.0

    def add(self, loss: float, norm: float, audio_s: float) -> None:
        self._losses.append(loss)
        self._norms.append(norm)
        self._audio_s += audio_s

    def log(self, step: int) -> None:
        elapsed = time.monotonic() - self._start
        eta_s = elapsed / (step - self._first_step) * (self._steps - step)
        print(
            f"encoder step {step}/{self._steps}  loss {np.mean(self._losses):.3f}  grad {np.mean(self._norms):.2f}  "
            f"{self._audio_s / elapsed:.0f} x real time  {eta_s / 60:.1f} min left",
            flush=True,
        )
        self._losses, self._norms = [], []
