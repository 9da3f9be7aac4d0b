"""A label means one thing on the server and on the command line."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from aeflow_monai.data.readers import LoadCased

pytestmark = pytest.mark.filterwarnings("ignore:The distutils package:DeprecationWarning")  # which MONAI Label imports
SHAPE = (8, 9, 4)


def save(path: Path, voxels: Any) -> str:
    nib.save(nib.Nifti1Image(np.asarray(voxels), np.diag([1.0, 2, 3, 1])), path)
    return str(path)


@pytest.fixture
def drawn() -> Any:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[2:4, 3:6, 1:3] = 1
    return voxels


def test_a_label_is_read_as_evaluations_read_masks(drawn: Any, tmp_path: Path) -> None:
    from aeflow_monai.label.studies.final_labels import LabelledImage, load_label

    for name, voxels in (
        ("ones", drawn),
        ("many", drawn * 255),
        ("likely", drawn * np.float32(0.9)),
        ("none", drawn * 0),
    ):
        path = save(tmp_path / f"{name}.nii.gz", voxels)
        label = load_label(path)
        assert label.shape == (1, *SHAPE)
        np.testing.assert_array_equal(label.as_tensor(), LoadCased("lesion")({"lesion": path})["lesion"].as_tensor())
        np.testing.assert_array_equal(label.as_tensor()[0], drawn * (name != "none"))
        assert LabelledImage(name, name, "", path).normal == (name == "none")
    assert LabelledImage("marked", "marked", "", "").normal


def test_unlikely_voxels_are_no_lesion(drawn: Any, tmp_path: Path) -> None:
    from aeflow_monai.label.studies.final_labels import LabelledImage

    unlikely = drawn * np.float32(0.1)
    unlikely[0, 0, 0] = 0.2
    assert LabelledImage("a", "a", "", save(tmp_path / "a.nii.gz", unlikely)).normal


@pytest.mark.parametrize("content", [b"", b"no label"])
def test_a_label_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    from aeflow_monai.label.studies.final_labels import load_label

    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected a label in .* Submit the label again, or remove it") as raised:
        load_label(str(path))
    assert str(path) in str(raised.value)
    with pytest.raises(ValueError, match="Expected a label in"):
        load_label(str(tmp_path / "missing.nii.gz"))


def test_what_evaluations_cannot_read_is_refused_when_it_is_submitted(drawn: Any, tmp_path: Path) -> None:
    from aeflow_monai.label.studies.submissions import check_label

    image = save(tmp_path / "image.nii.gz", np.random.default_rng(0).random(SHAPE, np.float32))
    check_label(save(tmp_path / "a.nii.gz", drawn), image)
    check_label(save(tmp_path / "a.nii.gz", drawn * 0), image)
    with pytest.raises(ValueError, match=r"the label cannot be read\. Expected a mask with 0 for background"):
        check_label(save(tmp_path / "a.nii.gz", drawn + 1), image)
