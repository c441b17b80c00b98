"""The Sinkhorn iterations of one pair after the other in one fused float32 kernel: its tile never leaves the cache.

The same mathematics as `ossicle.losses.sinkhorn_torch`, which explains it and is its oracle in the tests. Compiled on
first use and kept in numba's cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from ossicle.losses.sinkhorn_torch import LOWEST_SUM, NEGLIGIBLE

FLOAT = np.float32
# Fast arithmetic that still tells infinities and NaN; a division by zero gives one, as it does in PyTorch.
jit = partial(numba.njit, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")
LOG2_E = FLOAT(1.4426950408889634)
# Chebyshev fit of 2^r over [-1/2, 1/2], error 2e-8
C0, C1, C2, C3, C4, C5, C6 = (
    FLOAT(c) for c in (1.0, 0.69314721, 0.24022651, 0.05550327, 0.00961803, 0.00134004, 0.0001546973)
)
HALF, ONE, LOWEST, HIGHEST = FLOAT(0.5), FLOAT(1.0), FLOAT(-126.0), FLOAT(127.0)
LOG_2, SQRT_HALF_BITS = FLOAT(0.6931471805599453), np.int32(0x3F3504F3)
SMALLEST = FLOAT(NEGLIGIBLE)


@intrinsic
def _as_float(typingctx: Any, pattern: Any) -> Any:
    """The float32 of a bit pattern (int32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@intrinsic
def _as_bits(typingctx: Any, number: Any) -> Any:
    """The bit pattern (int32) of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return numba.types.int32(numba.types.float32), generate


@jit(inline="always")
def _exp2(x):  # type: ignore[no-untyped-def]
    """2^x to 4e-7, in operations that LLVM turns into vectors; a call of the C library would not be."""
    x = min(max(x, LOWEST), HIGHEST)
    whole = np.floor(x + HALF)
    r = x - whole
    fraction = (((((C6 * r + C5) * r + C4) * r + C3) * r + C2) * r + C1) * r + C0
    return fraction * _as_float(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))  # type: ignore[call-arg]


@jit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]
    """log(x) of a positive normal number to 2e-7, by the series of artanh around a power of two; vectorises."""
    pattern = _as_bits(x)  # type: ignore[call-arg, var-annotated]
    exponent = (pattern - SQRT_HALF_BITS) >> np.int32(23)
    s = _as_float(pattern - (exponent << np.int32(23)))  # within [√½, √2)
    s = (s - ONE) / (s + ONE)
    s2 = s * s
    series = (((s2 * FLOAT(2 / 9) + FLOAT(2 / 7)) * s2 + FLOAT(2 / 5)) * s2 + FLOAT(2 / 3)) * s2 + FLOAT(2)
    return s * series + FLOAT(exponent) * LOG_2


@jit()
def _exponentiate(tile, stride, potentials, scale, kernel, sums):  # type: ignore[no-untyped-def]
    """kernel = exp((tile + f + g) · scale) and its sums, over rows (N,) and over columns (M,); scale = log2(e) / ε."""
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
def _sums(kernel, u, v, across, down):  # type: ignore[no-untyped-def]
    """Sums over rows of kernel · v and over columns of kernel · u."""
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
def _update(u, sums, points, full):  # type: ignore[no-untyped-def]
    """u = exp(change of the potential / ε) after a full or an averaged update; returns the smallest sum or 1 / sum."""
    lowest = ONE
    for n in range(len(u)):
        lowest = min(lowest, min(sums[n], ONE / sums[n]))
    for n in range(len(u)):
        u[n] = points / sums[n] if full else np.sqrt(u[n] * points / sums[n])
    return lowest


@jit()
def _shift(potential, u, temperature):  # type: ignore[no-untyped-def]
    for n in range(len(potential)):
        potential[n] += temperature * _log(u[n])


@jit()
def _write(target, stride, kernel, u, v):  # type: ignore[no-untyped-def]
    """target = u · kernel · v, without the entries that do not matter."""
    columns = len(v)
    for n in range(len(u)):
        source = kernel[n * columns : (n + 1) * columns]
        row = target[n * stride : n * stride + columns]
        weight = u[n]
        for m in range(columns):
            value = source[m] * weight * v[m]
            row[m] = value if value > SMALLEST else FLOAT(0)


@jit()
def _solve_one(tile, stride, potentials, temperatures, repeat, kernel):  # type: ignore[no-untyped-def]
    """Moves f (N,) and g (M,) through ``temperatures``, the last one final; ``repeat`` averages twice at the first.

    Leaves the kernel of the final temperature in ``kernel`` and returns what it lacks, u and v, its sums, which are
    those of the last update, and the smallest of all sums or of their inverses.
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


# Columns of the table of problems: where a tile starts and its row stride, in the products and in the plans; its
# shape; where its potentials start.
START, STRIDE, PLAN_START, PLAN_STRIDE, ROWS, COLUMNS, F_START, G_START = range(8)


class Problems(NamedTuple):
    """What the kernel reads about P problems."""

    places: NDArray[np.int64]  # (P, 8)
    first: NDArray[np.float64]  # (P,) first temperature
    counts: NDArray[np.int64]  # (P,) temperatures before the final one
    ratio: float
    final: float


@jit()
def _solve(p, products, problems, halves, plans, cost):  # type: ignore[no-untyped-def]
    """Problem ``p``; a cost of NaN says that it underflowed and has no plan.

    ``halves`` are the half squares of x and of y (R,), ``plans`` the row- and the column-normalised, empty if unwanted.
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
    if not lowest > LOWEST_SUM:
        cost[p] = np.nan
    elif np.isfinite(cost[p]):
        if len(plans[0]):
            _write(plans[0][place[PLAN_START] :], place[PLAN_STRIDE], kernel, ONE / (across * FLOAT(rows)), v)
        if len(plans[1]):
            _write(plans[1][place[PLAN_START] :], place[PLAN_STRIDE], kernel, u, ONE / (down * FLOAT(columns)))


@jit(cache=True)
def solve_one_by_one(products, problems, halves, plans, cost):  # type: ignore[no-untyped-def]
    """Every problem, without starting threads, which would wait by spinning."""
    for p in range(len(problems.places)):
        _solve(p, products, problems, halves, plans, cost)


@jit(cache=True, parallel=True)
def solve_in_parallel(products, problems, halves, plans, cost):  # type: ignore[no-untyped-def]
    """Every problem."""
    for p in numba.prange(len(problems.places)):
        _solve(p, products, problems, halves, plans, cost)
