"""What both Sinkhorn solvers read: clouds packed into one matrix, and the temperatures of the annealing.

Shape legend: B clouds, L longest, D width, R rows of the packed matrix, P problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.losses.products import roomy

SHORTEST = 1e-12  # vectors below this norm are not scaled up to unit length, as in torch.nn.functional.normalize
# Of the blur. Points nearer than this are one point to the divergence, and d = 0 has no logarithm.
SMALLEST_DIAMETER = 0.1


SAMPLED = 8  # one point in so many decides the centre


@dataclass(frozen=True)
class Layout:
    """Where the points of each cloud of a batch lie in the packed matrix: one cloud after another, without padding."""

    lengths: list[int]  # (B,) points of each cloud
    starts: list[int]  # (B,) its first row
    source: Tensor  # (R,) row of the flattened batch (B·L, D)
    cloud: Tensor  # (R,) index of the cloud
    missing: Tensor  # rows of the flattened batch that hold no point

    def rows(self, cloud: int) -> slice:
        """The rows of ``cloud`` in the packed matrix."""
        return slice(self.starts[cloud], self.starts[cloud] + self.lengths[cloud])

    def bundles(self, most_rows: int) -> list[list[int]]:
        """Clouds by ascending length, as many together as stay within ``most_rows`` if all were as long as the last."""
        bundles: list[list[int]] = []
        for cloud in sorted(range(len(self.lengths)), key=self.lengths.__getitem__):
            if bundles and (len(bundles[-1]) + 1) * self.lengths[cloud] <= most_rows:
                bundles[-1].append(cloud)
            else:
                bundles.append([cloud])
        return bundles


def lay_out(mask: Tensor) -> Layout:
    """The layout of clouds whose valid points are True in ``mask`` (B, L); holes are allowed."""
    lengths: list[int] = mask.sum(1).tolist()
    starts = [0, *accumulate(lengths)][:-1]
    flat = mask.flatten()
    source = flat.nonzero().flatten()
    return Layout(lengths, starts, source, source // mask.shape[1], (~flat).nonzero().flatten())


@dataclass(frozen=True)
class Cloud:
    """Packed points, centred so that products of large means do not cost digits."""

    layout: Layout
    points: Tensor  # (R, D)
    norms: Tensor | None  # (R, 1) what the points were divided by, before they were centred
    half_squares: Tensor  # (R,) |point|² / 2
    low: Tensor  # (B, D) bounding box of each cloud
    high: Tensor  # (B, D)


def middle(values: Tensor, layout: Layout, unit: bool) -> Tensor:
    """A point (D,) in the middle of a batch ``values`` (B, L, D): any would do, a near one keeps more digits."""
    sample = values.flatten(0, 1).index_select(0, layout.source[::SAMPLED])
    return (F.normalize(sample, dim=1) if unit else sample).mean(0)


def make_clouds(values: Tensor, layout: Layout, centre: Tensor, unit: bool) -> Cloud:
    """Pack ``values`` (B, L, D) in the type of ``centre`` (D,): of unit length if ``unit``, then minus ``centre``."""
    flat, rows, width = values.flatten(0, 1), len(layout.source), values.shape[2]
    points, half_squares = roomy((rows, width), centre.dtype, centre.device), centre.new_empty(rows)
    norms = centre.new_empty(rows, 1) if unit else None
    low, high = centre.new_empty(2, len(layout.lengths), width)
    for cloud in range(len(layout.lengths)):  # one at a time, so that it stays in the cache
        part = layout.rows(cloud)
        block = points[part]
        block.copy_(flat.index_select(0, layout.source[part]))
        if norms is not None:
            torch.linalg.vector_norm(block, dim=1, keepdim=True, out=norms[part])
            block.div_(norms[part].clamp_min_(SHORTEST))
        block.sub_(centre)
        low[cloud], high[cloud] = block.amin(0), block.amax(0)
        torch.linalg.vector_norm(block, dim=1, out=half_squares[part])
    return Cloud(layout, points, norms, half_squares.square_().div_(2), low, high)


def own_diameters(cloud: Cloud) -> Tensor:
    """Diagonal of each cloud's bounding box: (B,)."""
    return torch.linalg.vector_norm(cloud.high - cloud.low, dim=-1)


def joint_diameters(x: Cloud, y: Cloud) -> Tensor:
    """Diagonal of the bounding box of each pair of clouds, which is what geomloss anneals from: (B_x, B_y)."""
    rows = []
    for low, high in zip(x.low, x.high, strict=True):  # one at a time: (B_x, B_y, D) would not fit the cache
        rows.append(torch.linalg.vector_norm(torch.maximum(high, y.high) - torch.minimum(low, y.low), dim=-1))
    return torch.stack(rows)


@dataclass(frozen=True)
class Schedule:
    """Temperatures of some problems, as geomloss anneals them, in units of the cost |x - y|² / 2.

    The first temperature takes a full update and one or two averaged ones, each further one an averaged update, and
    ``final`` an averaged and then a full one. A problem has ``count`` temperatures before the final one.
    """

    first: Tensor  # (...) float64, squared diameter
    count: Tensor  # (...) int64
    final: float  # squared blur
    ratio: float  # squared scaling

    def temperature(self, step: int) -> Tensor:
        """The temperature at ``step`` before the final one, which problems that have finished get: (...)."""
        return (self.first * self.ratio**step).clamp_min(self.final) if step else self.first

    def listed(self, problem: tuple[int, ...]) -> list[float]:
        """The temperatures of one problem as geomloss lists them: the first twice, one averaged update for each."""
        first, count = float(self.first[problem]), int(self.count[problem])
        return [first, *(first * self.ratio**step for step in range(count)), self.final]

    def select(self, rows: list[int], columns: list[int]) -> Schedule:
        """The problems at some rows and columns of a matrix of problems."""
        where = torch.tensor(rows, device=self.first.device)[:, None], torch.tensor(columns, device=self.first.device)
        return replace(self, first=self.first[where], count=self.count[where])

    def reshape(self, shape: tuple[int, ...]) -> Schedule:
        """The same problems in another shape."""
        return replace(self, first=self.first.reshape(shape), count=self.count.reshape(shape))


def make_schedule(diameters: Tensor, blur: float, scaling: float) -> Schedule:
    """The schedule of problems whose clouds span ``diameters`` (...)."""
    diameters = diameters.double().clamp_min(SMALLEST_DIAMETER * blur)
    count = ((math.log(blur) - diameters.log()) / math.log(scaling)).ceil().clamp_min(0).long()
    return Schedule(diameters.square(), count, blur**2, scaling**2)


@dataclass(frozen=True)
class Pairs:
    """Solution of all pairs of clouds: mean potentials, without the half squares, and the plans that were wanted."""

    cost: Tensor  # (B_x, B_y)
    by_row: Tensor | None  # (R_x, R_y) row-normalised plans: each row of a pair sums to 1/N
    by_column: Tensor | None  # (R, R_y) column-normalised: each column of a pair sums to 1/M
    rows: Tensor | None = None  # (R,) point of x for each row of by_column, if not all in their order; all else is zero


@dataclass(frozen=True)
class Own:
    """Solution of each cloud with itself, on C schedules."""

    cost: Tensor  # (B, C)
    plans: list[Tensor]  # row-normalised, one (C, N, N) for each cloud; empty if not wanted
