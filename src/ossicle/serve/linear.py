"""Multiply the matrices of a served model with oneDNN, which is faster than MKL on CPUs of other makers than Intel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ossicle.private import onednn_packed, onednn_product

LEAST_ROWS = 4
"""Vectors from which on oneDNN is used. For fewer, such as a step of decoding one answer, MKL is faster."""
PACKED_ROWS = 8
"""Number of vectors for which the weights of the LLM are packed: a batch of a few answers."""
MOST_PACKED_BYTES = 2**30
"""Size of an LLM's weights up to which a packed copy is kept beside them."""


class OneDNNLinear(nn.Linear):
    """A linear layer in float32 on a CPU, without gradients. It has the weights and the name of the former layer.

    Attributes:
        packed: A copy of the weights in the order in which oneDNN reads them, or None.
    """

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map vectors (..., in_features) to (..., out_features). The sums differ from PyTorch's by rounding only."""
        if input.numel() < LEAST_ROWS * self.in_features or torch.is_grad_enabled():
            return super().forward(input)
        weight = self.weight if self.packed is None else self.packed
        product = onednn_product(input.reshape(-1, self.in_features), weight, self.bias)  # (rows, out_features)
        return super().forward(input) if product is None else product.view(*input.shape[:-1], self.out_features)


def use_onednn(model: Any) -> None:
    """Let the linear layers of a `ossicle.models.speech_llm.SpeechLLM` use oneDNN where that is possible.

    This concerns plain layers with weights in float32 on the CPU. Those of the LLM are packed if they are small enough,
    because a step of decoding takes as long as its weights take to be read.
    """
    if onednn_product(torch.ones(1, 1), torch.ones(1, 1)) is None:
        return
    for part in (model.encoder, model.projector, model.llm):
        layers: list[Any] = [layer for layer in part.modules() if type(layer) is nn.Linear and _is_plain(layer.weight)]
        packs = part is model.llm and sum(layer.weight.nbytes for layer in layers) <= MOST_PACKED_BYTES
        for layer in layers:
            layer.__class__ = OneDNNLinear
            if packs:
                layer.packed = onednn_packed(layer.weight.detach(), PACKED_ROWS)


def _is_plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"
