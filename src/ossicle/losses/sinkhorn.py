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

from ossicle.losses.sinkhorn_cloud import (
    Layout,
    Own,
    joint_diameters,
    lay_out,
    make_cloud,
    make_schedule,
    own_diameters,
)

SHORTEST = 1e-12  # vectors below this norm are not scaled up to unit length, as in torch.nn.functional.normalize


def sinkhorn_divergence(x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, **options: Any) -> Tensor:
    """Debiased Sinkhorn divergence of every cloud of ``x`` (B_x, N, D) and of ``y`` (B_y, M, D): (B_x, B_y).

    S(i, j) = OT(x_i, y_j) - OT(x_i, x_i) / 2 - OT(y_j, y_j) / 2 with uniform weights, cost |x - y|² / 2 and entropy
    blur². Masks are True where a point is valid; a cloud without one raises `ValueError`. ``options`` are the fields
    of `Options`: blur=0.05, scaling=0.5, schedule="sample".

    Computed and returned in float32, or in float64 if an input is. Gradients flow to both sides, by the envelope
    theorem: the transport plans count as constants.
    Source: Feydy et al. 2019, equation 3; Feydy 2020, algorithm 3.5.
    """
    return _divergence(x, x_mask, y, y_mask, Options(**options))


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
    schedule: Literal["sample", "pair"] = "sample"
    """Where the self terms are annealed from. "sample": the diameter of the cloud, once per cloud; "pair": that of
    each pair, exactly as geomloss does, at several times the cost. The values differ by about 1e-6."""
    backend: Literal["auto", "torch", "numba"] = "auto"
    """The solver; "auto" takes the fastest there is."""
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
            rows = solver.group_rows(x.device)
            sides = [
                _Side.of(values.detach(), lay_out(mask, most), dtype, options.unit)
                for values, mask, most in ((x, x_mask, rows[0]), (y, y_mask, rows[1]))
            ]
            centre = sum(side.points.sum(0) for side in sides) / sum(len(side.points) for side in sides)
            clouds = [make_cloud(side.layout, side.points.sub_(centre)) for side in sides]
            if not all(cloud.half_squares.isfinite().all() for cloud in clouds):
                raise _not_finite((x, x_mask), (y, y_mask))

            diameters = joint_diameters(*clouds)
            schedule = make_schedule(diameters, options.blur, options.scaling)
            pairs = solver.solve_pairs(clouds[0].points @ clouds[1].points.T, *clouds, schedule, wanted)
            owns = []
            for cloud, pair_diameters, plans in zip(clouds, (diameters, diameters.T), wanted, strict=True):
                spans = own_diameters(cloud)[:, None] if options.schedule == "sample" else pair_diameters
                owns.append(solver.solve_own(cloud, make_schedule(spans, options.blur, options.scaling), plans))
        ctx.sides, ctx.owns, ctx.pairs, ctx.centre = sides, owns, pairs, centre
        return pairs.cost - (owns[0].cost + owns[1].cost.T) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.sides
        grad_x = grad_y = None
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.pairs.by_row is not None:
                pulled = _weigh(ctx.pairs.by_row, gradient, x.layout, y.layout) @ y.points
                grad_x = x.gradient(pulled, ctx.owns[0], gradient, ctx.centre)
            if ctx.pairs.by_column is not None:
                pulled = _weigh(ctx.pairs.by_column, gradient, x.layout, y.layout).T @ x.points
                grad_y = y.gradient(pulled, ctx.owns[1], gradient.T, ctx.centre)
        return grad_x, None, grad_y, None, None


@dataclass
class _Side:
    """One batch of clouds, packed, and the way back to the tensor it came from."""

    layout: Layout
    points: Tensor  # (R, D), a copy: normalised and centred in place
    norms: Tensor | None  # (R, 1) what the points were divided by
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Tensor, layout: Layout, dtype: torch.dtype, unit: bool) -> _Side:
        points = values.reshape(-1, values.shape[-1]).index_select(0, layout.source).to(dtype)
        norms = None
        if unit:
            norms = torch.linalg.vector_norm(points, dim=1, keepdim=True).clamp_min_(SHORTEST)
            points.div_(norms)
        return cls(layout, points, norms, values.shape, values.dtype)

    def gradient(self, pulled: Tensor, own: Own, gradient: Tensor, centre: Tensor) -> Tensor:
        """Gradient of the batch, given where the other side pulls its points: both (R, D), ``gradient`` (B, others).

        Each point x is drawn to plan @ y and pushed from plan @ x of its own cloud; what is left of x itself cancels.
        """
        grad = pulled.neg_()
        weights = gradient if own.cost.shape[1] > 1 else gradient.sum(1, keepdim=True)  # (B, C)
        for group, plans in zip(self.layout.groups, own.plans, strict=True):
            shape = len(group.clouds), group.length, -1
            plan = torch.einsum("ac,acnm->anm", weights[group.clouds], plans)
            grad[group.rows].view(shape).baddbmm_(plan, self.points[group.rows].view(shape))
        if self.norms is not None:  # the part of the gradient along a unit vector p + centre does not move it
            along = (torch.einsum("rd,rd->r", grad, self.points) + grad @ centre)[:, None]
            grad.addcmul_(self.points, along, value=-1).addr_(along[:, 0], centre, alpha=-1).div_(self.norms)
        return self.layout.unpack(grad, self.shape).to(self.dtype)


def _weigh(plan: Tensor, weights: Tensor, x: Layout, y: Layout) -> Tensor:
    """``plan`` (R_x, R_y) times the weight of each pair of clouds (B_x, B_y)."""
    weighted = torch.empty_like(plan)
    wide = weights.to(plan.dtype).index_select(1, y.cloud)  # (B_x, R_y)
    for group in x.groups:
        shape = len(group.clouds), group.length, -1
        torch.mul(plan[group.rows].view(shape), wide[group.clouds, None], out=weighted[group.rows].view(shape))
    return weighted


@cache
def _solver(backend: str, device: str, dtype: torch.dtype) -> Any:
    """The module whose `solve_pairs` and `solve_own` are used."""
    fused = device == "cpu" and dtype == torch.float32
    if backend == "numba" and not fused:
        raise ValueError(f"the numba solver takes float32 on a CPU, not {dtype} on {device}")
    use_numba = backend == "numba" or (backend == "auto" and fused and find_spec("numba") is not None)
    return import_module("ossicle.losses.sinkhorn_numba" if use_numba else "ossicle.losses.sinkhorn_torch")
