"""Compute the Sinkhorn divergence between all pairs of two batches of point clouds, and the Wasserstein similarity.

The values are those of geomloss ``SamplesLoss("sinkhorn", p=2, blur=0.05)``, without its loop over pairs and without a
graph through the iterations. If numba is installed (``pip install ossicle[fast]``), float32 clouds on a CPU go through
the fused kernel of `ossicle.losses.sinkhorn_kernel`. All others go through `ossicle.losses.sinkhorn_torch`, on any
device. The fused kernel for GPUs, `ossicle.losses.sinkhorn_triton`, is used only on request: it was never measured.

Shape legend: B clouds, L length of the longest cloud, D width, R rows of the packed matrix of all points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossicle.errors import ConfigError, DataError, MissingPackageError
from ossicle.losses import sinkhorn_torch
from ossicle.losses.sinkhorn_problem import (
    BLOCK_ROWS,
    Layout,
    PackedClouds,
    PairSolution,
    Schedule,
    SelfSolution,
    centre_of,
    empty_in_large_pages,
    inner_products,
)

SelfSchedule = Literal["sample", "pair"]
Backend = Literal["auto", "torch", "numba", "triton"]


@dataclass(frozen=True, kw_only=True)
class SinkhornOptions:
    """Options of `sinkhorn_divergence`. Raises `ConfigError` for a value outside its range."""

    blur: float = 0.05
    """Length below which points are not told apart, in the units of the points. Its square is the entropy weight."""
    scaling: float = 0.5
    """Ratio of two consecutive blurs of the annealing, between 0 and 1."""
    schedule: SelfSchedule = "sample"
    """First temperature of the self terms. "sample" takes the diameter of the cloud, once per cloud. "pair" takes the
    diameter of each pair, exactly as geomloss does, at several times the cost. The values differ by about 1e-6."""
    backend: Backend = "auto"
    """Solver: "torch", "numba" (float32 on a CPU), "triton" (float32 on a GPU), or "auto" for the fastest of the first
    two that is available. "triton" was never measured on a GPU."""
    bf16_gradient: bool = False
    """Multiply plans and points in bfloat16 in the backward pass. This halves its time on CPUs with native bfloat16.
    The gradient is off by 0.3 % (its direction by 1e-5, one minus cosine). The values do not change."""
    unit: bool = False
    """L2-normalise the points first. The gradient flows through the normalisation."""

    def __post_init__(self) -> None:
        if not (self.blur > 0 and 0 < self.scaling < 1):
            raise ConfigError(f"blur must be positive and scaling within (0, 1), not {self.blur} and {self.scaling}")
        for name, value, choices in (("schedule", self.schedule, SelfSchedule), ("backend", self.backend, Backend)):
            if value not in get_args(choices):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


def sinkhorn_divergence(x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, **options: Any) -> Tensor:
    """Compute the debiased Sinkhorn divergence of every cloud of ``x`` (B_x, N, D) and of ``y`` (B_y, M, D).

    S(i, j) = OT(x_i, y_j) - OT(x_i, x_i) / 2 - OT(y_j, y_j) / 2 with uniform weights, cost |x - y|² / 2 and entropy
    weight blur². Returns (B_x, B_y) in float32, or in float64 if an input is float64. Gradients flow to both sides, by
    the envelope theorem: the transport plans count as constants.

    Masks are True where a point is valid. ``options`` are the fields of `SinkhornOptions`. Raises `DataError` for a
    cloud without a valid point and for points that are not finite, and `MissingPackageError` if the backend is "numba"
    or "triton" and that package is not installed.
    Source: Feydy et al. 2019, equation 3; Feydy 2020, algorithm 3.5.
    """
    settings = SinkhornOptions(**options)
    layouts: list[Layout] = []  # their lengths are the only values that the host needs of the masks
    for name, values, mask in (("first", x, x_mask), ("second", y, y_mask)):
        if values.shape[:2] != mask.shape:
            raise ValueError(f"the {name} mask is {tuple(mask.shape)} for points of shape {tuple(values.shape)}")
        layouts.append(Layout.from_mask(mask))
        if empty := [index for index, length in enumerate(layouts[-1].lengths) if not length]:
            raise DataError(
                f"sequences {empty} of the {name} batch have no valid position: the text is empty, or the audio is "
                "shorter than a frame; remove these utterances"
            )
    divergence: Tensor = _Divergence.apply(x, x_mask, y, y_mask, settings, layouts)  # type: ignore[no-untyped-call]
    return divergence


def wasserstein_similarity(
    text: Tensor, text_mask: Tensor, speech: Tensor, speech_mask: Tensor, **options: Any
) -> Tensor:
    """Return minus the Sinkhorn divergence of L2-normalised ``text`` (B_t, N, D) and ``speech`` (B_s, M, D).

    The result is (B_t, B_s). ``options`` are the fields of `SinkhornOptions` except ``unit``. Gradients flow to both.
    Source: Züfle & Niehues 2025, section 3.2 ("Wasserstein").
    """
    return -sinkhorn_divergence(text, text_mask, speech, speech_mask, unit=True, **options)


class Solver(Protocol):
    """Interface of a solver module."""

    def solve_pairs(
        self, x: PackedClouds, y: PackedClouds, schedule: Schedule, wanted: tuple[bool, bool]
    ) -> PairSolution:
        """Solve every cloud of ``x`` with every cloud of ``y``; ``wanted`` requests the plans by row and by column."""
        ...

    def solve_self(self, clouds: PackedClouds, schedule: Schedule, wanted: bool) -> SelfSolution:
        """Solve every cloud with itself; ``wanted`` requests the plans."""
        ...


@cache
def select_solver(backend: Backend, device: str, dtype: torch.dtype) -> Solver:
    """Return the solver module for a backend, a device type and a dtype; "auto" takes numba if it can be used."""
    if backend == "triton":
        return _triton_solver(device, dtype)
    fused = device == "cpu" and dtype == torch.float32
    if backend == "numba" and not fused:
        raise ConfigError(f"the numba solver takes float32 on a CPU, not {dtype} on {device}; use backend='torch'")
    installed = find_spec("numba") is not None
    if backend == "numba" and not installed:
        raise MissingPackageError("the numba solver needs numba: pip install numba")
    if backend == "torch" or not (fused and installed):
        return sinkhorn_torch
    from ossicle.losses import sinkhorn_kernel

    return sinkhorn_kernel


def _triton_solver(device: str, dtype: torch.dtype) -> Solver:
    """Return the solver of Triton, which runs on a CPU only if it is interpreted, for tests."""
    if dtype != torch.float32 or device not in ("cuda", "cpu"):
        raise ConfigError(f"the triton solver takes float32 on a GPU, not {dtype} on {device}; use backend='torch'")
    if find_spec("triton") is None:
        raise MissingPackageError("the triton solver needs triton: pip install triton")
    from ossicle.losses import sinkhorn_triton

    if device == "cpu" and not sinkhorn_triton.INTERPRETED:
        raise ConfigError(
            "the triton solver needs a GPU: use backend='torch', or set TRITON_INTERPRET=1 before Python starts to "
            "interpret it slowly on a CPU"
        )
    return sinkhorn_triton


class _Divergence(torch.autograd.Function):
    """Take the values from a solver, and the gradients from its plans."""

    @staticmethod
    def forward(  # noqa: PLR0913 - the arguments of a Function have no names
        ctx: Any,
        x: Tensor,
        x_mask: Tensor,
        y: Tensor,
        y_mask: Tensor,
        options: SinkhornOptions,
        layouts: list[Layout],
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
        solver = select_solver(options.backend, x.device.type, dtype)
        with torch.autocast(x.device.type, enabled=False):
            centre = centre_of(x.detach(), layouts[0], options.unit).to(dtype)
            clouds = [
                PackedClouds.pack(values.detach(), layout, centre, options.unit)
                for values, layout in zip((x, y), layouts, strict=True)
            ]
            if not torch.cat([side.half_squares for side in clouds]).isfinite().all():
                raise _not_finite((x, x_mask), (y, y_mask))

            diameters = clouds[0].pair_diameters(clouds[1])
            schedule = Schedule.from_diameters(diameters, options.blur, options.scaling)
            pairs = solver.solve_pairs(clouds[0], clouds[1], schedule, wanted)
            selves = []
            for side, pair_diameters, want in zip(clouds, (diameters, diameters.T), wanted, strict=True):
                spans = side.diameters()[:, None] if options.schedule == "sample" else pair_diameters
                schedule = Schedule.from_diameters(spans, options.blur, options.scaling)
                selves.append(solver.solve_self(side, schedule, want))
        ctx.clouds, ctx.selves, ctx.pairs, ctx.centre = clouds, selves, pairs, centre
        ctx.inputs, ctx.bf16 = [(values.shape, values.dtype) for values in (x, y)], options.bf16_gradient
        return pairs.cost - (selves[0].cost + selves[1].cost.T) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.clouds
        gradients: list[Tensor | None] = [None, None]
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.pairs.by_row is not None:
                side = _Side(x, y.points, y.layout.cloud, ctx.selves[0], ctx.centre, ctx.bf16)
                gradients[0] = side.gradient(ctx.pairs.by_row, gradient, *ctx.inputs[0])
            if ctx.pairs.by_column is not None:
                rows = slice(None) if ctx.pairs.rows is None else ctx.pairs.rows
                side = _Side(y, x.points[rows], x.layout.cloud[rows], ctx.selves[1], ctx.centre, ctx.bf16)
                gradients[1] = side.gradient(ctx.pairs.by_column.T, gradient.T, *ctx.inputs[1])
        return gradients[0], None, gradients[1], None, None, None


def _not_finite(*batches: tuple[Tensor, Tensor]) -> DataError:
    """Return the error that names the clouds whose points are not finite."""
    for name, (values, mask) in zip(("first", "second"), batches, strict=True):
        wrong = ((~values.isfinite()).any(-1) & mask).any(1).nonzero().flatten().tolist()
        if wrong:
            return DataError(
                f"sequences {wrong} of the {name} batch contain infinite values or NaN: check the learning rate and "
                "the precision"
            )
    return DataError("the squares of the points overflow their precision: scale the points down")


@dataclass(frozen=True)
class _Side:
    """Compute the gradient in the points x of one side: each x moves with plan @ y, and against plan @ x of its own."""

    clouds: PackedClouds
    others: Tensor  # (R_other, D) point of each column of the plan
    other_cloud: Tensor  # (R_other,) cloud of each column
    solution: SelfSolution
    centre: Tensor  # (D,)
    bf16: bool  # multiply in bfloat16

    def gradient(self, plan: Tensor, weights: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the gradient (B, L, D) of ``plan`` (R, R_other), each pair weighted by ``weights`` (B, B_other)."""
        layout, width = self.clouds.layout, shape[2]
        wide = -weights.to(plan.dtype).index_select(1, self.other_cloud)  # (B, R_other)
        other = (self.others.bfloat16() if self.bf16 else self.others).T  # (D, R_other)
        result = empty_in_large_pages((shape[0] * shape[1], width), dtype, plan.device)
        result.index_fill_(0, layout.missing, 0)
        for run in layout.runs(BLOCK_ROWS):
            first = layout.starts[run[0]]
            parts = [slice(part.start - first, part.stop - first) for part in map(layout.rows, run)]
            block = plan[first : first + parts[-1].stop]
            weighted = torch.empty_like(block)  # same stride order as `plan`, which may be transposed
            for index, part in zip(run, parts, strict=True):
                torch.mul(block[part], wide[index], out=weighted[part])
            block = weighted.contiguous()  # (rows of the block, R_other)
            pulled = inner_products(block.to(other.dtype), other).to(plan.dtype)  # (rows, D)
            for index, part in zip(run, parts, strict=True):
                moved = self._add_self_term(pulled[part], index, weights[index])
                result.index_copy_(0, layout.source[layout.rows(index)], moved.to(dtype))
        return result.view(shape)

    def _add_self_term(self, pulled: Tensor, index: int, weights: Tensor) -> Tensor:
        """Complete the gradient ``pulled`` (N, D) of one cloud in place; the terms of each x with itself cancel."""
        part, plans = self.clouds.layout.rows(index), self.solution.plans[index]  # (C, N, N)
        points = self.clouds.points[part]
        factors = weights if len(plans) > 1 else weights.sum(0, keepdim=True)  # (C,)
        pulled += inner_products(torch.einsum("c,cnm->nm", factors, plans), points.T)
        if self.clouds.norms is not None:  # a gradient along the unit vector, points + centre, does not move it
            along = torch.linalg.vecdot(pulled, points).add_(pulled @ self.centre)  # (N,)
            pulled.addcmul_(points, along[:, None], value=-1).addr_(along, self.centre, alpha=-1)
            pulled /= self.clouds.norms[part]
        return pulled
