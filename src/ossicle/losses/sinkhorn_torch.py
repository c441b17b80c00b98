"""Sinkhorn iterations in PyTorch: ragged problems in tiles that stay in the cache. Oracle of the fused kernel.

A problem couples N points x with M points y of uniform weight. With the potentials f and g absorbed,
K = exp((f + g - C) / ε), one pass of exponentials gives the row sums that update f and the column sums that update g
(Feydy 2020, algorithm 3.5, as geomloss runs it: parallel averaged updates, one full update at the end).
Because C = |x|²/2 + |y|²/2 - x·y, the code carries F = f - |x|²/2 and G = g - |y|²/2 and reads x·y as the matrix
product left it. Updates that share a temperature share K.

Shape legend: A clouds of x by B clouds of y in a tile, N rows and M columns of each problem, R rows of a packed matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.losses.products import inner_products, roomy
from ossicle.losses.sinkhorn_cloud import Cloud, Own, Pairs, Schedule

PADDING = -1e30  # potential of a row or column that is not there: its exponentials are exactly zero
LOWEST_SUM = 1e-30  # float32 sums below it have lost digits: such a problem is solved again in the log domain
NEGLIGIBLE = 1e-15  # plan entries below it are zeroed: denormal numbers slow matrix products several times over
TILE_ROWS, TILE_COLUMNS = 256, 1536  # 1.5 MB of float32: smaller ones cost calls, larger ones padding and the cache
TILE_ROWS_CUDA, TILE_COLUMNS_CUDA = 1 << 12, 1 << 14  # few launches; 256 MB


@dataclass
class Tile:
    """Problems of one shape: all pairs of A clouds and B clouds. Only ``kernel`` is written to.

    A problem of a cloud with itself is symmetric: ``potentials`` then holds f alone, since g is the same.
    """

    scaled: Tensor  # (A, B, N, M) x·y times the `scale` of the first temperature
    kernel: Tensor  # (A, B, N, M), contiguous memory to work in
    potentials: Tensor  # (A, B, N + M) or (A, B, N): f - |x|²/2 and g - |y|²/2, PADDING where there is no point
    rows: Tensor  # (A, B, 1) points of each problem
    columns: Tensor  # (A, B, 1)
    schedule: Schedule  # of shape (A, B, 1)


@dataclass
class Solved:
    """Mean potentials of the problems of a tile, without the half squares, and the plans that were wanted."""

    cost: Tensor  # (A, B)
    by_row: Tensor | None  # (A, B, N, M) row-normalised plan: each row sums to 1/N
    by_column: Tensor | None  # each column sums to 1/M


class _Iteration:
    """Potentials of a tile under way: those of rows and of columns beside each other, as in the tile."""

    def __init__(self, tile: Tile) -> None:
        self.tile, self.kernel, self.potentials = tile, tile.kernel, tile.potentials
        self.symmetric = tile.potentials.shape[2] == tile.kernel.shape[2]
        self.scale = first_scale(tile.schedule).to(tile.potentials.dtype)
        self.missing = (tile.potentials == PADDING).to(tile.potentials.dtype)
        f, g = self._split(tile.potentials)
        own = self._join(tile.rows.expand_as(f), tile.columns.expand_as(g))
        self.shares = (1 - self.missing) / own  # of each point in the mean of its potentials
        self.log_others = self._join(tile.columns.expand_as(f), tile.rows.expand_as(g)).log2()
        self.sums: list[Tensor] = []  # of each update
        self.factors = self.missing  # what the kernel lacked at the last update

    def at(self, factor: float | Tensor, steps: list[float | Tensor]) -> None:
        """Updates at the first temperature / ``factor``, a number or (A, B, 1).

        A step of 1 is a full update, of 1/2 an averaged one.
        """
        kernel, scale = self.kernel, self.scale * factor
        f, g = self._split(self.potentials * scale)
        if isinstance(factor, float):  # a pass less than for a tensor
            torch.add(g[:, :, None], self.tile.scaled, alpha=factor, out=kernel)
        else:
            torch.mul(self.tile.scaled, factor[..., None], out=kernel).add_(g[:, :, None])
        kernel.add_(f[..., None]).exp2_()
        across, down = self._split(sums := torch.empty_like(self.potentials))
        torch.sum(kernel, 3, out=across)
        if not self.symmetric:
            torch.sum(kernel, 2, out=down)
        change = self._change(sums).mul_(steps[0])
        flat = kernel.flatten(0, 1)
        for step in steps[1:]:
            self.factors = change.exp2()
            u, v = self._split(self.factors)
            across = torch.bmm(v.flatten(0, 1)[:, None], flat.mT).view(u.shape)
            down = across if self.symmetric else torch.bmm(u.flatten(0, 1)[:, None], flat).view(v.shape)
            change = change * (1 - step) + self._change(self._join(across, down)).mul_(step)
        self.potentials = torch.addcdiv(self.potentials, change, scale)

    def _change(self, sums: Tensor) -> Tensor:
        """What a full update adds to the logarithms of the factors, of the sums of the kernel."""
        # A sum of one keeps the logarithm of a missing row finite; its kernel is zero whatever its potential.
        self.sums.append(sums.add_(self.missing))
        return self.log_others - sums.log2()

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Those of rows and of columns, which are the same tensor's where the problem is symmetric."""
        return both[..., : self.kernel.shape[2]], both[..., -self.kernel.shape[3] :]

    def _join(self, rows: Tensor, columns: Tensor) -> Tensor:
        return rows if self.symmetric else torch.cat([rows, columns], 2)

    def plans(self, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        """Row- and column-normalised, before the last update. The kernel is lost."""
        (u, v), (across, down) = self._split(self.factors), self._split(self.sums[-1])
        by_row = by_column = None
        if wanted[0]:
            kernel = self.kernel.clone() if wanted[1] else self.kernel
            by_row = kernel.mul_(v[:, :, None]).mul_((1 / (across * self.tile.rows))[..., None])
        if wanted[1]:
            by_column = self.kernel.mul_(u[..., None]).mul_((1 / (down * self.tile.columns))[:, :, None])
        return by_row, by_column


def first_scale(schedule: Schedule) -> Tensor:
    """What turns a cost at the first temperature into the exponent of a power of two (exp takes four times as long)."""
    return 1 / (schedule.first * math.log(2))


def solve_tile(tile: Tile, wanted: tuple[bool, bool]) -> Solved:
    """All problems of a tile through every temperature, and their row- and column-normalised plans where ``wanted``."""
    schedule, dtype = tile.schedule, tile.potentials.dtype
    run = _Iteration(tile)
    fewest = int(schedule.count.min())
    factor: float | Tensor
    averaged: float | Tensor
    for step in range(max(1, int(schedule.count.max()))):
        if step < max(1, fewest):
            factor, averaged = schedule.ratio**-step, 0.5 * (fewest > 0)
        else:  # a problem that has finished waits for the others at the final temperature
            factor = (schedule.first / schedule.temperature(step)).to(dtype)
            averaged = (schedule.count > step).to(dtype) / 2
        run.at(factor, [averaged] if step else [1.0, 0.5, (schedule.count > 0).to(dtype) / 2])
    run.at((schedule.first / schedule.final).to(dtype), [0.5, 1.0])

    cost = (run.potentials * run.shares).sum(2) * (2 if run.symmetric else 1)
    sound = (torch.stack(run.sums).amin((0, 3)) > LOWEST_SUM) & cost.isfinite()
    solved = Solved(cost, *run.plans(wanted))
    if not sound.all():
        for a, b in (~sound).nonzero().tolist():
            _solve_again(tile, solved, a, b)
    for plan in (solved.by_row, solved.by_column):
        if plan is not None:
            torch.threshold_(plan, NEGLIGIBLE, 0.0)
    return solved


def _solve_again(tile: Tile, solved: Solved, a: int, b: int) -> None:
    """Puts the solution in the log domain in the place of one that underflowed."""
    rows, columns = int(tile.rows[a, b]), int(tile.columns[a, b])
    both = tile.potentials[a, b]
    f, g = both[: tile.kernel.shape[2]], both[-tile.kernel.shape[3] :]  # the same where the problem is symmetric
    products = tile.scaled[a, b, :rows, :columns] / first_scale(tile.schedule)[a, b].to(tile.scaled.dtype)
    cost, *plans = solve_in_log_domain(products, f[:rows, None], g[:columns], tile.schedule.listed((a, b, 0)))
    solved.cost[a, b] = cost
    for kept, plan in zip((solved.by_row, solved.by_column), plans, strict=True):
        if kept is not None:
            kept[a, b] = 0
            kept[a, b, :rows, :columns] = plan


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


def solve_pairs(x: Cloud, y: Cloud, schedule: Schedule, wanted: tuple[bool, bool]) -> Pairs:
    """Every cloud of ``x`` with every cloud of ``y``."""
    most_rows, most_columns = _tile_shape(x.points.device)
    bundles = x.layout.bundles(most_rows), y.layout.bundles(most_columns)
    memory = _tile_memory(x, y, bundles)
    cost = x.points.new_empty(len(x.layout.lengths), len(y.layout.lengths))
    by_row = roomy((len(x.points), len(y.points)), x.points.dtype, x.points.device) if wanted[0] else None
    padded = [_padded_rows(x, across) for across in bundles[0]]
    by_column = None
    if wanted[1]:
        by_column = roomy((sum(map(len, padded)), len(y.points)), x.points.dtype, x.points.device)
    downs = [_potentials(y, down) for down in bundles[1]]
    done = 0
    for across, points in zip(bundles[0], padded, strict=True):
        f, rows = _potentials(x, across)
        # The products of a few clouds at a time are still in the cache when their tiles are cut.
        strip = inner_products(x.points[points], y.points).view(*f.shape, -1)  # (A, N, R_y)
        plans = [
            None if by_row is None else torch.empty_like(strip),
            None if by_column is None else by_column[done : done + len(points)].view_as(strip),
        ]
        done += len(points)
        for down, (g, columns) in zip(bundles[1], downs, strict=True):
            parts = [y.layout.rows(index) for index in down]
            size = len(across), len(down), f.shape[1], g.shape[1]
            which = schedule.select(across, down).reshape((*size[:2], 1))
            scaled, kernel = (flat[: math.prod(size)].view(size) for flat in memory)
            tile = Tile(
                _cut(strip, parts, first_scale(which).to(strip.dtype), scaled),
                kernel,
                _beside(f[:, None], g[None]),
                rows[:, None].expand(-1, len(down), 1),
                columns[None].expand(len(across), -1, 1),
                which,
            )
            solved = solve_tile(tile, wanted)
            cost[torch.tensor(across)[:, None], torch.tensor(down)] = solved.cost
            _paste((solved.by_row, solved.by_column), plans, parts)
        if by_row is not None and plans[0] is not None:
            for plan, index in zip(plans[0], across, strict=True):
                by_row[x.layout.rows(index)] = plan[: x.layout.lengths[index]]
    return Pairs(cost, by_row, by_column, torch.cat(padded))


def _padded_rows(cloud: Cloud, bundle: list[int]) -> Tensor:
    """Rows (A·N,) of the points of a bundle of clouds; those that are missing repeat the last one, which is finite."""
    layout = cloud.layout
    starts, lengths = (torch.tensor([of[index] for index in bundle]) for of in (layout.starts, layout.lengths))
    within = torch.arange(int(lengths.max())).minimum(lengths[:, None] - 1)  # (A, N)
    return (starts[:, None] + within).flatten().to(cloud.points.device)


def _tile_memory(x: Cloud, y: Cloud, bundles: tuple[list[list[int]], ...]) -> tuple[Tensor, Tensor]:
    """What all tiles are cut into and worked in, one after the other. Zero at first: padding that is read is finite."""
    rows, columns = (
        max(len(bundle) * max(cloud.layout.lengths[index] for index in bundle) for bundle in side)
        for cloud, side in zip((x, y), bundles, strict=True)
    )
    scaled, kernel = roomy((2, rows * columns), x.points.dtype, x.points.device).zero_()
    return scaled, kernel


def _cut(strip: Tensor, parts: list[slice], scale: Tensor, tile: Tensor) -> Tensor:
    """The columns ``parts`` of a ``strip`` (A, N, R_y) times ``scale`` (A, B, 1), put into ``tile`` (A, B, N, M)."""
    for place, part in enumerate(parts):
        torch.mul(strip[..., part], scale[:, place, :, None], out=tile[:, place, :, : part.stop - part.start])
    return tile


def _paste(tiles: tuple[Tensor | None, ...], strips: list[Tensor | None], parts: list[slice]) -> None:
    """Each of ``tiles`` (A, B, N, M) into the columns ``parts`` of a strip (A, N, R_y)."""
    for tile, strip in zip(tiles, strips, strict=True):
        if tile is not None and strip is not None:
            for place, part in enumerate(parts):
                strip[..., part] = tile[:, place, :, : part.stop - part.start]


def solve_own(cloud: Cloud, schedule: Schedule, wanted: bool) -> Own:
    """Every cloud with itself, on each of the C ``schedule``s (B, C) it has."""
    layout, (batch, versions) = cloud.layout, schedule.first.shape
    most_rows, most_columns = _tile_shape(cloud.points.device)
    cost = cloud.points.new_empty(batch, versions)
    plans: dict[int, Tensor] = {}
    for bundle in layout.bundles(most_rows * most_columns // (versions * max(layout.lengths))):
        f, rows = _potentials(cloud, bundle)
        products = f.new_zeros(*f.shape, f.shape[1])  # (A, N, N)
        for padded, index in zip(products, bundle, strict=True):
            points, length = cloud.points[layout.rows(index)], layout.lengths[index]
            padded[:length, :length] = inner_products(points, points)
        both, size = f[:, None].expand(-1, versions, -1), rows[:, None].expand(-1, versions, 1)
        which = schedule.select(bundle, list(range(versions))).reshape(size.shape)
        scaled = products[:, None] * first_scale(which)[..., None].to(f.dtype)
        tile = Tile(scaled, torch.empty_like(scaled), both, size, size, which)
        solved = solve_tile(tile, (wanted, False))
        cost[bundle] = solved.cost
        if solved.by_row is not None:
            for plan, index in zip(solved.by_row, bundle, strict=True):
                plans[index] = plan[:, : layout.lengths[index], : layout.lengths[index]]
    return Own(cost, [plans[index] for index in sorted(plans)])


def _tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows and columns that a tile may span."""
    return (TILE_ROWS, TILE_COLUMNS) if device.type == "cpu" else (TILE_ROWS_CUDA, TILE_COLUMNS_CUDA)


def _potentials(cloud: Cloud, bundle: list[int]) -> tuple[Tensor, Tensor]:
    """Potentials to start from, (A, N), and the number of points of each cloud, (A, 1), of a bundle."""
    lengths = [cloud.layout.lengths[index] for index in bundle]
    start = cloud.half_squares.new_full((len(bundle), max(lengths)), PADDING)
    for row, index, length in zip(start, bundle, lengths, strict=True):
        torch.neg(cloud.half_squares[cloud.layout.rows(index)], out=row[:length])
    return start, start.new_tensor(lengths)[:, None]


def _beside(f: Tensor, g: Tensor) -> Tensor:
    """Potentials (A or 1, B or 1, N) and (A or 1, B or 1, M) of the same problems: (A, B, N + M)."""
    shape = torch.broadcast_shapes(f.shape[:2], g.shape[:2])
    return torch.cat([f.expand(*shape, -1), g.expand(*shape, -1)], 2)
