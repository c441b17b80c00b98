"""Check that the models load, that the right parameters train, and that a checkpoint holds them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

from ossicle.batch import Padded
from ossicle.doctor.batch import Loaded
from ossicle.doctor.finding import Report, listed
from ossicle.models.lora import PROJECTOR, describe
from ossicle.models.saving import ADAPTERS_FILE, WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.precision import CPU, describe_fallbacks
from ossicle.train.recipe import Config

PARITY = 1e-3
"""Largest relative difference, between an utterance's frames alone and in a batch, that rounding explains."""
HALF_PARITY = 0.02
"""The same for encoders in half precision, whose numbers have two or three digits."""
SCALES = (0.1, 10.0)
"""Smallest and largest plausible scale of the projector's output, relative to the LLM's embeddings."""


def build_model(config: Config, report: Report) -> SpeechLLM | None:
    """Build the model of the run with its initial projector; report an error and return None if that fails."""
    device = CPU if config.train.cpu else None
    try:
        model = config.model.build(device)
        if config.train.init_from is not None:
            model.load_projector(config.train.init_from)
    except (ValueError, OSError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        report.error("models", first, "check model.encoder, model.llm, model.projector and train.init_from")
        return None
    report.ok(
        "models",
        f"{config.model.encoder} ({model.encoder.dim} wide, {model.encoder.frame_rate_hz:g} frames/s) -> "
        f"{config.model.projector.name} ({model.token_rate_hz:.1f} tokens/s) -> "
        f"{config.model.llm} ({model.llm.dim} wide, {model.llm.num_layers} layers)",
    )
    if fallbacks := describe_fallbacks(config.precisions, device):
        report.ok("precision", fallbacks)
    return model


def check_trainable(config: Config, model: SpeechLLM, report: Report) -> None:
    """Report which parameters train; training the LLM's own weights is an error, because it forgets what it knew."""
    count = sum(parameter.numel() for parameter in model.projector.parameters() if parameter.requires_grad)
    report.ok("trains", "; ".join([f"projector: {count:,} parameters", *describe(model)]))
    frozen = sum(not p.requires_grad for p in model.projector.parameters())
    if frozen:
        report.error("trains", f"{frozen} tensors of the projector are frozen", "let all of it train")
    moving = {name: p for name, p in model.llm.named_parameters() if p.requires_grad and "lora_" not in name}
    if moving:
        share = sum(p.numel() for p in moving.values()) / sum(p.numel() for p in model.llm.parameters())
        report.error(
            "frozen LLM",
            f"{share:.0%} of the LLM's own weights train ({listed(moving)}): its answers to text will change",
            "take them out of model.trainable; to adapt the LLM, name layers in model.lora.modules",
        )
    elif config.model.lora.modules and any("lora_" in name for name, _ in model.llm.named_parameters()):
        report.warning("frozen LLM", "adapters (LoRA) change the LLM's answers to text", "expected with model.lora")
    else:
        report.ok("frozen LLM", "none of its weights trains")


def check_checkpoint(model: SpeechLLM, report: Report) -> None:
    """Check that a checkpoint holds every tensor that trains, and no other tensor of encoder and LLM."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        kept = {f"{PROJECTOR}{key}" for key in _keys(Path(folder) / WEIGHTS_FILE)}
        kept |= _keys(Path(folder) / ADAPTERS_FILE)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lost = sorted(trains - kept)
    foreign = sorted(key for key in kept - trains if not key.startswith(PROJECTOR))
    if lost or foreign:
        report.error("checkpoint", f"loses {listed(lost) or 'nothing'}; holds what does not train: {listed(foreign)}",
                     "this is a bug in Ossicle: please report it with your recipe")  # fmt: skip
    else:
        report.ok(
            "checkpoint", f"holds all {len(trains)} tensors that train and no frozen weight ({size / 1e6:.1f} MB)"
        )


def _keys(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    with safe_open(path, "pt") as file:
        return set(file.keys())


@torch.no_grad()
def check_padding(model: SpeechLLM, loaded: Loaded, report: Report) -> None:
    """Check that the shortest utterance has the same frames alone and in the batch."""
    waveforms = loaded.batch.waveforms
    if waveforms is None or len(waveforms.mask) < 2:
        return
    model.eval()
    lengths = waveforms.mask.sum(1)
    row = int(lengths.argmin())
    alone = Padded(waveforms.values[row : row + 1, : lengths[row]], waveforms.mask[row : row + 1, : lengths[row]])
    together, single = model.encoder(waveforms), model.encoder(alone)
    frames, reference = together.values[row][together.mask[row]].float(), single.values[0][single.mask[0]].float()
    if frames.shape != reference.shape:
        report.error("padding", f"an utterance has {len(reference)} frames alone and {len(frames)} in a batch",
                     "this is a bug in Ossicle: please report it with the name of the encoder")  # fmt: skip
        return
    difference = float((frames - reference).norm() / reference.norm())
    if not model.encoder.pads_exactly:
        report.warning(
            "padding",
            f"{model.encoder.name} cannot promise the same frames in every batch (here they differ by "
            f"{difference:.1%}): its front end normalises over the padded length",
            "use an encoder with layer norm in its front end (the large ones), or data.order=duration, which pads less",
        )
    elif difference > (PARITY if model.encoder.model.dtype == torch.float32 else HALF_PARITY):
        report.error("padding", f"frames of an utterance differ by {difference:.1%} between alone and in a batch",
                     "use another encoder, or data.batch_size=1")  # fmt: skip
    else:
        report.ok("padding", f"frames are the same alone and in a batch (relative difference {difference:.0e})")
    _check_scale(model, loaded, report)


def _check_scale(model: SpeechLLM, loaded: Loaded, report: Report) -> None:
    speech = model.speech(loaded.batch)
    ratio = float(speech.values[speech.mask].float().square().mean().sqrt()) / model.llm.embedding_rms
    message = f"speech vectors are {ratio:.2g} times as large as the LLM's embeddings"
    if SCALES[0] < ratio < SCALES[1]:
        report.ok("scale", message)
    else:
        report.warning("scale", message, "set model.projector.match_embedding_rms=true if the projector has it")
