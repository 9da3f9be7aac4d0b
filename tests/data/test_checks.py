from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inputs import AFFINE, VOXELS, moved, save_volume
from monai.data import MetaTensor
from PIL import Image

from aeflow_monai.data.checks import CheckImaged
from aeflow_monai.data.readers import LoadCased


def message(data: dict[str, Any], **options: Any) -> str:
    """What loading and checking a case says against it."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        CheckImaged(**options)(LoadCased(["image", "lesion"], allow_missing_keys=True)(data))
    return str(raised.value)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    voxels = VOXELS.copy()
    voxels[1, 2, 3:5] = value
    file = save_volume(tmp_path / "a.nii.gz", voxels)
    assert f"finite voxels in {file}; got 2 of 2880 that are NaN or infinite. Replace" in message({"image": file})


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_image_of_one_value_is_refused(tmp_path: Path, value: float) -> None:
    file = save_volume(tmp_path / "a.nii.gz", np.full((4, 5, 6), value))
    assert f"in {file}; got the same value, {value:g}, in all voxels" in message({"image": file})
    good = save_volume(tmp_path / "b.nii.gz", np.random.default_rng(0).random((4, 5, 6)))
    assert f"got the same value, {value:g}, in all voxels of channel 2" in message({"image": [good, file]})


def test_a_picture_may_lack_a_colour() -> None:
    CheckImaged()({"image": torch.stack([torch.rand(8, 8), torch.zeros(8, 8), torch.ones(8, 8)])})


def test_a_series_of_more_dimensions_is_refused(tmp_path: Path) -> None:
    file = save_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).random((4, 5, 6, 2, 3)))
    said = message({"image": file})
    assert f"one image in {file}; got 5 dimensions, shape (4, 5, 6, 2, 3): vectors or a series. Split" in said


@pytest.mark.parametrize(
    "rows",
    [
        [[2, 0, 0], [0, 0, 0], [0, 0, 3]],
        [[2, 2, 0], [1, 1, 0], [0, 0, 3]],
        [[0, 0, 0]] * 3,
        [[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]],
    ],
)
def test_an_affine_that_cannot_be_inverted_is_refused(tmp_path: Path, rows: Any) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape(VOXELS.shape)
    header.set_data_dtype(np.float32)
    header["sform_code"], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
    for name, row in zip("xyz", rows, strict=True):
        header[f"srow_{name}"][:3] = row
    file = tmp_path / "a.nii"
    file.write_bytes(header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    assert f"Expected an affine that can be inverted in {file}; got [[" in message({"image": str(file)})
    affine = np.eye(4)
    affine[:3, :3] = rows
    with pytest.raises(ValueError, match="Expected an affine that can be inverted in 'image'; got"):
        CheckImaged()({"image": MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.from_numpy(affine))})


@pytest.mark.parametrize(
    ("shape", "axes", "fitting"),
    [
        ((16, 1, 10), ["axial"], "['coronal']"),
        ((1, 18, 10), ["axial", "sagittal"], "['sagittal']"),
        ((1, 18, 1), ["axial"], None),
        ((1, 18), ["axial"], None),
    ],
)
def test_slices_that_would_be_lines_are_refused(
    tmp_path: Path, shape: tuple[int, ...], axes: list[str], fitting: str | None
) -> None:
    file = save_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.eye(4))
    said = message({"image": file}, axes=axes)
    assert "two or more rows and columns" in said
    assert f"Train with axes {fitting}" in said if fitting else "Take the case out." in said


@pytest.mark.parametrize(("rows", "columns"), [(1, 50), (50, 1)])
def test_rows_and_columns_of_a_line_are_told_in_their_order(tmp_path: Path, rows: int, columns: int) -> None:
    Image.fromarray(np.arange(50, dtype=np.uint8).reshape(rows, columns)).save(tmp_path / "line.png")
    said = message({"image": str(tmp_path / "line.png")})
    assert f"Expected two or more rows and columns in {tmp_path}/line.png; got {rows} and {columns}." in said


@pytest.mark.parametrize("axes", [["axial"], ["coronal", "sagittal"]])
@pytest.mark.parametrize("shape", [(16, 18), (16, 18, 1)])
def test_one_axial_slice_is_a_case(tmp_path: Path, shape: tuple[int, ...], axes: list[str]) -> None:
    file = save_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.eye(4))
    CheckImaged(axes=axes)(LoadCased("image")({"image": file}))


def test_planes_are_those_of_the_world(tmp_path: Path) -> None:
    # the second voxel axis runs to superior: one axial slice
    file = save_volume(tmp_path / "a.nii.gz", VOXELS[:, :1])
    CheckImaged(axes=["axial"])(LoadCased("image")({"image": file}))


def test_an_unknown_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown plane 'transverse'"):
        CheckImaged(axes=["transverse"])


# --- masks ------------------------------------------------------------------------------------------------------------


def test_a_mask_on_its_images_grid_passes(tmp_path: Path) -> None:
    item = {
        "image": save_volume(tmp_path / "a.nii.gz"),
        "lesion": save_volume(tmp_path / "m.nii.gz", 0 * VOXELS, moved(0.009)),
    }
    loaded = CheckImaged()(LoadCased(["image", "lesion"])(item))
    assert loaded["lesion"].shape == loaded["image"].shape
    # not loaded, not looked at
    CheckImaged()({**loaded, "lesion": "elsewhere.nii.gz"})


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    image, mask = save_volume(tmp_path / "a.nii.gz"), tmp_path / "m.nii.gz"
    save_volume(mask, VOXELS[..., :9])
    assert f"(16, 18, 10) as {image}; got (16, 18, 9) in {mask}. Resample" in message(
        {"image": image, "lesion": str(mask)}
    )
    save_volume(mask, VOXELS, moved(-0.02))
    said = message({"image": image, "lesion": str(mask)})
    assert f"on the grid of {image}; the corners of {mask} lie up to 0.02 mm away" in said
    turned = AFFINE.copy()
    turned[:, 0] *= -1
    save_volume(mask, VOXELS, turned)
    assert "lie up to 60 mm away" in message({"image": image, "lesion": str(mask)})
    save_volume(mask, np.full_like(VOXELS, np.nan))
    assert f"finite values in {mask}" in message({"image": image, "lesion": str(mask)})


def test_a_picture_has_no_place_that_a_mask_could_miss(tmp_path: Path) -> None:
    pixels = (VOXELS[..., 0] * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(300, 300))
    Image.fromarray(pixels // 128 * 255).save(tmp_path / "m.png")
    item = {"image": str(tmp_path / "a.png"), "lesion": str(tmp_path / "m.png")}
    CheckImaged()(LoadCased(["image", "lesion"])(item))


def test_an_image_of_two_values_is_told_as_it_may_be_a_mask(caplog: pytest.LogCaptureFixture) -> None:
    check, image = CheckImaged(), torch.zeros(1, 40, 40)
    image[0, 10:20, 10:20] = 3
    check({"image": image})
    assert "holds only two values, 0 and 3, as a mask does. It is taken for an image." in caplog.text
    caplog.clear()
    image[0, 15, 15] = 2
    check({"image": image})
    assert not caplog.text
