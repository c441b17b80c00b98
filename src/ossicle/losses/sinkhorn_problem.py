"""Define the input and the output of a Sinkhorn solver: packed point clouds, the annealing schedule, solutions.

Shape legend: B clouds, L length of the longest cloud, D width, R rows of the packed matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ossicle.private import onednn_product

MIN_NORM = 1e-12  # vectors with a smaller norm are divided by it, as in torch.nn.functional.normalize
MIN_DIAMETER = 0.1  # in units of the blur: a diameter of 0 has no logarithm, and the divergence ignores smaller ones
CENTRE_STRIDE = 8  # every eighth point is enough to estimate the centre
BLOCK_ROWS = 256  # rows of a product computed at once: they stay in the level-3 cache until they are used
PADDING = -1e30  # potential of a padded point: its exponentials are exactly zero


@dataclass(frozen=True)
class Layout:
    """Position of each cloud of a batch in the packed matrix: one cloud after another, without padding."""

    lengths: list[int]  # (B,) number of points of each cloud
    starts: list[int]  # (B,) first row of each cloud
    source: Tensor  # (R,) row of each point in the flattened batch (B·L, D)
    cloud: Tensor  # (R,) index of each point's cloud
    missing: Tensor  # rows of the flattened batch without a point

    @classmethod
    def from_mask(cls, mask: Tensor) -> Layout:
        """Return the layout of clouds whose points are True in ``mask`` (B, L), at any positions."""
        lengths: list[int] = mask.sum(1).tolist()
        starts = [0, *accumulate(lengths)][:-1]
        flat = mask.flatten()
        valid = sum(lengths)  # known sizes: `nonzero` would wait for the GPU
        source = flat.nonzero_static(size=valid).flatten()
        missing = (~flat).nonzero_static(size=len(flat) - valid).flatten()
        return cls(lengths, starts, source, source // mask.shape[1], missing)

    def rows(self, cloud: int) -> slice:
        """Return the rows of ``cloud`` in the packed matrix."""
        return slice(self.starts[cloud], self.starts[cloud] + self.lengths[cloud])

    def bundles(self, max_rows: int) -> list[list[int]]:
        """Group clouds of similar length, so that each group padded to its longest cloud has at most ``max_rows``."""
        bundles: list[list[int]] = []
        for cloud in sorted(range(len(self.lengths)), key=self.lengths.__getitem__):
            if bundles and (len(bundles[-1]) + 1) * self.lengths[cloud] <= max_rows:
                bundles[-1].append(cloud)
            else:
                bundles.append([cloud])
        return bundles

    def runs(self, max_rows: int) -> list[list[int]]:
        """Group consecutive clouds, at most ``max_rows`` rows of the packed matrix in each group."""
        runs: list[list[int]] = []
        for cloud in range(len(self.lengths)):
            if runs and self.rows(cloud).stop - self.starts[runs[-1][0]] <= max_rows:
                runs[-1].append(cloud)
            else:
                runs.append([cloud])
        return runs

    def padded_rows(self, bundle: list[int]) -> Tensor:
        """Return the packed rows (A·N,) of A clouds padded to N points; padding repeats the last point of a cloud."""
        starts, lengths = (torch.tensor([values[i] for i in bundle]) for values in (self.starts, self.lengths))
        within = torch.arange(int(lengths.max())).minimum(lengths[:, None] - 1)  # (A, N)
        return (starts[:, None] + within).flatten().to(self.source.device)


@dataclass(frozen=True)
class PackedClouds:
    """Points of a batch of clouds in one matrix, centred so that inner products keep their digits."""

    layout: Layout
    points: Tensor  # (R, D)
    norms: Tensor | None  # (R, 1) norm by which each point was divided before centring; None without normalisation
    half_squares: Tensor  # (R,) |point|² / 2
    low: Tensor  # (B, D) lower corner of each cloud's bounding box
    high: Tensor  # (B, D) upper corner

    @classmethod
    def pack(cls, values: Tensor, layout: Layout, centre: Tensor, unit: bool) -> PackedClouds:
        """Pack ``values`` (B, L, D) in the dtype of ``centre`` (D,).

        Each point is divided by its norm if ``unit`` is True; then ``centre`` is subtracted.
        """
        flat, rows, width = values.flatten(0, 1), len(layout.source), values.shape[2]
        points, half_squares = empty_in_large_pages((rows, width), centre.dtype, centre.device), centre.new_empty(rows)
        norms = centre.new_empty(rows, 1) if unit else None
        low, high = centre.new_empty(2, len(layout.lengths), width)
        for cloud in range(len(layout.lengths)):  # one at a time, so that it stays in the cache
            part = layout.rows(cloud)
            block = points[part]
            block.copy_(flat.index_select(0, layout.source[part]))
            if norms is not None:
                torch.linalg.vector_norm(block, dim=1, keepdim=True, out=norms[part])
                block.div_(norms[part].clamp_min_(MIN_NORM))
            block.sub_(centre)
            low[cloud], high[cloud] = block.amin(0), block.amax(0)
            torch.linalg.vector_norm(block, dim=1, out=half_squares[part])
        return cls(layout, points, norms, half_squares.square_().div_(2), low, high)

    def diameters(self) -> Tensor:
        """Return the diagonal of each cloud's bounding box, (B,)."""
        diagonal: Tensor = torch.linalg.vector_norm(self.high - self.low, dim=-1)
        return diagonal

    def pair_diameters(self, other: PackedClouds) -> Tensor:
        """Return the diagonal of the joint bounding box of each pair of clouds, (B, B_other), as geomloss takes it."""
        rows = []
        for low, high in zip(self.low, self.high, strict=True):  # one at a time: (B, B_other, D) exceeds the cache
            low, high = torch.minimum(low, other.low), torch.maximum(high, other.high)
            rows.append(torch.linalg.vector_norm(high - low, dim=-1))
        return torch.stack(rows)

    def first_potentials(self, bundle: list[int]) -> tuple[Tensor, Tensor]:
        """Return the initial potentials (A, N) of A clouds, padded with `PADDING`, and their lengths (A, 1)."""
        lengths = [self.layout.lengths[index] for index in bundle]
        start = self.half_squares.new_full((len(bundle), max(lengths)), PADDING)
        for row, index, length in zip(start, bundle, lengths, strict=True):
            torch.neg(self.half_squares[self.layout.rows(index)], out=row[:length])
        return start, start.new_tensor(lengths)[:, None]


def centre_of(values: Tensor, layout: Layout, unit: bool) -> Tensor:
    """Estimate the mean point (D,) of a batch ``values`` (B, L, D), of its unit vectors if ``unit`` is True."""
    sample = values.flatten(0, 1).index_select(0, layout.source[::CENTRE_STRIDE])
    return (F.normalize(sample, dim=1) if unit else sample).mean(0)


@dataclass(frozen=True)
class Schedule:
    """Temperatures of a set of problems, as geomloss anneals them, in units of the cost |x - y|² / 2.

    Each problem starts at its own first temperature and has ``count`` temperatures before the final one. The first
    takes a full update and one or two averaged ones. Each further one takes an averaged update. The final one takes an
    averaged and then a full update.
    """

    first: Tensor  # (...) float64, squared diameter
    count: Tensor  # (...) int64
    final: float  # squared blur
    ratio: float  # squared scaling

    @classmethod
    def from_diameters(cls, diameters: Tensor, blur: float, scaling: float) -> Schedule:
        """Return the schedule of problems whose points lie within ``diameters`` (...)."""
        diameters = diameters.double().clamp_min(MIN_DIAMETER * blur)
        count = ((math.log(blur) - diameters.log()) / math.log(scaling)).ceil().clamp_min(0).long()
        return cls(diameters.square(), count, blur**2, scaling**2)

    def temperature(self, step: int) -> Tensor:
        """Return the temperatures (...) at ``step``; problems that have fewer steps get the final temperature."""
        return (self.first * self.ratio**step).clamp_min(self.final) if step else self.first

    def exponent_scale(self) -> Tensor:
        """Return the factor from a cost to an exponent of two at the first temperature: exp takes 4 times as long."""
        return 1 / (self.first * math.log(2))

    def as_list(self, problem: tuple[int, ...]) -> list[float]:
        """Return the temperatures of one problem as geomloss lists them: the first temperature comes twice."""
        first, count = float(self.first[problem]), int(self.count[problem])
        return [first, *(first * self.ratio**step for step in range(count)), self.final]

    def select(self, rows: list[int], columns: list[int]) -> Schedule:
        """Return the problems in the given rows and columns of a matrix of problems."""
        where = torch.tensor(rows, device=self.first.device)[:, None], torch.tensor(columns, device=self.first.device)
        return replace(self, first=self.first[where], count=self.count[where])

    def reshape(self, shape: tuple[int, ...]) -> Schedule:
        """Return the same problems in another shape."""
        return replace(self, first=self.first.reshape(shape), count=self.count.reshape(shape))


@dataclass(frozen=True)
class PairSolution:
    """Solution of all pairs of a cloud of x with a cloud of y. A plan that was not requested is None."""

    cost: Tensor  # (B_x, B_y) mean potentials, without the half squares
    by_row: Tensor | None  # (R_x, R_y) row-normalised plans: each row of a pair sums to 1/N
    by_column: Tensor | None  # (R, R_y) column-normalised plans: each column of a pair sums to 1/M
    rows: Tensor | None = None  # (R,) packed row of x for each row of by_column; None if they are the same


@dataclass(frozen=True)
class SelfSolution:
    """Solution of each cloud with itself, on C schedules."""

    cost: Tensor  # (B, C) mean potentials, without the half squares
    plans: list[Tensor]  # one (C, N, N) for each cloud, row-normalised; empty if not requested


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Return x @ y.T of ``x`` (N, D) and ``y`` (M, D) with any strides, (N, M), without a graph.

    In float32 on a CPU, oneDNN computes it, with AVX-512 where the CPU has it. PyTorch itself calls MKL, which uses
    only AVX2 on CPUs of other makers than Intel, at half the speed. Both sum in float32. After
    ``torch.set_float32_matmul_precision("medium")``, oneDNN multiplies in bfloat16 on CPUs with AMX.
    """
    product = onednn_product(x, y)
    return x @ y.T if product is None else product


def empty_in_large_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised tensor; on a CPU, NumPy allocates it because it asks Linux for huge pages.

    PyTorch requests new memory for every large tensor, in pages of 4 kB that are zeroed at the first touch. For 66 MB
    this takes 25 ms instead of 5 ms with huge pages.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
