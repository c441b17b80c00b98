"""Write the Python files of an exported model, so that it loads where Ossicle is not installed.

The files in `ossicle.export.hub` are copied. The code of the projectors is taken from the classes that trained them, so
that there is one source of it. Every model gets all projectors: transformers keeps one class for all models with the
same code of the configuration.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from ossicle import __version__
from ossicle.export import hub
from ossicle.export.hub.projectors_ossicle import build_projector
from ossicle.files import write_text
from ossicle.models import blocks, cif, ctc, projectors, stacking

COPIED = ("configuration_ossicle.py", "encoding_ossicle.py", "modeling_ossicle.py", "processing_ossicle.py")
PROJECTORS = "projectors_ossicle.py"
NAMES = ("qformer", "linear", "mlp", "stack-mlp", "conv", "ctc", "cif")
"""Names of the projectors that an exported model can have."""
HEADER = f'''"""Projectors between speech encoder and LLM, as Ossicle {__version__} trains them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BERT_NORM_EPS, POSITION_INIT_STD = {projectors.BERT_NORM_EPS}, {projectors.POSITION_INIT_STD}
BLANK, BYTES, SLOTS, TYPICAL_TOKENS_HZ = {ctc.BLANK}, {ctc.BYTES}, {ctc.SLOTS}, {blocks.TYPICAL_TOKENS_HZ}
LEFTOVER, MIN_WEIGHT = {cif.LEFTOVER}, {cif.MIN_WEIGHT}


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Compute softmax attention of ``query`` (B, H, L, d); ``mask`` is True where a key may be read."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def dropout(x: Tensor, p: float, training: bool, *, shared: bool = False) -> Tensor:
    """Return ``x`` with the share ``p`` of its elements set to zero in training."""
    return F.dropout(x, p, training)


def of_windows(places: Any) -> Any:
    """Do nothing: masks are those of the process here."""
    return nullcontext()
'''
SOURCES: tuple[Any, ...] = (
    projectors.join_frames,
    projectors.Attention,
    projectors.QFormerLayer,
    projectors.QFormerProjector,
    stacking.StackProjector,
    stacking.StackMLPProjector,
    stacking.ConvProjector,
    ctc.Spelling,
    blocks.Block,
    blocks.build_blocks,
    ctc.CTCProjector,
    cif.integrate,
    cif.CIFProjector,
)


def write_code(folder: Path) -> None:
    """Write the code of an exported model to ``folder``."""
    here = Path(inspect.getfile(hub)).parent
    for file in COPIED:
        write_text(folder / file, (here / file).read_text(encoding="utf-8"))
    write_text(folder / PROJECTORS, projectors_code())


def projectors_code() -> str:
    """Return the code of all projectors, which imports nothing but PyTorch."""
    code = "\n\n".join([HEADER, *map(inspect.getsource, (*SOURCES, build_projector))])
    for method in (ctc.CTCProjector.heard, ctc.CTCProjector.targets):  # they need the tokenizer
        code = code.replace(f"\n{inspect.getsource(method)}", "")
    return re.sub(r"^ *@outside_autocast\n", "", code, flags=re.MULTILINE)
