"""Normals that a score is calibrated on, and scores that leave out what a test is not about."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.score.held_out import rounding_of
from aeflow_monai.score.normal_slices import NormalSlices
from aeflow_monai.score.score import Score, SliceScores

SIZE = 32
EXACT = {"rtol": 0, "atol": 1e-9}


def raised(score: float) -> float:
    """The threshold that is set on a score."""
    return score + rounding_of(score)


def terms_of(n: int = 10, n_terms: int = 3, seed: int = 0) -> Tensor:
    """Smooth maps (n, n_terms, 32, 32), each term in a unit of its own."""
    noise = torch.randn(n, n_terms, 8, 8, generator=torch.Generator().manual_seed(seed))
    unit = torch.linspace(1, 0.2, n_terms).view(-1, 1, 1)
    return 3 + unit * F.interpolate(noise, size=(SIZE, SIZE), mode="bicubic")


def slices_of(
    terms: Tensor, batch_size: int, slices_per_case: int = 1, foreground: Tensor | None = None, name: str = "case"
) -> list[NormalSlices]:
    if foreground is None:
        foreground = torch.ones_like(terms[:, :1]) > 0
    names = [f"{name}_{i // slices_per_case}" for i in range(len(terms))]
    batches = [slice(start, start + batch_size) for start in range(0, len(terms), batch_size)]
    return [NormalSlices(terms[b], foreground[b], names[b], names[b], None) for b in batches]


def a_score(n_terms: int = 3, **options: Any) -> Score:
    """With options that leave out what a test is not about."""
    plain = {
        "position_normalisation": False,
        "level_weight": 1.0,
        "top_fractions": (1.0,),
        "case_top_fraction": 1.0,
    }
    return Score(n_terms, **{**plain, **options})


def scores_of(score: Score, terms: Tensor) -> SliceScores:
    return score(score.stack(terms, torch.ones_like(terms[:, :1]) > 0))  # type: ignore[no-any-return]


def buffers(score: Score) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in score.state_dict().items()}


def alike(terms: Tensor) -> Tensor:
    """Higher and noisier on the left in everybody."""
    left = torch.linspace(1, 0, SIZE)
    return (terms - 3) * (0.5 + left) + left
