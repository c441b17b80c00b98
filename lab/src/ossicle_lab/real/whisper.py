"""Transcribe with Whisper's own decoder, the reference for recognition."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Utterance, pad
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import ModelError
from ossicle.evaluate.decode import decode
from ossicle.models.frozen import fingerprint
from ossicle.precision import CPU, usable

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
"""First tokens of the decoder. English-only models have neither a language nor a task."""
END = "<|endoftext|>"
MOST_TOKENS = 224
"""Longest transcript in tokens, half of the decoder's context as in Whisper."""


def is_whisper(folder: Path) -> bool:
    """Return True if ``folder`` is a Whisper model with its decoder and its tokenizer."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        "WhisperForConditionalGeneration" in config.get("architectures", []) and (folder / "tokenizer.json").is_file()
    )


class Whisper:
    """Greedy decoding with the full context of 30 s, as Whisper was trained (`ossicle.evaluate.decode.Decoder`)."""

    def __init__(self, folder: Path) -> None:
        """Load a folder of `WhisperForConditionalGeneration`. Raises `ModelError` if it cannot be loaded."""
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        try:
            dtype = usable(torch.bfloat16, CPU)
            self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
            self.features = WhisperFeatureExtractor.from_pretrained(folder)
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the libraries raise many kinds
            raise ModelError(f"{folder}: cannot be loaded as Whisper with its decoder ({error!s:.200})") from error
        ids = [self.tokenizer.token_to_id(token) for token in PROMPT]
        english_only = self.model.config.vocab_size < 51865
        self.prompt = [ids[0], ids[-1]] if english_only else ids
        self.end = int(self.tokenizer.token_to_id(END) or 0)
        arguments = signature(self.model.model.decoder.forward).parameters
        self.cache = "cache" if "cache" in arguments else "past_key_values"  # releases of transformers differ

    @torch.no_grad()
    def generate_batch(self, batch: Batch, **decoding: Any) -> list[str]:
        """Return the transcript of each utterance of ``batch``, of at most ``max_new_tokens`` tokens."""
        if batch.waveforms is None:
            raise ValueError("the batch has no waveforms")
        lengths = batch.waveforms.mask.sum(1).tolist()
        audio = [w[:n].numpy() for w, n in zip(batch.waveforms.values, lengths, strict=True)]
        features = self.features(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        encoded = self.model.model.encoder(features.to(self.model.dtype)).last_hidden_state
        new = torch.tensor([self.prompt] * len(audio))
        rows: list[list[int]] = [[] for _ in audio]
        done, cache = torch.zeros(len(audio), dtype=torch.bool), None
        for _ in range(decoding["max_new_tokens"]):
            states: dict[str, Any] = {"encoder_hidden_states": encoded, self.cache: cache}
            out = self.model.model.decoder(input_ids=new, use_cache=True, **states)
            cache = getattr(out, self.cache)
            logits = self.model.proj_out(out.last_hidden_state[:, -1]).float()
            logits[:, self.end + 1 :] = float("-inf")  # special tokens and times
            token = logits.argmax(-1)
            done |= token == self.end
            for row, value, ended in zip(rows, token.tolist(), done.tolist(), strict=True):
                if not ended:
                    row.append(value)
            if bool(done.all()):
                break
            new = token[:, None]
        return [text.strip() for text in self.tokenizer.decode_batch(rows)]


def decode_whisper(folder: Path, manifest: Path, out: Path) -> None:
    """Write Whisper's transcripts of ``manifest`` to ``out``. A second call continues.

    Raises `ModelError` if ``folder`` is not a Whisper model with its decoder.
    """
    whisper = Whisper(folder)

    def collate(items: list[Any]) -> Batch:
        utterances = [item for item in items if isinstance(item, Utterance)]
        waves = pad([item.waveform for item in utterances if item.waveform is not None])
        return Batch(samples=[item.sample for item in utterances], waveforms=waves)

    dataset = SpeechDataset(read_manifest(manifest), max_duration_s=float("inf"))
    decode(whisper, dataset, collate, out, fingerprint=fingerprint(whisper.model), max_new_tokens=MOST_TOKENS)
