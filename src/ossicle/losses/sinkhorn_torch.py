"""Solve batches of entropic optimal-transport problems in PyTorch: the reference for the fused CPU kernel.

A problem couples N points x with M points y of uniform weight, at cost C = |x - y|² / 2. The algorithm is 3.5 of
Feydy 2020, as geomloss runs it. Both potentials f and g get parallel averaged updates while the temperature ε falls,
and one full update at the end. With K = exp((f + g - C) / ε), the row sums of K update f, and its column sums update g.
One pass of exponentials serves both. Updates at the same temperature share K.

Because C = |x|²/2 + |y|²/2 - x·y, the code stores f - |x|²/2 and g - |y|²/2 and reads the inner products x·y as the
matrix product wrote them. Problems of similar size are padded to one shape and solved together in a tile in the cache.

Shape legend: a tile holds A clouds of x by B clouds of y, with N rows and M columns each; R rows of a packed matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.losses.sinkhorn_problem import (
    PADDING,
    PackedClouds,
    PairSolution,
    Schedule,
    SelfSolution,
    empty_in_large_pages,
    inner_products,
)

MIN_SUM = 1e-30  # float32 sums below it have lost digits: such a problem is solved again in the log domain
NEGLIGIBLE = 1e-15  # plan entries below it are zeroed: denormal numbers slow matrix products several times over
# Rows and columns of a tile: 1.5 MB of float32 stay in a CPU's cache, 256 MB elsewhere save kernel launches.
MAX_TILE = {"cpu": (256, 1536), "other": (1 << 12, 1 << 14)}
Plans = tuple[Tensor | None, Tensor | None]  # row- and column-normalised; None if not requested


@dataclass
class Tile:
    """Solve all pairs of A clouds and B clouds. Only ``kernel`` is written to.

    Potentials of rows and of columns are stored beside each other, (A, B, N + M). A problem of a cloud with itself is
    symmetric: its f and g are equal, and are stored once, (A, B, N).
    """

    scaled: Tensor  # (A, B, N, M) x·y times `Schedule.exponent_scale`
    kernel: Tensor  # (A, B, N, M) contiguous memory for K
    potentials: Tensor  # f - |x|²/2 and g - |y|²/2 to start from, PADDING where there is no point
    rows: Tensor  # (A, B, 1) number of points x of each problem
    columns: Tensor  # (A, B, 1) number of points y
    schedule: Schedule  # of shape (A, B, 1)

    def __post_init__(self) -> None:
        self.start, dtype = self.potentials, self.potentials.dtype
        self.symmetric = self.start.shape[2] == self.kernel.shape[2]
        self.scale = self.schedule.exponent_scale().to(dtype)
        self.missing = (self.start == PADDING).to(dtype)
        f, g = self._split(self.start)
        counts = self._join(self.rows.expand_as(f), self.columns.expand_as(g))
        self.shares = (1 - self.missing) / counts  # weight of each point in the mean of its potentials
        self.log_others = self._join(self.columns.expand_as(f), self.rows.expand_as(g)).log2()
        self.sums: list[Tensor] = []  # of K, at each update
        self.factors = self.missing  # of rows and columns of K, at the last update

    def solve(self, wanted: tuple[bool, bool]) -> tuple[Tensor, Plans]:
        """Return the mean potentials (A, B), without the half squares, and the plans that are ``wanted``."""
        self._anneal()
        cost = (self.potentials * self.shares).sum(2) * (2 if self.symmetric else 1)
        accurate = (torch.stack(self.sums).amin((0, 3)) > MIN_SUM) & cost.isfinite()
        plans = self._plans(wanted)
        for a, b in (~accurate).nonzero().tolist():
            self._solve_again(a, b, cost, plans)
        for plan in plans:
            if plan is not None:
                torch.threshold_(plan, NEGLIGIBLE, 0.0)
        return cost, plans

    def _anneal(self) -> None:
        schedule, dtype = self.schedule, self.potentials.dtype
        fewest, most = torch.stack(schedule.count.aminmax()).tolist()
        for step in range(max(1, most)):
            if step < max(1, fewest):
                factor: float | Tensor = schedule.ratio**-step
                averaged: float | Tensor = 0.5 * (fewest > 0)
            else:  # a problem that has finished waits for the others at the final temperature
                factor = (schedule.first / schedule.temperature(step)).to(dtype)
                averaged = (schedule.count > step).to(dtype) / 2
            self._update(factor, [averaged] if step else [1.0, 0.5, (schedule.count > 0).to(dtype) / 2])
        self._update((schedule.first / schedule.final).to(dtype), [0.5, 1.0])

    def _update(self, factor: float | Tensor, steps: list[float | Tensor]) -> None:
        """Update the potentials at the first temperature divided by ``factor``, a number or (A, B, 1).

        A step of 1 is a full update, a step of 1/2 an averaged one.
        """
        kernel, scale = self.kernel, self.scale * factor
        f, g = self._split(self.potentials * scale)
        if isinstance(factor, float):  # one pass over memory fewer than for a tensor
            torch.add(g[:, :, None], self.scaled, alpha=factor, out=kernel)
        else:
            torch.mul(self.scaled, factor[..., None], out=kernel).add_(g[:, :, None])
        kernel.add_(f[..., None]).exp2_()
        across, down = self._split(sums := torch.empty_like(self.potentials))
        torch.sum(kernel, 3, out=across)
        if not self.symmetric:
            torch.sum(kernel, 2, out=down)
        change = self._full_update(sums).mul_(steps[0])
        flat = kernel.flatten(0, 1)
        for step in steps[1:]:
            self.factors = change.exp2()
            u, v = self._split(self.factors)
            across = torch.bmm(v.flatten(0, 1)[:, None], flat.mT).view(u.shape)
            down = across if self.symmetric else torch.bmm(u.flatten(0, 1)[:, None], flat).view(v.shape)
            change = change * (1 - step) + self._full_update(self._join(across, down)).mul_(step)
        self.potentials = torch.addcdiv(self.potentials, change, scale)

    def _full_update(self, sums: Tensor) -> Tensor:
        """Return what a full update adds to the base-2 logarithms of the factors, given the sums of K."""
        # A sum of one keeps the logarithm of a missing row finite; its kernel is zero whatever its potential.
        self.sums.append(sums.add_(self.missing))
        return self.log_others - sums.log2()

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of rows and of columns, which are the same tensor if the problem is symmetric."""
        return both[..., : self.kernel.shape[2]], both[..., -self.kernel.shape[3] :]

    def _join(self, rows: Tensor, columns: Tensor) -> Tensor:
        return rows if self.symmetric else torch.cat([rows, columns], 2)

    def _plans(self, wanted: tuple[bool, bool]) -> Plans:
        """Return the plans (A, B, N, M) before the last update. The contents of ``kernel`` are lost."""
        (u, v), (across, down) = self._split(self.factors), self._split(self.sums[-1])
        by_row = by_column = None
        if wanted[0]:
            kernel = self.kernel.clone() if wanted[1] else self.kernel
            by_row = kernel.mul_(v[:, :, None]).mul_((1 / (across * self.rows))[..., None])
        if wanted[1]:
            by_column = self.kernel.mul_(u[..., None]).mul_((1 / (down * self.columns))[:, :, None])
        return by_row, by_column

    def _solve_again(self, a: int, b: int, cost: Tensor, plans: Plans) -> None:
        """Replace the solution of a problem that underflowed by the one in the log domain."""
        rows, columns = int(self.rows[a, b]), int(self.columns[a, b])
        f, g = self._split(self.start[a, b])
        products = self.scaled[a, b, :rows, :columns] / self.schedule.exponent_scale()[a, b].to(self.scaled.dtype)
        temperatures = self.schedule.as_list((a, b, 0))
        cost[a, b], *solved = solve_in_log_domain(products, f[:rows, None], g[:columns], temperatures)
        for plan, part in zip(plans, solved, strict=True):
            if plan is not None:
                plan[a, b] = 0
                plan[a, b, :rows, :columns] = part


def solve_in_log_domain(
    products: Tensor, f: Tensor, g: Tensor, temperatures: list[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve one problem slowly, without underflow: products (N, M), f (N, 1), g (M,), temperatures as `as_list` gives.

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


def solve_pairs(x: PackedClouds, y: PackedClouds, schedule: Schedule, wanted: tuple[bool, bool]) -> PairSolution:
    """Solve every cloud of ``x`` with every cloud of ``y``; ``wanted`` requests row- and column-normalised plans."""
    max_rows, max_columns = MAX_TILE.get(x.points.device.type, MAX_TILE["other"])
    x_bundles, y_bundles = x.layout.bundles(max_rows), y.layout.bundles(max_columns)
    x_rows = [x.layout.padded_rows(bundle) for bundle in x_bundles]
    rows = torch.cat(x_rows)
    cost = x.points.new_empty(len(x.layout.lengths), len(y.layout.lengths))
    by_row, by_column = (
        empty_in_large_pages((length, len(y.points)), x.points.dtype, x.points.device) if want else None
        for length, want in zip((len(x.points), len(rows)), wanted, strict=True)
    )
    # All tiles use this memory, one after the other. It starts at zero because padding that is read must be finite.
    size = max(map(len, x_rows)) * max(len(bundle) * y.layout.lengths[bundle[-1]] for bundle in y_bundles)
    memory = empty_in_large_pages((2, size), x.points.dtype, x.points.device).zero_()
    y_potentials = [y.first_potentials(bundle) for bundle in y_bundles]
    done = 0
    for across, points in zip(x_bundles, x_rows, strict=True):
        f, counts = x.first_potentials(across)
        # The products of a few clouds at a time are still in the cache when their tiles are cut.
        strip = inner_products(x.points[points], y.points).view(*f.shape, -1)  # (A, N, R_y)
        row_strip = None if by_row is None else torch.empty_like(strip)
        column_strip = None if by_column is None else by_column[done : done + len(points)].view_as(strip)
        done += len(points)
        for down, (g, columns) in zip(y_bundles, y_potentials, strict=True):
            parts = [y.layout.rows(index) for index in down]
            shape = len(across), len(down), f.shape[1], g.shape[1]
            scaled, kernel = (flat[: math.prod(shape)].view(shape) for flat in memory)
            which = schedule.select(across, down).reshape((*shape[:2], 1))
            scales = which.exponent_scale().to(strip.dtype).unbind(1)
            for source, cut, scale in zip(*_columns(strip, scaled, parts), scales, strict=True):
                torch.mul(source, scale[..., None], out=cut)
            potentials = torch.cat([f[:, None].expand(*shape[:2], -1), g[None].expand(*shape[:2], -1)], 2)
            sizes = counts[:, None].expand(-1, len(down), 1), columns[None].expand(len(across), -1, 1)
            where = torch.tensor(across)[:, None], torch.tensor(down)
            cost[where], plans = Tile(scaled, kernel, potentials, *sizes, which).solve(wanted)
            for plan, target in zip(plans, (row_strip, column_strip), strict=True):
                if plan is not None and target is not None:
                    for to, cut in zip(*_columns(target, plan, parts), strict=True):
                        to.copy_(cut)
        if by_row is not None and row_strip is not None:
            for plan, index in zip(row_strip, across, strict=True):
                by_row[x.layout.rows(index)] = plan[: x.layout.lengths[index]]
    return PairSolution(cost, by_row, by_column, rows)


def _columns(strip: Tensor, tile: Tensor, parts: list[slice]) -> tuple[list[Tensor], list[Tensor]]:
    """Return views (A, N, M) of each cloud of y in a ``strip`` (A, N, R_y) and in a padded ``tile`` (A, B, N, M)."""
    lengths = [part.stop - part.start for part in parts]
    return [strip[..., part] for part in parts], [tile[:, b, :, :length] for b, length in enumerate(lengths)]


def solve_self(clouds: PackedClouds, schedule: Schedule, wanted: bool) -> SelfSolution:
    """Solve every cloud with itself on each of its C schedules (B, C); ``wanted`` requests the plans."""
    layout, (batch, versions) = clouds.layout, schedule.first.shape
    max_elements = math.prod(MAX_TILE.get(clouds.points.device.type, MAX_TILE["other"]))
    cost = clouds.points.new_empty(batch, versions)
    all_plans: dict[int, Tensor] = {}
    for bundle in layout.bundles(max_elements // (versions * max(layout.lengths))):
        f, counts = clouds.first_potentials(bundle)
        products = f.new_zeros(*f.shape, f.shape[1])  # (A, N, N)
        for padded, index in zip(products, bundle, strict=True):
            points, length = clouds.points[layout.rows(index)], layout.lengths[index]
            padded[:length, :length] = inner_products(points, points)
        potentials, sizes = f[:, None].expand(-1, versions, -1), counts[:, None].expand(-1, versions, 1)
        which = schedule.select(bundle, list(range(versions))).reshape(sizes.shape)
        scaled = products[:, None] * which.exponent_scale()[..., None].to(f.dtype)
        tile = Tile(scaled, torch.empty_like(scaled), potentials, sizes, sizes, which)
        cost[bundle], (plans, _) = tile.solve((wanted, False))
        if plans is not None:
            for plan, index in zip(plans, bundle, strict=True):
                all_plans[index] = plan[:, : layout.lengths[index], : layout.lengths[index]]
    return SelfSolution(cost, [all_plans[index] for index in sorted(all_plans)])
