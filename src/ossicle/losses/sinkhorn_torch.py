"""Sinkhorn iterations in PyTorch: ragged problems in tiles that stay in the cache. Oracle of the fused kernel.

A problem couples N points x with M points y of uniform weight. With the potentials f and g absorbed,
K = exp((f + g - C) / ε), one pass of exponentials gives the row sums that update f and the column sums that update g
(Feydy 2020, algorithm 3.5, as geomloss runs it: parallel averaged updates, one full update at the end).
Because C = |x|²/2 + |y|²/2 - x·y, the code carries F = f - |x|²/2 and G = g - |y|²/2 and reads x·y as the matrix
product left it. Updates that share a temperature share K.

Shape legend: A clouds of x by B clouds of y in a tile, N rows and M columns of each problem, (A, N, B, M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.losses.sinkhorn_cloud import Cloud, Group, Own, Pairs, Schedule

PADDING = -1e30  # potential of a row or column that is not there: its exponentials are exactly zero
LOWEST_SUM = 1e-30  # float32 sums below it have lost digits: such a problem is solved again in the log domain
NEGLIGIBLE = 1e-15  # plan entries below it are zeroed: denormal numbers slow matrix products several times over
TILE_ROWS, TILE_COLUMNS = 128, 1024  # 512 kB of float32: larger ones leave the level-2 cache, smaller ones cost calls
TILE_ROWS_CUDA, TILE_COLUMNS_CUDA = 1 << 12, 1 << 14  # few launches; 256 MB


def group_rows(device: torch.device) -> tuple[int, int]:
    """Rows of the packed x and of the packed y that one tile may span."""
    return (TILE_ROWS, TILE_COLUMNS) if device.type == "cpu" else (TILE_ROWS_CUDA, TILE_COLUMNS_CUDA)


@dataclass
class Tile:
    """Problems of one shape: all pairs of A clouds and B clouds. ``products`` may be any strided view."""

    products: Tensor  # (A, N, B, M) x·y
    f: Tensor  # (A, N, B, 1) f - |x|²/2, PADDING where there is no row
    g: Tensor  # (A, 1, B, M)
    rows: Tensor  # (A, 1, B, 1) points of each problem
    columns: Tensor  # (A, 1, B, 1)
    schedule: Schedule  # of shape (A, 1, B, 1)


@dataclass
class Solved:
    """Mean potentials of the problems of a tile, without the half squares, and the plans that were wanted."""

    cost: Tensor  # (A, B)
    by_row: Tensor | None  # (A, N, B, M) row-normalised plan: each row sums to 1/N
    by_column: Tensor | None  # each column sums to 1/M


class _Iteration:
    """Potentials of a tile under way."""

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.f, self.g = tile.f, tile.g
        self.kernel = torch.empty_like(tile.products, memory_format=torch.contiguous_format)
        self.missing_rows = (tile.f == PADDING).to(tile.f.dtype)
        self.missing_columns = (tile.g == PADDING).to(tile.g.dtype)
        self.lowest = torch.full_like(tile.rows, math.inf)
        self.across, self.down = self.f, self.g  # sums at the last update
        self.u, self.v = self.f, self.g  # factors that the kernel still lacks

    def at(self, temperature: Tensor, steps: list[float | Tensor]) -> None:
        """Updates at one ``temperature`` (A, 1, B, 1); a step of 1 is a full update, of 1/2 an averaged one."""
        tile, kernel = self.tile, self.kernel
        inverse = 1 / temperature
        torch.mul(tile.products, inverse, out=kernel).add_(self.f * inverse).add_(self.g * inverse).exp_()
        log_u, log_v = torch.zeros_like(self.f), torch.zeros_like(self.g)
        for number, step in enumerate(steps):
            self.u, self.v = log_u.exp(), log_v.exp()
            across = (kernel * self.v if number else kernel).sum(3, keepdim=True)
            down = (kernel * self.u if number else kernel).sum(1, keepdim=True)
            # A sum of one keeps the logarithm of a missing row finite; its kernel is zero whatever its potential.
            self.across, self.down = across.add_(self.missing_rows), down.add_(self.missing_columns)
            self.lowest = self.lowest.minimum(across.amin(1, keepdim=True)).minimum(down.amin(3, keepdim=True))
            log_u = log_u * (1 - step) - (across / tile.columns).log_().mul_(step)
            log_v = log_v * (1 - step) - (down / tile.rows).log_().mul_(step)
        self.f, self.g = self.f + temperature * log_u, self.g + temperature * log_v

    def cost(self) -> Tensor:
        """Mean of the potentials over the points that are there: (A, 1, B, 1)."""
        f, g = self.f * (1 - self.missing_rows), self.g * (1 - self.missing_columns)
        return f.sum(1, keepdim=True) / self.tile.rows + g.sum(3, keepdim=True) / self.tile.columns


def solve_tile(tile: Tile, wanted: tuple[bool, bool]) -> Solved:
    """All problems of a tile through every temperature, and their row- and column-normalised plans where ``wanted``."""
    schedule, dtype = tile.schedule, tile.f.dtype
    run = _Iteration(tile)
    for step in range(max(1, int(schedule.count.max()))):
        averaged = (schedule.count > step).to(dtype) / 2  # a problem that has finished waits for the others
        run.at(schedule.temperature(step).to(dtype), [averaged] if step else [1.0, 0.5, averaged])
    run.at(torch.full_like(tile.rows, schedule.final), [0.5, 1.0])

    cost = run.cost()
    sound = (run.lowest > LOWEST_SUM) & cost.isfinite()
    by_row = by_column = None
    if wanted[0]:
        by_row = (run.kernel * run.v).mul_(1 / (run.across * tile.rows))
    if wanted[1]:
        by_column = run.kernel.mul_(run.u).mul_(1 / (run.down * tile.columns))
    solved = Solved(cost[:, 0, :, 0], by_row, by_column)
    if not sound.all():
        for a, b in (~sound[:, 0, :, 0]).nonzero().tolist():
            _solve_again(tile, solved, a, b)
    for plan in (by_row, by_column):
        if plan is not None:
            torch.threshold_(plan, NEGLIGIBLE, 0.0)
    return solved


def _solve_again(tile: Tile, solved: Solved, a: int, b: int) -> None:
    """Puts the solution in the log domain in the place of one that underflowed."""
    rows, columns = int(tile.rows[a, 0, b, 0]), int(tile.columns[a, 0, b, 0])
    temperatures = tile.schedule.listed((a, 0, b, 0))
    products = tile.products[a, :rows, b, :columns]
    cost, *plans = solve_in_log_domain(products, tile.f[a, :rows, b], tile.g[a, :, b, :columns], temperatures)
    solved.cost[a, b] = cost
    for kept, plan in zip((solved.by_row, solved.by_column), plans, strict=True):
        if kept is not None:
            kept[a, :, b] = 0
            kept[a, :rows, b, :columns] = plan


def solve_in_log_domain(
    products: Tensor, f: Tensor, g: Tensor, temperatures: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """One problem, slowly and safely: products (N, M), f (N, 1), g (1, M), temperatures as geomloss lists them.

    Returns the mean potentials, without the half squares, and the row- and the column-normalised plan.
    """
    rows, columns = products.shape

    def updates(f: Tensor, g: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        across = ((products + g) / temperature).logsumexp(1, keepdim=True) - math.log(columns)
        down = ((products + f) / temperature).logsumexp(0, keepdim=True) - math.log(rows)
        return -temperature * across, -temperature * down

    f, g = updates(f, g, temperatures[0])
    for temperature in temperatures:
        new_f, new_g = updates(f, g, temperature)
        f, g = (f + new_f) / 2, (g + new_g) / 2
    final = temperatures[-1]
    last_f, last_g = updates(f, g, final)
    by_row = ((products + g) / final).softmax(1) / rows
    by_column = ((products + f) / final).softmax(0) / columns
    return last_f.mean() + last_g.mean(), by_row, by_column


def solve_pairs(products: Tensor, x: Cloud, y: Cloud, schedule: Schedule, wanted: tuple[bool, bool]) -> Pairs:
    """Every cloud of ``x`` with every cloud of ``y``, given all ``products`` (R_x, R_y), which are overwritten."""
    cost = products.new_empty(len(x.layout.lengths), len(y.layout.lengths))
    by_row = torch.empty_like(products) if wanted[0] else None
    by_column = products if wanted[1] else None  # each tile is read before it is overwritten
    for across in x.layout.groups:
        f, rows = _potentials(x, across)
        for down in y.layout.groups:
            g, columns = _potentials(y, down)
            view = _view(products, across, down)
            shape = (len(across.clouds), 1, len(down.clouds), 1)
            tile = Tile(
                view,
                f[:, :, None, None].expand(-1, -1, shape[2], 1),
                g[None, None].expand(shape[0], 1, -1, -1),
                rows[:, None, None, None].expand(shape),
                columns[None, None, :, None].expand(shape),
                schedule.select(across.clouds, down.clouds).reshape(shape),
            )
            solved = solve_tile(tile, wanted)
            cost[torch.tensor(across.clouds)[:, None], torch.tensor(down.clouds)] = solved.cost
            for plan, kept in ((by_row, solved.by_row), (by_column, solved.by_column)):
                if plan is not None and kept is not None:
                    _view(plan, across, down).copy_(kept)
    return Pairs(cost, by_row, by_column)


def solve_own(cloud: Cloud, schedule: Schedule, wanted: bool) -> Own:
    """Every cloud with itself, on each of the C ``schedule``s (B, C) it has."""
    batch, versions = schedule.first.shape
    cost = cloud.points.new_empty(batch, versions)
    plans = []
    for group in cloud.layout.groups:
        points = cloud.points[group.rows].view(len(group.clouds), group.length, -1)
        products = points @ points.mT  # (A, N, M)
        f, rows = _potentials(cloud, group)
        plan = products.new_empty(len(group.clouds), versions, group.length, group.length) if wanted else None
        at_once = max(1, TILE_ROWS * TILE_COLUMNS // (versions * group.length**2))
        for first in range(0, len(group.clouds), at_once):
            part = slice(first, first + at_once)
            clouds = group.clouds[part]
            shape = (len(clouds), 1, versions, 1)
            tile = Tile(
                products[part, :, None].expand(-1, -1, versions, -1),
                f[part, :, None, None].expand(-1, -1, versions, 1),
                f[part, None, None, :].expand(-1, 1, versions, -1),
                rows[part, None, None, None].expand(shape),
                rows[part, None, None, None].expand(shape),
                schedule.select(clouds, list(range(versions))).reshape(shape),
            )
            solved = solve_tile(tile, (wanted, False))
            cost[clouds] = solved.cost
            if plan is not None and solved.by_row is not None:
                plan[part] = solved.by_row.transpose(1, 2)
        plans.append(plan)
    return Own(cost, [plan for plan in plans if plan is not None])


def _potentials(cloud: Cloud, group: Group) -> tuple[Tensor, Tensor]:
    """Potentials to start from, (A, N), and the number of points of each cloud, (A,), of a group."""
    start = torch.where(cloud.layout.valid[group.rows], -cloud.half_squares[group.rows], PADDING)
    points = start.new_tensor([cloud.layout.lengths[index] for index in group.clouds])
    return start.view(len(group.clouds), group.length), points


def _view(matrix: Tensor, across: Group, down: Group) -> Tensor:
    """The part of a packed matrix (R_x, R_y) that belongs to two groups: (A, N, B, M)."""
    block = matrix[across.rows, down.rows]
    return block.unflatten(1, (len(down.clouds), down.length)).unflatten(0, (len(across.clouds), across.length))
