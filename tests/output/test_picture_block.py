import base64
import io

import numpy as np
import pytest
from PIL import Image
from report_results import block

from aeflow_monai.output.report import PictureBlock


def sheet(encoded: dict[str, object], name: str) -> np.ndarray:  # type: ignore[type-arg]
    url = encoded["layers"][name]  # type: ignore[index]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))


@pytest.mark.parametrize("n_slices", [1, 3, 8, 11])
def test_slices_lie_row_by_row(n_slices: int) -> None:
    layers = {"image": np.zeros((n_slices, 32, 24), dtype=np.uint8), "lesion": np.zeros((n_slices, 32, 24), np.uint8)}
    for number in range(n_slices):
        layers["image"][number] = 20 * number
        layers["lesion"][number, number] = 255
    encoded = PictureBlock("axial", tuple(range(n_slices)), (), 0, (1, 1, 1), (0, 255), 6, layers, {}).encoded()
    across = encoded["across"]
    for name, tolerance in (("image", 4), ("lesion", 0)):
        picture = sheet(encoded, name).astype(int)
        for number in range(n_slices):
            top, left = number // across * 32, number % across * 24
            assert np.abs(picture[top : top + 32, left : left + 24] - layers[name][number]).max() <= tolerance


def test_a_single_is_the_most_anomalous_slice() -> None:
    whole = block(6)
    single = whole.single()
    assert (single.numbers, single.positions_mm, single.peak) == ((6,), (14.0,), 0)
    assert np.array_equal(single.layers["image"][0], whole.layers["image"][3])
    assert not single.encoded()["profile"]
