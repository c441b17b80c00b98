"""Solve Sinkhorn problems on a GPU with a fused float32 kernel in Triton: one program for each pair of clouds.

`ossicle.losses.sinkhorn_torch` explains the mathematics and is the reference in the tests. The inner products of a pair
are read once and stay in registers through all updates; K is recomputed from them in each update. Pairs of more than
`MAX_TILE` elements are read again in each update, a few columns at a time. A pair whose sums underflow is solved by a
second launch in the log domain. The host does not wait for the GPU in between.

**This kernel was never run on a GPU.** It was tested in Triton's interpreter on a CPU and compiled for the H100, so
``backend="auto"`` does not choose it.

Shape legend: a problem has N rows and M columns, both padded to a power of two; P problems; R packed points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ossicle.losses.sinkhorn_problem import PADDING as PADDED_POTENTIAL
from ossicle.losses.sinkhorn_problem import PackedClouds, PairSolution, Schedule, SelfSolution, inner_products
from ossicle.losses.sinkhorn_torch import MIN_SUM as SMALLEST_SUM

MAX_TILE = 1 << 14  # elements of a pair that stay in registers: 64 kB of the 256 kB of a multiprocessor
MIN_SIDE = 16  # smaller sides are padded to it, so that fewer shapes are compiled
ELEMENTS_PER_WARP, MAX_WARPS = 1 << 10, 16  # 32 elements for each thread
INTERPRETED = bool(triton.knobs.runtime.interpret)  # Triton decides it when it is imported

# Columns of the table of problems: start and row stride of a tile in the products and in the plans, its shape, the
# start of its potentials, and the start of its memory.
START, STRIDE, PLAN_START, PLAN_STRIDE = (tl.constexpr(column) for column in range(4))
ROWS, COLUMNS, F_START, G_START, MEMORY = (tl.constexpr(column) for column in range(4, 9))
FIELDS = tl.constexpr(9)
LOG2_E = tl.constexpr(1.4426950408889634)
PADDING = tl.constexpr(PADDED_POTENTIAL)
MIN_SUM = tl.constexpr(SMALLEST_SUM)
LOWEST = tl.constexpr(-3e38)


@triton.jit
def _sums(tile, f, g, high, total, scale, LOG: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Add the row sums of K for the columns of ``tile`` (N, M) to 2^``high`` · ``total`` (N,).

    Returns ``high``, ``total``, and the same for the sums of the columns (M,). Outside the log domain, ``high`` has no
    meaning, because the potentials keep the sums near one.
    """
    if LOG:
        exponents = (tile + g[None, :]) * scale
        top = tl.maximum(high, tl.max(exponents, 1))
        total = total * tl.exp2(high - top) + tl.sum(tl.exp2(exponents - top[:, None]), 1)
        exponents = (tile + f[:, None]) * scale
        below = tl.max(exponents, 0)
        return top, total, below, tl.sum(tl.exp2(exponents - below[None, :]), 0)
    kernel = tl.exp2((tile + f[:, None] + g[None, :]) * scale)
    return high, total + tl.sum(kernel, 1), g, tl.sum(kernel, 0)


@triton.jit
def _update(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (kernels have no objects to group their arguments)
    potential, high, total, points, here, scale, share, LOG: tl.constexpr
):
    """Return a potential after an update of ``share``, given the sums 2^``high`` · ``total`` over ``points`` points.

    It is zero where ``here`` is False.
    """
    change = tl.log2(points.to(tl.float32)) - tl.log2(tl.where(here, total, 1.0))
    if LOG:
        change -= high + potential * scale
    return tl.where(here, potential + share * change / scale, 0.0)


@triton.jit
def _extreme(total, here):  # type: ignore[no-untyped-def]
    """Return the smallest of the sums and of their inverses."""
    total = tl.where(here, total, 1.0)
    return tl.min(tl.minimum(total, 1.0 / total), 0)


@triton.jit
def _load(products, stride, rows, columns, n, m):  # type: ignore[no-untyped-def]
    """Return the inner products of rows ``n`` (N,) and columns ``m`` (M,), `PADDING` outside of the problem."""
    inside = (n < rows)[:, None] & (m < columns)[None, :]
    return tl.load(products + n[:, None] * stride + m[None, :], mask=inside, other=PADDING)


@triton.jit
def _step(  # type: ignore[no-untyped-def]  # noqa: PLR0913 (kernels have no objects to group their arguments)
    problem, tile, f, g, source, target, temperature, share, M: tl.constexpr, RESIDENT: tl.constexpr, LOG: tl.constexpr
):
    """Update both potentials of a problem once, with the same K.

    Returns the new f and the new g (both also of the last columns, if they are not resident), the sums of rows, the
    mean of g, and the smallest of all sums and inverse sums. The new g goes to ``target`` if it is not resident.
    """
    products, stride, rows, columns, n = problem
    scale = LOG2_E / temperature
    high, total = tl.full(f.shape, LOWEST, tl.float32), tl.zeros(f.shape, tl.float32)
    lowest, g_total = tl.full((), 1.0, tl.float32), tl.full((), 0.0, tl.float32)
    if RESIDENT:
        m = tl.arange(0, M)
        high, total, below, down = _sums(tile, f, g, high, total, scale, LOG)
        g = _update(g, below, down, rows, m < columns, scale, share, LOG)
        lowest, g_total = _extreme(down, m < columns), tl.sum(g, 0)
    else:
        for start in range(0, columns, M):
            m = start + tl.arange(0, M)
            part = _load(products, stride, rows, columns, n, m)
            old = tl.load(source + m, mask=m < columns, other=0.0)
            high, total, below, down = _sums(part, f, old, high, total, scale, LOG)
            new = _update(old, below, down, rows, m < columns, scale, share, LOG)
            tl.store(target + m, new, mask=m < columns)
            lowest, g_total = tl.minimum(lowest, _extreme(down, m < columns)), g_total + tl.sum(new, 0)
        tl.debug_barrier()  # the next step reads what other threads have written
    f = _update(f, high, total, columns, n < rows, scale, share, LOG)
    return f, g, high, total, g_total / columns, tl.minimum(lowest, _extreme(total, n < rows))


@triton.jit
def _write(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    problem, part, f, g, start, high, total, scale, by_row, by_column, plan_stride, M: tl.constexpr,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Write the plans of the columns of ``part`` (N, M), normalised by the sums of rows and of columns."""
    _, _, rows, columns, n = problem
    m = start + tl.arange(0, M)
    inside = (n < rows)[:, None] & (m < columns)[None, :]
    where = n[:, None] * plan_stride + m[None, :]
    if BY_ROW:
        exponents = (part + g[None, :]) * scale - high[:, None] if LOG else (part + f[:, None] + g[None, :]) * scale
        weights = tl.where(n < rows, total, 1.0) * rows
        tl.store(by_row + where, tl.exp2(exponents) / weights[:, None], mask=inside)
    if BY_COLUMN:
        _, _, below, down = _sums(part, f, g, high, total, scale, LOG)
        exponents = (part + f[:, None]) * scale - below[None, :] if LOG else (part + f[:, None] + g[None, :]) * scale
        weights = tl.where(m < columns, down, 1.0) * columns
        tl.store(by_column + where, tl.exp2(exponents) / weights[None, :], mask=inside)


@triton.jit(do_not_specialize=["begin"])
def _solve(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    products, places, first, counts, f_halves, g_halves, by_row, by_column, cost, memory, ratio, final, begin,
    N: tl.constexpr, M: tl.constexpr, RESIDENT: tl.constexpr,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Solve one problem. Its products stay in registers if ``RESIDENT``, else they are read M columns at a time.

    Outside the log domain, a cost of NaN means that the problem underflowed. In it, only these problems are solved.
    """
    index = begin + tl.program_id(0)
    cost += index
    if LOG:
        before = tl.load(cost)
        if before == before:
            return
    places += index * FIELDS
    rows, columns = tl.load(places + ROWS), tl.load(places + COLUMNS)
    stride, plan_stride = tl.load(places + STRIDE), tl.load(places + PLAN_STRIDE)
    products += tl.load(places + START)
    by_row += tl.load(places + PLAN_START)
    by_column += tl.load(places + PLAN_START)
    g_halves += tl.load(places + G_START)
    count = tl.load(counts + index)
    n, m = tl.arange(0, N), tl.arange(0, M)
    problem = products, stride, rows, columns, n

    f = -tl.load(f_halves + tl.load(places + F_START) + n, mask=n < rows, other=0.0)
    g = -tl.load(g_halves + m, mask=m < columns, other=0.0)
    tile = _load(products, stride, rows, columns, n, m)
    # Threads may read a potential after others have written its next value, which therefore goes to another place.
    source = memory + tl.load(places + MEMORY)
    target = source + columns
    if not RESIDENT:
        for start in range(0, columns, M):
            half = tl.load(g_halves + start + m, mask=start + m < columns, other=0.0)
            tl.store(source + start + m, -half, mask=start + m < columns)
        tl.debug_barrier()

    temperature = tl.load(first + index)
    lowest = tl.full((), 1.0, tl.float32)
    # At the first temperature a full update and an averaged one, then an averaged one at each of the `count`
    # temperatures, which begin with the first again, and at the final one.
    for step in range(count + 3):
        temperature = tl.where(step > 2, temperature * ratio, temperature)
        temperature = tl.where(step == count + 2, final, temperature)
        share = tl.where(step == 0, 1.0, 0.5)
        f, g, _, _, _, extreme = _step(problem, tile, f, g, source, target, temperature, share, M, RESIDENT, LOG)
        lowest = tl.minimum(lowest, extreme)
        source, target = target, source
    # One full update more. The plans are those before it.
    last_f, _, high, total, g_mean, extreme = _step(
        problem, tile, f, g, source, target, temperature, 1.0, M, RESIDENT, LOG
    )
    value = tl.sum(last_f, 0) / rows + g_mean
    if not LOG:
        reliable = (tl.minimum(lowest, extreme) > MIN_SUM) & (tl.abs(value) < float("inf"))
        value = tl.where(reliable, value, float("nan"))
    tl.store(cost, value)
    if BY_ROW or BY_COLUMN:
        scale = LOG2_E / temperature
        if RESIDENT:
            _write(
                problem, tile, f, g, 0, high, total, scale, by_row, by_column, plan_stride, M, BY_ROW, BY_COLUMN, LOG
            )
        else:
            for start in range(0, columns, M):
                part = _load(products, stride, rows, columns, n, start + m)
                part_g = tl.load(source + start + m, mask=start + m < columns, other=0.0)
                _write(
                    problem, part, f, part_g, start, high, total, scale, by_row, by_column, plan_stride, M,
                    BY_ROW, BY_COLUMN, LOG,
                )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """Launch the kernel for P problems whose inner products lie in one flat tensor."""

    products: Tensor
    places: NDArray[np.int64]  # (P, 8)
    halves: tuple[Tensor, Tensor]
    schedule: Schedule  # of shape (P,)

    def solve(self, by_row: Tensor | None, by_column: Tensor | None) -> Tensor:
        """Return the cost of each problem (P,). Writes the plans to flat tensors, unless they are None."""
        device, columns = self.products.device, self.places[:, COLUMNS.value]
        n, m = (padded(self.places[:, side.value]) for side in (ROWS, COLUMNS))
        streamed = n * m > MAX_TILE
        m = np.where(streamed, np.maximum(MAX_TILE // 2 // n, 1), m)
        order = np.lexsort((m, n, streamed))
        memory = np.where(streamed, 2 * columns, 0)
        places = np.concatenate([self.places, (memory.cumsum() - memory)[:, None]], 1)[order]
        where = torch.from_numpy(order).to(device)
        cost = self.products.new_empty(len(order))
        tensors = (
            self.products, torch.from_numpy(places).to(device), self.schedule.first.float()[where],
            self.schedule.count[where], *self.halves,
            *(self.products if plan is None else plan for plan in (by_row, by_column)),
            cost, self.products.new_empty(max(1, int(memory.sum()))),
        )  # fmt: skip
        shapes = np.stack([n, m, ~streamed], 1)[order]
        begins = [0, *(np.flatnonzero((shapes[1:] != shapes[:-1]).any(1)) + 1).tolist(), len(order)]
        constants = {"BY_ROW": by_row is not None, "BY_COLUMN": by_column is not None}
        with torch.cuda.device_of(cost):  # type: ignore[no-untyped-call]  # Triton launches on the current GPU
            for begin, end in itertools.pairwise(begins):
                rows, width, resident = shapes[begin].tolist()
                constants |= {"N": rows, "M": width, "RESIDENT": bool(resident)}
                warps = min(MAX_WARPS, max(1, rows * width // ELEMENTS_PER_WARP))
                for log in (False, True):
                    _solve[(end - begin,)](
                        *tensors, self.schedule.ratio, self.schedule.final, begin, **constants, LOG=log, num_warps=warps
                    )
        return torch.empty_like(cost).index_copy_(0, where, cost)


def padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the powers of two to which the sides of problems are padded."""
    return 1 << np.ceil(np.log2(np.maximum(lengths, MIN_SIDE))).astype(np.int64)


def solve_pairs(x: PackedClouds, y: PackedClouds, schedule: Schedule, wanted: tuple[bool, bool]) -> PairSolution:
    """Solve every cloud of ``x`` with every cloud of ``y``; ``wanted`` requests row- and column-normalised plans."""
    products = inner_products(x.points, y.points).contiguous()
    by_row, by_column = (torch.empty_like(products) if want else None for want in wanted)
    width, x_starts, y_starts = len(y.points), np.array(x.layout.starts)[:, None], np.array(y.layout.starts)
    starts = x_starts * width + y_starts  # (B_x, B_y)
    columns = [starts, width, starts, width, np.array(x.layout.lengths)[:, None], y.layout.lengths, x_starts, y_starts]
    places = np.stack([np.broadcast_to(column, starts.shape) for column in columns], -1).astype(np.int64)
    table = _Table(products.view(-1), places.reshape(-1, 8), (x.half_squares, y.half_squares), schedule.reshape((-1,)))
    cost = table.solve(*(None if plan is None else plan.view(-1) for plan in (by_row, by_column)))
    return PairSolution(cost.view(schedule.first.shape), by_row, by_column)


def solve_self(clouds: PackedClouds, schedule: Schedule, wanted: bool) -> SelfSolution:
    """Solve every cloud with itself on each of its C schedules (B, C); ``wanted`` requests the plans."""
    layout, versions = clouds.layout, schedule.first.shape[1]
    lengths = np.array(layout.lengths)[:, None]  # (B, 1)
    points = (clouds.points[layout.rows(index)] for index in range(len(lengths)))
    products = torch.cat([inner_products(block, block).flatten() for block in points])
    plans = products.new_empty(len(products) * versions) if wanted else None
    starts, f_starts = (lengths**2).cumsum()[:, None] - lengths**2, np.array(layout.starts)[:, None]
    plan_starts = versions * starts + np.arange(versions) * lengths**2
    columns = [starts, lengths, plan_starts, lengths, lengths, lengths, f_starts, f_starts]
    places = np.stack([np.broadcast_to(column, plan_starts.shape) for column in columns], -1).astype(np.int64)
    halves = clouds.half_squares, clouds.half_squares
    cost = _Table(products, places.reshape(-1, 8), halves, schedule.reshape((-1,))).solve(plans, None)
    own = []
    if plans is not None:
        parts = torch.split(plans, (versions * lengths[:, 0] ** 2).tolist())
        own = [part.view(versions, length, length) for part, length in zip(parts, layout.lengths, strict=True)]
    return SelfSolution(cost.view(-1, versions), own)
