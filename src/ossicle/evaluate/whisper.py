"""Recognise speech with the decoder that a Whisper checkpoint brings, for the cascade."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import ModelError
from ossicle.languages import language_code
from ossicle.models.frozen import fingerprint, resolve
from ossicle.models.loading import loading_model, refuse_missing

WINDOW_S = 30.0
"""Length of Whisper's input. Longer recordings are cut there, also within a word."""
MAX_NEW_TOKENS = 224
"""Longest transcript of a window in tokens, half of the decoder's context as in Whisper."""
_START, _NO_TIMES, _END = "<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"


class WhisperRecogniser:
    """Greedy decoding in the language of each recording. ``source`` identifies the model and its weights."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Load a hub id or a folder. Raises `ModelError` if it is no Whisper model with its decoder and tokenizer."""
        from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

        folder = resolve(name, "encoder")
        with loading_model("model.encoder", folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.features = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
            model, report = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, output_loading_info=True
            )
        refuse_missing(f"model.encoder={name}", report)
        self.ids = self.tokenizer.get_vocab()
        if not {_START, _END, _NO_TIMES} <= self.ids.keys():  # transformers makes an empty one if there are no files
            raise ModelError(f"model.encoder={name}: has no tokenizer of Whisper; add its tokenizer.json")
        self.model: Any = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.source = f"whisper:{name}@{fingerprint(model)[:8]}"

    def __call__(self, waveforms: Sequence[Tensor], languages: Sequence[str | None] = ()) -> list[str]:
        """Return the transcripts of mono 16 kHz waveforms, each (S,).

        A recording without a language, or in one that Whisper does not know, is taken for English.
        """
        window = int(WINDOW_S * SAMPLE_RATE_HZ)
        prompts: defaultdict[tuple[int, ...], list[tuple[int, Tensor]]] = defaultdict(list)
        for place, waveform in enumerate(waveforms):
            prompt = self._prompt(languages[place] if languages else None)
            prompts[prompt] += [(place, piece) for piece in torch.split(waveform, window)]
        texts: list[list[str]] = [[] for _ in waveforms]
        for prompt, pieces in prompts.items():
            for (place, _), text in zip(pieces, self._decode([piece for _, piece in pieces], prompt), strict=True):
                texts[place].append(text)
        return [" ".join(filter(None, pieces)) for pieces in texts]

    def _prompt(self, language: str | None) -> tuple[int, ...]:
        """Return the first tokens of the decoder. English-only models have neither a language nor a task."""
        multilingual = "<|de|>" in self.ids and self.model.config.vocab_size >= 51865
        tag = f"<|{language_code(language)}|>"
        spoken = (tag if tag in self.ids else "<|en|>", "<|transcribe|>") if multilingual else ()
        return tuple(self.ids[token] for token in (_START, *spoken, _NO_TIMES))

    @torch.no_grad()
    def _decode(self, waveforms: Sequence[Tensor], prompt: tuple[int, ...]) -> list[str]:
        from transformers import GenerationConfig
        from transformers.generation import GenerationMixin

        features = self.features(
            [waveform.cpu().numpy() for waveform in waveforms], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
        ).input_features
        end = self.ids[_END]
        settings = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=prompt[0],
            suppress_tokens=list(range(end + 1, self.model.config.vocab_size)),  # special tokens and times
        )
        # Whisper's own `generate` needs settings that converted checkpoints lack; this is the one that it calls.
        out = GenerationMixin.generate(
            self.model,
            features.to(self.model.device, self.model.dtype),
            attention_mask=torch.ones_like(features[:, 0]),  # without it, transformers warns that it guesses one
            decoder_input_ids=torch.tensor([prompt] * len(waveforms), device=self.model.device),
            generation_config=settings,
        )
        texts = self.tokenizer.batch_decode(out[:, len(prompt) :], skip_special_tokens=True)
        return [text.strip() for text in texts]
