"""The composition: frozen encoder -> projector -> frozen LLM.

Shape legend: B utterances, M speech tokens, L positions of a chat turn, D width of the LLM.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ossicle import __version__
from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Batch, Chat, HiddenStates, Mixed, Padded, Sample, pad
from ossicle.losses.contrastive import mean_pool
from ossicle.models import spec_augment
from ossicle.models.encoder import Encoder, Layer, load_encoder
from ossicle.models.front_ends import Context
from ossicle.models.frozen import resolve
from ossicle.models.joining import interleave, join
from ossicle.models.llm import LLM, PRECISIONS, load_llm
from ossicle.models.projector import ProjectorConfig, QFormerConfig, project
from ossicle.models.spec_augment import SpecAugment
from ossicle.models.trainable import LoraConfig, adapter_dropouts, adapters, make_trainable
from ossicle.precision import usable
from ossicle.prompts import Prompter
from ossicle.section import section

WEIGHTS_FILE, ADAPTERS_FILE, CONFIG_FILE = "projector.safetensors", "adapters.safetensors", "ossicle.json"
IGNORE = -100
Audio = str | Path | np.ndarray | Tensor
DType = Literal["float32", "bfloat16", "float16"]


@section
class ModelConfig:
    """Which frozen parts, and the projector between them."""

    encoder: str = "lab"
    """Hub id or folder of a HuBERT, wav2vec 2.0, WavLM, Wav2Vec2-BERT, Whisper or Parakeet model; ``lab``: the tiny one
    in the package."""
    encoder_layer: Layer = "last"
    """Hidden state to take: ``last``, k (what layer k puts out), or ``mix``, a learned mix of all of them."""
    encoder_context: Context = "full"
    """Whisper's: ``full`` 30 s always, as it was trained; ``audio`` runs on the audio alone: faster, not the same."""
    llm: str = "lab"
    """Hub id or folder of a causal LM with a chat template; ``lab``: the tiny one in the package."""
    projector: ProjectorConfig = QFormerConfig()
    trainable: list[str] = Field(default_factory=list)
    """Patterns of parameters that train too, e.g. ``encoder.model.encoder.layers.23.*``."""
    lora: LoraConfig = LoraConfig()
    encoder_dtype: DType = "float32"
    llm_dtype: DType | Literal["int8", "int4"] = "float32"
    """``int8`` and ``int4`` (NF4) store the LLM's weights so with bitsandbytes and compute in bfloat16; GPU only."""

    def build(self, device: torch.device | None = None) -> SpeechLLM:
        """Load the frozen parts and make a new projector, on the CPU.

        ``device`` is where they will run, an accelerator if there is one: a CPU may want float32 in place of half
        precision (`ossicle.precision`).
        """
        encoder = load_encoder(
            resolve(self.encoder, "encoder"),
            dtype=usable(getattr(torch, self.encoder_dtype), device),
            layer=self.encoder_layer,
            context=self.encoder_context,
        )
        stored = PRECISIONS[self.llm_dtype]
        llm = load_llm(resolve(self.llm, "llm"), **{**stored, "dtype": usable(stored["dtype"], device)})
        return SpeechLLM(encoder, llm, self)


class TextStates(Protocol):
    """Keeps the frozen LLM's states of transcripts: `ossicle.train.cache.TextCache` does."""

    def pooled(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> Tensor:
        """Return the mean over the valid tokens of ``ids`` (B, N) at each of ``layers``: (K, B, D), float32."""

    def tokens(self, ids: Padded, layers: Sequence[int], *, bos: bool) -> HiddenStates:
        """Return the states of every token of ``ids`` (B, N) at ``layers``."""

    def bank(self, count: int, layers: Sequence[int], *, bos: bool, without: Padded) -> Tensor:
        """Return pooled states of up to ``count`` random texts that are not in ``without``: (K, count, D)."""

    def flush(self) -> None:
        """Write what waits in memory."""


class SpeechLLM(nn.Module):
    """A frozen LLM that hears through a frozen encoder and a trained projector."""

    def __init__(self, encoder: Encoder, llm: LLM, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.llm = config, encoder, llm
        self.projector = config.projector.build(
            encoder.dim,
            llm.dim,
            frame_rate_hz=encoder.frame_rate_hz,
            embedding_rms=llm.embedding_rms,
            embedding_mean=llm.embedding_mean,
        )
        self.instructions: dict[str, str] = {}
        """Wording of each task in the data it was trained on (``asr``, ``st/de``): what to ask it with."""
        self.text_cache: TextStates | None = None
        """Where states of transcripts are looked up and kept, if anywhere."""
        self.augment: SpecAugment | None = None
        """What is done to batches that come with seeds: those of the training data."""
        dtypes = {"encoder": config.encoder_dtype, "llm": config.llm_dtype}
        make_trainable(self, config.trainable, config.lora, dtypes)

    @property
    def token_rate_hz(self) -> float:
        """Speech tokens that the LLM reads for a second of audio."""
        return self.encoder.frame_rate_hz / self.projector.frames_per_token

    def train(self, mode: bool = True) -> SpeechLLM:
        """Switch the mode of the projector and of LoRA's dropout; encoder and LLM stay in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        for dropout in adapter_dropouts(self):
            dropout.train(mode)
        return self

    def prompter(self, asr_instructions: tuple[str, ...] = ()) -> Prompter:
        """Writes chat turns for this LLM."""
        options = {"asr_instructions": asr_instructions} if asr_instructions else {}
        return Prompter(self.llm.tokenizer, self.llm.end_ids, **options)

    def speech(self, batch: Batch) -> Padded:
        """The speech of ``batch`` as vectors for the LLM (B, M, D); gradients reach the projector."""
        if batch.speech is not None:
            return batch.speech
        frames = batch.frames
        if frames is None:
            if batch.waveforms is None:
                raise ValueError("the batch has neither waveforms nor frames")
            frames = self._encode(batch.waveforms, batch.seeds)
        augment = self.augment
        if batch.seeds and augment is not None and (augment.time_masks or augment.feature_masks):
            frames = spec_augment.mask_frames(frames, batch.seeds, augment, frame_rate_hz=self.encoder.frame_rate_hz)
        return project(self.projector, frames)

    def _encode(self, waveforms: Padded, seeds: list[int]) -> Padded:
        """Frames of ``waveforms`` (B, S), in the encoder's training mode where that is wanted and there are seeds."""
        long_enough = waveforms.values.shape[1] >= spec_augment.TRAIN_MODE_LEAST_S * SAMPLE_RATE_HZ
        if not (seeds and self.augment is not None and self.augment.train_mode_encoder and long_enough):
            return self.encoder(waveforms)
        with spec_augment.train_mode(self.encoder.model, seeds):
            return self.encoder(waveforms)

    def text(self, batch: Batch) -> Padded:
        """The transcripts of ``batch`` as token embeddings (B, N, D), nothing added."""
        ids = _text_ids(batch)
        return Padded(self.llm.embed(ids.values), ids.mask)

    def text_states(self, batch: Batch, layers: list[int], *, bos: bool = False, start: int = 0) -> HiddenStates:
        """The LLM's states of the transcripts of ``batch``, read alone; without a graph, cached if `text_cache` is set.

        ``bos`` and ``start`` as in `LLM.hidden_states`. Raises `ValueError` for a cache with positions that move.
        """
        ids = _text_ids(batch)
        if self.text_cache is None:
            return self.llm.read(ids, layers, bos=bos, start=start)
        _check_not_moved(start)
        return self.text_cache.tokens(ids, layers, bos=bos)

    def pooled_text(self, batch: Batch, layers: list[int], *, bos: bool = False, start: int = 0) -> Tensor:
        """`text_states` averaged over the tokens: (K, B, D) for K ``layers``, float32."""
        ids = _text_ids(batch)
        if self.text_cache is None:
            hidden = self.llm.read(ids, layers, bos=bos, start=start)
            return torch.stack([mean_pool(hidden.states[layer], hidden.mask) for layer in layers])
        _check_not_moved(start)
        return self.text_cache.pooled(ids, layers, bos=bos)

    def chat_inputs(self, chat: Chat, speech: Padded) -> tuple[Padded, Tensor]:
        """One sequence per turn, before + speech + after + answer (B, L, D), and its labels (B, L).

        Labels are the answer and its end of turn, -100 elsewhere; position l is predicted from l - 1.
        """
        before, after, answer = self._embed(chat.before), self._embed(chat.after), self._embed(chat.answer)
        ignored = [torch.full_like(part.mask, IGNORE, dtype=torch.long) for part in (before, speech, after)]
        labels = torch.cat([*ignored, chat.answer.values], 1)
        embeds, order = join([before, speech, after, answer])
        return embeds, labels.gather(1, order).masked_fill(~embeds.mask, IGNORE)

    def spans(self, mixed: Mixed) -> Padded:
        """The spans of speech (K, M, D), each encoded and projected by itself, in one call for the whole batch."""
        return mixed.speech or project(self.projector, self.encoder(mixed.waveforms))

    def mixed_inputs(self, mixed: Mixed) -> tuple[Padded, Tensor]:
        """The mixed sequences (B, L, D): BOS + spans + EOS.

        Also returns which token of ``mixed.text`` each position holds (B, L), -1 for speech and padding.
        """
        return interleave(Padded(self.llm.embed(mixed.text.values), mixed.written), self.spans(mixed), mixed)

    def prompt(self, chat: Chat, speech: Padded) -> Padded:
        """The turn up to the answer (B, L, D), padded on the left as generation wants it."""
        return join([self._embed(chat.before), speech, self._embed(chat.after)], pad="left")[0]

    def _embed(self, ids: Padded) -> Padded:
        return Padded(self.llm.embed(ids.values), ids.mask)

    @torch.no_grad()
    def generate_batch(self, batch: Batch, *, from_text: bool = False, **decoding: Any) -> list[str]:
        """Answer every turn of ``batch``; ``from_text`` reads the transcripts instead of the speech (the upper bound).

        ``decoding`` goes to `LLM.generate`: ``max_new_tokens``, ``temperature``, ``top_p``.
        """
        if batch.chat is None:
            raise ValueError("the batch has no chat turns")
        heard = self.text(batch) if from_text else self.speech(batch)
        return self.llm.generate(self.prompt(batch.chat, heard), **decoding)

    @torch.no_grad()
    def generate(self, audio: Audio | list[Audio], instruction: str | list[str], **decoding: Any) -> list[str]:
        """Listen to files or waveforms ((S,), 16 kHz mono) and follow the instruction, one for all or one for each.

        ``decoding``: ``max_new_tokens`` (200), ``temperature`` (0: greedy), ``top_p``.
        """
        recordings = audio if isinstance(audio, list) else [audio]
        instructions = instruction if isinstance(instruction, list) else [instruction] * len(recordings)
        samples = [
            Sample(id=str(i), audio=Path(), instruction=asked)
            for i, (_, asked) in enumerate(zip(recordings, instructions, strict=True))
        ]
        waveforms = pad([_waveform(recording) for recording in recordings])
        batch = Batch(samples=samples, waveforms=waveforms, chat=self.prompter().chat(samples, 0))
        return self.generate_batch(batch.to(next(self.projector.parameters()).device), **decoding)

    def save(self, folder: str | Path) -> None:
        """Write all that trained, the configuration and the fingerprints of the base models; never their weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.projector.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        if trained := {name: tensor.detach().cpu().contiguous() for name, tensor in adapters(self).items()}:
            save_file(trained, folder / ADAPTERS_FILE)
        parts = {"encoder": self.encoder.fingerprint, "llm": self.llm.fingerprint}
        record = {"ossicle": __version__, "model": asdict(self.config), "fingerprints": parts}
        record["instructions"] = self.instructions
        (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n")

    def load_projector(self, folder: str | Path) -> None:
        """Load what another run trained; what only this one trains stays as it is.

        Raises `ValueError` unless it was trained with the same base models and the same encoder layer, and where it
        trained what would stay untrained here.
        """
        record = read_record(folder)
        for part, loaded in (("encoder", self.encoder), ("llm", self.llm)):
            expected = record["fingerprints"][part]
            if loaded.fingerprint != expected:
                raise ValueError(
                    f"{folder} was trained with the {part} '{record['model'][part]}' (fingerprint {expected}), but "
                    f"'{loaded.name}' has fingerprint {loaded.fingerprint}: give the folder of the original {part}"
                )
        for field, default in (("encoder_layer", "last"), ("encoder_context", "full")):
            then, now = record["model"].get(field, default), asdict(self.config)[field]
            if then != now:
                raise ValueError(f"{folder} was trained with model.{field}={then}, not {now}: set it so here")
        self._load_adapters(Path(folder))
        self.projector.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
        self.instructions = dict(record["instructions"])

    @torch.no_grad()
    def _load_adapters(self, folder: Path) -> None:
        saved = load_file(folder / ADAPTERS_FILE) if (folder / ADAPTERS_FILE).is_file() else {}
        here = adapters(self)
        if lost := sorted(saved.keys() - here.keys()):
            raise ValueError(
                f"{folder} also trained {len(lost)} tensors that do not train here, such as {lost[0]}: set "
                "model.encoder_layer, model.trainable and model.lora as they were there"
            )
        for name, tensor in saved.items():
            here[name].copy_(tensor)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        encoder: str | None = None,
        llm: str | None = None,
        device: torch.device | None = None,
    ) -> SpeechLLM:
        """Load a saved model; ``encoder`` and ``llm`` say where the frozen parts are now, if they have moved.

        It is on the CPU; ``device``, as in `ModelConfig.build`, is where it will run.

        Raises `FileNotFoundError` where ``folder`` holds no checkpoint and `ValueError` for a mismatched base model.
        """
        moved = {name: where for name, where in (("encoder", encoder), ("llm", llm)) if where is not None}
        config = TypeAdapter(ModelConfig).validate_python({**read_record(folder)["model"], **moved})
        model = config.build(device)
        model.load_projector(folder)
        return model.eval()


def _text_ids(batch: Batch) -> Padded:
    if batch.text is None:
        missing = [sample.source for sample in batch.samples if not sample.text]
        raise ValueError(f"this objective needs transcripts; add 'text' to {', '.join(missing[:3])}")
    return batch.text


def _check_not_moved(start: int) -> None:
    if start:
        raise ValueError("objective.position_shift moves the text in every batch: turn data.cache_text off")


def _waveform(audio: Audio) -> Tensor:
    return torch.as_tensor(read_audio(audio) if isinstance(audio, str | Path) else audio, dtype=torch.float32)


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `SpeechLLM.save` wrote beside the weights."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of Ossicle: it has no {CONFIG_FILE}")
    record: dict[str, Any] = json.loads(path.read_text())
    return record
