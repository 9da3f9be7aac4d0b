import numpy as np
import pytest

from aeflow_monai.data.percentiles import percentiles

Q = [0, 0.5, 37.3, 50, 99.5, 100]


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(30, 40, 50)).astype(np.float32)
    return {
        "normal": normal,
        "tiny": normal * np.float32(1e-30),
        "huge": normal * np.float32(1e37),
        "whole": rng.integers(-1000, 3000, (70, 60, 50)).astype(np.float32),
        "few": rng.integers(0, 3, (7, 6, 5)).astype(np.float32),
        "zeros of both signs": np.where(normal > 0, np.float32(0), np.float32(-0.0)),
        "one": np.full((1, 1), 3.5, np.float32),
        "two": np.array([[-1.5, 2.25]], np.float32),
        "rows larger than a chunk": rng.normal(size=(2, 2**20 + 3)).astype(np.float32),
        "transposed": normal.transpose(2, 0, 1),
        "every second": normal[:, ::2, 1:],
        "backwards": normal[::-1, :, ::-1],
    }


@pytest.mark.parametrize("name", samples())
def test_they_are_those_of_numpy_to_the_last_bit(name: str) -> None:
    values = samples()[name]
    assert percentiles(values, None, Q) == np.percentile(values, Q).tolist()
    inside = values > np.median(values)
    if inside.any():
        assert percentiles(values, inside, Q) == np.percentile(values[inside], Q).tolist()


def test_none_of_no_values() -> None:
    with pytest.raises(ValueError, match="one value or more"):
        percentiles(np.ones((2, 2), np.float32), np.zeros((2, 2), bool), [50])
