"""Input of a calibration: normals in batches of slices, and the stacks that these slices form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aeflow_monai.geometry import Places
from aeflow_monai.score.score import Score
from aeflow_monai.score.stack import SliceStack

__all__ = ["NormalSlices", "NormalStack", "PooledSlices", "stacks_of"]


class NormalSlices(NamedTuple):
    """A batch of slices of normals, from the maps of any method.

    Attributes:
        terms: (N, n_terms, H, W), see `Score`.
        foreground: (N, 1, H, W), boolean, see `foreground_of`.
        patients: the patient of each slice, N names.
        files: the image of each slice, N names; slices of one file and plane follow each other.
        places: where the slices lie in their volumes; None for 2D images.
        pooled: see `pooled_features`, (N, channels, parts); None for a method without them.
        grid: for slices of volumes the slice number along the axis of their plane, and X, Y, Z of the volume, (N, 4);
            None if unknown.
    """

    terms: Tensor
    foreground: Tensor
    patients: Sequence[str]
    files: Sequence[str]
    places: Places | None
    pooled: Tensor | None = None
    grid: Tensor | None = None


class PooledSlices(NamedTuple):
    """Pooled features (N, channels, parts) of a batch of normals, see `pooled_features`, and the patient of each slice.

    Acquisition copies of normals are marked as such: they do not affect the unit.
    """

    pooled: Tensor
    patients: Sequence[str]
    are_copies: bool = False


class NormalStack(NamedTuple):
    """The slices of one plane of one image of a patient.

    Attributes:
        patient: the patient's name.
        file: the image's name.
        plane: "axial", "coronal" or "sagittal"; "axial" for 2D images.
        slices: the stack, blurred through the slices, see `Score.blurred`.
        grid: see `NormalSlices`, (n, 4).
    """

    patient: str
    file: str
    plane: str
    slices: SliceStack
    grid: Tensor | None = None


def stacks_of(score: Score, batches: Iterable[NormalSlices]) -> Iterator[NormalStack]:
    """Join the slices of batches into stacks, one per image and plane.

    Args:
        score: the score that sums the terms and blurs the slices.
        batches: batches of slices; those of one image and plane may span several batches.

    Returns:
        The stacks one at a time, in the order of the batches.
    """
    waiting: list[NormalStack] = []
    for batch in batches:
        stack = score.stack(batch.terms, batch.foreground, batch.places, batch.pooled)
        for index, patient, file in zip(range(len(batch.terms)), batch.patients, batch.files, strict=True):
            plane = "axial" if batch.places is None else batch.places.planes[index]
            part = slice(index, index + 1)
            one = NormalStack(patient, file, plane, stack.part(part), None if batch.grid is None else batch.grid[part])
            if waiting and (one.slices.places is None or one[:3] != waiting[0][:3]):
                yield _joined(score, waiting)
                waiting = []
            waiting.append(one)
    if waiting:
        yield _joined(score, waiting)


def _joined(score: Score, parts: Sequence[NormalStack]) -> NormalStack:
    grids = [part.grid for part in parts if part.grid is not None]
    slices = score.blurred(SliceStack.join([part.slices for part in parts]))
    return parts[0]._replace(slices=slices, grid=torch.cat(grids) if grids else None)
