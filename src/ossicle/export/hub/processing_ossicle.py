"""Processor of a speech LLM: features of recordings, and as many placeholder tokens as there will be speech tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from .configuration_ossicle import frame_counts


class OssicleProcessor(ProcessorMixin):  # type: ignore[misc]
    """Compute the input of a speech LLM from text with placeholders and recordings of 16 kHz.

    Args:
        feature_extractor: Feature extractor of the speech encoder.
        tokenizer: Tokenizer of the language model with the placeholder as an additional token.
        chat_template: Template of conversations whose messages have parts of the type ``audio``.
        audio_token: The placeholder; one stands for each recording.
        subsampling: As in `OssicleConfig`.
        chunk: As in `OssicleConfig`.
        shortest: Least number of samples of a recording.
        window: Frames of a window of the projector.
        window_tokens: Speech tokens of a window.
        prompt_tokens: Learned tokens before the speech.
    """

    def __init__(  # noqa: PLR0913 - the fields of processor_config.json
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: Any = None,
        audio_token: str = "<|audio|>",
        subsampling: list[list[int]] | None = None,
        chunk: int | None = None,
        shortest: int = 1,
        window: int = 1,
        window_tokens: int = 1,
        prompt_tokens: int = 0,
    ) -> None:
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.subsampling, self.chunk, self.shortest = subsampling or [], chunk, shortest
        self.window, self.window_tokens, self.prompt_tokens = window, window_tokens, prompt_tokens
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def __call__(self, text: Any = None, audio: Any = None, **kwargs: Any) -> Any:
        """Return ``input_ids``, ``attention_mask``, and the features of ``audio`` with their mask, as tensors.

        Args:
            text: One text or a list, with a placeholder for each recording.
            audio: One waveform or a list, in the order of the placeholders.
            kwargs: Options of transformers' processors. Texts are padded on the left, as generation requires, and get
                no special tokens, because the chat template writes them.
        """
        given = {*kwargs, *kwargs.get("text_kwargs", {}), *kwargs.get("common_kwargs", {})}
        defaults = {"padding": True, "padding_side": "left", "add_special_tokens": False, "return_tensors": "pt"}
        kwargs |= {name: value for name, value in defaults.items() if name not in given}
        return super().__call__(text=text, audio=audio, **kwargs)

    def _process_audio(self, audio: Any, **kwargs: Any) -> tuple[dict[str, Tensor], list[str]]:
        """Return the features of the recordings and their mask, and the text that replaces each placeholder."""
        rate = kwargs.get("sampling_rate") or self.feature_extractor.sampling_rate
        clips = [torch.as_tensor(clip).float().numpy() for clip in audio]
        for number, clip in enumerate(clips, 1):
            if clip.ndim != 1 or len(clip) < self.shortest:
                raise ValueError(
                    f"recording {number} has the shape {clip.shape}: give one channel of at least {self.shortest} "
                    f"samples at {self.feature_extractor.sampling_rate} Hz"
                )
        values, mask = self._in_chunks(clips, rate) if self.chunk else self._extract(clips, rate, padding="longest")
        name = self.feature_extractor.model_input_names[0]
        inputs = {name: values, f"{name}_mask": mask}
        return inputs, [self.replace_audio_token(inputs, audio_idx=row) for row in range(len(clips))]

    def _extract(self, clips: list[Any], rate: int, *, padding: str) -> tuple[Tensor, Tensor]:
        out = self.feature_extractor(
            clips, sampling_rate=rate, padding=padding, return_attention_mask=True, return_tensors="pt"
        )
        return out[self.feature_extractor.model_input_names[0]], out["attention_mask"].long()

    def _in_chunks(self, clips: list[Any], rate: int) -> tuple[Tensor, Tensor]:
        """Return features (B, M, C * chunk) of recordings cut into C chunks, with zeros for chunks that are missing."""
        size = self.feature_extractor.n_samples
        parts = [[clip[start : start + size] for start in range(0, len(clip), size)] for clip in clips]
        values, mask = self._extract([part for row in parts for part in row], rate, padding="max_length")
        counts, most = [len(row) for row in parts], max(map(len, parts))
        rows = values.new_zeros(len(parts), most, *values.shape[1:])
        masks = mask.new_zeros(len(parts), most, mask.shape[1])
        present = torch.arange(most) < torch.tensor(counts)[:, None]
        rows[present], masks[present] = values, mask
        return rows.transpose(1, 2).flatten(2), masks.flatten(1)

    def replace_audio_token(self, audio_inputs: Any, audio_idx: int, **kwargs: Any) -> str:
        """Return the placeholders for the recording ``audio_idx``."""
        mask = next(value for name, value in audio_inputs.items() if name.endswith("_mask"))
        frames = frame_counts(int(mask[audio_idx].sum()), self.subsampling)
        placeholders: str = self.audio_token * (self.prompt_tokens + self.window_tokens * -(-frames // self.window))
        return placeholders

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the processor returns."""
        name = self.feature_extractor.model_input_names[0]
        return ["input_ids", "attention_mask", name, f"{name}_mask"]
