"""The speech LLM: a frozen encoder, a projector that trains, and a frozen LLM.

Shape legend: B utterances, S audio samples, M speech tokens, N text tokens, L positions of a chat turn, K layers or
spans of speech, D width of the LLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ossicle.batch import Batch, Chat, HiddenStates, Mixed, Padded
from ossicle.errors import ConfigError, DataError
from ossicle.losses.contrastive import mean_pool
from ossicle.models.dropout import of_utterances
from ossicle.models.encoder import Context, Encoder, Layer, load_encoder
from ossicle.models.frozen import resolve
from ossicle.models.llm import LLM, PRECISIONS, TextStates, load_llm
from ossicle.models.lora import LoraConfig, adapter_dropouts
from ossicle.models.packing import interleave, join
from ossicle.models.projectors import ProjectorConfig, QFormerConfig, new_projector, project
from ossicle.precision import CPU, usable
from ossicle.prompts import TURN, Prompter
from ossicle.section import section

if TYPE_CHECKING:
    from ossicle.models.spec_augment import SpecAugment

IGNORE = -100
"""Label of positions without a loss."""
DType = Literal["float32", "bfloat16", "float16"]


@section
class ModelConfig:
    """The frozen encoder and LLM, the projector between them, and what else trains."""

    encoder: str = "lab"
    """Hub id or folder of a HuBERT, wav2vec 2.0, WavLM, Wav2Vec2-BERT, Whisper or Parakeet model. ``lab`` is the tiny
    encoder of the package ossicle-lab."""
    encoder_layer: Layer = "last"
    """Hidden state of the encoder to use: ``last``, the index k of a layer, or ``mix`` for a learned weighted sum of
    all hidden states."""
    encoder_context: Context = "full"
    """Context of a Whisper encoder: ``full`` is 30 s, as in its training; ``audio`` is the audio alone, which is faster
    but changes the frames. Other encoders ignore it."""
    llm: str = "lab"
    """Hub id or folder of a causal LM with a chat template. ``lab`` is the tiny LLM of the package ossicle-lab."""
    turn: str = TURN
    """Text of the user's turn, with ``{speech}`` and ``{instruction}``. Marks around the speech, such as quotes and a
    new line, help small LLMs to see where it ends."""
    projector: ProjectorConfig = QFormerConfig()
    """The projector and its sizes."""
    trainable: list[str] = Field(default_factory=list)
    """Patterns of parameters of encoder and LLM that train, e.g. ``encoder.model.encoder.layers.23.*``. By default
    both are frozen."""
    lora: LoraConfig = LoraConfig()
    """LoRA adapters on linear layers of encoder and LLM. By default there are none."""
    encoder_dtype: DType = "float32"
    """Type of the encoder's weights."""
    llm_dtype: DType | Literal["int8", "int4"] = "float32"
    """Type of the LLM's weights. ``int8`` and ``int4`` (NF4) quantise them with bitsandbytes and compute in bfloat16;
    they require an NVIDIA GPU."""

    def build(self, device: torch.device | None = None) -> SpeechLLM:
        """Load encoder and LLM and create a new projector, all on ``device``.

        Without a ``device`` they are on the CPU, in the precision of the accelerator if there is one. On CPUs without
        instructions for half precision the weights are loaded in float32 (`ossicle.precision`).
        """
        encoder = load_encoder(
            resolve(self.encoder, "encoder"),
            dtype=usable(getattr(torch, self.encoder_dtype), device),
            layer=self.encoder_layer,
            context=self.encoder_context,
            device=device,
        )
        stored = PRECISIONS[self.llm_dtype]
        dtype = usable(stored["dtype"], device)
        llm = load_llm(resolve(self.llm, "llm"), **{**stored, "dtype": dtype, "device": device})
        return SpeechLLM(encoder, llm, self).to(device or CPU)


class SpeechLLM(nn.Module):
    """A frozen LLM that reads speech through a frozen encoder and a projector.

    Attributes:
        instructions: Instruction of each task in the training data (``asr``, ``st/de``).
        asr_instructions: Instructions of the training that are drawn for samples without one; empty for the default.
        objectives: Names of the objectives that trained the model; empty if they are not known.
        longest_s: Length in seconds of the longest recording in the training data, or None if it is not known.
        text_cache: Cache of the LLM's states of transcripts, or None.
        origin: Folder of the checkpoint that was loaded, or None.
        augment: Augmentation of frames, applied to batches with seeds, which are those of the training data.
    """

    def __init__(self, encoder: Encoder, llm: LLM, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.encoder, self.llm = config, encoder, llm
        self.projector = new_projector(config.projector, encoder, llm)
        self.instructions: dict[str, str] = {}
        self.asr_instructions: tuple[str, ...] = ()
        self.objectives: tuple[str, ...] = ()
        self.longest_s: float | None = None
        self.text_cache: TextStates | None = None
        self.origin: Path | None = None
        self.augment: SpecAugment | None = None
        if config.trainable or config.lora.modules:
            from ossicle.models.adapting import make_trainable  # by default only the projector trains

            dtypes = {"encoder": config.encoder_dtype, "llm": config.llm_dtype}
            make_trainable(self, config.trainable, config.lora, dtypes)

    @property
    def token_rate_hz(self) -> float:
        """Speech tokens per second of audio."""
        return float(self.encoder.frame_rate_hz / self.projector.frames_per_token)

    def train(self, mode: bool = True) -> SpeechLLM:
        """Set the mode of the projector and of LoRA's dropout; encoder and LLM stay in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        for dropout in adapter_dropouts(self):
            dropout.train(mode)
        return self

    def prompter(self, asr_instructions: tuple[str, ...] = ()) -> Prompter:
        """Return a prompter that writes chat turns for this LLM.

        Without ``asr_instructions`` it draws those of the training, or the default ones.
        """
        drawn = asr_instructions or self.asr_instructions
        options: dict[str, Any] = {"asr_instructions": drawn} if drawn else {}
        return Prompter(self.llm.tokenizer, self.llm.end_ids, turn=self.config.turn, **options)

    def speech(self, batch: Batch) -> Padded:
        """Return the speech tokens of ``batch`` (B, M, D); gradients reach the projector."""
        if batch.speech is not None:
            return batch.speech
        frames = self.frames(batch)
        with of_utterances(batch.samples, frames.values.device):
            speech = project(self.projector, frames)
        if self.llm.context is not None and speech.values.shape[1] > self.llm.context:
            from ossicle.models.limits import explain_too_long  # only for the error

            raise explain_too_long(self, batch, speech)
        return speech

    def frames(self, batch: Batch, *, augmented: bool = True) -> Padded:
        """Return the encoder's frames of ``batch`` (B, T, D_encoder), with the masks of `augment` if ``augmented``.

        The seeds of the batch decide the masks, so that a second call returns the same frames.
        """
        frames = batch.frames
        if frames is None:
            if batch.waveforms is None:
                raise ValueError("the batch has neither waveforms nor frames")
            frames = self._encode(batch.waveforms, batch.seeds)
        augment = self.augment if augmented and batch.seeds else None
        if augment is not None and (augment.time_masks or augment.feature_masks):
            from ossicle.models.spec_augment import mask_frames  # most runs have no masks

            frames = mask_frames(frames, batch.seeds, augment, frame_rate_hz=self.encoder.frame_rate_hz)
        return frames

    def _encode(self, waveforms: Padded, seeds: list[int]) -> Padded:
        """Encode ``waveforms`` (B, S), in the encoder's training mode if that is set and there are ``seeds``.

        The frames are float32, as the weights of the projector, whatever the type of the encoder.
        """
        if seeds and self.augment is not None and self.augment.train_mode_encoder:
            from ossicle.models.spec_augment import encode_in_train_mode  # most runs keep evaluation mode

            frames = encode_in_train_mode(self.encoder, waveforms, seeds)
        else:
            frames = self.encoder(waveforms)
        return Padded(frames.values.float(), frames.mask)

    def text(self, batch: Batch) -> Padded:
        """Return the token embeddings of the transcripts of ``batch`` (B, N, D), without special tokens."""
        return self._embed(_text_ids(batch))

    def text_states(self, batch: Batch, layers: list[int], *, bos: bool = False, start: int = 0) -> HiddenStates:
        """Return the LLM's hidden states of the transcripts of ``batch``, without a graph.

        They come from `text_cache` if it is set. ``bos`` and ``start`` are as in `LLM.hidden_states`. Raises
        `ConfigError` if ``start`` is not 0 with a cache, and `DataError` if the batch has no transcripts.
        """
        ids = _text_ids(batch)
        cache = self._usable_cache(start)
        return self.llm.read(ids, layers, bos=bos, start=start) if cache is None else cache.tokens(ids, layers, bos=bos)

    def pooled_text(self, batch: Batch, layers: list[int], *, bos: bool = False, start: int = 0) -> Tensor:
        """Return `text_states` averaged over the tokens: (K, B, D) for K ``layers``, float32."""
        if (cache := self._usable_cache(start)) is not None:
            return cache.pooled(_text_ids(batch), layers, bos=bos)
        hidden = self.text_states(batch, layers, bos=bos, start=start)
        return torch.stack([mean_pool(hidden.states[layer], hidden.mask) for layer in layers])

    def _usable_cache(self, start: int) -> TextStates | None:
        if self.text_cache is not None and start:
            raise ConfigError("objective.position_shift changes text states in every batch: turn data.cache_text off")
        return self.text_cache

    def chat_inputs(self, chat: Chat, speech: Padded, *, after_prefix: bool = False) -> tuple[Padded, Tensor]:
        """Return one sequence per chat turn, before + speech + after + answer (B, L, D), and its labels (B, L).

        Labels are the tokens of the answer and its end of turn, and -100 elsewhere. Position l - 1 predicts the label
        at position l. ``after_prefix`` leaves ``before`` out, for an LLM that gets it as `LLM.prefix`.
        """
        parts = [speech, self._embed(chat.after)] if after_prefix else self._opened(chat, speech)
        ignored = [torch.full_like(part.mask, IGNORE, dtype=torch.long) for part in parts]
        labels = torch.cat([*ignored, chat.answer.values], 1)
        embeds, order = join([*parts, self._embed(chat.answer)])
        return embeds, labels.gather(1, order).masked_fill(~embeds.mask, IGNORE)

    def spans(self, mixed: Mixed) -> Padded:
        """Return the speech tokens of each span (K, M, D). Spans are encoded separately, as one batch."""
        return mixed.speech or project(self.projector, self._encode(mixed.waveforms, []))

    def mixed_inputs(self, mixed: Mixed) -> tuple[Padded, Tensor]:
        """Return the mixed sequences (B, L, D): BOS + spans + EOS.

        Also return the index in ``mixed.text`` of the token at each position (B, L), -1 for speech and padding.
        """
        return interleave(Padded(self.llm.embed(mixed.text.values), mixed.written), self.spans(mixed), mixed)

    def prompt(self, chat: Chat, speech: Padded) -> Padded:
        """Return the chat turn up to the answer (B, L, D), padded on the left as generation requires."""
        return join(self._opened(chat, speech), pad="left")[0]

    def _opened(self, chat: Chat, speech: Padded) -> list[Padded]:
        return [self._embed(chat.before), speech, self._embed(chat.after)]

    def _embed(self, ids: Padded) -> Padded:
        return Padded(self.llm.embed(ids.values), ids.mask)

    @torch.no_grad()
    def generate_batch(self, batch: Batch, *, from_text: bool = False, **decoding: Any) -> list[str]:
        """Generate the answer to every chat turn of ``batch``.

        ``from_text`` gives the LLM the transcripts instead of the speech, as an upper bound; ``own_transcript=True``
        gives it those that the model itself finds. ``decoding`` is passed to `LLM.generate`. A transcript of a model
        that spells speech follows both the LLM and the spelling, see `ossicle.models.joint`; sampling selects the LLM
        alone.
        """
        from ossicle.models.conversation import answer_batch  # not on the path from data to loss

        return answer_batch(self, batch, from_text=from_text, **decoding)

    def generate(
        self,
        audio: Any = None,
        instruction: str | list[str] | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        sampling_rate: int | None = None,
        stream: bool = False,
        **decoding: Any,
    ) -> Any:
        """Return the answers about recordings, a list of strings.

        Args:
            audio: One recording or a list. A recording is a path, a waveform, the bytes of an audio file, and more; see
                `ossicle.models.recordings.read_recording`. Channels are averaged.
            instruction: One instruction for all recordings, or one for each.
            messages: A conversation instead of ``audio`` and ``instruction``, with one answer; several recordings and
                turns are possible. See `ossicle.models.conversation.read_messages`.
            sampling_rate: Rate of the waveforms in Hz (default: 16,000). Files, and pairs with a rate, have their own.
            stream: Return an iterator over the pieces of a single answer, as they are decoded.
            decoding: Settings of `LLM.generate`, such as ``max_new_tokens`` and ``temperature``. With
                ``own_transcript=True`` the model transcribes first, and its LLM reads the transcript. Models that spell
                have further ones, see `ossicle.models.joint.generate_jointly`.

        A warning says if the model was not trained to answer, or not on recordings of that length. Raises `DataError`
        for audio that cannot be read or is too long for the LLM, and `ConfigError` for other arguments.
        """
        from ossicle.models.conversation import answer  # not on the path from data to loss

        more: dict[str, Any] = {"messages": messages, "sampling_rate": sampling_rate, "streamed": stream}
        return answer(self, audio, instruction, **more, **decoding)

    def conversation(self, messages: list[dict[str, Any]], *, sampling_rate: int | None = None) -> Padded:
        """Return the prompt (1, L, D) of a conversation, with the arguments and errors of `generate`."""
        from ossicle.models.conversation import prompt_of, read_messages  # not on the path from data to loss

        return prompt_of(self, read_messages(messages, sampling_rate))

    def save(self, folder: str | Path) -> None:
        """Write the trained weights, the configuration and the fingerprints of the base models to ``folder``.

        The weights of the base models are not written.
        """
        from ossicle.models import saving  # not on the path from data to loss

        saving.save(self, folder)

    def load_projector(self, folder: str | Path) -> None:
        """Load the trained weights of a checkpoint. Weights that train here but not there keep their values.

        Raises `CheckpointError` if the checkpoint is damaged or holds values that are not finite, if it was trained
        with other base models or other settings that change what the weights compute, or if it contains trained weights
        that do not train here.
        """
        from ossicle.models import saving  # not on the path from data to loss

        saving.load(self, folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Do what `save` does, and write a model card (``README.md``)."""
        from ossicle.models.card import write_card  # not on the path from data to loss

        self.save(folder)
        write_card(folder, origin=self.origin)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint and its model card to the Hugging Face Hub and return the address.

        Raises `CheckpointError` if the hub refuses it or cannot be reached.
        """
        from ossicle.models.hub import upload  # not on the path from data to loss

        return upload(self, repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        encoder: str | None = None,
        llm: str | None = None,
        device: str | torch.device | None = "auto",
        dtype: str | torch.dtype | None = "auto",
    ) -> SpeechLLM:
        """Load a saved model in evaluation mode, onto ``device``.

        Args:
            folder: Folder that `save` wrote, the name of a packaged checkpoint, or a hub id.
            encoder: New place of the encoder, if it has moved.
            llm: New place of the LLM, if it has moved.
            device: Where the model is to run, such as ``cuda``. ``auto`` is the accelerator if there is one, else the
                CPU. None is the CPU, in the precision of the accelerator, see `ModelConfig.build`.
            dtype: Type of the weights of encoder and LLM, such as ``bfloat16``; ``auto`` is that of the training.

        Raises `CheckpointError` if ``folder`` is not a checkpoint or a base model is not the one of the training,
        `ConfigError` for an unknown device or dtype, and `ModelError` if a base model does not load.
        """
        from ossicle.models.saving import chosen_device, read_config, stored_types  # not on the path from data to loss

        moved = {name: str(where) for name, where in (("encoder", encoder), ("llm", llm)) if where is not None}
        config: ModelConfig = read_config(folder, ModelConfig, **moved, **stored_types(dtype))
        model = config.build(chosen_device(device))
        model.load_projector(folder)
        return model.eval()


def _text_ids(batch: Batch) -> Padded:
    if batch.text is None:
        missing = [sample.source for sample in batch.samples if not sample.text]
        raise DataError(f"this objective needs transcripts; add 'text' to {', '.join(missing[:3])}")
    return batch.text
