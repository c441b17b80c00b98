"""Solve Sinkhorn problems on a CPU with a fused float32 kernel in numba, one pair of clouds after the other.

`ossicle.losses.sinkhorn_torch` explains the mathematics and is the reference in the tests. Here the matrix K of a pair
stays in the level-1 or level-2 cache through all iterations. The kernel is compiled on first use and kept in numba's
cache. It runs in as many threads as PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from ossicle.losses.sinkhorn_problem import (
    BLOCK_ROWS,
    PackedClouds,
    PairSolution,
    Schedule,
    SelfSolution,
    empty_in_large_pages,
    inner_products,
)
from ossicle.losses.sinkhorn_torch import MIN_SUM, NEGLIGIBLE, solve_in_log_domain

Floats = NDArray[np.float32]
FLOAT = np.float32
# Fast arithmetic that keeps infinities and NaN. A division by zero gives one of them, as in PyTorch.
jit = partial(numba.njit, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")
LOG2_E = FLOAT(1.4426950408889634)
# Chebyshev coefficients of 2^r over [-1/2, 1/2], error 2e-8
C0, C1, C2, C3, C4, C5, C6 = (
    FLOAT(c) for c in (1.0, 0.69314721, 0.24022651, 0.05550327, 0.00961803, 0.00134004, 0.0001546973)
)
HALF, ONE, LOWEST, HIGHEST = FLOAT(0.5), FLOAT(1.0), FLOAT(-126.0), FLOAT(127.0)
LOG_2, SQRT_HALF_BITS = FLOAT(0.6931471805599453), np.int32(0x3F3504F3)
SMALLEST = FLOAT(NEGLIGIBLE)


@intrinsic
def _as_float(typingctx: Any, pattern: Any) -> Any:
    """Reinterpret a bit pattern (int32) as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@intrinsic
def _as_bits(typingctx: Any, number: Any) -> Any:
    """Reinterpret a float32 as its bit pattern (int32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), generate


@jit(inline="always")
def _exp2(x: Any) -> Any:
    """Return 2^x with relative error 4e-7, in operations that LLVM vectorises, unlike a call of the C library."""
    x = min(max(x, LOWEST), HIGHEST)
    whole = np.floor(x + HALF)
    r = x - whole
    fraction = (((((C6 * r + C5) * r + C4) * r + C3) * r + C2) * r + C1) * r + C0
    return fraction * _as_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


@jit(inline="always")
def _log(x: Any) -> Any:
    """Return log(x) of a positive normal number with error 2e-7, by the series of artanh around a power of two."""
    pattern = _as_bits(x)
    exponent = (pattern - SQRT_HALF_BITS) >> np.int32(23)
    s = _as_float(pattern - (exponent << np.int32(23)))  # within [√½, √2)
    s = (s - ONE) / (s + ONE)
    s2 = s * s
    series = (((s2 * FLOAT(2 / 9) + FLOAT(2 / 7)) * s2 + FLOAT(2 / 5)) * s2 + FLOAT(2 / 3)) * s2 + FLOAT(2)
    return s * series + FLOAT(exponent) * LOG_2


@jit()
def _exponentiate(tile: Floats, stride: int, potentials: Any, scale: Any, kernel: Floats, sums: Any) -> None:
    """Set ``kernel`` to 2^((tile + f + g) · scale), and ``sums`` to its sums of rows (N,) and of columns (M,).

    ``scale`` is log2(e) / ε.
    """
    (f, g), (across, down) = potentials, sums
    columns = len(g)
    scaled = g * scale
    down[:] = 0
    for n in range(len(f)):
        source = tile[n * stride : n * stride + columns]
        target = kernel[n * columns : (n + 1) * columns]
        shift = f[n] * scale
        total = FLOAT(0)
        for m in range(columns):
            value = _exp2(source[m] * scale + (scaled[m] + shift))
            target[m] = value
            total += value
            down[m] += value
        across[n] = total


@jit()
def _sums(kernel: Floats, u: Floats, v: Floats, across: Floats, down: Floats) -> None:
    """Set ``across`` (N,) to the row sums of kernel · v, and ``down`` (M,) to the column sums of kernel · u."""
    columns = len(v)
    down[:] = 0
    for n in range(len(u)):
        source = kernel[n * columns : (n + 1) * columns]
        weight, total = u[n], FLOAT(0)
        for m in range(columns):
            total += source[m] * v[m]
            down[m] += source[m] * weight
        across[n] = total


@jit()
def _update(u: Floats, sums: Floats, points: Any, full: bool) -> Any:
    """Set ``u`` to exp(change of the potential / ε) after a full or an averaged update.

    Returns the smallest of the sums, of their inverses, and of one.
    """
    lowest = ONE
    for n in range(len(u)):
        lowest = min(lowest, min(sums[n], ONE / sums[n]))
    for n in range(len(u)):
        u[n] = points / sums[n] if full else np.sqrt(u[n] * points / sums[n])
    return lowest


@jit()
def _shift(potential: Floats, u: Floats, temperature: Any) -> None:
    """Add the change of factors ``u`` to a potential."""
    for n in range(len(potential)):
        potential[n] += temperature * _log(u[n])


@jit()
def _write(target: Floats, stride: int, kernel: Floats, u: Floats, v: Floats) -> None:
    """Set ``target`` to u · kernel · v. Entries below `NEGLIGIBLE` become zero."""
    columns = len(v)
    for n in range(len(u)):
        source = kernel[n * columns : (n + 1) * columns]
        row = target[n * stride : n * stride + columns]
        weight = u[n]
        for m in range(columns):
            value = source[m] * weight * v[m]
            row[m] = value if value > SMALLEST else FLOAT(0)


@jit()
def _solve_one(tile: Floats, stride: int, potentials: Any, temperatures: Any, repeat: bool, kernel: Floats) -> Any:
    """Anneal f (N,) and g (M,) in place through ``temperatures``, the last one final.

    ``repeat`` takes a second averaged update at the first temperature. Writes K of the final temperature to ``kernel``.
    Returns its factors u and v, its row and column sums at the last update, and the smallest of all sums and inverse
    sums.
    """
    f, g = potentials
    rows, columns = FLOAT(len(f)), FLOAT(len(g))
    u, v = np.empty_like(f), np.empty_like(g)
    across, down = np.empty_like(f), np.empty_like(g)
    lowest = ONE
    final = len(temperatures) - 1
    for step in range(final + 1):
        temperature = FLOAT(temperatures[step])
        _exponentiate(tile, stride, potentials, LOG2_E / temperature, kernel, (across, down))
        u[:] = 1
        v[:] = 1
        if step == 0:
            for number in range(2 if repeat else 1):
                lowest = min(lowest, min(_update(u, across, columns, number == 0), _update(v, down, rows, number == 0)))
                _sums(kernel, u, v, across, down)
        lowest = min(lowest, min(_update(u, across, columns, False), _update(v, down, rows, False)))
        if step < final:
            _shift(f, u, temperature)
            _shift(g, v, temperature)
    _sums(kernel, u, v, across, down)
    last_u, last_v = np.empty_like(f), np.empty_like(g)  # the plans are those before this full update
    lowest = min(lowest, min(_update(last_u, across, columns, True), _update(last_v, down, rows, True)))
    _shift(f, last_u, temperature)
    _shift(g, last_v, temperature)
    return u, v, across, down, lowest


# Columns of the table of problems: start and row stride of a tile in the products and in the plans, its shape, and the
# start of its potentials.
START, STRIDE, PLAN_START, PLAN_STRIDE, ROWS, COLUMNS, F_START, G_START = range(8)


class Problems(NamedTuple):
    """Table of P problems, as the kernel reads it."""

    places: NDArray[np.int64]  # (P, 8)
    first: NDArray[np.float64]  # (P,) first temperature
    counts: NDArray[np.int64]  # (P,) number of temperatures before the final one
    ratio: float
    final: float


@jit()
def _solve(p: int, products: Floats, problems: Problems, halves: Any, plans: Any, cost: Floats) -> None:
    """Solve problem ``p``. A cost of NaN means that it underflowed; its plans are then not written.

    ``halves`` are the half squares of x and of y (R,). ``plans`` are the row- and the column-normalised ones, empty if
    not requested.
    """
    place, count = problems.places[p], problems.counts[p]
    rows, columns = place[ROWS], place[COLUMNS]
    f = -halves[0][place[F_START] : place[F_START] + rows]
    g = -halves[1][place[G_START] : place[G_START] + columns]
    temperatures = np.full(max(1, count) + 1, problems.final)
    for step in range(len(temperatures) - 1):
        temperatures[step] = problems.first[p] * problems.ratio**step
    kernel = np.empty(rows * columns, FLOAT)
    tile = products[place[START] :]
    u, v, across, down, lowest = _solve_one(tile, place[STRIDE], (f, g), temperatures, count > 0, kernel)
    cost[p] = f.sum() / FLOAT(rows) + g.sum() / FLOAT(columns)
    if not lowest > MIN_SUM:
        cost[p] = np.nan
    elif np.isfinite(cost[p]):
        if len(plans[0]):
            _write(plans[0][place[PLAN_START] :], place[PLAN_STRIDE], kernel, ONE / (across * FLOAT(rows)), v)
        if len(plans[1]):
            _write(plans[1][place[PLAN_START] :], place[PLAN_STRIDE], kernel, u, ONE / (down * FLOAT(columns)))


@jit(cache=True)
def _solve_serially(products: Floats, problems: Problems, halves: Any, plans: Any, cost: Floats) -> None:
    """Solve every problem without a thread pool, whose idle threads would spin."""
    for p in range(len(problems.places)):
        _solve(p, products, problems, halves, plans, cost)


@jit(cache=True, parallel=True)
def _solve_in_parallel(products: Floats, problems: Problems, halves: Any, plans: Any, cost: Floats) -> None:
    """Solve every problem, distributed over the threads."""
    for p in numba.prange(len(problems.places)):
        _solve(p, products, problems, halves, plans, cost)


@dataclass(frozen=True)
class _Table:
    """Run the kernel over P problems whose inner products lie in one flat tensor."""

    products: Tensor
    places: NDArray[np.int64]  # (P, 8)
    halves: tuple[Tensor, Tensor]
    schedule: Schedule  # of shape (P,)

    def solve(self, by_row: Tensor | None, by_column: Tensor | None) -> Tensor:
        """Return the cost of each problem (P,). Writes the plans to flat tensors, unless they are None."""
        schedule, cost = self.schedule, self.products.new_empty(len(self.places))
        plans = [self.products.new_empty(0) if plan is None else plan for plan in (by_row, by_column)]
        problems = Problems(self.places, schedule.first.numpy(), schedule.count.numpy(), schedule.ratio, schedule.final)
        halves, buffers = tuple(half.numpy() for half in self.halves), tuple(plan.numpy() for plan in plans)
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if threads > 1:
            numba.set_num_threads(threads)
        solve = _solve_in_parallel if threads > 1 else _solve_serially
        solve(self.products.numpy(), problems, halves, buffers, cost.numpy())
        for problem in (~cost.isfinite()).nonzero().flatten().tolist():
            cost[problem] = self._solve_again(problem, by_row, by_column)
        return cost

    def _solve_again(self, problem: int, by_row: Tensor | None, by_column: Tensor | None) -> Tensor:
        """Solve a problem that underflowed in the log domain, and return its cost."""
        start, stride, plan_start, plan_stride, rows, columns, f_start, g_start = self.places[problem].tolist()
        products = self.products.as_strided((rows, columns), (stride, 1), start)
        f = -self.halves[0][f_start : f_start + rows, None]
        g = -self.halves[1][None, g_start : g_start + columns]
        cost, *solved = solve_in_log_domain(products, f, g, self.schedule.as_list((problem,)))
        for plan, part in zip((by_row, by_column), solved, strict=True):
            if plan is not None:
                plan.as_strided((rows, columns), (plan_stride, 1), plan_start).copy_(
                    torch.threshold(part, NEGLIGIBLE, 0.0)
                )
        return cost


def solve_pairs(x: PackedClouds, y: PackedClouds, schedule: Schedule, wanted: tuple[bool, bool]) -> PairSolution:
    """Solve every cloud of ``x`` with every cloud of ``y``; ``wanted`` requests row- and column-normalised plans."""
    products = empty_in_large_pages((len(x.points), len(y.points)), x.points.dtype, x.points.device)
    for rows, block in zip(torch.split(products, BLOCK_ROWS), torch.split(x.points, BLOCK_ROWS), strict=True):
        rows.copy_(inner_products(block, y.points))
    places = np.empty((*schedule.first.shape, 8), np.int64)
    x_starts, y_starts = np.array(x.layout.starts)[:, None], np.array(y.layout.starts)
    width = products.shape[1]
    places[..., START] = places[..., PLAN_START] = x_starts * width + y_starts
    places[..., STRIDE] = places[..., PLAN_STRIDE] = width
    places[..., ROWS], places[..., COLUMNS] = np.array(x.layout.lengths)[:, None], y.layout.lengths
    places[..., F_START], places[..., G_START] = x_starts, y_starts
    by_row = torch.empty_like(products) if wanted[0] else None
    by_column = products if wanted[1] else None  # the kernel reads a tile before it overwrites it
    table = _Table(products.view(-1), places.reshape(-1, 8), (x.half_squares, y.half_squares), schedule.reshape((-1,)))
    cost = table.solve(*(None if plan is None else plan.view(-1) for plan in (by_row, by_column)))
    return PairSolution(cost.view(schedule.first.shape), by_row, by_column)


def solve_self(clouds: PackedClouds, schedule: Schedule, wanted: bool) -> SelfSolution:
    """Solve every cloud with itself on each of its C schedules (B, C); ``wanted`` requests the plans."""
    layout, versions = clouds.layout, schedule.first.shape[1]
    lengths = np.array(layout.lengths)
    ends = (lengths**2).cumsum()
    products = clouds.points.new_empty(int(ends[-1]))
    for start, length, end in zip(layout.starts, layout.lengths, ends, strict=True):
        points = clouds.points[start : start + length]
        products[end - length**2 : end].view(length, length).copy_(inner_products(points, points))
    plans = products.new_empty(len(products) * versions if wanted else 0)

    places = np.empty((len(lengths), versions, 8), np.int64)
    places[..., START] = (ends - lengths**2)[:, None]
    places[..., PLAN_START] = versions * (ends - lengths**2)[:, None] + np.arange(versions) * lengths[:, None] ** 2
    for column in (STRIDE, PLAN_STRIDE, ROWS, COLUMNS):
        places[..., column] = lengths[:, None]
    places[..., F_START] = places[..., G_START] = np.array(layout.starts)[:, None]
    halves = clouds.half_squares, clouds.half_squares
    table = _Table(products, places.reshape(-1, 8), halves, schedule.reshape((-1,)))
    cost = table.solve(plans if wanted else None, None).view(-1, versions)
    own = []
    if wanted:
        parts = torch.split(plans, (versions * lengths**2).tolist())
        own = [part.view(versions, length, length) for part, length in zip(parts, layout.lengths, strict=True)]
    return SelfSolution(cost, own)
