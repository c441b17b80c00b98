"""Divide the layers of a frozen LLM over the processes of a run (FSDP2), for an LLM that one GPU cannot hold.

Each layer is gathered when it runs, in the forward and in the backward pass, and released at once. Every process has
all of the rest: the encoder, the projector, and the embeddings, final norm and output layer of the LLM. After the
backward pass the gradients of what trains are averaged, as in DistributedDataParallel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ossicle.errors import ConfigError
from ossicle.models.encoder import load_encoder
from ossicle.models.frozen import resolve
from ossicle.models.llm import LLM, PRECISIONS, load_llm
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.objectives import names_of
from ossicle.precision import CPU, usable
from ossicle.train.recipe import Config


def check_settings(config: Config) -> None:
    """Raise `ConfigError` for a setting with which the processes would not gather the same layers at the same time."""
    refused = {
        "data.cache_text=true": config.data.cache_text,
        "train.analyze_every": config.train.analyze_every > 0,
        "objective.name=on_policy": "on_policy" in names_of(config.objective),  # answers have different lengths
        f"model.llm_dtype={config.model.llm_dtype}": config.model.llm_dtype in ("int8", "int4"),
    }
    for setting, used in refused.items():
        if used:
            raise ConfigError(
                f"train.fsdp does not work with {setting}, because all processes have to run the same layers of the "
                "LLM together, as they are stored: change one of the two"
            )


def group_size(setting: bool | Literal["node"]) -> int:
    """Return the number of processes over which ``train.fsdp`` divides a layer: those of a machine, or all.

    Raises `ConfigError` for ``node`` if the environment does not say how many processes a machine has.
    """
    processes = dist.get_world_size()
    if setting != "node":
        return processes
    own = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not own.isdecimal() or int(own) < 1 or processes % int(own):
        raise ConfigError(
            f"train.fsdp=node needs the same number of processes on each machine, and LOCAL_WORLD_SIZE is {own!r} with "
            f"{processes} processes: set it as torchrun does, or use train.fsdp=true"
        )
    return int(own)


def build(config: ModelConfig, device: torch.device, setting: bool | Literal["node"] = True) -> SpeechLLM:
    """Return a model as `ModelConfig.build` does, with the layers of its LLM divided as ``train.fsdp`` says.

    The weights of the LLM are memory-mapped, and go to ``device`` layer by layer. Raises `ConfigError` if a part of the
    LLM trains, and as `group_size` does.
    """
    size = group_size(setting)
    encoder = load_encoder(
        resolve(config.encoder, "encoder"),
        dtype=usable(getattr(torch, config.encoder_dtype), device),
        layer=config.encoder_layer,
        context=config.encoder_context,
        device=device,
    )
    dtype = usable(PRECISIONS[config.llm_dtype]["dtype"], device)
    llm = load_llm(resolve(config.llm, "llm"), dtype=dtype, device=CPU)
    model = SpeechLLM(encoder, llm, config)
    if llm.trains:
        raise ConfigError(
            "train.fsdp needs a frozen LLM, and model.trainable or model.lora names parts of it: drop them"
        )
    shard(llm, device, size)
    model.encoder.to(device)
    model.projector.to(device)
    return model


def shard(llm: LLM, device: torch.device, size: int) -> None:
    """Divide the layers of ``llm`` over groups of ``size`` processes, and move its other weights to ``device``.

    A group consists of consecutive ranks. Groups exchange nothing, because frozen weights have no gradients. Every
    process of a group has to call the same methods of ``llm`` in the same order from then on.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    groups = init_device_mesh(device.type, (dist.get_world_size() // size, size), mesh_dim_names=("group", "shard"))
    mesh = groups["shard"]
    base: Any = llm.model.base_model
    for layer in base.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    own = {parameter for parameter in base.parameters() if not is_sharded(parameter)}
    # The root divides nothing more. It lets the layers share their streams and gather the next one early.
    fully_shard(base, mesh=mesh, ignored_params=own, reshard_after_forward=False)
    for module in (
        *(child for child in base.children() if child is not base.layers),
        llm.model.get_output_embeddings(),
    ):
        module.to(device)


def prepare(
    step: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return both with the run's precision, without DistributedDataParallel, which does not take divided weights."""
    if isinstance(step.objective, nn.Module):
        step.objective.to(accelerator.device)
    prepared: nn.Module = accelerator.prepare_model(step, device_placement=False, evaluation_mode=True)
    return prepared, accelerator.prepare(optimizer)


def is_sharded(tensor: Tensor) -> bool:
    """Return True if this process has only a part of ``tensor``."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of ``parameters`` by their means over all processes; no gradient counts as zero."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        group = [gradient for gradient in gradients if gradient.dtype == dtype]
        joined = torch.cat([gradient.flatten() for gradient in group])
        dist.all_reduce(joined)
        joined /= dist.get_world_size()
        means = torch.split(joined, [gradient.numel() for gradient in group])
        for gradient, mean in zip(group, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
