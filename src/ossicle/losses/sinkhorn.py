"""Sinkhorn divergence between all pairs of two batches of point clouds, and the Wasserstein similarity built on it.

The numbers are those of geomloss ``SamplesLoss("sinkhorn", p=2, blur=0.05)``, without its loop over pairs and
without a graph through the iterations. Where numba is installed (``pip install ossicle[fast]``), float32 clouds on a
CPU go through one fused kernel; all others, and every GPU, through the PyTorch solver. A fused GPU kernel is missing.

Shape legend: B clouds, L longest, D width, R rows of the packed matrix of all points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossicle.losses.products import BLOCK_ROWS, inner_products, roomy
from ossicle.losses.sinkhorn_cloud import (
    Cloud,
    Layout,
    Own,
    joint_diameters,
    lay_out,
    make_clouds,
    make_schedule,
    middle,
    own_diameters,
)

Schedule = Literal["sample", "pair"]
Backend = Literal["auto", "torch", "numba"]


def sinkhorn_divergence(  # noqa: PLR0913 - two batches with their masks, and what geomloss calls by the same names
    x: Tensor,
    x_mask: Tensor,
    y: Tensor,
    y_mask: Tensor,
    *,
    blur: float = 0.05,
    scaling: float = 0.5,
    schedule: Schedule = "sample",
    backend: Backend = "auto",
    bf16_gradient: bool = False,
) -> Tensor:
    """Debiased Sinkhorn divergence of every cloud of ``x`` (B_x, N, D) and of ``y`` (B_y, M, D): (B_x, B_y).

    S(i, j) = OT(x_i, y_j) - OT(x_i, x_i) / 2 - OT(y_j, y_j) / 2 with uniform weights, cost |x - y|² / 2 and entropy
    blur². Masks are True where a point is valid; a cloud without one raises `ValueError`. The other arguments are
    described in `Options`.

    Computed and returned in float32, or in float64 if an input is. Gradients flow to both sides, by the envelope
    theorem: the transport plans count as constants.
    Source: Feydy et al. 2019, equation 3; Feydy 2020, algorithm 3.5.
    """
    options = Options(blur=blur, scaling=scaling, schedule=schedule, backend=backend, bf16_gradient=bf16_gradient)
    return _divergence(x, x_mask, y, y_mask, options)


def wasserstein_similarity(
    text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor, **options: Any
) -> Tensor:
    """Minus the Sinkhorn divergence of L2-normalised ``text`` (B_t, N, D) and ``speech`` (B_s, M, D): (B_t, B_s).

    ``options`` are those of `sinkhorn_divergence`. Gradients flow to both, through the normalisation.
    Source: Züfle & Niehues 2025, section 3.2 ("Wasserstein").
    """
    return -_divergence(text, text_mask, speech, speech_mask, Options(**options, unit=True))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a divergence is computed with."""

    blur: float = 0.05
    """Length below which points are not told apart, in the units of the points; the entropy is its square."""
    scaling: float = 0.5
    """Factor between two blurs of the annealing, within (0, 1)."""
    schedule: Schedule = "sample"
    """Where the self terms are annealed from. "sample": the diameter of the cloud, once per cloud; "pair": that of
    each pair, exactly as geomloss does, at several times the cost. The values differ by about 1e-6."""
    backend: Backend = "auto"
    """The solver; "auto" takes the fastest there is."""
    bf16_gradient: bool = False
    """Multiply plans and points in bfloat16 in the backward pass: it takes half the time where the CPU multiplies
    bfloat16 natively, and the gradient is off by 0.3 % (its direction by 1e-5, one minus cosine). Values are exact."""
    unit: bool = False
    """L2-normalise the points first."""

    def __post_init__(self) -> None:
        if not (self.blur > 0 and 0 < self.scaling < 1):
            raise ValueError(f"blur must be positive and scaling within (0, 1), not {self.blur} and {self.scaling}")
        if self.schedule not in ("sample", "pair"):
            raise ValueError(f'schedule must be "sample" or "pair", not {self.schedule!r}')


def _divergence(x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, options: Options) -> Tensor:
    for name, values, mask in (("first", x, x_mask), ("second", y, y_mask)):
        if values.shape[:2] != mask.shape:
            raise ValueError(f"the {name} mask is {tuple(mask.shape)} for points of shape {tuple(values.shape)}")
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"sequences {empty} of the {name} batch have no valid position: "
                "empty text, or audio shorter than a frame"
            )
    return _Divergence.apply(x, x_mask, y, y_mask, options)


def _not_finite(*batches: tuple[Tensor, Tensor]) -> ValueError:
    """The error that names the clouds with points that the divergence is not defined for."""
    for name, (values, mask) in zip(("first", "second"), batches, strict=True):
        wrong = ((~values.isfinite()).any(-1) & mask).any(1).nonzero().flatten().tolist()
        if wrong:
            return ValueError(f"sequences {wrong} of the {name} batch hold values that are infinite or not a number")
    return ValueError("the points are too large to be squared in their precision: scale them down")


class _Divergence(torch.autograd.Function):
    """Values from a solver, gradients from the plans that it leaves behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, options: Options) -> Tensor:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        solver = _solver(options.backend, x.device.type, dtype)
        with torch.autocast(x.device.type, enabled=False):
            layouts = lay_out(x_mask), lay_out(y_mask)
            centre = middle(x.detach(), layouts[0], options.unit).to(dtype)
            clouds = [
                make_clouds(values.detach(), layout, centre, options.unit)
                for values, layout in zip((x, y), layouts, strict=True)
            ]
            if not all(cloud.half_squares.isfinite().all() for cloud in clouds):
                raise _not_finite((x, x_mask), (y, y_mask))

            diameters = joint_diameters(*clouds)
            schedule = make_schedule(diameters, options.blur, options.scaling)
            pairs = solver.solve_pairs(*clouds, schedule, wanted)
            owns = []
            for cloud, pair_diameters, plans in zip(clouds, (diameters, diameters.T), wanted, strict=True):
                spans = own_diameters(cloud)[:, None] if options.schedule == "sample" else pair_diameters
                owns.append(solver.solve_own(cloud, make_schedule(spans, options.blur, options.scaling), plans))
        ctx.clouds, ctx.owns, ctx.pairs, ctx.centre = clouds, owns, pairs, centre
        ctx.like, ctx.half = [(values.shape, values.dtype) for values in (x, y)], options.bf16_gradient
        return pairs.cost - (owns[0].cost + owns[1].cost.T) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.clouds
        gradients: list[Tensor | None] = [None, None]
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.pairs.by_row is not None:
                push = _Push(x, y.points, y.layout.cloud, ctx.owns[0], ctx.centre, ctx.half)
                gradients[0] = push.gradient(ctx.pairs.by_row, gradient, *ctx.like[0])
            if ctx.pairs.by_column is not None:
                rows = slice(None) if ctx.pairs.rows is None else ctx.pairs.rows
                push = _Push(y, x.points[rows], x.layout.cloud[rows], ctx.owns[1], ctx.centre, ctx.half)
                gradients[1] = push.gradient(ctx.pairs.by_column.T, gradient.T, *ctx.like[1])
        return gradients[0], None, gradients[1], None, None


@dataclass(frozen=True)
class _Push:
    """What moves the points of a batch of clouds: each x is drawn to plan @ y and pushed from plan @ x of its own."""

    cloud: Cloud
    others: Tensor  # (R_other, D) points that the columns of the plan stand for
    other_cloud: Tensor  # (R_other,) their clouds
    own: Own
    centre: Tensor  # (D,)
    half: bool  # multiply in bfloat16

    def gradient(self, plan: Tensor, weights: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Of ``plan`` (R, R_other), each pair of clouds weighted by ``weights`` (B, B_other): (B, L, D)."""
        layout, width = self.cloud.layout, shape[2]
        wide = -weights.to(plan.dtype).index_select(1, self.other_cloud)  # (B, R_other)
        other = (self.others.bfloat16() if self.half else self.others).T  # (D, R_other)
        result = roomy((shape[0] * shape[1], width), dtype, plan.device)
        result.index_fill_(0, layout.missing, 0)
        for clouds in _runs(layout, BLOCK_ROWS):
            first = layout.starts[clouds[0]]
            parts = [slice(part.start - first, part.stop - first) for part in map(layout.rows, clouds)]
            block = plan[first : first + parts[-1].stop]
            weighted = torch.empty_like(block)  # strides in the order of those of `plan`, which may be transposed
            for index, part in zip(clouds, parts, strict=True):
                torch.mul(block[part], wide[index], out=weighted[part])
            block = weighted.contiguous()  # (rows of the block, R_other)
            pulled = inner_products(block.to(other.dtype), other).to(plan.dtype)  # (rows, D)
            for index, part in zip(clouds, parts, strict=True):
                moved = self._pushed(pulled[part], index, weights[index])
                result.index_copy_(0, layout.source[layout.rows(index)], moved.to(dtype))
        return result.view(shape)

    def _pushed(self, pulled: Tensor, index: int, weights: Tensor) -> Tensor:
        """``pulled`` (N, D) of one cloud, changed in place; what is left of each x itself cancels."""
        part, plans = self.cloud.layout.rows(index), self.own.plans[index]  # (C, N, N)
        points = self.cloud.points[part]
        factors = weights if len(plans) > 1 else weights.sum(0, keepdim=True)  # (C,)
        pulled += inner_products(torch.einsum("c,cnm->nm", factors, plans), points.T)
        if self.cloud.norms is not None:  # the part of the gradient along a unit vector p + centre does not move it
            along = torch.linalg.vecdot(pulled, points).add_(pulled @ self.centre)  # (N,)
            pulled.addcmul_(points, along[:, None], value=-1).addr_(along, self.centre, alpha=-1)
            pulled /= self.cloud.norms[part]
        return pulled


def _runs(layout: Layout, most_rows: int) -> list[list[int]]:
    """Clouds in the order of the batch, as many together as stay within ``most_rows`` rows."""
    runs: list[list[int]] = []
    for cloud in range(len(layout.lengths)):
        if runs and layout.rows(cloud).stop - layout.starts[runs[-1][0]] <= most_rows:
            runs[-1].append(cloud)
        else:
            runs.append([cloud])
    return runs


@cache
def _solver(backend: str, device: str, dtype: torch.dtype) -> Any:
    """The module whose `solve_pairs` and `solve_own` are used."""
    fused = device == "cpu" and dtype == torch.float32
    if backend == "numba" and not fused:
        raise ValueError(f"the numba solver takes float32 on a CPU, not {dtype} on {device}")
    use_numba = backend == "numba" or (backend == "auto" and fused and find_spec("numba") is not None)
    return import_module("ossicle.losses.sinkhorn_numba" if use_numba else "ossicle.losses.sinkhorn_torch")
