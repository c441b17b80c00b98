"""What both Sinkhorn solvers read: clouds packed into one matrix, and the temperatures of the annealing.

Shape legend: B clouds, L longest, D width, R rows of the packed matrix, P problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_DIAMETER = (
    0.1  # of the blur. Points nearer than this are one point to the divergence, and d = 0 has no logarithm.
)


@dataclass(frozen=True)
class Group:
    """Clouds that lie one after the other in the packed matrix, each padded to ``length`` rows."""

    clouds: list[int]  # indices in the batch
    start: int  # first row
    length: int

    @property
    def rows(self) -> slice:
        """The rows of the packed matrix."""
        return slice(self.start, self.start + len(self.clouds) * self.length)


@dataclass(frozen=True)
class Layout:
    """Where the points of each cloud of a batch lie in the packed matrix. Groups ascend by length."""

    groups: list[Group]
    lengths: list[int]  # (B,) points of each cloud
    starts: list[int]  # (B,) its first row
    source: Tensor  # (R,) row of the flattened batch (B·L, D); padding repeats a cloud's first point
    valid: Tensor  # (R,) True where the row is no padding
    cloud: Tensor  # (R,) index of the cloud

    def points(self) -> Tensor:
        """Number of points of each cloud: (B,)."""
        return torch.tensor(self.lengths, device=self.valid.device)

    def unpack(self, packed: Tensor, shape: torch.Size) -> Tensor:
        """Rows of ``packed`` (R, D) back in the ``shape`` (B, L, D) that they came from, zero elsewhere."""
        flat = packed.new_zeros(shape[0] * shape[1], shape[2])
        if len(packed) == sum(self.lengths):
            flat.index_copy_(0, self.source, packed)
        else:
            flat.index_copy_(0, self.source[self.valid], packed[self.valid])
        return flat.view(shape)


def lay_out(mask: Tensor, group_rows: int) -> Layout:
    """The layout of clouds whose valid points are True in ``mask`` (B, L); holes are allowed.

    Clouds of similar length share a group while it stays within ``group_rows`` rows; 1 gives each its own, unpadded.
    """
    counts = mask.sum(1)
    lengths: list[int] = counts.tolist()
    groups: list[Group] = []
    starts = [0] * len(lengths)
    ends = 0
    for cloud in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[cloud]
        last = groups[-1] if groups else None
        if last and (len(last.clouds) + 1) * length <= group_rows:
            groups[-1] = Group([*last.clouds, cloud], last.start, length)
        else:
            groups.append(Group([cloud], ends, length))
        ends = groups[-1].rows.stop
    for group in groups:
        for place, cloud in enumerate(group.clouds):
            starts[cloud] = group.start + place * group.length

    positions = mask.flatten().nonzero().flatten()  # cloud by cloud
    owners = positions // mask.shape[1]
    first = counts.cumsum(0) - counts  # of each cloud, among the positions
    ranks = torch.arange(len(positions), device=mask.device) - first[owners]
    rows = torch.tensor(starts, device=mask.device)[owners] + ranks
    padded = [cloud for group in groups for cloud in group.clouds for _ in range(group.length)]
    cloud_of_row = torch.tensor(padded, device=mask.device)
    source = positions[first[cloud_of_row]].index_copy(0, rows, positions)
    valid = torch.zeros(ends, dtype=torch.bool, device=mask.device).index_fill(0, rows, True)
    return Layout(groups, lengths, starts, source, valid, cloud_of_row)


@dataclass(frozen=True)
class Cloud:
    """Packed points, centred so that products of large means do not cost digits."""

    layout: Layout
    points: Tensor  # (R, D)
    half_squares: Tensor  # (R,) |point|² / 2
    low: Tensor  # (B, D) bounding box of each cloud
    high: Tensor  # (B, D)


def make_cloud(layout: Layout, points: Tensor) -> Cloud:
    """The cloud of packed ``points`` (R, D)."""
    low = points.new_empty(len(layout.lengths), points.shape[1])
    high = torch.empty_like(low)
    for group in layout.groups:
        block = points[group.rows].view(len(group.clouds), group.length, -1)
        low[group.clouds], high[group.clouds] = block.amin(1), block.amax(1)
    return Cloud(layout, points, torch.linalg.vector_norm(points, dim=1).square_().div_(2), low, high)


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
    by_column: Tensor | None  # (R_x, R_y) column-normalised: each column of a pair sums to 1/M


@dataclass(frozen=True)
class Own:
    """Solution of each cloud with itself, on C schedules."""

    cost: Tensor  # (B, C)
    plans: list[Tensor]  # row-normalised, one (A, C, L, L) for each group of the layout; empty if not wanted
