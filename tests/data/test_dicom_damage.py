"""DICOM files that are no whole image, or claim too much: named, while all others are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import pixels, slice_of, with_pixels, write, write_series

from aeflow_monai.data import LoadCased, find_images

LOAD = LoadCased("image")


def load(path: Path) -> Any:
    return LOAD({"image": str(path)})["image"]


def problems_in(folder: Path) -> dict[str, str]:
    """What is said of each case of a folder when it is listed."""
    return {item["case"]: str(item.get("problem", "")) for item in find_images(folder)}


def test_one_slice_of_many_that_are_declared(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ill", [6], ImagesInAcquisition=30)
    write_series(tmp_path / "well")
    said = problems_in(tmp_path)
    assert said["well"] == ""
    assert "1 slice, where ImagesInAcquisition says that there are 30. Add the missing" in said["ill"]
    with pytest.raises(ValueError, match="ImagesInAcquisition says that there are 30"):
        load(folder)


def test_one_slice_that_is_named_is_one_image(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a", ImagesInAcquisition=6)
    np.testing.assert_array_equal(load(folder / "1001.dcm")[0, ..., 0].numpy(), pixels(5).T)
