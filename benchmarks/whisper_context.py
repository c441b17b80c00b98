"""Measure what a shortened context and half precision cost a Whisper encoder, in word error rate and in time.

Usage: python benchmarks/whisper_context.py MODEL MANIFEST ... [--clips 68 132] [--int8]

MODEL is a hub id or a folder of an English or multilingual Whisper, and the manifests have English recordings of at
most 30 s. Whisper's own decoder (greedy, float32) reads the frames of Ossicle's encoder.

The decoder loops if no silence follows the audio, also with frames of the full context. Each variant's frames of the
audio are therefore followed by the same frames of silence, which were encoded alone with the full context. Differences
between the rows then come from the frames of the audio, which are all that Ossicle gives to a projector. The first row
is the anchor: Whisper as it was trained, with the full context's own frames after the audio.

The seconds are process CPU time of the front end and the encoder. Each clip runs alone and through all variants in
turns, so that other programs slow all of them down alike. "Unfinished" counts the clips that reach the limit of tokens.
WER uses Whisper's English normaliser. Ctrl-C ends the run early and prints the table of the clips that are done.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from transformers import AutoTokenizer, GenerationMixin, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample, pad
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.metrics import wer
from ossicle.evaluate.normalise import normaliser
from ossicle.models.encoder import Encoder, load_encoder
from ossicle.precision import CPU, usable
from ossicle.progress import track

LONGEST_S = 30.0
TOKENS, TOKENS_PER_S = 10, 8
"""The decoder stops after so many tokens and so many for each second; speech has about four per second."""
ENGLISH_VOCABULARY = 51_864
"""Tokens of the models that know English only, which have no tokens for languages and tasks."""


@dataclass
class Variant:
    """An encoder, its CPU seconds, and what the decoder writes for its frames."""

    name: str
    encoder: Encoder
    seconds: float = 0.0
    texts: list[str] = field(default_factory=list)
    unfinished: int = 0

    def encode(self, waveform: Tensor) -> tuple[Tensor, int]:
        """Return the encoder's output (1, T, D) in float32 and the number of its frames that hold audio."""
        started = time.process_time()
        features = self.encoder.front(pad([waveform]), self.encoder.model.dtype)
        frames = features.encode(lambda tensors: self.encoder.front.run(self.encoder.model, tensors))
        self.seconds += time.process_time() - started
        return frames.float(), int(features.lengths[0])


class Decoder:
    """Whisper's own decoder, greedy, in English and without timestamps."""

    def __init__(self, model: str) -> None:
        self.model = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        if self.model.config.vocab_size > ENGLISH_VOCABULARY:
            self.tokenizer.set_prefix_tokens(language="english", task="transcribe", predict_timestamps=False)
        self.prefix = torch.tensor([self.tokenizer.prefix_tokens])

    def __call__(self, frames: Tensor, limit: int) -> list[tuple[str, bool]]:
        """Return the text of each row of frames (R, T, D), and True if it has ``limit`` tokens without an end."""
        # Whisper's own `generate` requires 30 s of features and language settings that some folders lack.
        ids = GenerationMixin.generate(
            self.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=frames),
            decoder_input_ids=self.prefix.expand(len(frames), -1),
            num_beams=1,
            do_sample=False,
            max_new_tokens=limit,
        )[:, self.prefix.shape[1] :]
        end = self.tokenizer.eos_token_id
        return [(self.tokenizer.decode(row, skip_special_tokens=True), end not in row.tolist()) for row in ids]


def variants_of(model: str, *, int8: bool) -> list[Variant]:
    """Load each variant of the encoder; on a CPU without bfloat16 its variants are left out."""
    dtypes = [torch.float32] + ([torch.bfloat16] if usable(torch.bfloat16, CPU) == torch.bfloat16 else [])
    variants = []
    for dtype in dtypes:
        for context in ("full", "audio"):
            encoder = load_encoder(model, dtype=dtype, context=context)
            variants.append(Variant(f"{context}, {str(dtype)[6:]}", encoder))
    if int8:
        encoder = load_encoder(model, context="audio")
        quantise: Any = torch.ao.quantization.quantize_dynamic  # PyTorch gives it no types
        encoder.model = quantise(encoder.model, {torch.nn.Linear}, dtype=torch.qint8)
        variants.append(Variant("audio, int8 linear layers", encoder))
    return variants


def read_clips(manifests: list[Path], counts: list[int], seed: int) -> list[Sample]:
    """Return a sample of the clips of each manifest, of at most `LONGEST_S` and with a transcript."""
    chosen = []
    for i, manifest in enumerate(manifests):
        clips = [one for one in read_manifest(manifest) if one.text and (one.duration_s or 0) <= LONGEST_S]
        random.Random(seed).shuffle(clips)
        chosen += clips[: counts[min(i, len(counts) - 1)]]
    random.Random(seed).shuffle(chosen)
    return chosen


def run(variants: list[Variant], anchor: Variant, decoder: Decoder, clips: list[Sample]) -> float:
    """Run every variant on every clip until done or interrupted; return the seconds of audio.

    The anchor is the first variant with all of its output.
    """
    seconds = 0.0
    silence, _ = variants[0].encode(torch.zeros(1))
    for clip in track(clips, "Decoding", unit="clips"):
        waveform = torch.as_tensor(read_audio(clip.audio, start_s=clip.start_s, end_s=clip.end_s))
        if not seconds:
            for variant in variants:
                variant.encode(waveform)
                variant.seconds = 0.0  # the first call warms up
        limit = TOKENS + TOKENS_PER_S * len(waveform) // SAMPLE_RATE_HZ
        try:
            encoded = [variant.encode(waveform) for variant in variants]
            followed = [torch.cat([frames[:, :n], silence[:, n:]], 1) for frames, n in encoded]
            decoded = decoder(torch.cat([encoded[0][0], *followed]), limit)
        except KeyboardInterrupt:
            break
        for variant, (text, unfinished) in zip((anchor, *variants), decoded, strict=True):
            variant.texts.append(text)
            variant.unfinished += unfinished
        seconds += len(waveform) / SAMPLE_RATE_HZ
    anchor.seconds = variants[0].seconds
    return seconds


def table_of(variants: list[Variant], clips: list[Sample], seconds: float) -> Table:
    """Return the table of the clips that are done."""
    done = clips[: len(variants[0].texts)]
    references = [(clip.text or "",) for clip in done]
    corpora = {clip.audio.parent: clip.audio.parents[1].name for clip in done}
    columns = [Column(f"WER {name}", overflow="fold") for name in corpora.values()] if len(corpora) > 1 else []
    table = Table("encoder", "WER", *columns, "unfinished", "CPU s", "times real time", "speed-up")
    normalise = normaliser("whisper", "en")

    def rates(texts: list[str]) -> list[str]:
        rows = [list(range(len(done)))]
        if columns:
            rows += [[i for i, clip in enumerate(done) if clip.audio.parent == folder] for folder in corpora]
        return [
            f"{wer([texts[i] for i in part], [references[i] for i in part], 'en', normalise=normalise).value:.1f}"
            for part in rows
        ]

    for variant in variants:
        speed = [f"{variant.seconds:.0f}", f"{seconds / variant.seconds:.0f}"]
        ratio = f"{variants[0].seconds / variant.seconds:.1f}"
        table.add_row(variant.name, *rates(variant.texts), str(variant.unfinished), *speed, ratio)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="hub id or folder of a Whisper model")
    parser.add_argument("manifests", nargs="*", type=Path, metavar="MANIFEST")
    parser.add_argument("--clips", type=int, nargs="+", default=[100], help="clips of each manifest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--int8", action="store_true", help="also quantise the linear layers (PyTorch, dynamic)")
    arguments = parser.parse_args()
    console = Console(width=120)
    if not arguments.manifests:
        console.print("Skipped: give a Whisper model and at least one manifest of English recordings.")
        return
    torch.set_num_threads(arguments.threads)
    clips = read_clips(arguments.manifests, arguments.clips, arguments.seed)
    variants, decoder = variants_of(arguments.model, int8=arguments.int8), Decoder(arguments.model)
    anchor = Variant("full, float32, all frames (anchor)", variants[0].encoder)
    with torch.inference_mode():
        seconds = run(variants, anchor, decoder, clips)
    console.print(f"{len(anchor.texts)} clips, {seconds / 60:.1f} minutes, {arguments.threads} thread(s)")
    console.print(table_of([anchor, *variants], clips, seconds))


if __name__ == "__main__":
    main()
