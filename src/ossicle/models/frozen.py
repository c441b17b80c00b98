"""Helpers that encoder and LLM share: loading, freezing, fingerprints of weights, and hidden states by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from ossicle.errors import ConfigError, MissingPackageError

FINGERPRINT_VALUES_PER_TENSOR = 1024
LAB = "lab"
"""Name of the tiny encoder and LLM in the package ossicle-lab."""


def check_layers(layers: Any) -> Any:
    """Return ``layers``. Raises `ConfigError` for an empty list, a negative number or a layer that is listed twice."""
    indices = layers if isinstance(layers, list) else [layers] if isinstance(layers, int) else [0]
    if not indices or min(indices) < 0:
        raise ConfigError(f"layers={layers}: name hidden states by numbers from 0 on")
    if len(set(indices)) < len(indices):
        raise ConfigError(f"layers={layers} lists a layer twice: list each layer once")
    return layers


Layers = Annotated[Literal["embeddings", "all"] | int | list[int], AfterValidator(check_layers)]
"""A choice of hidden states, see `resolve_layers`."""


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients off and evaluation mode on.

    The paper's official code leaves the encoder in train mode, so that dropout, layer drop and SpecAugment stay on.
    Here they are off, and `SpeechLLM.train` does not turn them on.
    """
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Fingerprint:
    """Two short hashes of the weights of a model, each of 1024 evenly spaced values of every tensor, in bfloat16.

    The same weights loaded in float32 or bfloat16 have the same hashes. Fine-tuned weights have others.
    """

    content: str
    """Hash of shapes and values. Names are left out, because a new version of transformers may rename parameters."""
    by_name: str
    """Hash of names, shapes and values, as Ossicle 0.1 wrote it into checkpoints."""

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """Compute both hashes of ``model``."""
        by_name, contents = hashlib.sha256(), {}
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, tensor in sorted(model.state_dict().items()):
            flat = tensor.detach().flatten()
            step = max(1, flat.numel() // FINGERPRINT_VALUES_PER_TENSOR)
            values = flat[::step][:FINGERPRINT_VALUES_PER_TENSOR].to(torch.bfloat16).cpu().contiguous()
            shape, content = str(tuple(tensor.shape)).encode(), values.view(torch.uint8).numpy().tobytes()
            by_name.update(name.encode() + shape)
            by_name.update(content)
            # Buffers of integers, such as position ids, come and go with the version of transformers.
            if name in weights or tensor.is_floating_point():
                place = tensor.data_ptr() or name  # tied weights count once, whether or not both names are listed
                contents[place, shape] = hashlib.sha256(shape + content).digest()
        joined = hashlib.sha256(b"".join(sorted(contents.values())))
        return cls(joined.hexdigest()[:16], by_name.hexdigest()[:16])


def fingerprint(model: nn.Module) -> str:
    """Return the hash of shapes and values of ``model``, see `Fingerprint`."""
    return Fingerprint.of(model).content


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


def resolve(name: str, part: str) -> str:
    """Return the folder of the packaged ``part`` (``encoder`` or ``llm``) called ``name``, or the name itself.

    ``~`` is expanded. Packages add models through entry points of the group ``ossicle.models``. Raises
    `MissingPackageError` for ``lab`` if the laboratory is not installed.
    """
    for entry in entry_points(group="ossicle.models", name=name):
        return str(entry.load()(part))
    if name == LAB:
        raise MissingPackageError(
            "the models called 'lab' are in the package ossicle-lab, which is not installed: run pip install ./lab "
            "in a checkout, or name your own models with model.encoder=... and model.llm=..."
        )
    return str(Path(name).expanduser()) if name.startswith("~") else name
