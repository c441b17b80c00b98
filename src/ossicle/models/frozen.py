"""What encoder and LLM have in common: loaded frozen, known by a fingerprint of their weights, read layer by layer."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ossicle.errors import MissingPackageError

FINGERPRINT_VALUES_PER_TENSOR = 1024


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients off and evaluation mode on.

    The official code leaves the encoder in train mode, so that dropout, layerdrop and SpecAugment stay on; here frozen
    means frozen (`SpeechLLM.train` keeps it so).
    """
    return model.requires_grad_(False).eval()


def fingerprint(model: nn.Module) -> str:
    """Short hash that tells weights apart: names, shapes and 1024 evenly spaced values of every tensor, in bfloat16.

    The same weights loaded in float32 or bfloat16 have the same fingerprint; fine-tuned ones have another.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // FINGERPRINT_VALUES_PER_TENSOR)
        values = flat[::step][:FINGERPRINT_VALUES_PER_TENSOR].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def layer_outputs(layers: nn.ModuleList, wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Collect hidden states while a model runs: k is what the k-th of ``layers`` puts out, 0 what the first reads.

    Not ``output_hidden_states``: transformers sets its hooks once for each model that runs, and would record twice
    the layers that two of them share (`ossicle.models.llm.LLM` cuts its decoder so). Layers that did not run are
    missing.
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


LAB = "lab"
"""Name of the laboratory's tiny encoder and LLM, which come with the package ossicle-lab."""


@contextmanager
def quiet_loading(name: str) -> Iterator[None]:
    """Spare the user what transformers says while it loads, where that only clutters.

    The report of weights goes: those that nothing uses are a head left out on purpose, and missing ones are refused
    (`refuse_missing`). The progress bar goes in a log file and for the lab's tiny models.
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


MASK_EMBEDDING = "masked_spec_embed"
"""What stands in for masked frames in pretraining, which many published encoders lack and no frozen one uses."""


def refuse_missing(setting: str, report: dict[str, Any]) -> None:
    """Raise `ValueError` where transformers, by its ``report``, made up weights that the files of ``setting`` lack."""
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(MASK_EMBEDDING))
    if missing:
        raise ValueError(
            f"{setting}: the files lack {len(missing)} weights of its architecture, such as {missing[0]}, "
            "which would be random: check the folder and its config.json"
        )


def resolve(name: str, part: str) -> str:
    """Return the folder of the packaged ``part`` (encoder or llm) called ``name``; leave hub ids and folders alone.

    Packages add models by entry points of the group ``ossicle.models``. Raises `MissingPackageError` for ``lab``
    where the laboratory is not installed.
    """
    for entry in entry_points(group="ossicle.models", name=name):
        return str(entry.load()(part))
    if name == LAB:
        raise MissingPackageError(
            "the models called 'lab' come with the package ossicle-lab, which is not installed: run pip install ./lab "
            "in a checkout, or name your own models with model.encoder=... and model.llm=..."
        )
    return name


def _is_sharded(name: str) -> bool:
    """Return False for a local folder with its weights in one file, which loads at once."""
    folder = Path(name)
    return not folder.is_dir() or any(folder.glob("*.index.json"))
