"""Position normalisation: mean and standard deviation of normal anomaly maps by place in the slice and the volume.

Edges, folds and vessels are harder to predict than plain tissue, so a flow gives the same places high values in all
patients. A value that is high in all normals is not abnormal.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeflow_monai.geometry import PLANES, Places

__all__ = ["UNKNOWN", "PositionMoments", "PositionNorm", "blur_through_slices"]

_GRID = 16  # rows and columns of the statistics, over the whole slice
_POSITIONS = 32  # of the statistics, from the first slice of a case to the last
# Neighbours count too, so that few cases are enough and cases need not be aligned exactly. All three were chosen on
# lesions planted into training subjects.
_SIGMA_IN_PLANE = 0.1  # of the slice's size
_SIGMA_OF_POSITION = 0.03  # of the distance from the first slice to the last
_PATIENTS_OF_ALL_PLACES = 0.3  # weight, in patients, of the statistics over all places

UNKNOWN = 1e30  # standard deviation where too few normals are known

_PLANE_NAMES = list(PLANES)


class PositionMoments:
    """Sums of weights, values and squared values of normal maps, by place.

    Args:
        grid: rows and columns of the statistics; 1 for values without a place in the plane.

    Example:
        >>> moments = PositionMoments()
        >>> moments.add(torch.ones(2, 1, 32, 32), torch.ones(2, 1, 32, 32), None, "patient")
        >>> norm = PositionNorm()
        >>> norm.fit([moments])
        >>> norm.mean[0, 16].mean().item()
        1.0
    """

    def __init__(self, grid: int = _GRID) -> None:
        self.sums = torch.zeros(len(_PLANE_NAMES), _POSITIONS, 3, grid, grid, dtype=torch.float64)
        self.patients: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Return whether there was no foreground so far."""
        return not bool((self.sums[:, :, 0] > 0).any())

    def add(self, maps: Tensor, foreground: Tensor, places: Places | None, patient: str) -> None:
        """Add maps of slices.

        Args:
            maps: (N, 1, H, W).
            foreground: which pixels count, (N, 1, H, W), in [0, 1] or boolean.
            places: places of the slices; see `PositionNorm.forward`.
            patient: the patient that the slices are of.
        """
        maps, weight = maps.double().cpu(), foreground.double().cpu()
        planes, positions = (numbers.expand(len(maps)) for numbers in _planes_and_positions(places))
        parts = torch.cat([weight, weight * maps, weight * maps.square()], dim=1)
        parts = F.adaptive_avg_pool2d(parts, self.sums.shape[-1])
        bins = torch.linspace(0, 1, _POSITIONS, dtype=torch.float64)
        near = torch.exp(-0.5 * ((positions.double()[:, None] - bins) / _SIGMA_OF_POSITION).square())
        self.sums.index_add_(0, planes, near[:, :, None, None, None] * parts[:, None])
        if bool((weight > 0).any()):
            self.patients.add(patient)


class PositionNorm(nn.Module):
    """Standardise anomaly maps by normal cases at the same place; the identity before `fit`.

    The buffers `mean` and `std` hold mean and standard deviation of normals, in the maps' own unit: (planes, positions,
    rows, columns), on a coarse grid and smoothed. Positions are relative slice positions, see `Places`.

    Args:
        grid: rows and columns, equal to those of the `PositionMoments` that it is fitted to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, grid: int = _GRID) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(_PLANE_NAMES), _POSITIONS, grid, grid))
        self.register_buffer("std", torch.ones(len(_PLANE_NAMES), _POSITIONS, grid, grid))

    def forward(self, maps: Tensor, places: Places | None = None) -> Tensor:
        """Standardise maps of slices.

        Args:
            maps: (N, 1, H, W).
            places: places of the slices; if None, each is a 2D image.

        Returns:
            (N, 1, H, W), in standard deviations of normals at the same place.
        """
        planes, positions = _planes_and_positions(places)
        place = positions * (_POSITIONS - 1)
        below = place.floor().clamp(0, _POSITIONS - 2).long()
        fraction = (place - below).view(-1, 1, 1).to(self.mean)
        planes, below = planes.to(self.mean.device), below.to(self.mean.device)
        fields = []
        for field in (self.mean, self.std):
            at_position = torch.lerp(field[planes, below], field[planes, below + 1], fraction)
            fields.append(F.interpolate(at_position[:, None], maps.shape[-2:], mode="bilinear", align_corners=False))
        return (maps - fields[0]) / fields[1]

    def log_likelihood(self, moments: PositionMoments) -> float:
        """Compute the log-likelihood of maps in nats, with a Gaussian for each pixel from the statistics there.

        Args:
            moments: the moments of the maps.
        """
        weight, first, second = moments.sums.unbind(dim=2)
        mean, std = self.mean.double().cpu(), self.std.double().cpu()
        squares = second - 2 * mean * first + mean.square() * weight
        return -float((weight * std.log() + squares / (2 * std.square())).sum())

    @property
    def is_known(self) -> Tensor:
        """Return whether enough normals are known, see `set_unknown`: a boolean scalar."""
        return (self.std < UNKNOWN).all()

    def set_unknown(self) -> None:
        """Mark the statistics as unknown, for too few normals: every map becomes 0."""
        self.mean.zero_()
        self.std.fill_(UNKNOWN)

    def reset(self) -> None:
        """Reset to the identity."""
        self.mean.zero_()
        self.std.fill_(1.0)

    @torch.no_grad()
    def fit(self, moments: Iterable[PositionMoments], by_position: bool = True) -> None:
        """Fit mean and standard deviation to maps of normals; a place without any gets those of all places.

        Args:
            moments: moments of one or more groups of patients.
            by_position: if false, all places of a plane get the same mean and standard deviation.

        Raises:
            ValueError: there is no foreground.
        """
        groups = list(moments)
        n_patients = len(set().union(*(group.patients for group in groups)))
        sums = torch.stack([group.sums for group in groups]).sum(dim=0)
        total = sums.sum(dim=(1, 3, 4))
        if not float(total[:, 0].sum()) > 0:
            raise ValueError("Position normalisation needs maps of normals with a foreground; got none.")
        total = torch.where(total[:, :1] > 0, total, total.sum(dim=0))  # planes without normals: all planes
        anywhere = (total[:, 1:] / total[:, :1]).view(-1, 1, 2, 1, 1)
        smooth = _smooth(sums)
        weight, parts = smooth[:, :, :1], smooth[:, :, 1:]
        least = torch.finfo(weight.dtype).tiny
        here = parts / weight.clamp_min(least)
        # each position is normalised separately, so that the nearest slices fill the gaps between them
        weight_of_here = n_patients if by_position else 0
        patients = weight_of_here * weight / weight.amax(dim=(3, 4), keepdim=True).clamp_min(least)
        first, second = (
            (patients * here + _PATIENTS_OF_ALL_PLACES * anywhere) / (patients + _PATIENTS_OF_ALL_PLACES)
        ).unbind(dim=2)
        variance = (second - first.square()).clamp_min(0)
        deviation = (anywhere[:, :, 1] - anywhere[:, :, 0].square()).clamp_min(0).sqrt()
        # a place that is constant in normals must not turn every change into a finding
        flat = deviation <= 1e-6 * anywhere[:, :, 0].abs()  # all equal up to rounding
        smallest = torch.where(flat, 1.0, 0.1 * deviation)
        self.mean.copy_(first)
        self.std.copy_(variance.sqrt().maximum(smallest))


def blur_through_slices(maps: Tensor, places: Places | None, sigma: float) -> Tensor:
    """Average each map with those of neighbouring slices: what extends through several slices is not noise.

    Args:
        maps: (n, 1, H, W), of the slices of one plane of a volume.
        places: places of the slices; if None, each is a 2D image and stays as it is.
        sigma: standard deviation of the Gaussian weights, as a fraction of the distance from the first slice to the
            last; 0 changes nothing.

    Returns:
        (n, 1, H, W).

    Example:
        >>> maps = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
        >>> blurred = blur_through_slices(maps, Places(["axial"] * 3, torch.tensor([0.0, 0.5, 1.0])), sigma=0.5)
        >>> [round(value, 3) for value in blurred.flatten().tolist()]
        [0.348, 0.452, 0.348]
    """
    if places is None or sigma == 0:
        return maps
    positions = torch.as_tensor(places.positions).float()
    weights = torch.exp(-0.5 * ((positions[:, None] - positions) / sigma).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(maps)
    return torch.einsum("ij,jchw->ichw", weights, maps)


def _planes_and_positions(places: Places | None) -> tuple[Tensor, Tensor]:
    """Return the plane index and relative position of each slice, (N,) and (N,); one for all without places."""
    if places is None:  # one for all, so that a traced network accepts batches of any size
        return torch.zeros(1, dtype=torch.long), torch.full((1,), 0.5)
    planes = torch.tensor([_PLANE_NAMES.index(plane) for plane in places.planes], dtype=torch.long)
    return planes, torch.as_tensor(places.positions).float().cpu().clamp(0, 1)


def _smooth(sums: Tensor) -> Tensor:
    """Blur sums (planes, positions, 3, rows, columns) in the plane, with zero padding."""
    grid = sums.shape[-1]
    sigma = _SIGMA_IN_PLANE * grid
    distance = torch.arange(grid, dtype=sums.dtype)
    kernel = torch.exp(-0.5 * ((distance[:, None] - distance) / sigma).square())
    return torch.einsum("pqrst,as,bt->pqrab", sums, kernel, kernel)
