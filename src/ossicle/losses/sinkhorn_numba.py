"""The Sinkhorn solver on a CPU with numba: tables of problems for the fused kernel, in as many threads as PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.losses.products import all_products, inner_products
from ossicle.losses.sinkhorn_cloud import Cloud, Own, Pairs, Schedule
from ossicle.losses.sinkhorn_kernel import (
    COLUMNS,
    F_START,
    G_START,
    PLAN_START,
    PLAN_STRIDE,
    ROWS,
    START,
    STRIDE,
    Problems,
    solve_in_parallel,
    solve_one_by_one,
)
from ossicle.losses.sinkhorn_torch import NEGLIGIBLE, solve_in_log_domain


@dataclass(frozen=True)
class _Table:
    """Problems as the kernel takes them, over flat ``products``."""

    products: Tensor
    places: NDArray[np.int64]  # (P, 8)
    halves: tuple[Tensor, Tensor]
    schedule: Schedule  # of shape (P,)

    def solve(self, by_row: Tensor | None, by_column: Tensor | None) -> Tensor:
        """Cost of each problem (P,); the plans that are wanted are written into flat tensors."""
        schedule, cost = self.schedule, self.products.new_empty(len(self.places))
        plans = [self.products.new_empty(0) if plan is None else plan for plan in (by_row, by_column)]
        problems = Problems(self.places, schedule.first.numpy(), schedule.count.numpy(), schedule.ratio, schedule.final)
        halves, buffers = tuple(half.numpy() for half in self.halves), tuple(plan.numpy() for plan in plans)
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        if threads > 1:
            numba.set_num_threads(threads)
        solve = solve_in_parallel if threads > 1 else solve_one_by_one
        solve(self.products.numpy(), problems, halves, buffers, cost.numpy())
        for problem in (~cost.isfinite()).nonzero().flatten().tolist():
            cost[problem] = self._solve_again(problem, by_row, by_column)
        return cost

    def _solve_again(self, problem: int, by_row: Tensor | None, by_column: Tensor | None) -> Tensor:
        """The same in the log domain, for a problem that underflowed."""
        start, stride, plan_start, plan_stride, rows, columns, f_start, g_start = self.places[problem].tolist()
        products = self.products.as_strided((rows, columns), (stride, 1), start)
        f = -self.halves[0][f_start : f_start + rows, None]
        g = -self.halves[1][None, g_start : g_start + columns]
        cost, *solved = solve_in_log_domain(products, f, g, self.schedule.listed((problem,)))
        for plan, part in zip((by_row, by_column), solved, strict=True):
            if plan is not None:
                plan.as_strided((rows, columns), (plan_stride, 1), plan_start).copy_(
                    torch.threshold(part, NEGLIGIBLE, 0.0)
                )
        return cost


def solve_pairs(x: Cloud, y: Cloud, schedule: Schedule, wanted: tuple[bool, bool]) -> Pairs:
    """Every cloud of ``x`` with every cloud of ``y``."""
    products = all_products(x.points, y.points)  # (R_x, R_y)
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
    return Pairs(cost.view(schedule.first.shape), by_row, by_column)


def solve_own(cloud: Cloud, schedule: Schedule, wanted: bool) -> Own:
    """Every cloud with itself, on each of the C ``schedule``s (B, C) it has."""
    layout, versions = cloud.layout, schedule.first.shape[1]
    lengths = np.array(layout.lengths)
    ends = (lengths**2).cumsum()
    products = cloud.points.new_empty(int(ends[-1]))
    for start, length, end in zip(layout.starts, layout.lengths, ends, strict=True):
        points = cloud.points[start : start + length]
        products[end - length**2 : end].view(length, length).copy_(inner_products(points, points))
    plans = products.new_empty(len(products) * versions if wanted else 0)

    places = np.empty((len(lengths), versions, 8), np.int64)
    places[..., START] = (ends - lengths**2)[:, None]
    places[..., PLAN_START] = versions * (ends - lengths**2)[:, None] + np.arange(versions) * lengths[:, None] ** 2
    for column in (STRIDE, PLAN_STRIDE, ROWS, COLUMNS):
        places[..., column] = lengths[:, None]
    places[..., F_START] = places[..., G_START] = np.array(layout.starts)[:, None]
    halves = cloud.half_squares, cloud.half_squares
    table = _Table(products, places.reshape(-1, 8), halves, schedule.reshape((-1,)))
    cost = table.solve(plans if wanted else None, None).view(-1, versions)
    own = []
    if wanted:
        parts = plans.split((versions * lengths**2).tolist())
        own = [part.view(versions, length, length) for part, length in zip(parts, layout.lengths, strict=True)]
    return Own(cost, own)
