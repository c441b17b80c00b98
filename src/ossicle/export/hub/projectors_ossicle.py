"""Build the projector of an exported model; `ossicle.export.code` writes the classes in place of the imports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ossicle.models.cif import CIFProjector
from ossicle.models.ctc import CTCProjector
from ossicle.models.projectors import QFormerProjector
from ossicle.models.stacking import ConvProjector, StackMLPProjector, StackProjector


def build_projector(settings: dict[str, Any]) -> nn.Module:
    """Return the projector with the ``settings`` of config.json: its name and its sizes."""
    sizes: Any = SimpleNamespace(**settings)
    in_dim, out_dim = sizes.in_dim, sizes.out_dim
    match sizes.name:
        case "qformer":
            return QFormerProjector(in_dim, out_dim, sizes, window=sizes.window)
        case "linear":
            return StackProjector(in_dim, out_dim, stack=sizes.stack)
        case "mlp":
            return StackProjector(in_dim, out_dim, stack=sizes.stack, width=sizes.width)
        case "stack-mlp":
            return StackMLPProjector(in_dim, out_dim, stack=sizes.stack, width=sizes.width)
        case "conv":
            return ConvProjector(in_dim, out_dim, halvings=sizes.halvings, width=sizes.width, kernel=sizes.kernel)
        case "cif":
            return CIFProjector(in_dim, out_dim, sizes, stack=sizes.stack, rate_hz=1.0)
        case "ctc":
            spoken: Any = SimpleNamespace(ids=range(sizes.vocabulary))
            embeddings = torch.zeros(sizes.vocabulary, out_dim)  # those of the LLM are set when the model runs
            return CTCProjector(in_dim, sizes, stack=sizes.stack, spoken=spoken, embeddings=embeddings, rate_hz=1.0)
        case _:
            raise ValueError(f"projector.name={sizes.name!r} in config.json: this code has no such projector")
