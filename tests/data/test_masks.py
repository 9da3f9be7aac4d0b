from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from inputs import AFFINE, VOXELS, save_volume
from monai.data import MetaTensor
from PIL import Image, ImageFilter

from aeflow_monai.data.checks import CheckImaged
from aeflow_monai.data.masks import binary_mask, on_grid_of
from aeflow_monai.data.readers import LoadCased

Array = npt.NDArray[Any]

SQUARE = np.zeros((96, 80), np.uint8)  # 100 pixels of lesion in a picture, rows and columns
SQUARE[30:40, 50:60] = 255
NONE, FULL = SQUARE * 0, np.full_like(SQUARE, 255)
ONE = SQUARE // 255
CUBE = np.zeros(VOXELS.shape, np.uint8)  # 60 voxels of lesion in a volume
CUBE[2:5, 4:9, 3:7] = 1


def loaded(folder: Path, mask: Path, **more: Any) -> Array:
    """A mask as the preprocessing gives it for an image of its kind."""
    picture = mask.suffix != ".gz"
    image = folder / ("image.png" if picture else "image.nii.gz")
    if picture:
        Image.fromarray(np.random.default_rng(0).integers(1, 250, SQUARE.shape, np.uint8)).save(image)
    else:
        save_volume(image)
    item = {"image": str(image), "lesion": str(mask), **more}
    lesion = CheckImaged()(LoadCased(["image", "lesion"])(item))["lesion"]
    assert set(np.unique(lesion)) <= {0, 1}
    assert len(lesion) == 1
    return lesion.as_tensor().numpy()[0].T if picture else lesion.as_tensor().numpy()[0]


def message(folder: Path, mask: Path, **more: Any) -> str:
    with pytest.raises(ValueError, match="Expected") as raised:
        loaded(folder, mask, **more)
    assert str(mask) in str(raised.value)
    return str(raised.value)


def palette(*colours: tuple[int, int, int]) -> Callable[[], Image.Image]:
    def picture() -> Image.Image:
        image = Image.frombytes("P", (80, 96), ONE.tobytes())
        image.putpalette([value for colour in colours for value in colour] + [0] * (768 - 3 * len(colours)))
        return image

    return picture


def of(pixels: Array) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(pixels)


def half(pixels: Array, value: int) -> Array:
    """Half of the lesion has another value."""
    changed = pixels.copy()
    changed[30:35][changed[30:35] > 0] = value
    return changed


UNDERSTOOD = {
    "grey": of(SQUARE),
    "grey of 1": of(ONE),
    "two labels": of(half(ONE, 7)),
    "two bright labels": of(half(SQUARE, 64)),
    "labels of FreeSurfer": of(half(ONE * 251, 25)),
    "one bit": of(ONE > 0),
    "16 bits": of(SQUARE.astype(np.uint16) * 257),
    "16 bits of 1": of(ONE.astype(np.uint16)),
    "green": of(np.dstack([NONE, SQUARE, NONE])),
    "blue of 1": of(np.dstack([NONE, NONE, ONE])),
    "two colours": of(np.dstack([half(SQUARE, 0), NONE, SQUARE - half(SQUARE, 0)])),
    "opaque": of(np.dstack([SQUARE, SQUARE, SQUARE, FULL])),
    "half transparent all over": of(np.dstack([SQUARE, SQUARE, SQUARE, FULL // 2])),
    "opacity over white": of(np.dstack([FULL, FULL, FULL, SQUARE])),
    "opacity over black": of(np.dstack([NONE, NONE, NONE, SQUARE])),
    "opacity and colour": of(np.dstack([SQUARE, NONE, NONE, SQUARE // 2])),
    "grey and opaque": of(np.dstack([SQUARE, FULL])),
    "opacity of grey": of(np.dstack([FULL, SQUARE])),
    "palette": palette((0, 0, 0), (128, 0, 0)),
    "grey palette": palette((0, 0, 0), (1, 1, 1)),
    "black palette": palette(),
    "palette of the web": lambda: Image.fromarray(np.dstack([SQUARE, NONE, NONE])).convert("P"),
}


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_pictures_of_masks(tmp_path: Path, kind: str) -> None:
    UNDERSTOOD[kind]().save(tmp_path / "mask.png")
    np.testing.assert_array_equal(loaded(tmp_path, tmp_path / "mask.png"), ONE)


REFUSED = {
    "index and colour disagree": (palette((255, 255, 255), (0, 0, 0)), "the numbers of its palette and their colours"),
    "opacity and colour disagree": (of(np.dstack([SQUARE, NONE, NONE, NONE])), "its opacity and its colours"),
    "labels or noise": (of(half(ONE * 254, 3)), "got the values 0, 3, 254, which may be labels"),
    "no 0": (of(ONE + 1), "got values from 1 to 2 and no 0"),
    "a white background": (of(np.dstack([FULL, 255 - SQUARE, 255 - SQUARE])), "none of them is black"),
    "an image": (of(np.arange(96 * 80).reshape(96, 80).astype(np.uint8)), "neither labels nor black and white"),
    "another size": (of(SQUARE[:50]), "got (80, 50)"),
    "negative": (of(-ONE.astype(np.int32)), "negative values down to -1"),
    "NaN": (of(np.where(ONE, np.nan, 0).astype(np.float32)), "got NaN or infinite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_pictures_that_are_no_masks_are_named(tmp_path: Path, kind: str) -> None:
    picture, said = REFUSED[kind]
    path = tmp_path / ("mask.tif" if kind in ("negative", "NaN") else "mask.png")
    picture().save(path)
    assert said in message(tmp_path, path)


@pytest.mark.parametrize("pixels", [SQUARE / np.float32(255), SQUARE.astype(np.float32)])
def test_real_numbers_in_a_tiff(tmp_path: Path, pixels: Array) -> None:
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    np.testing.assert_array_equal(loaded(tmp_path, tmp_path / "mask.tif"), ONE)


def test_compression_noise_is_no_lesion(tmp_path: Path) -> None:
    square = np.zeros_like(SQUARE)
    square[20:61, 11:52] = 255
    Image.fromarray(square).save(tmp_path / "mask.jpg", quality=50)
    noisy = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert (noisy > 0).sum() > (square > 0).sum()
    np.testing.assert_array_equal(loaded(tmp_path, tmp_path / "mask.jpg"), square > 0)
    Image.open(tmp_path / "mask.jpg").save(tmp_path / "mask.png")  # which hides where it comes from
    np.testing.assert_array_equal(loaded(tmp_path, tmp_path / "mask.png"), square > 0)
    Image.fromarray(square // 255).save(tmp_path / "labels.jpg")
    assert "JPEG does not keep labels" in message(tmp_path, tmp_path / "labels.jpg")
    Image.fromarray(NONE).save(tmp_path / "empty.jpg")
    assert not loaded(tmp_path, tmp_path / "empty.jpg").any()


def test_soft_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    square = np.zeros_like(SQUARE)
    square[20:60, 10:50] = 255
    Image.fromarray(square).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "mask.png")
    found = loaded(tmp_path, tmp_path / "mask.png")
    assert (found != (square > 0)).sum() <= 4  # the corners


VOLUMES = {
    "1": CUBE,
    "255": CUBE * 255,
    "7": CUBE * 7,
    "labels of FreeSurfer": np.where(VOXELS > 0.5, 251, 25).astype(np.uint8) * CUBE,
    "real": CUBE.astype(np.float32),
    "real, 255": CUBE * 255.0,
    "probabilities": CUBE * 0.8 + 0.05 * VOXELS,
    "tiny": CUBE * 0.003,
    "one channel": CUBE[..., None],
    "one of more channels": CUBE[..., None, None],
}


@pytest.mark.parametrize("kind", VOLUMES)
def test_volumes_of_masks(tmp_path: Path, kind: str) -> None:
    mask = save_volume(tmp_path / "mask.nii.gz", VOLUMES[kind])
    np.testing.assert_array_equal(loaded(tmp_path, Path(mask)), CUBE)


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        (np.stack([1 - CUBE, CUBE], -1), "got 2 channels of shape (16, 18, 10). Of a one-hot mask save the channel"),
        (-CUBE.astype(np.int16), "got negative values down to -1"),
        (np.where(CUBE, np.nan, 0), "finite values"),
        (2 * CUBE + 0.3 * CUBE * VOXELS, "as interpolation makes them of labels"),
        ((VOXELS * 1000).astype(np.int16), "neither labels nor black and white"),
        (CUBE[:, :, :9], "got (16, 18, 9)"),
    ],
)
def test_volumes_that_are_no_masks_are_named(tmp_path: Path, voxels: Array, said: str) -> None:
    assert said in message(tmp_path, Path(save_volume(tmp_path / "mask.nii.gz", voxels)))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_mask_with_its_axes_in_another_order(tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    turned = nib.Nifti1Image(CUBE, AFFINE).as_reoriented(np.c_[axes, flips].astype(float))
    nib.save(turned, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(loaded(tmp_path, tmp_path / "mask.nii.gz"), CUBE)


def test_a_reordered_mask_lies_where_its_image_lies(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(CUBE, AFFINE).as_reoriented(np.array([[2, -1], [0, 1], [1, 1.0]])), tmp_path / "m.nii")
    item = {"image": save_volume(tmp_path / "a.nii.gz"), "lesion": str(tmp_path / "m.nii")}
    case = CheckImaged()(LoadCased(["image", "lesion"])(item))
    np.testing.assert_array_equal(case["lesion"].affine, case["image"].affine)
    assert case["lesion"].meta["filename_or_obj"] == str(tmp_path / "m.nii")


@pytest.mark.parametrize("shape", [(16, 18), (16, 18, 1), (16, 18, 1, 1)])
@pytest.mark.parametrize("image_shape", [(16, 18), (16, 18, 1)])
def test_a_slice_may_have_trailing_dimensions(
    tmp_path: Path, shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> None:
    image = save_volume(tmp_path / "a.nii.gz", VOXELS[..., 0].reshape(image_shape), np.eye(4))
    mask = save_volume(tmp_path / "m.nii.gz", CUBE[..., 4].reshape(shape), np.eye(4))
    case = CheckImaged()(LoadCased(["image", "lesion"])({"image": image, "lesion": mask}))
    assert case["lesion"].shape == case["image"].shape
    np.testing.assert_array_equal(case["lesion"].as_tensor().flatten(), CUBE[..., 4].flatten())


def test_a_picture_and_a_volume_go_together_if_their_axes_do() -> None:
    image = MetaTensor(torch.rand(1, 8, 9), affine=torch.diag(torch.tensor([-1.0, -1, 1])))
    lesion = torch.zeros(1, 8, 9, 1)
    lesion[0, 2, 3] = 1
    found = on_grid_of(MetaTensor(lesion, affine=torch.diag(torch.tensor([-2.0, -2, 1, 1]))), image, "m.nii", "a.png")
    assert torch.equal(found.as_tensor(), lesion[..., 0])
    assert torch.equal(found.affine, image.affine)
    with pytest.raises(ValueError, match=r"axes of a\.png; those of m\.nii run otherwise"):
        on_grid_of(MetaTensor(lesion), image, "m.nii", "a.png")


@pytest.mark.parametrize(
    ("label", "mask", "said"),
    [
        (0, SQUARE, "says, 0 (normal); got 100 voxels of lesion"),
        (1, NONE, "says, 1 (abnormal); got no voxels of lesion"),
    ],
)
def test_a_mask_that_contradicts_its_label(tmp_path: Path, label: int, mask: Array, said: str) -> None:
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert said in message(tmp_path, tmp_path / "mask.png", label=label)
    loaded(tmp_path, tmp_path / "mask.png", label=1 - label)


def test_one_mask_for_a_case(tmp_path: Path) -> None:
    files = [save_volume(tmp_path / f"{name}.nii", CUBE) for name in "ab"]
    with pytest.raises(ValueError, match=r"Expected one mask for a case; got .*a\.nii, .*b\.nii"):
        LoadCased("lesion")({"lesion": files})


def test_channels_of_a_tensor_are_not_merged() -> None:
    with pytest.raises(ValueError, match="Expected one mask in m; got 3 channels"):
        binary_mask(torch.zeros(3, 4, 4), "m")
