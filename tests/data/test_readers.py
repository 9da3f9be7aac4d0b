import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inputs import AFFINE, VOXELS, moved, save_volume
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized
from PIL import Image

from aeflow_monai.data.checks import CheckImaged
from aeflow_monai.data.readers import LoadCased
from aeflow_monai.data.transforms import EnsureVolumed


def message(data: dict[str, Any]) -> str:
    """What loading a case says against it."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        LoadCased(["image", "lesion"], allow_missing_keys=True)(data)
    return str(raised.value)


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 18, 10), (16, 18), (16, 18, 1), (16, 18, 10, 2)])
def test_loads_what_monai_loads(tmp_path: Path, shape: tuple[int, ...]) -> None:
    item = {
        "image": save_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape), np.diag([2, 3, 4, 1])),
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
        data = forward({"image": save_volume(tmp_path / "a.nii.gz", voxels)})
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
        (lambda whole: whole, "a.nii", r"one that is packed with gzip. Name it a.nii.gz."),
        (lambda whole: b"not an image", "a.png", r"no reader knows, beginning with b'not an image'"),
        (lambda whole: bytes(128) + b"DICM" + b"junk", "a.dcm", "a damaged DICOM file: its header"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, content: Any, name: str, expected: str
) -> None:
    save_volume(tmp_path / "whole.nii.gz")
    (tmp_path / name).write_bytes(content((tmp_path / "whole.nii.gz").read_bytes()))
    said = message({"image": str(tmp_path / name)})
    assert said.startswith(f"Expected an image in {tmp_path / name}; got ")
    assert expected in said
    assert len(said) < 400 + len(str(tmp_path))


def test_a_truncated_file_that_is_not_compressed(tmp_path: Path) -> None:
    file = tmp_path / "a.nii"
    save_volume(file)
    file.write_bytes(file.read_bytes()[:5000])
    said = message({"image": str(file)})
    assert f"Expected 11872 bytes in {file}, for its shape (16, 18, 10); got a truncated file: 5000 bytes" in said


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
    file = save_volume(tmp_path / "a.nii.gz")
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    loaded = LoadCased("image")({"image": file, "sha256": {file: digest.upper()}, "problem": ""})
    assert loaded.keys() == {"image"}
    save_volume(tmp_path / "a.nii.gz", VOXELS + 1)
    said = message({"image": file, "sha256": {file: digest}})
    assert f"{file} changed since the data set was prepared: expected SHA-256 {digest[:12]}..., got " in said
    Path(file).unlink()
    assert "which the prepared data set lists; there is no such file" in message(
        {"image": file, "sha256": {file: digest}}
    )


# --- several files of one case ----------------------------------------------------------------------------------------


def test_modalities_become_channels(tmp_path: Path) -> None:
    files = [
        save_volume(tmp_path / "t1.nii.gz"),
        save_volume(tmp_path / "t2.nii.gz", 2 * VOXELS, moved(0.009)),
        save_volume(tmp_path / "both.nii.gz", np.stack([3 * VOXELS, 4 * VOXELS], axis=-1)),
    ]
    image = CheckImaged()(EnsureChannelFirstd("image")(LoadCased("image")({"image": files})))["image"]
    assert torch.equal(image.as_tensor(), torch.from_numpy(np.stack([k * VOXELS for k in (1, 2, 3, 4)])))
    np.testing.assert_allclose(image.affine.numpy(), AFFINE)
    assert image.meta["filename_or_obj"] == files[0]


def test_modalities_of_different_grids_are_refused(tmp_path: Path) -> None:
    first = save_volume(tmp_path / "t1.nii.gz")
    smaller = save_volume(tmp_path / "t2.nii.gz", VOXELS[:8])
    assert f"(16, 18, 10) in {first}; got (8, 18, 10) in {smaller}. Resample" in message({"image": [first, smaller]})
    shifted = save_volume(tmp_path / "t2.nii.gz", VOXELS, moved(0.02))
    said = message({"image": [first, shifted]})
    assert f"that of {first}; the corners of {shifted} lie up to 0.02 mm away from it. Register" in said


def test_what_is_a_tensor_already_passes_as_it_is(tmp_path: Path) -> None:
    image = torch.rand(1, 4, 5, 6)
    loaded = LoadCased(["image", "lesion"])({"image": image, "lesion": save_volume(tmp_path / "m.nii")})
    assert loaded["image"] is image
    assert loaded["lesion"].shape == (1, *VOXELS.shape)
    assert message({"image": image, "problem": "Not this one."}) == "Not this one."


def test_keys_that_are_missing_may_be_allowed() -> None:
    assert LoadCased("lesion", allow_missing_keys=True)({"case": "a"}) == {"case": "a"}
    with pytest.raises(KeyError, match="lesion"):
        LoadCased("lesion")({"case": "a"})


def test_a_reader_that_is_not_used_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        LoadCased("image")
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").warning("of a reader that is used")
    assert [str(warning.message) for warning in warned] == []
    assert caplog.messages == ["of a reader that is used"]
