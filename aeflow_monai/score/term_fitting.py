"""Fitting the global term to normals of a training, or moving it to those of another site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from aeflow_monai.score.global_term import GlobalTerm

__all__ = ["fit_global_term"]

_AT_ONCE = 1024  # slices that are compared with all normals at once; bounds the memory
_LEAST_PATIENTS = 6  # fewer do not show how much normals vary
Normals = Mapping[str, Tensor]


def fit_global_term(
    term: GlobalTerm,
    held_out: Sequence[Normals],
    fitted: Sequence[Normals],
    copies: Sequence[Normals] = (),
    of_volumes: bool = False,
) -> list[GlobalTerm]:
    """Fit a term to normals of a training, and return a term for each group of held-out ones to be compared with.

    The term is never fitted to held-out normals: compared with themselves, in this or a later calibration, their
    distances would be too small. Only if the training's normals are of too few patients, it is fitted to all; each
    group is then compared with the others. The unit is that of all normals, each compared with others. Without normals
    of a training, which is the case at another site, a term of a training is moved to the held-out normals.

    Acquisition copies of the training's normals are among those that the term is fitted to. They do not affect the
    unit, which is that of the original normals.

    Args:
        term: the term, which is changed in place.
        held_out: for each group a dict from the patient to the `pooled_features` of all slices.
        fitted: likewise for the normals that the method was fitted on, in the same number of groups.
        copies: likewise for acquisition copies of these, in the same groups; none if empty.
        of_volumes: whether the normals are slices of volumes, not 2D images. A term that is moved keeps its kind.

    Returns:
        One term per group; none if the normals are of too few patients, and the term is then unknown.

    Raises:
        ValueError: features that are not finite.
    """
    groups = [{**some, **others} for some, others in zip(held_out, fitted, strict=True)]
    if len({patient for group in groups for patient in group}) < _LEAST_PATIENTS:
        term.forget()
        return []
    if not torch.isfinite(_joined(groups)).all():
        raise ValueError("Features of normals are not finite: the encoder's weights or an image hold NaN.")
    of_training = len({patient for group in fitted for patient in group}) >= _LEAST_PATIENTS
    if any(fitted) or not (term.is_known and term.is_of_training):
        normals, fit = fitted if of_training else groups, partial(_fitted_to, term, of_training, of_volumes)
    else:
        normals, fit = held_out, partial(_moved_to, term)
    added = copies if of_training and copies else [{}] * len(normals)
    pairs = [*zip(normals, added, strict=True)]

    def fitted_but(left: int | None) -> GlobalTerm:
        return fit([each for number, pair in enumerate(pairs) if number != left for each in pair])

    whole = fitted_but(None)
    without = [fitted_but(number) for number in range(len(pairs))]
    compared = [*zip(without, normals, strict=True)]
    if of_training:
        without = [whole] * len(groups)
        compared += zip(without, held_out, strict=True)
    distances = torch.cat(
        [
            own.distances(part.to(term.unit))
            for own, group in compared
            for part in torch.split(_joined([group]), _AT_ONCE)
            if group
        ]
    )
    for each in (*without, whole):
        each.set_unit(distances)
    term.load_state_dict(whole.state_dict())
    return without


def _joined(groups: Sequence[Normals]) -> Tensor:
    found = [pooled for group in groups for pooled in group.values()]
    return torch.cat(found) if found else torch.zeros(0, 0, 1)


def _fitted_to(like: GlobalTerm, is_of_training: bool, of_volumes: bool, groups: Sequence[Normals]) -> GlobalTerm:
    found = GlobalTerm().to(like.unit.device)
    found.fit(_joined(groups))
    found.is_of_training.fill_(is_of_training)
    found.join_as(of_volumes)
    return found


def _moved_to(term: GlobalTerm, groups: Sequence[Normals]) -> GlobalTerm:
    return term.moved(_joined(groups).to(term.unit), sum(map(len, groups)))
