"""Helpers that encoder and LLM share: loading, freezing, fingerprints of weights, and hidden states by layer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ossicle.errors import ConfigError, MissingPackageError, ModelError

FINGERPRINT_VALUES_PER_TENSOR = 1024
LAB = "lab"
"""Name of the tiny encoder and LLM in the package ossicle-lab."""
MASK_EMBEDDING = "masked_spec_embed"
"""Vector that replaces masked frames in pretraining. Many published encoders lack it and no frozen encoder uses it."""
Layers = Literal["embeddings", "all"] | int | list[int]
"""A choice of hidden states, see `resolve_layers`."""


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients off and evaluation mode on.

    The paper's official code leaves the encoder in train mode, so that dropout, layer drop and SpecAugment stay on.
    Here they are off, and `SpeechLLM.train` does not turn them on.
    """
    return model.requires_grad_(False).eval()


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of names, shapes and 1024 evenly spaced values of every tensor, in bfloat16.

    The same weights loaded in float32 or bfloat16 have the same fingerprint. Fine-tuned weights have another one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // FINGERPRINT_VALUES_PER_TENSOR)
        values = flat[::step][:FINGERPRINT_VALUES_PER_TENSOR].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def resolve_layers(layers: Layers, num_layers: int, *, field: str = "objective.layers") -> list[int]:
    """Return the indices of the hidden states that ``layers`` names in a model with ``num_layers`` layers.

    ``embeddings`` is layer 0, the input of the first layer. ``all`` is every hidden state 0..num_layers. A number or a
    list of numbers names hidden states directly; negative numbers are not allowed.

    Raises `ConfigError`, which names ``field``, for an empty list, a layer that the model does not have, or a layer
    that is listed twice.
    """
    match layers:
        case "embeddings":
            return [0]
        case "all":
            return list(range(num_layers + 1))
        case int(layer):
            indices = [layer]
        case _:
            indices = list(layers)
    if not indices or not all(0 <= index <= num_layers for index in indices):
        raise ConfigError(f"{field}={layers}: the model has hidden states 0..{num_layers}; choose among them")
    if len(set(indices)) < len(indices):
        raise ConfigError(f"{field}={layers} lists a layer twice: list each layer once")
    return indices


@contextmanager
def layer_outputs(layers: nn.ModuleList, wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Collect hidden states while a model runs inside the block.

    ``states[k]`` is the output of the k-th layer; ``states[0]`` is the input of the first layer. Layers that did not
    run are missing.

    This is used in place of ``output_hidden_states`` because transformers installs its hooks once for each model that
    runs. It would record layers twice that two models share, as the truncated decoders of `ossicle.models.llm.LLM` do.
    """
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        states[0] = args[0]

    handles = [
        layers[layer - 1].register_forward_hook(keep(layer))
        if layer
        else layers[0].register_forward_pre_hook(keep_input)
        for layer in wanted
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet_loading(name: str) -> Iterator[None]:
    """Silence what transformers prints while it loads the model ``name``, inside the block.

    The report of weights is always silenced: unused weights belong to a head that is left out on purpose, and
    `refuse_missing` reports missing ones. The progress bar is silenced in log files and for weights in one local file.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if not _is_sharded(name) or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def refuse_missing(setting: str, report: dict[str, Any]) -> None:
    """Raise `ModelError` if transformers initialised weights at random because the files lack them.

    Args:
        setting: The setting to name in the message, e.g. ``model.llm=folder``.
        report: The loading information of ``from_pretrained(..., output_loading_info=True)``.
    """
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(MASK_EMBEDDING))
    if missing:
        raise ModelError(
            f"{setting}: the files lack {len(missing)} weights of its architecture, such as {missing[0]}, "
            "which would be random: check the folder and its config.json"
        )


def resolve(name: str, part: str) -> str:
    """Return the folder of the packaged ``part`` (``encoder`` or ``llm``) called ``name``; return other names as is.

    Packages add models through entry points of the group ``ossicle.models``. Raises `MissingPackageError` for ``lab``
    if the laboratory is not installed.
    """
    for entry in entry_points(group="ossicle.models", name=name):
        return str(entry.load()(part))
    if name == LAB:
        raise MissingPackageError(
            "the models called 'lab' are in the package ossicle-lab, which is not installed: run pip install ./lab "
            "in a checkout, or name your own models with model.encoder=... and model.llm=..."
        )
    return name


def _is_sharded(name: str) -> bool:
    """Return False for a local folder with its weights in one file, which loads at once."""
    folder = Path(name)
    return not folder.is_dir() or any(folder.glob("*.index.json"))
