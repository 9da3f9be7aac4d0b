import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized
from PIL import Image

from aeflow_monai.data.checks import CheckImaged
from aeflow_monai.data.readers import LoadCased
from aeflow_monai.data.transforms import EnsureVolumed

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -20], [0, 2.5, 0, 5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).random((16, 18, 10), dtype=np.float32)


def save(file: Path, voxels: Any = VOXELS, affine: Any = AFFINE) -> str:
    nib.save(nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), affine), file)
    return str(file)


def moved(mm: float) -> Any:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def message(data: dict[str, Any], **options: Any) -> str:
    """What loading and checking a case says against it."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        CheckImaged(**options)(LoadCased(["image", "mask"], allow_missing_keys=True)(data))
    return str(raised.value)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 18, 10), (16, 18), (16, 18, 1), (16, 18, 10, 2)])
def test_loads_what_monai_loads(tmp_path: Path, shape: tuple[int, ...]) -> None:
    item = {
        "image": save(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.diag([2, 3, 4, 1])),
        "case": "a",
    }
    reader = ["ITKReader", "NibabelReader"]
    expected = Compose([LoadImaged("image", reader=reader), EnsureChannelFirstd("image")])(item)["image"]
    # a second EnsureChannelFirstd changes nothing
    for loaded in (LoadCased("image")(item), EnsureChannelFirstd("image")(LoadCased("image")(item))):
        assert loaded["case"] == "a"
        assert torch.equal(loaded["image"], expected)
        assert torch.equal(loaded["image"].affine, expected.affine)
        assert loaded["image"].meta["filename_or_obj"] == item["image"]
        assert CheckImaged()(loaded).keys() == loaded.keys()


def test_what_stands_behind_it_can_be_inverted(tmp_path: Path) -> None:
    forward = Compose(
        [
            LoadCased("image"),
            CheckImaged(),
            EnsureVolumed("image"),
            Orientationd("image", axcodes="PLS", labels=None),
            Resized("image", spatial_size=(32, 32, -1)),
        ]
    )
    for voxels in (VOXELS, VOXELS[..., 0]):
        data = forward({"image": save(tmp_path / "a.nii.gz", voxels)})
        data["map"] = MetaTensor(torch.zeros_like(data["image"]))
        back = Invertd("map", forward, orig_keys="image")(data)["map"]
        assert tuple(back.shape[1:]) == voxels.shape
        np.testing.assert_allclose(back.affine.numpy(), AFFINE, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (lambda whole: b"", "a.nii.gz", "an empty file. Copy"),
        (lambda whole: whole[: len(whole) // 2], "a.nii.gz", "a truncated file: its compressed data end too early"),
        (lambda whole: whole[:-8] + bytes(8), "a.nii.gz", "a damaged file"),
        (lambda whole: b"not an image", "a.nii.gz", "not compressed with gzip. Is it an image?"),
        (lambda whole: b"not an image", "a.nii", r"no reader knows, beginning with b'not an image'"),
        (lambda whole: b"not an image", "a.png", r"no reader knows, beginning with b'not an image'"),
        (lambda whole: bytes(128) + b"DICM" + b"junk", "a.dcm", "a DICOM file that cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, content: Any, name: str, expected: str
) -> None:
    save(tmp_path / "whole.nii.gz")
    (tmp_path / name).write_bytes(content((tmp_path / "whole.nii.gz").read_bytes()))
    said = message({"image": str(tmp_path / name)})
    assert said.startswith(f"Expected an image in {tmp_path / name}; got ")
    assert expected in said
    assert len(said) < 400 + len(str(tmp_path))


def test_a_truncated_file_that_is_not_compressed(tmp_path: Path) -> None:
    file = tmp_path / "a.nii"
    save(file)
    file.write_bytes(file.read_bytes()[:5000])
    said = message({"image": str(file)})
    assert f"Expected an image in {file}; got a file that cannot be read (Expected 11520 bytes" in said
    assert "probably truncated" in said


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif"])
def test_a_truncated_picture_is_not_filled_in_silence(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"a.{extension}"
    Image.fromarray((VOXELS[..., 0] * 255).astype(np.uint8)).resize((90, 80)).save(file)
    assert LoadCased("image")({"image": str(file)})["image"].ndim == 3
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "got a truncated file" in message({"image": str(file)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"at {tmp_path / 'a.nii.gz'}; there is no such file" in message({"image": str(tmp_path / "a.nii.gz")})


def test_a_known_problem_is_raised_instead_of_loading() -> None:
    assert message({"image": "nowhere.nii.gz", "problem": "Two images of one subject."}) == "Two images of one subject."


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.nii.gz")
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    loaded = LoadCased("image")({"image": file, "sha256": {file: digest.upper()}, "problem": ""})
    assert loaded.keys() == {"image"}
    save(tmp_path / "a.nii.gz", VOXELS + 1)
    said = message({"image": file, "sha256": {file: digest}})
    assert f"{file} changed since the data set was prepared: expected SHA-256 {digest[:12]}..., got " in said
    Path(file).unlink()
    assert "which the prepared data set lists; there is no such file" in message(
        {"image": file, "sha256": {file: digest}}
    )


# --- several files of one case ----------------------------------------------------------------------------------------


def test_modalities_become_channels(tmp_path: Path) -> None:
    files = [
        save(tmp_path / "t1.nii.gz"),
        save(tmp_path / "t2.nii.gz", 2 * VOXELS, moved(0.009)),
        save(tmp_path / "both.nii.gz", np.stack([3 * VOXELS, 4 * VOXELS], axis=-1)),
    ]
    image = CheckImaged()(EnsureChannelFirstd("image")(LoadCased("image")({"image": files})))["image"]
    assert torch.equal(image.as_tensor(), torch.from_numpy(np.stack([k * VOXELS for k in (1, 2, 3, 4)])))
    np.testing.assert_allclose(image.affine.numpy(), AFFINE)
    assert image.meta["filename_or_obj"] == files[0]


def test_modalities_of_different_grids_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "t1.nii.gz")
    smaller = save(tmp_path / "t2.nii.gz", VOXELS[:8])
    assert f"(16, 18, 10) in {first}; got (8, 18, 10) in {smaller}. Resample" in message({"image": [first, smaller]})
    shifted = save(tmp_path / "t2.nii.gz", VOXELS, moved(0.02))
    said = message({"image": [first, shifted]})
    assert f"that of {first}; the corners of {shifted} lie up to 0.02 mm away from it. Register" in said


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    voxels = VOXELS.copy()
    voxels[1, 2, 3:5] = value
    file = save(tmp_path / "a.nii.gz", voxels)
    assert f"finite voxels in {file}; got 2 of 2880 that are NaN or infinite. Replace" in message({"image": file})


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_image_of_one_value_is_refused(tmp_path: Path, value: float) -> None:
    file = save(tmp_path / "a.nii.gz", np.full((4, 5, 6), value))
    assert f"in {file}; got the same value, {value:g}, in all voxels" in message({"image": file})
    good = save(tmp_path / "b.nii.gz", np.random.default_rng(0).random((4, 5, 6)))
    assert f"got the same value, {value:g}, in all voxels of channel 2" in message({"image": [good, file]})


def test_a_picture_may_lack_a_colour() -> None:
    CheckImaged()({"image": torch.stack([torch.rand(8, 8), torch.zeros(8, 8), torch.ones(8, 8)])})


def test_a_series_of_more_dimensions_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((4, 5, 6, 2, 3)))
    said = message({"image": file})
    assert f"a volume in {file}; got 4 dimensions, shape (4, 5, 6, 2). Split a series into volumes" in said


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
    file = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.eye(4))
    said = message({"image": file}, axes=axes)
    assert "two or more rows and columns" in said
    assert f"Set axes to {fitting}" in said if fitting else "Take the case out." in said


@pytest.mark.parametrize("axes", [["axial"], ["coronal", "sagittal"]])
@pytest.mark.parametrize("shape", [(16, 18), (16, 18, 1)])
def test_one_axial_slice_is_a_case(tmp_path: Path, shape: tuple[int, ...], axes: list[str]) -> None:
    file = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.eye(4))
    CheckImaged(axes=axes)(LoadCased("image")({"image": file}))


def test_planes_are_those_of_the_world(tmp_path: Path) -> None:
    # the second voxel axis runs to superior: one axial slice
    file = save(tmp_path / "a.nii.gz", VOXELS[:, :1])
    CheckImaged(axes=["axial"])(LoadCased("image")({"image": file}))


def test_an_unknown_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown plane 'transverse'"):
        CheckImaged(axes=["transverse"])


# --- masks ------------------------------------------------------------------------------------------------------------


def test_a_mask_on_its_images_grid_passes(tmp_path: Path) -> None:
    item = {"image": save(tmp_path / "a.nii.gz"), "mask": save(tmp_path / "m.nii.gz", 0 * VOXELS, moved(0.009))}
    loaded = CheckImaged()(LoadCased(["image", "mask"])(item))
    assert loaded["mask"].shape == loaded["image"].shape
    # not loaded, not looked at
    CheckImaged()({**loaded, "mask": "elsewhere.nii.gz"})


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    image, mask = save(tmp_path / "a.nii.gz"), tmp_path / "m.nii.gz"
    save(mask, VOXELS[..., :9])
    assert f"(16, 18, 10) as {image}; got (16, 18, 9) in {mask}. Resample" in message(
        {"image": image, "mask": str(mask)}
    )
    save(mask, VOXELS, moved(-0.02))
    said = message({"image": image, "mask": str(mask)})
    assert f"on the grid of {image}; the corners of {mask} lie up to 0.02 mm away" in said
    turned = AFFINE.copy()
    turned[:, 0] *= -1
    save(mask, VOXELS, turned)
    assert "lie up to 60 mm away" in message({"image": image, "mask": str(mask)})
    save(mask, np.full_like(VOXELS, np.nan))
    assert f"finite values in {mask}" in message({"image": image, "mask": str(mask)})


def test_a_picture_has_no_place_that_a_mask_could_miss(tmp_path: Path) -> None:
    pixels = (VOXELS[..., 0] * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(300, 300))
    Image.fromarray(pixels).save(tmp_path / "m.png")
    item = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "m.png")}
    CheckImaged()(LoadCased(["image", "mask"])(item))
