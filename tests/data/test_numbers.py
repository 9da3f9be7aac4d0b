import numpy as np
import pytest

from aeflow_monai.data.numbers import as_float32, require_size

VALUES = np.random.default_rng(0).random(1000) * 100


@pytest.mark.parametrize(
    "values",
    [
        VALUES * 1e298,
        VALUES * 1e-300,
        VALUES / 100 + 1e9,
        VALUES.astype(np.int32) + 10**9,
        np.where(VALUES > 30, VALUES.astype(np.int32) + 10**9, 0),
        VALUES.astype(np.int64) + 2**60,
        VALUES.astype(np.uint64) + np.uint64(2**63),
    ],
)
def test_what_32_bits_cannot_hold_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"32 bits can hold in a\.nii; got values from .* Subtract"):
        as_float32(values, "a.nii")


@pytest.mark.parametrize(
    "values",
    [
        VALUES * 1e30,
        VALUES * 1e-30,
        VALUES + 1e4,
        VALUES.astype(np.int64),
        np.array([0, 2**40]),
        np.zeros(5),
        np.full(5, np.nan),
        np.array([0.5, np.nan, np.inf, 3.0]),
        VALUES > 50,
        np.array([], np.float64),
        (VALUES * 1e-40).astype(np.float32),
    ],
)
def test_all_else_is_held(values: np.ndarray) -> None:
    held = as_float32(values, "a.nii")
    assert held.dtype == np.float32
    np.testing.assert_allclose(held, values.astype(np.float64), rtol=1e-6)


def test_the_size_is_limited() -> None:
    require_size((512, 512, 2048), 2, "a.nii")
    with pytest.raises(ValueError, match=r"at most 3 GiB in a\.nii; its header claims \(512, 512, 2049\) voxels"):
        require_size((512, 512, 2049), 2, "a.nii")
