"""Bounds that follow from floating-point numbers, not from the processor that the tests run on."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor


def rounding_error(n_terms: int, largest: float = 1.0, deviation: float = 1.0) -> float:
    """Most that a sum of float32 terms can be wrong by, divided by a deviation.

    Each operation rounds by at most eps / 2 of its result, and a processor may add the terms in any order: the bound
    holds for all of them, with one eps / 2 of the largest partial result for each term.

    Args:
        n_terms: number of terms that are added one after the other, over all steps of the computation.
        largest: magnitude of the largest partial result.
        deviation: what the sum is divided by.
    """
    return n_terms * torch.finfo(torch.float32).eps / 2 * largest / deviation


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute in float64, also where the package asks for float32.

    A network amplifies the rounding of its first layers by an unknown factor, so that no bound for float32 is both
    safe and narrow. In float64 it is below 1e-9 on any processor, where what a test is about is far above.
    """
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", Tensor.double)
            yield
    finally:
        torch.set_default_dtype(torch.float32)
